"""Tiny models, random tries and the plain twins that searches and draws are held against."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.trie import SidTrie

VOCABULARY = 60


def make_model(family: str, seed: int = 0, tied: bool = True, **changes) -> torch.nn.Module:
    """A random Llama or Qwen3 in evaluation mode; `changes` are of its config."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        # Wide weights, so that the scores of items differ clearly.
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        **changes,
    }
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=4, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def make_trie(levels: int, items: int, seed: int = 0) -> tuple[SidTrie, list[tuple[int, ...]]]:
    """`items` random sids of `levels` codes; level l uses token ids from 20 + 8 l, in shuffled order of items.

    Low codes are drawn far more often, so that some prefixes have many children and some have one.
    """
    rng = np.random.default_rng(seed)
    sids: dict[tuple[int, ...], None] = {}
    while len(sids) < items:
        codes = np.minimum(rng.geometric(0.3, size=levels) - 1, 7)
        sids[tuple(int(20 + 8 * level + code) for level, code in enumerate(codes))] = None
    return SidTrie.from_sequences([np.array(sid) for sid in sids]), list(sids)


@torch.no_grad()
def grow(model, sids, prompt: list[int], live: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Every prefix of `live` by one code more: log-probabilities renormalised over the codes that may follow it.

    All of one length, so one forward without cache, mask or padding.
    """
    logits = model(torch.tensor([[*prompt, *prefix] for prefix in live])).logits[:, -1]
    grown = {}
    for logits_V, (prefix, score) in zip(logits, live.items(), strict=True):
        allowed = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
        steps = logits_V[allowed].log_softmax(0).tolist()
        grown |= {(*prefix, code): score + step for code, step in zip(allowed, steps, strict=True)}
    return grown


def textbook_beam(model, sids, prompt: list[int], beams: int) -> list[tuple[int, float]]:
    """(item, score) pairs, best first."""
    live = {(): 0.0}
    for _ in range(len(sids[0])):
        grown = grow(model, sids, prompt, live)
        live = dict(sorted(grown.items(), key=lambda pair: -pair[1])[:beams])
    return [(sids.index(sid), score) for sid, score in live.items()]


def every_item(model, sids, prompt: list[int]) -> list[float]:
    """Score of every item."""
    live = {(): 0.0}
    for _ in range(len(sids[0])):
        live = grow(model, sids, prompt, live)
    return [live[sid] for sid in sids]


def prompt_batch(seed: int, rows: int = 3, longest: int = 7) -> list[list[int]]:
    """Prompts of unequal length over text and sid tokens."""
    rng = np.random.default_rng(seed)
    lengths = [longest, 1, *rng.integers(1, longest, size=rows)][:rows]
    return [rng.integers(1, VOCABULARY, size=length).tolist() for length in lengths]


def beam_items(model, prompts, trie, k, **options):
    """`recommend_by_beam` over the codes that may follow, which is what the twins here compute."""
    return recommend_by_beam(model, prompts, trie, k, normalisation="trie", **options)
