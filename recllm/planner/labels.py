"""Which tool would have been right: oracle plans from cached answers, and the warm-up traces made of them."""

from __future__ import annotations

import math

import numpy as np

from recllm.data.prompts import assistant
from recllm.planner.bench import Bench
from recllm.planner.texts import DONE, TOOLS, call_message
from recllm.tools.cache import DEPTH, ToolCache


def dense_value(rank: np.ndarray | float) -> np.ndarray:
    """1 - ln(rank) / ln(51) of a 1-based rank within the first 50, else 0 (methods: the dense planner term).

    `rank` is 0-based here: 0 gives 1, 49 gives about 0.005, 50 and beyond give 0.
    """
    rank = np.asarray(rank, dtype=float)
    inside = rank < DEPTH
    return np.where(inside, 1 - np.log(np.where(inside, rank, 0) + 1) / math.log(DEPTH + 1), 0.0)


def oracle_tools(cache: ToolCache) -> np.ndarray:
    """The oracle's tool for each example, `tool_E`: the cheapest that reaches the best NDCG@10.

    Equal NDCG is decided by the logarithm of the rank in the first 50, equal rank by cost; where every tool misses the
    answer is retrieve.
    """
    keys_EP = np.stack([cache.ndcg_PE, dense_value(cache.rank_PE), -cache.cost_PE.astype(float)])
    best_E = np.lexsort(keys_EP[::-1], axis=0)[-1]
    missed_E = (cache.rank_PE >= DEPTH).all(0)
    return np.where(missed_E, TOOLS.index("retrieve"), best_E)


def published_tools(cache: ToolCache, first: int = 10) -> np.ndarray:
    """The paper's pseudo-labels: in retrieve's first 10 -> retrieve, in its first 50 -> rank, else reason."""
    rank_E = cache.rank_PE[TOOLS.index("retrieve")]
    return np.where(rank_E < first, 0, np.where(rank_E < DEPTH, 1, 2))


def up_routed(tool_E: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Labels in which a `share` (0..1) of the retrieve ones, drawn at random, is given to the dearer tools, half each.

    The paper's guard (share .2) against a planner that never tries them, for where labels are nearly all retrieve.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"up_routing must lie between 0 and 1, got {share}")
    moved_E = (tool_E == TOOLS.index("retrieve")) & (rng.random(len(tool_E)) < share)
    dearer_E = np.where(rng.random(len(tool_E)) < 0.5, TOOLS.index("rank"), TOOLS.index("reason"))
    return np.where(moved_E, dearer_E, tool_E)


def decisive(cache: ToolCache) -> np.ndarray:
    """Whether the tools differ in NDCG@10, `bool_E`: elsewhere a planner can only save cost."""
    return np.ptp(cache.ndcg_PE, axis=0) > 0


def choose_rows(cache: ToolCache, rng: np.random.Generator, decisive_share: float = 0.5) -> np.ndarray:
    """Rows in random order: all decisive ones, and as many others as leave those their `decisive_share`."""
    if not 0 < decisive_share <= 1:
        raise ValueError(f"decisive_share must be above 0 and at most 1, got {decisive_share}")
    decisive_E = decisive(cache)
    chosen, others = np.flatnonzero(decisive_E), np.flatnonzero(~decisive_E)
    others = rng.permutation(others)[: int(len(chosen) * (1 - decisive_share) / decisive_share)]
    return rng.permutation(np.concatenate([chosen, others]))


def trace(bench: Bench, row: int, tool: str) -> list[dict]:
    """A whole episode as chat messages: the prompt with retrieve's findings, one call, its answer, the end."""
    before, items = bench.items("retrieve", row, 10), bench.items(tool, row, 10)
    answer = {"role": "tool", "name": tool, "content": bench.result(tool, row, items, before)}
    return [*bench.prompt(row), call_message(tool), answer, assistant(DONE)]
