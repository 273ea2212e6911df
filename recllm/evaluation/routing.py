"""Routers side by side: always one tool, random mixing, a margin threshold, the oracle, and a trained planner.

All are graded on the same examples, over the whole catalogue, with bootstrap 95% intervals; costs are FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recllm.metrics.bootstrap import flat, mean_interval, paired_interval
from recllm.metrics.pareto import line_at
from recllm.metrics.ranking import ndcg_at_k, recall_at_k
from recllm.planner.env import answer_rank, tools_cost
from recllm.planner.labels import decisive, oracle_tools
from recllm.planner.rollout import Rollout
from recllm.planner.texts import TOOLS
from recllm.tools.cache import ToolCache

CUT = 10
FIXED = tuple(f"always_{tool}" for tool in TOOLS)


@dataclass(frozen=True)
class Routed:
    """What a router did: the tool whose list is the answer, the target's rank in it, and what the tools cost."""

    tool_E: np.ndarray
    rank_E: np.ndarray
    cost_E: np.ndarray

    @property
    def ndcg_E(self) -> np.ndarray:
        return ndcg_at_k(self.rank_E, CUT)


def by_tool(cache: ToolCache, tool_E: np.ndarray) -> Routed:
    """The outcome of giving each example its tool."""
    tool_E = np.broadcast_to(np.asarray(tool_E), (len(cache),))
    row_E = np.arange(len(cache))
    return Routed(tool_E, cache.rank_PE[tool_E, row_E], cache.cost_PE[tool_E, row_E])


def by_planner(rollouts: list[Rollout]) -> Routed:
    """The outcome of a planner's episodes; an episode without a valid call counts as retrieve."""
    tool_E = np.array([TOOLS.index(rollout.env.episode.tool or "retrieve") for rollout in rollouts])
    rank_E = np.array([answer_rank(rollout.env) for rollout in rollouts])
    return Routed(tool_E, rank_E, np.array([tools_cost(rollout.env) for rollout in rollouts]))


def random_mix(cache: ToolCache, shares: np.ndarray, seed: int) -> Routed:
    """Tools drawn at the given shares without looking at the example."""
    drawn_E = np.random.default_rng(seed).choice(len(TOOLS), size=len(cache), p=shares / shares.sum())
    return by_tool(cache, drawn_E)


@dataclass(frozen=True)
class MarginRouter:
    """Where the retriever's margin is below a threshold, use `low`, else `high` (tool indices)."""

    threshold: float
    low: int
    high: int

    @classmethod
    def fit(cls, cache: ToolCache, cost_weight: float) -> MarginRouter:
        """The threshold and pair of tools with the best NDCG@10 - cost_weight x cost share on these examples."""
        margin_E = cache.margin_PE[TOOLS.index("retrieve")]
        slow_E = cache.cost_PE[TOOLS.index("reason")]
        value_PE = cache.ndcg_PE - cost_weight * cache.cost_PE / slow_E
        best = None
        for threshold in np.quantile(margin_E, np.arange(0, 1.0, 0.05)):
            below_E = margin_E < threshold
            for low in range(len(TOOLS)):
                for high in range(len(TOOLS)):
                    value = float(np.where(below_E, value_PE[low], value_PE[high]).mean())
                    if best is None or value > best[0]:
                        best = (value, cls(float(threshold), low, high))
        return best[1]

    def route(self, cache: ToolCache) -> Routed:
        margin_E = cache.margin_PE[TOOLS.index("retrieve")]
        return by_tool(cache, np.where(margin_E < self.threshold, self.low, self.high))


def routers(cache: ToolCache, margin: MarginRouter) -> dict[str, Routed]:
    """Every router that needs no planner."""
    fixed = {name: by_tool(cache, np.int64(index)) for index, name in enumerate(FIXED)}
    return {**fixed, "margin": margin.route(cache), "oracle": by_tool(cache, oracle_tools(cache))}


def headroom(cache: ToolCache) -> dict[str, float]:
    """NDCG@10 of the oracle minus the best fixed tool, with its paired interval.

    Where the interval holds 0 the tools are not complementary, and no planner can help.
    """
    best_E = cache.ndcg_PE[int(cache.ndcg_PE.mean(1).argmax())]
    return flat("headroom", paired_interval(by_tool(cache, oracle_tools(cache)).ndcg_E, best_E))


def routing_metrics(
    cache: ToolCache, margin: MarginRouter, rollouts: list[Rollout] | None = None, seed: int = 0
) -> dict[str, float]:
    """Flat metrics of every router; with `rollouts` (one for each example, in order) the planner's and its rivals'."""
    found = routers(cache, margin)
    metrics: dict[str, float] = {"n": len(cache), **headroom(cache)}
    if rollouts is not None:
        planner = by_planner(rollouts)
        shares = np.bincount(planner.tool_E, minlength=len(TOOLS)) / len(cache)
        found = {"planner": planner, "random_mix": random_mix(cache, shares, seed), **found}
    oracle_E, decisive_E = found["oracle"].tool_E, decisive(cache)
    for name, routed in found.items():
        metrics |= flat(f"{name}/ndcg@{CUT}", mean_interval(routed.ndcg_E))
        metrics |= flat(f"{name}/recall@{CUT}", mean_interval(recall_at_k(routed.rank_E, CUT)))
        metrics[f"{name}/cost"] = float(routed.cost_E.mean())
        metrics[f"{name}/oracle_agreement"] = float((routed.tool_E == oracle_E).mean())
        metrics[f"{name}/decisive_agreement"] = float((routed.tool_E == oracle_E)[decisive_E].mean())
        for index, tool in enumerate(TOOLS):
            metrics[f"{name}/share_{tool}"] = float((routed.tool_E == index).mean())
    if rollouts is not None:
        metrics |= _planner_extras(found, rollouts, cache, shares, seed)
    return metrics


def _planner_extras(
    found: Mapping[str, Routed], rollouts: list[Rollout], cache: ToolCache, shares: np.ndarray, seed: int
) -> dict[str, float]:
    planner = found["planner"]
    own = float(np.mean([rollout.own_cost for rollout in rollouts]))
    best = max(FIXED, key=lambda name: found[name].ndcg_E.mean())
    points = [(float(found[name].cost_E.mean()), float(found[name].ndcg_E.mean())) for name in (FIXED[0], best)]
    line = float(line_at(float(planner.cost_E.mean()), *points))
    # What mixing gives on average: each example's expected NDCG under the planner's shares.
    expected_E = shares @ cache.ndcg_PE
    return {
        "planner/own_cost": own,
        "planner/total_cost": own + float(planner.cost_E.mean()),
        "planner/faulty_share": float(np.mean([rollout.faults > 0 for rollout in rollouts])),
        "planner/best_fixed": best,
        "planner/line_ndcg": line,
        "planner/above_line": float(planner.ndcg_E.mean()) - line,
        **flat("planner/over_best_fixed", paired_interval(planner.ndcg_E, found[best].ndcg_E)),
        **flat("planner/over_random_mix", paired_interval(planner.ndcg_E, expected_E)),
        "planner/regret": float((found["oracle"].ndcg_E - planner.ndcg_E).mean()),
    }
