"""The quickstart language model: a small Qwen3-architecture network and a BPE tokenizer of the data set's own text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recllm.data.catalog import Catalog
from recllm.data.prompts import assistant, category_thought, planner_prompt, reasoner_prompt
from recllm.sid.quantizer import LEVEL_LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# As in Qwen3 these are added but not special, so that decoding for rewards keeps them.
_MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_SID = re.compile(rf"<[{LEVEL_LETTERS}]_\d+>")


def training_texts(catalog: Catalog, extra: Sequence[str] = ()) -> list[str]:
    """Text that the tokenizer should be good at: titles, categories and what the prompts look like without sids."""
    texts = [f"{title} {', '.join(names)}" for title, names in zip(catalog.titles, catalog.categories, strict=True)]
    for names in catalog.categories:
        for length in (8, 64, 512):
            chat = [*planner_prompt([], names, length), *reasoner_prompt([]), assistant(category_thought(names))]
            texts += [message["content"] for message in chat]
    return texts + list(extra)


def chat_texts(folder: str | Path, most: int = 20_000, roles: bool = False) -> list[str]:
    """The messages of a chat data set, of `most` rows at most, without the sids: those become tokens of their own.

    `roles`: also the role that a chat template names before each message.
    """
    from recllm.training.sft import load_chats

    rows = load_chats(folder)
    chats = rows.select(range(min(most, len(rows))))["messages"]
    said = ("role", "content") if roles else ("content",)
    return [_SID.sub("", message[part]) for chat in chats for message in chat for part in said]


def train_tokenizer(texts: Iterable[str], vocab_size: int, single_digits: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen3's markers; every string round-trips. `vocab_size` counts all but the added tokens.

    `single_digits`: no token holds more than one digit, as in Qwen3.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if single_digits:
        apart = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    seed: int,
    attention_dropout: float = 0.0,
) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 with tied embeddings; rows are padded to a multiple of 64."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    set_seed(seed)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_length,
        attention_dropout=attention_dropout,
        tie_word_embeddings=True,
        # With the tokens' own spread a small tied head starts near uniform.
        initializer_range=hidden_size**-0.5 / 2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
