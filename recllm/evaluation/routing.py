"""Routers side by side: always one tool, random mixing, thresholds on the retriever's confidence, the oracle, and a
trained planner.

All are graded on the same examples, over the whole catalogue, with bootstrap 95% intervals; costs are FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
CUTS = (5, 10)
QUALITIES = tuple(f"{metric}@{cut}" for metric in ("ndcg", "recall") for cut in CUTS)
SIGNALS = ("margin", "entropy")
FIXED = tuple(f"always_{tool}" for tool in TOOLS)


@dataclass(frozen=True)
class Routed:
    """What a router did to each example: the answer's `QUALITIES`, each of shape E, the tools' cost, and `share_PE`.

    `share_PE` is the probability of each tool (0 or 1 for a router that does not draw), so that every column of a
    router that draws is an expectation and depends on no seed.
    """

    qualities: Mapping[str, np.ndarray]
    cost_E: np.ndarray
    share_PE: np.ndarray

    @property
    def value_E(self) -> np.ndarray:
        """NDCG@10 of each example."""
        return self.qualities[f"ndcg@{CUT}"]

    def paying(self, cost_PE: np.ndarray) -> Routed:
        """The same routing where each tool costs what `cost_PE` says."""
        return replace(self, cost_E=(self.share_PE * cost_PE).sum(0))

    def agreement(self, tool_E: np.ndarray) -> np.ndarray:
        """Probability that each example got its tool of `tool_E`."""
        return self.share_PE[tool_E, np.arange(len(tool_E))]


def qualities_of(rank_E: np.ndarray) -> dict[str, np.ndarray]:
    """`QUALITIES` of answers that hold their target at these ranks (0 is first), each of the ranks' shape."""
    measures = {"ndcg": ndcg_at_k, "recall": recall_at_k}
    found = {}
    for name in QUALITIES:
        metric, cut = name.split("@")
        found[name] = measures[metric](rank_E.ravel(), int(cut)).reshape(rank_E.shape)
    return found


def by_share(cache: ToolCache, share_PE: np.ndarray) -> Routed:
    """The expected outcome of drawing each example's tool at its shares."""
    means = {name: (share_PE * values_PE).sum(0) for name, values_PE in qualities_of(cache.rank_PE).items()}
    return Routed(means, (share_PE * cache.cost_PE).sum(0), share_PE)


def by_tool(cache: ToolCache, tool_E: np.ndarray) -> Routed:
    """The outcome of giving each example its tool (an index, or one index for all)."""
    return by_share(cache, one_hot(np.broadcast_to(np.asarray(tool_E), (len(cache),))))


def one_hot(tool_E: np.ndarray) -> np.ndarray:
    """`share_PE` of a router that does not draw."""
    return (np.arange(len(TOOLS))[:, None] == tool_E).astype(float)


def by_planner(rollouts: list[Rollout]) -> Routed:
    """The outcome of a planner's episodes; an episode without a valid call counts as retrieve."""
    tool_E = np.array([TOOLS.index(rollout.env.episode.tool or "retrieve") for rollout in rollouts])
    rank_E = np.array([answer_rank(rollout.env) for rollout in rollouts])
    cost_E = np.array([tools_cost(rollout.env) for rollout in rollouts], dtype=float)
    return Routed(qualities_of(rank_E), cost_E, one_hot(tool_E))


def random_mix(cache: ToolCache, share_P: np.ndarray) -> Routed:
    """Tools drawn at the given shares without looking at the example, in expectation."""
    return by_share(cache, np.broadcast_to(share_P[:, None], (len(TOOLS), len(cache))))


def confidence(cache: ToolCache, signal: str) -> np.ndarray:
    """How sure the retriever is of each example by one of `SIGNALS`: its margin, or its list's entropy, negated."""
    values_PE = {"margin": cache.margin_PE, "entropy": -cache.entropy_PE}[signal]
    return values_PE[TOOLS.index("retrieve")]


@dataclass(frozen=True)
class ThresholdRouter:
    """Where the retriever's confidence by a signal is below a threshold, use `low`, else `high` (tool indices)."""

    signal: str
    threshold: float
    low: int
    high: int

    @classmethod
    def fit(cls, cache: ToolCache, signal: str, cost_weight: float) -> ThresholdRouter:
        """The threshold and pair of tools with the best NDCG@10 - cost_weight x cost share on these examples."""
        sure_E = confidence(cache, signal)
        slow_E = cache.cost_PE[TOOLS.index("reason")]
        value_PE = cache.ndcg_PE - cost_weight * after_retrieval(cache) / slow_E
        best = None
        for threshold in np.quantile(sure_E, np.arange(0, 1.0, 0.05)):
            below_E = sure_E < threshold
            for low in range(len(TOOLS)):
                for high in range(len(TOOLS)):
                    value = float(np.where(below_E, value_PE[low], value_PE[high]).mean())
                    if best is None or value > best[0]:
                        best = (value, cls(signal, float(threshold), low, high))
        return best[1]

    def route(self, cache: ToolCache) -> Routed:
        routed = by_tool(cache, np.where(confidence(cache, self.signal) < self.threshold, self.low, self.high))
        return routed.paying(after_retrieval(cache))


def after_retrieval(cache: ToolCache) -> np.ndarray:
    """Cost of each tool for who has looked at the retrieval first, `cost_PE`: reason does not include it."""
    cost_PE = cache.cost_PE.astype(float)
    cost_PE[TOOLS.index("reason")] += cost_PE[TOOLS.index("retrieve")]
    return cost_PE


def fit_thresholds(cache: ToolCache, cost_weight: float) -> list[ThresholdRouter]:
    """The best router of each of `SIGNALS` on these examples."""
    return [ThresholdRouter.fit(cache, signal, cost_weight) for signal in SIGNALS]


def routers(cache: ToolCache, thresholds: Sequence[ThresholdRouter]) -> dict[str, Routed]:
    """Every router that needs no planner, those of a threshold under the name of their signal."""
    fixed = {name: by_tool(cache, np.int64(index)) for index, name in enumerate(FIXED)}
    sure = {router.signal: router.route(cache) for router in thresholds}
    return {**fixed, **sure, "oracle": by_tool(cache, oracle_tools(cache))}


def headroom(cache: ToolCache) -> dict[str, float]:
    """NDCG@10 of the oracle minus the best fixed tool, with its paired interval.

    Where the interval holds 0 the tools are not complementary, and no planner can help.
    """
    best_E = cache.ndcg_PE[int(cache.ndcg_PE.mean(1).argmax())]
    return flat("headroom", paired_interval(by_tool(cache, oracle_tools(cache)).value_E, best_E))


def routing_metrics(
    cache: ToolCache, thresholds: Sequence[ThresholdRouter], rollouts: list[Rollout] | None = None
) -> dict[str, Any]:
    """Flat metrics of every router; with `rollouts` (one for each example, in order) the planner's and its rivals'."""
    found = routers(cache, thresholds)
    metrics: dict[str, Any] = {"n": len(cache), **headroom(cache)}
    if rollouts is not None:
        planner = by_planner(rollouts)
        found = {"planner": planner, "random_mix": random_mix(cache, planner.share_PE.mean(1)), **found}
    for name, routed in found.items():
        metrics |= described(name, routed, cache)
    return metrics if rollouts is None else metrics | _planner_extras(found, rollouts)


def described(name: str, routed: Routed, cache: ToolCache) -> dict[str, float | None]:
    """Flat metrics `name/...` of one router: qualities with intervals, cost, agreement with the oracle, and shares."""
    agreement_E, decisive_E = routed.agreement(oracle_tools(cache)), decisive(cache)
    metrics: dict[str, float | None] = {}
    for quality, values_E in routed.qualities.items():
        metrics |= flat(f"{name}/{quality}", mean_interval(values_E))
    metrics[f"{name}/cost"] = float(routed.cost_E.mean())
    metrics[f"{name}/oracle_agreement"] = float(agreement_E.mean())
    metrics[f"{name}/decisive_agreement"] = float(agreement_E[decisive_E].mean()) if decisive_E.any() else None
    shares = routed.share_PE.mean(1)
    return metrics | {f"{name}/share_{tool}": float(share) for tool, share in zip(TOOLS, shares, strict=True)}


def own_costs(name: str, planner: Routed, rollouts: list[Rollout]) -> dict[str, float]:
    """`name/own_cost`, FLOPs of the planner's own tokens, and `name/total_cost`, the tools' FLOPs besides."""
    own = float(np.mean([rollout.own_cost for rollout in rollouts]))
    return {f"{name}/own_cost": own, f"{name}/total_cost": own + float(planner.cost_E.mean())}


def _planner_extras(found: Mapping[str, Routed], rollouts: list[Rollout]) -> dict[str, Any]:
    planner = found["planner"]
    best = max(FIXED, key=lambda name: found[name].value_E.mean())
    points = [(float(found[name].cost_E.mean()), float(found[name].value_E.mean())) for name in (FIXED[0], best)]
    line = float(line_at(float(planner.cost_E.mean()), *points)) if best != FIXED[0] else points[0][1]
    return {
        **own_costs("planner", planner, rollouts),
        "planner/faulty_share": float(np.mean([rollout.faults > 0 for rollout in rollouts])),
        "planner/line_ndcg": line,
        "planner/above_line": float(planner.value_E.mean()) - line,
        **flat("planner/over_best_fixed", paired_interval(planner.value_E, found[best].value_E)),
        **flat("planner/over_random_mix", paired_interval(planner.value_E, found["random_mix"].value_E)),
        "planner/regret": float((found["oracle"].value_E - planner.value_E).mean()),
    }
