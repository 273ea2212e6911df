"""Rollouts of the reasoner: a free thought up to a budget, then one sid drawn over the trie, for TRL's trainer.

The thoughts of a group are drawn side by side after one reading of their prompt. A thought that does not close itself
within the budget is closed for it; that token was not drawn, so it is masked (`env_mask` 0) and teaches nothing, like
the end of the answer (see `recommender_rollout.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recllm.data.prompts import THINK_CLOSE
from recllm.decoding.sample import Samples, sample_items
from recllm.decoding.trie import SidTrie
from recllm.training.prefix.generation import draw_shared
from recllm.training.recommender_rollout import decoding, group_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOTrainer

# Contexts that are read at once for the draw of their sids.
_CONTEXTS = 64


@dataclass(frozen=True)
class Thought:
    """Tokens of a drawn thought with its closing marker, and whether it closed itself."""

    tokens: list[int]
    closed: bool


@dataclass(frozen=True)
class ThoughtRollout:
    """A `rollout_func` for GRPOTrainer.

    Returns `prompt_ids`, `completion_ids`, `logprobs` (of the sid over the trie; 0 for the thought, whose own are not
    kept: the loss computes all of them), `env_mask`, and for the rewards `drawn` (item), `closed` and `thought_tokens`.
    Draws come from torch's generator, whose state is part of a checkpoint.
    """

    trie: SidTrie
    end: Sequence[int]
    think_tokens: int

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, list]:
        training, tokenizer = trainer.model.training, trainer.processing_class
        size = trainer.num_generations if training else trainer.num_generations_eval
        groups = group_prompts(prompts, size, strict=training)
        chats = [prompts[members[0]] for members in groups]
        prompt_ids = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_dict=False, **trainer.chat_template_kwargs
        )
        order = [i for members in groups for i in members]
        repeated = [ids for ids, members in zip(prompt_ids, groups, strict=True) for _ in members]
        with decoding(trainer) as model:
            thoughts = draw_thoughts(model, tokenizer, repeated, self.think_tokens, trainer.temperature, trainer.top_p)
            contexts = [prompt + thought.tokens for prompt, thought in zip(repeated, thoughts, strict=True)]
            answers = [
                sample_items(
                    model,
                    contexts[start : start + _CONTEXTS],
                    self.trie,
                    1,
                    temperature=trainer.temperature,
                    replacement=True,
                    with_mass=False,
                )
                for start in range(0, len(contexts), _CONTEXTS)
            ]
        return self._columns(len(prompts), order, repeated, thoughts, answers)

    def _columns(
        self, count: int, order: list[int], repeated: list[list[int]], thoughts: list[Thought], answers: list[Samples]
    ) -> dict[str, list]:
        """Every completion at its prompt's place."""
        items, tokens, logps = (
            [row for part in answers for row in getattr(part, name)[:, 0].tolist()]
            for name in ("items_BK", "tokens_BKL", "logp_BKL")
        )
        columns: dict[str, list] = defaultdict(lambda: [None] * count)
        for row, i in enumerate(order):
            thought, sid = thoughts[row], tokens[row]
            idle = [0] * len(self.end)
            columns["prompt_ids"][i] = repeated[row]
            columns["completion_ids"][i] = [*thought.tokens, *sid, *self.end]
            columns["logprobs"][i] = [*(0.0 for _ in thought.tokens), *logps[row], *map(float, idle)]
            drawn = [1] * (len(thought.tokens) - 1) + [int(thought.closed)]
            columns["env_mask"][i] = [*drawn, *(1 for _ in sid), *idle]
            columns["drawn"][i], columns["closed"][i] = items[row], thought.closed
            columns["thought_tokens"][i] = len(thought.tokens)
        return dict(columns)


def draw_thoughts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    budget: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Thought]:
    """One thought after each prompt, of at most `budget` tokens and the closing marker; equal prompts are read once."""
    from transformers import GenerationConfig

    close, eos = tokenizer.convert_tokens_to_ids(THINK_CLOSE), tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    config = GenerationConfig(
        max_new_tokens=budget,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        eos_token_id=[close, eos],
        pad_token_id=pad,
    )
    return [read_thought(ids, close, {eos, pad}) for ids in draw_shared(model, prompts, config)]


def read_thought(ids: Sequence[int], close: int, ends: set[int]) -> Thought:
    """What was drawn up to the closing marker; where an end or the budget came first, the marker is added."""
    kept: list[int] = []
    for token in ids:
        if token == close:
            return Thought([*kept, close], True)
        if token in ends:
            break
        kept.append(token)
    return Thought([*kept, close], False)
