"""What a planner should reach (TwiSTAR's claims and common sense), by how much it does, and what limits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from recllm.evaluation.learned import LearnedRouter, signals
from recllm.evaluation.routing import FIXED, Routed
from recllm.metrics.bootstrap import flat, mean_interval, paired_interval
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
        "tools_cost_share": Aim(metrics["planner/cost"] / slow, metrics["cost_ceiling"], at_most=True),
        "total_cost_share": Aim(metrics["planner/total_cost"] / slow, metrics["cost_ceiling"], at_most=True),
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


def limits(graded: Bench, routing: Bench, planner: Routed, learned: LearnedRouter) -> dict[str, float | None]:
    """What stands between a planner and the oracle, from the cached answers of the graded examples; `learned` was
    fitted on the routing fold.

    `limit/decisive_n`: examples where the tools differ, `limit/decisive_share` of all. `limit/adds_<tool>`, with its
    interval: NDCG@10 that the oracle loses where it may not call the tool, so what the tool brings that no other has.
    `limit/oracle_share_<tool>`: the oracle's calls on decisive examples. `limit/auc_<tool>_<signal>`: how well a signal
    tells the decisive examples where the tool is the oracle's from the others, .5 being chance; which way round it
    tells is read off the routing fold. `planner` is its own choice, `learned` what boosted trees foretell that the tool
    gains over the best other, fitted on these signals of the routing fold. `limit/learned_decisive_agreement`, with its
    interval: of the trees' best tool, whatever it costs. None where there is nothing to tell apart.
    """
    cache = graded.cache
    oracle_E, decisive_E = oracle_tools(cache), decisive(cache)
    metrics: dict[str, float | None] = {
        "limit/decisive_n": int(decisive_E.sum()),
        "limit/decisive_share": float(decisive_E.mean()),
    }
    for place, tool in enumerate(TOOLS):
        others_E = np.delete(cache.ndcg_PE, place, axis=0).max(0)
        metrics |= flat(f"limit/adds_{tool}", paired_interval(cache.ndcg_PE.max(0), others_E))
    if not decisive_E.any():
        return metrics
    router = replace(learned, cost_weight=0.0)
    foretold_PE, agreement_E = router.foretell(graded), router.route(graded).agreement(oracle_E)
    metrics |= flat("limit/learned_decisive_agreement", mean_interval(agreement_E[decisive_E]))
    known, taught = signals(graded), signals(routing)
    best_E, counted_E = oracle_tools(routing.cache), decisive(routing.cache)
    for place, tool in enumerate(TOOLS):
        is_best_E = oracle_E[decisive_E] == place
        metrics[f"limit/oracle_share_{tool}"] = float(is_best_E.mean())
        for name, values_E in known.items():
            before = auc(taught[name][counted_E], best_E[counted_E] == place)
            area = auc(values_E[decisive_E], is_best_E)
            rising = before is None or before >= 0.5
            metrics[f"limit/auc_{tool}_{name}"] = area if area is None or rising else 1 - area
        gain_E = foretold_PE[place] - np.delete(foretold_PE, place, axis=0).max(0)
        for name, values_E in {"planner": planner.share_PE[place], "learned": gain_E}.items():
            metrics[f"limit/auc_{tool}_{name}"] = auc(values_E[decisive_E], is_best_E)
    return metrics


def auc(values_E: np.ndarray, positive_E: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive example's value is the larger, ties counting a half; None
    where all examples are of one kind."""
    from sklearn.metrics import roc_auc_score

    if positive_E.all() or not positive_E.any():
        return None
    return float(roc_auc_score(positive_E, values_E))


def best_fixed(metrics: Mapping[str, Any]) -> str:
    """Name of the fixed router with the best NDCG@10."""
    return max(FIXED, key=lambda name: metrics[f"{name}/ndcg@10"])
