"""What a planner should reach (TwiSTAR's claims and common sense), by how much it does, and what limits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from recllm.evaluation.learned import signals
from recllm.evaluation.routing import FIXED, Routed, by_tool
from recllm.planner.bench import Bench
from recllm.planner.labels import decisive, oracle_tools
from recllm.planner.texts import TOOLS

# TwiSTAR (arXiv 2605.11553): share of users on the slow path, and agreement with the oracle.
PUBLISHED_SLOW_SHARE = 0.148
PUBLISHED_AGREEMENT = 0.783
_NEAR = 0.05
_COLLAPSED = 0.95


class Aim(NamedTuple):
    """A figure and the bound that it should keep: `at_most` or, where false, at least."""

    value: float
    bound: float
    at_most: bool

    @property
    def slack(self) -> float:
        """How far inside the bound the figure is; negative where it is missed."""
        return self.bound - self.value if self.at_most else self.value - self.bound


def aims(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`aim/<name>`, `aim/<name>/bound` and `aim/<name>/slack` from a report's metrics; a slack below 0 is a miss.

    latency aims appear where `latency/...` was measured.
    """
    slow = metrics["always_reason/cost"]
    shares = [metrics[f"planner/share_{tool}"] for tool in TOOLS]
    found = {
        "over_best_fixed": Aim(metrics["planner/over_best_fixed"], 0.0, at_most=False),
        "over_random_mix": Aim(metrics["planner/over_random_mix"], 0.0, at_most=False),
        "tools_cost_share": Aim(metrics["planner/cost"] / slow, 0.5, at_most=True),
        "total_cost_share": Aim(metrics["planner/total_cost"] / slow, 0.5, at_most=True),
        "largest_share": Aim(max(shares), _COLLAPSED, at_most=True),
        "slow_share_off": Aim(abs(metrics["planner/share_reason"] - PUBLISHED_SLOW_SHARE), _NEAR, at_most=True),
    }
    if metrics["planner/decisive_agreement"] is not None:
        found["decisive_agreement"] = Aim(metrics["planner/decisive_agreement"], PUBLISHED_AGREEMENT, at_most=False)
    for cut in ("p50", "p95"):
        if f"latency/planner/{cut}_ms@1" in metrics:
            bound = metrics[f"latency/reason/{cut}_ms@1"]
            found[f"{cut}_ms"] = Aim(metrics[f"latency/planner/{cut}_ms@1"], bound, at_most=True)
    flat: dict[str, float] = {}
    for name, aim in found.items():
        flat |= {f"aim/{name}": aim.value, f"aim/{name}/bound": aim.bound, f"aim/{name}/slack": aim.slack}
    return flat


def limits(bench: Bench, planner: Routed, learned: Routed) -> dict[str, float]:
    """What stands between a planner and the oracle, from the cached answers of the graded examples.

    `limit/decisive_share`: examples where the tools differ. `limit/adds_<tool>`: NDCG@10 that the oracle loses where it
    may not call the tool, so what the tool brings that no other has. `limit/oracle_share_<tool>`: the oracle's calls on
    decisive examples. `limit/auc_<tool>_<signal>`: how well a signal (either way round) tells the decisive examples
    where the tool is the oracle's from the others, .5 being chance; `planner` and `learned` are their own choices.
    `limit/learned_decisive_agreement`: of the router that is fitted on all these signals.
    """
    cache = bench.cache
    oracle_E, decisive_E = oracle_tools(cache), decisive(cache)
    best = by_tool(cache, oracle_E).value_E.mean()
    metrics = {"limit/decisive_share": float(decisive_E.mean())}
    for place, tool in enumerate(TOOLS):
        others_PE = np.delete(cache.ndcg_PE, place, axis=0)
        metrics[f"limit/adds_{tool}"] = float(best - others_PE.max(0).mean())
    if not decisive_E.any():
        return metrics
    known = {**signals(bench)}
    for place, tool in enumerate(TOOLS):
        is_best_E = oracle_E[decisive_E] == place
        metrics[f"limit/oracle_share_{tool}"] = float(is_best_E.mean())
        chosen = {"planner": planner.share_PE[place], "learned": learned.share_PE[place]}
        for name, values_E in (known | chosen).items():
            area = auc(values_E[decisive_E], is_best_E)
            metrics[f"limit/auc_{tool}_{name}"] = area if name in chosen else max(area, 1 - area)
    metrics["limit/learned_decisive_agreement"] = float(learned.agreement(oracle_E)[decisive_E].mean())
    return metrics


def auc(values_E: np.ndarray, positive_E: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive example's value is the larger, ties counting a half; .5
    where all examples are of one kind."""
    from sklearn.metrics import roc_auc_score

    if positive_E.all() or not positive_E.any():
        return 0.5
    return float(roc_auc_score(positive_E, values_E))


def best_fixed(metrics: Mapping[str, Any]) -> str:
    """Name of the fixed router with the best NDCG@10."""
    return max(FIXED, key=lambda name: metrics[f"{name}/ndcg@10"])
