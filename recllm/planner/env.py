"""The planner's environment for TRL's `environment_factory`: every public method is a tool, its docstring the schema.

The prompt shows what retrieve found. The planner calls the tool whose list it wants, may look at the answer and call a
slower one. The last list is the answer; an episode without any valid call falls back to retrieve.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.planner.bench import Bench
from recllm.tools.cache import DEPTH

MAX_CALLS = 4
LIMIT_TEXT = "No calls left. Answer now."


@dataclass
class Episode:
    """What happened so far: valid calls as (tool, items, cost), and the faults.

    `ranked` is all that the last call put in order, of which its items are the first.
    """

    row: int
    target: int
    calls: list[tuple[str, np.ndarray, int]] = field(default_factory=list)
    invalid: int = 0
    redundant: int = 0
    ranked: np.ndarray | None = None

    @property
    def tool(self) -> str | None:
        """The tool whose list is the answer, None where no call was valid."""
        return self.calls[-1][0] if self.calls else None


class PlannerEnv:
    """One rollout's view of a `Bench`. Instances are reused from batch to batch; `reset` starts an episode."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self.episode = Episode(row=-1, target=-1)

    def reset(self, row: int, **columns: Any) -> None:
        """Start an episode on example `row` of the bench; the other columns of the data set are not needed."""
        self.episode = Episode(row=row, target=int(self._bench.examples.targets_E[row]))

    def retrieve(self, k: int = 10) -> str:
        """Fast: the next items by a sequential model.

        Args:
            k: How many items, 1 to 50.
        """
        self._check(k=(k, DEPTH))
        return self._call("retrieve", k, DEPTH)

    def rank(self, m: int = 50, n: int = 10) -> str:
        """Medium: re-order the m best retrieved items and keep n.

        Args:
            m: How many items to rank, 1 to 50.
            n: How many items to keep, 1 to m.
        """
        self._check(m=(m, DEPTH), n=(n, m))
        return self._call("rank", n, m)

    def reason(self, n: int = 10) -> str:
        """Slow: think about what the user wants, then search for it.

        Args:
            n: How many items, 1 to 50.
        """
        self._check(n=(n, DEPTH))
        return self._call("reason", n, DEPTH)

    def _check(self, **limits: tuple[int, int]) -> None:
        for name, (value, most) in limits.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                self.episode.invalid += 1
                raise ValueError(f"{name} must be a whole number from 1 to {most}")

    def _call(self, tool: str, count: int, m: int) -> str:
        episode = self.episode
        if len(episode.calls) >= MAX_CALLS:
            episode.redundant += 1
            return LIMIT_TEXT
        episode.redundant += any(name == tool for name, _, _ in episode.calls)
        before = episode.calls[-1][1] if episode.calls else self._bench.items("retrieve", episode.row, 10)
        episode.ranked = self._bench.items(tool, episode.row, DEPTH, m)
        items = episode.ranked[:count]
        episode.calls.append((tool, items, self._bench.cost(tool, episode.row, m)))
        return self._bench.result(tool, episode.row, items, before)


def answer_items(env: PlannerEnv) -> np.ndarray:
    """The list an episode ends with: the last call's, or retrieve's where there was no valid call."""
    episode = env.episode
    return episode.calls[-1][1] if episode.calls else env._bench.items("retrieve", episode.row, 10)


def answer_rank(env: PlannerEnv) -> float:
    """Rank of the target in the answer (0 is first), infinite where it is absent."""
    return _place(env.episode.target, answer_items(env))


def ranked_place(env: PlannerEnv) -> float:
    """Place of the target among all that the answering tool put in order (0 is first), infinite where it is absent."""
    episode = env.episode
    ranked = env._bench.items("retrieve", episode.row) if episode.ranked is None else episode.ranked
    return _place(episode.target, ranked)


def _place(target: int, items: np.ndarray) -> float:
    return float(rank_in_list(items[None], np.array([target]))[0])


def answer_ndcg(env: PlannerEnv) -> float:
    """NDCG@10 of the answer."""
    return float(ndcg_at_k(np.array([answer_rank(env)]), 10)[0])


def tools_cost(env: PlannerEnv) -> int:
    """FLOPs of the tools. The retrieval that the prompt shows is always paid, and only once: a call of retrieve adds
    nothing to it, rank its forward over the candidates, reason its whole cost."""
    base = env._bench.cost("retrieve", env.episode.row)
    extra = {"retrieve": base, "rank": base, "reason": 0}
    return base + sum(cost - extra[tool] for tool, _, cost in env.episode.calls)
