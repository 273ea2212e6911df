"""Who was sent where, and what it gained: routing by history length, popularity and diversity of what a user liked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recllm.evaluation.routing import CUT, Routed, by_tool
from recllm.metrics.bootstrap import flat, mean_interval, paired_interval
from recllm.planner.bench import Bench
from recllm.planner.texts import TOOLS

if TYPE_CHECKING:
    from rich.table import Table

RECENT = 20
GROUPS = ("low", "middle", "high")
FEATURES = ("history_length", "popularity", "diversity")


def features(bench: Bench) -> dict[str, np.ndarray]:
    """What may tell users apart, float64 `E` each.

    history_length: items before the target. popularity: mean over the last 20 of each item's place among the fitting
    events, 0..1. diversity: different categories among the last 20 items over all their categories, 0..1; 0 where none
    of them has any.
    """
    recent = [bench.examples.history(e)[-RECENT:] for e in range(len(bench))]
    named = [[name for item in items for name in bench.categories[item]] for items in recent]
    return {
        "history_length": bench.examples.lengths_E.astype(float),
        "popularity": np.array([bench.popularity_N[items].mean() if len(items) else 0.0 for items in recent]),
        "diversity": np.array([len(set(names)) / max(len(names), 1) for names in named]),
    }


def thirds(values_E: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each value: which third of the examples it falls in; equal values stay together."""
    return np.searchsorted(np.quantile(values_E, [1 / 3, 2 / 3]), values_E, side="left")


def routing_groups(bench: Bench, routed: Routed) -> dict[str, float]:
    """Flat metrics of a router on each third of the examples by each feature.

    `by/<feature>/<group>/`: `n`, `from` and `to` (ends of the feature), `share_<tool>`, `ndcg@10` and `gain`, NDCG@10
    over always retrieving, both with intervals. A group without examples is left out.
    """
    base_E = by_tool(bench.cache, np.int64(TOOLS.index("retrieve"))).value_E
    metrics: dict[str, float] = {}
    for feature, values_E in features(bench).items():
        third_E = thirds(values_E)
        for number, group in enumerate(GROUPS):
            rows = np.flatnonzero(third_E == number)
            if not len(rows):
                continue
            name = f"by/{feature}/{group}"
            shares = dict(zip(TOOLS, routed.share_PE[:, rows].mean(1).tolist(), strict=True))
            ends = {"from": values_E[rows].min(), "to": values_E[rows].max()}
            metrics |= {f"{name}/n": len(rows), **{f"{name}/{end}": float(value) for end, value in ends.items()}}
            metrics |= {f"{name}/share_{tool}": share for tool, share in shares.items()}
            metrics |= flat(f"{name}/ndcg@{CUT}", mean_interval(routed.value_E[rows]))
            metrics |= flat(f"{name}/gain", paired_interval(routed.value_E[rows], base_E[rows]))
    return metrics


def group_table(metrics: Mapping[str, Any]) -> Table:
    """One row a group: its size and range, where it was sent, and what that gained."""
    from rich.table import Table

    table = Table(title="who was sent where, and the gain over always retrieving, 95% intervals", title_justify="left")
    for head in ("feature", "third", "n", "range", *TOOLS, f"NDCG@{CUT}", "gain"):
        table.add_column(head, justify="left" if head in ("feature", "third") else "right")
    for feature in FEATURES:
        for group in GROUPS:
            name = f"by/{feature}/{group}"
            if f"{name}/n" not in metrics:
                continue
            low, high = metrics[f"{name}/gain_lo"], metrics[f"{name}/gain_hi"]
            table.add_row(
                feature.replace("_", " "),
                group,
                f"{metrics[f'{name}/n']:,}",
                f"{metrics[f'{name}/from']:.3g} to {metrics[f'{name}/to']:.3g}",
                *(f"{metrics[f'{name}/share_{tool}']:.0%}" for tool in TOOLS),
                f"{metrics[f'{name}/ndcg@{CUT}']:.4f}",
                f"{metrics[f'{name}/gain']:+.4f} [{low:+.4f}, {high:+.4f}]",
            )
    return table
