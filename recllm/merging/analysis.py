"""Everything that a report says of a sweep, taken once from the table of its points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recllm.merging.curve import Area, Control, Phase, area, controls, front, phases
from recllm.merging.divergence import Divergence, plain
from recllm.merging.improvement import Choice, Comparison, choose, compare, front_kept
from recllm.merging.results import Results, Row

_BUDGETS = 3  # taken where none are given, evenly between the ends of the front


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found.

    Attributes:
        front: the Pareto set, by tokens.
        area: hypervolume of all points; areas: of each method's own.
        comparisons: every merge beside every parent.
        choices: the best point, one a budget, one over each parent.
        kept: (points on the front of half of the questions, how many are on the other half's), where known.
        controls, phases: by line of points.
        divergence: of the parents, by kind of module.
        margin: how much lower an accuracy still counted as no lower.
    """

    results: Results
    front: tuple[Row, ...]
    area: Area | None
    areas: Mapping[str, Area]
    comparisons: tuple[Comparison, ...]
    choices: tuple[Choice, ...]
    kept: tuple[int, int] | None
    controls: Mapping[str, Control]
    phases: Mapping[str, Phase]
    divergence: Mapping[str, Divergence]
    margin: float


def analyse(
    results: Results,
    budgets: Iterable[float] = (),
    margin: float = 0.0,
    seed: int = 0,
    divergence: Mapping[str, Divergence] | None = None,
) -> Analysis:
    """Take every figure of the report.

    Args:
        budgets: mean tokens of a completion; three between the ends of the front where none are given.
        seed: of the halves and of the resamples.

    Raises:
        ValueError: a budget that is not positive, or a margin outside [0, 1).
    """
    best = front(results.distinct)
    budgets = list(budgets) or _between(best)
    if bad := [budget for budget in budgets if not budget > 0]:
        raise ValueError(f"a budget must be a positive number of tokens, got {bad[0]!r}")
    methods = sorted({row.method for row in results.merges})
    own = {name: area([row for row in results.distinct if row.method == name], results) for name in methods}
    return Analysis(
        results=results,
        front=tuple(best),
        area=area(results.distinct, results),
        areas={name: found for name, found in own.items() if found is not None},
        comparisons=tuple(compare(results, margin, seed)),
        choices=tuple(choose(results, budgets, margin, seed)),
        kept=front_kept(results, seed),
        controls=controls(results),
        phases=phases(results),
        divergence=divergence or {},
        margin=margin,
    )


def _between(best: list[Row]) -> list[float]:
    low, high = best[0].tokens, best[-1].tokens
    steps = [low + (high - low) * step / (_BUDGETS + 1) for step in range(1, _BUDGETS + 1)]
    rounded = ((step, float(f"{step:.2g}")) for step in steps if step > 0)
    # Two digits are for people, unless they lead out of the front.
    return sorted({near if low < near < high else step for step, near in rounded})


def flat_metrics(found: Analysis) -> dict[str, Any]:
    """The figures by flat names, for metrics.json."""
    results = found.results
    metrics: dict[str, Any] = {
        "n": results.rows[0].n,
        "points": len(results.distinct),
        "planned": results.planned,
        "twins": len(results.rows) - len(results.distinct),
        "methods": len({row.method for row in results.merges}),
        "front": len(found.front),
    }
    if found.kept:
        metrics |= {"front_half": found.kept[0], "front_half_kept": found.kept[1]}
    for role, row in results.parents.items():
        metrics |= {f"{role}/{key}": value for key, value in measured(row).items()}
        mine = [one for one in found.comparisons if one.parent == role]
        metrics[f"over_{role}/tried"] = len(mine)
        metrics[f"over_{role}/improve"] = sum(one.improves for one in mine)
        metrics[f"over_{role}/shown"] = sum(one.is_shown for one in mine)
        if mine:
            metrics[f"over_{role}/least_p"] = min(one.p for one in mine)
            metrics[f"over_{role}/least_p_holm"] = min(one.p_holm for one in mine)
    if found.area:
        metrics |= {"hypervolume": found.area.value, "hypervolume_share": found.area.share}
        metrics |= {f"hypervolume/{name}": area.value for name, area in found.areas.items()}
    for choice in found.choices:
        metrics |= _chosen(choice)
    for name, one in found.controls.items():
        metrics |= {f"spearman/{name}": one.spearman, f"jump/{name}": one.jump}
    for name, one in found.phases.items():
        metrics |= {f"phase_low/{name}": one.low, f"phase_high/{name}": one.high, f"phase_fall/{name}": one.fall}
    return metrics | plain(found.divergence)


def measured(row: Row) -> dict[str, float | None]:
    """Accuracy and tokens with the ends of their intervals, and the think share."""
    names = ("accuracy", "accuracy_lo", "accuracy_hi", "tokens", "tokens_lo", "tokens_hi", "think_share")
    return {name: getattr(row, name) for name in names if getattr(row, name) is not None}


def _chosen(choice: Choice) -> dict[str, Any]:
    name = choice.purpose.replace(" ", "_")
    if choice.row is None:
        return {f"{name}/key": None}
    told: dict[str, Any] = {f"{name}/key": choice.row.key, f"{name}/is_held_out": choice.is_held_out}
    for key, interval in (("accuracy", choice.accuracy), ("tokens", choice.tokens)):
        told |= {f"{name}/{key}": interval.mean, f"{name}/{key}_lo": interval.lo, f"{name}/{key}_hi": interval.hi}
    if choice.comparison:
        told[f"{name}/p"] = choice.comparison.p
    return told
