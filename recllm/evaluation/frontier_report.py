"""The frontier as a person sees it: one table of all routers, the aims, what limits the planner, and the picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from recllm.evaluation.aims import best_fixed
from recllm.evaluation.latency import latency_table
from recllm.evaluation.report import blank_figure, interval_text, markdown_table, save_figure, short_interval
from recllm.evaluation.routing import FIXED, QUALITIES, SIGNALS
from recllm.evaluation.routing_groups import group_table
from recllm.planner.texts import TOOLS

_MEGA = 1e6
_SINGLES = (*FIXED, "random_mix", *SIGNALS, "learned", "oracle")
_MARKS = {
    **{"always_retrieve": ("o", "tab:green"), "always_rank": ("o", "tab:cyan"), "always_reason": ("o", "tab:purple")},
    **{"learned": ("P", "tab:brown"), "oracle": ("^", "black")},
}
AIMS = {
    "over_best_fixed": "NDCG@10 over the best fixed tool",
    "over_random_mix": "NDCG@10 over random mixing at equal shares",
    "tools_cost_share": "tools' cost, share of always-reason's",
    "total_cost_share": "cost with the planner's own tokens, share of always-reason's",
    "p50_ms": "p50 end to end, ms (bound: always-reason)",
    "p95_ms": "p95 end to end, ms (bound: always-reason)",
    "largest_share": "largest share of one tool",
    "slow_share_off": "distance of the slow share from the published .148",
    "decisive_agreement": "agreement with the oracle on decisive users",
}


def weights_of(metrics: Mapping[str, Any]) -> list[float]:
    """The cost weights whose planners a report holds, rising."""
    names = (key.split("/")[0] for key in metrics if key.startswith("planner@"))
    return sorted({float(name.removeprefix("planner@")) for name in names})


def frontier_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Head and one row a router: qualities with intervals, cost in MFLOPs and as a share of always-reason's, slow
    share, agreement. The chosen planner is named `planner`, the others by their weights."""
    head = ["router", *(name.replace("ndcg", "NDCG").replace("recall", "Recall") for name in QUALITIES)]
    head += ["tools MFLOPs", "with own", "total of reason", *TOOLS, "oracle", "decisive"]
    others = [f"planner@{weight:g}" for weight in weights_of(metrics) if weight != metrics["cost_weight"]]
    return [head, *(_row(metrics, name) for name in ("planner", *others, *_SINGLES))]


def _row(metrics: Mapping[str, Any], name: str) -> list[str]:
    total = metrics.get(f"{name}/total_cost", metrics[f"{name}/cost"])
    decisive = metrics[f"{name}/decisive_agreement"]
    title = f"planner, weight {metrics['cost_weight']:g} (chosen)" if name == "planner" else name
    return [
        title.replace("@", ", weight "),
        *(short_interval(metrics, f"{name}/{quality}") for quality in QUALITIES),
        f"{metrics[f'{name}/cost'] / _MEGA:,.1f}",
        f"{total / _MEGA:,.1f}",
        f"{total / metrics['always_reason/cost']:.0%}",
        *(f"{metrics[f'{name}/share_{tool}']:.1%}" for tool in TOOLS),
        f"{metrics[f'{name}/oracle_agreement']:.1%}",
        "-" if decisive is None else f"{decisive:.1%}",
    ]


def aim_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Head and one row an aim: figure, bound, and whether it is kept, open or by how much it is missed.

    A difference is open where its interval holds 0, to the digits that are shown: one user sent elsewhere is no gain.
    """
    rows = [["aim", "figure", "bound", ""]]
    for name, title in AIMS.items():
        if f"aim/{name}" not in metrics:
            continue
        value, bound, slack = (metrics[f"aim/{name}{end}"] for end in ("", "/bound", "/slack"))
        said, figure = "kept" if slack >= 0 else f"missed by {-slack:.4g}", f"{value:.4g}"
        if f"planner/{name}_lo" in metrics:
            figure = interval_text(metrics, f"planner/{name}")
            low, high = (round(metrics[f"planner/{name}_{end}"], 4) for end in ("lo", "hi"))
            said = "open: the interval holds 0" if low <= 0 <= high else said
        rows.append([title, figure, f"{bound:.4g}", said])
    return rows


def limit_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Head and one row a tool: what it adds for the oracle, and how well each signal tells where it is right."""
    named = [key.removeprefix("limit/auc_reason_") for key in metrics if key.startswith("limit/auc_reason_")]
    rows = [["tool", "adds NDCG@10", "oracle's share", *(f"AUC {name.replace('_', ' ')}" for name in named)]]
    for tool in TOOLS:
        areas = (metrics[f"limit/auc_{tool}_{name}"] for name in named)
        shown = ["-" if area is None else f"{area:.3f}" for area in areas]
        adds = interval_text(metrics, f"limit/adds_{tool}")
        rows.append([tool, adds, f"{metrics[f'limit/oracle_share_{tool}']:.1%}", *shown])
    return rows


def markdown(metrics: Mapping[str, Any], title: str) -> str:
    """The whole report as a page of Markdown."""
    said = (
        f"Test targets, n = {metrics['n']:,}, whole catalogue, seen items excluded, 95% bootstrap intervals. "
        f"{_choice(metrics)} Best fixed tool: {best_fixed(metrics)}. Headroom of the oracle over it: "
        f"{interval_text(metrics, 'headroom')}; {metrics['limit/decisive_share']:.1%} of the users are decisive."
    )
    parts = [f"# {title}", said, markdown_table(frontier_rows(metrics)), "## Aims", markdown_table(aim_rows(metrics))]
    if metrics["limit/decisive_n"]:
        parts += ["## What limits the planner", _limits_text(metrics), markdown_table(limit_rows(metrics))]
    return "\n\n".join([*parts, *_console_parts(metrics)]) + "\n"


def _choice(metrics: Mapping[str, Any]) -> str:
    """How the planner came to be the chosen one, in a sentence."""
    weight, ceiling = f"{metrics['cost_weight']:g}", f"{metrics['cost_ceiling']:.0%} of always-reason's"
    count, allowed = metrics["planners"], metrics["planners_below_ceiling"]
    if count == 1:
        return f"There is one planner, of cost weight {weight}."
    if not allowed:
        return f"No planner's tools cost less than {ceiling} on validation, so the cheapest was taken, weight {weight}."
    return (
        f"The cost weight {weight} was chosen on validation: the best NDCG@10 of the {allowed} among {count} planners "
        f"whose tools cost at most {ceiling}."
    )


def _limits_text(metrics: Mapping[str, Any]) -> str:
    return (
        f"Of {metrics['limit/decisive_n']:,} decisive users. `adds`: what the oracle loses without the tool. AUC: how "
        "well a signal tells those whose tool this is from the others; .5 is chance. `learned`: boosted trees fitted "
        "on these signals of the routing fold; their best tool, whatever it costs, is the oracle's for "
        f"{interval_text(metrics, 'limit/learned_decisive_agreement')}."
    )


def _console_parts(metrics: Mapping[str, Any]) -> Iterable[str]:
    tables = [group_table(metrics)]
    timed = {name.removeprefix("latency/"): value for name, value in metrics.items() if name.startswith("latency/")}
    tables += [latency_table(timed)] if timed else []
    for table in tables:
        console = Console(width=170, record=True, file=io.StringIO())
        console.print(table)
        yield f"```\n{console.export_text().rstrip()}\n```"


def plot_planners(metrics: Mapping[str, Any], folder: Path) -> None:
    """`frontier.png` and `frontier.svg`: NDCG@10 against the tools' cost on a logarithmic axis.

    Planners by weight as stars, hollow where their own tokens count too; threshold routers by the same weights as
    lines; what random mixing of retrieve with each other tool gives as dashed ones; the oracle as a triangle.
    """
    figure, axes = blank_figure("cost a user, MFLOPs", "NDCG@10")
    weights = weights_of(metrics)

    def at(name: str, cost: str = "cost") -> tuple[float, float]:
        return metrics[f"{name}/{cost}"] / _MEGA, metrics[f"{name}/ndcg@10"]

    start = at("always_retrieve")
    for number, name in enumerate(FIXED[1:]):
        end, label = at(name), "random mixing" if number == 0 else None
        costs = np.geomspace(start[0], end[0], 60)
        line = np.interp(costs, [start[0], end[0]], [start[1], end[1]])
        axes.plot(costs, line, "--", color="0.6", linewidth=1, label=label)
    for signal, (marker, color) in zip(SIGNALS, (("s", "tab:blue"), ("D", "tab:orange")), strict=True):
        points = sorted({at(f"{signal}@{weight:g}") for weight in weights})
        style = {"markersize": 4, "linewidth": 1, "color": color, "label": f"{signal} threshold"}
        axes.plot(*zip(*points, strict=True), f"{marker}-", **style)
    for name, (marker, color) in _MARKS.items():
        _errorbar(axes, metrics, name, *at(name), fmt=marker, markersize=7, color=color)
    _plot_stars(axes, metrics, {f"{weight:g}": at(f"planner@{weight:g}") for weight in weights})
    totals = [at(f"planner@{weight:g}", "total_cost") for weight in weights]
    hollow = {"markersize": 11, "markerfacecolor": "none", "color": "tab:red", "linestyle": "none"}
    axes.plot(*zip(*totals, strict=True), marker="*", label="planners with their own tokens", **hollow)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(fontsize=7, loc="best")
    for ending in ("png", "svg"):
        save_figure(figure, folder / f"frontier.{ending}")


def _plot_stars(axes: Any, metrics: Mapping[str, Any], place: Mapping[str, tuple[float, float]]) -> None:
    """Planners as stars with their weights written beside them, once where several stand at one place."""
    chosen = f"{metrics['cost_weight']:g}"
    others = [point for weight, point in place.items() if weight != chosen]
    if others:
        style = {"markersize": 10, "color": "tab:pink", "linestyle": "none"}
        axes.plot(*zip(*others, strict=True), marker="*", label="planners, other weights", **style)
    said = {"fmt": "*", "markersize": 14, "color": "tab:red", "said": "planner, chosen"}
    _errorbar(axes, metrics, f"planner@{chosen}", *place[chosen], **said)
    at: dict[tuple[float, float], list[str]] = {}
    for weight, (x, y) in place.items():
        at.setdefault((round(np.log10(x), 2), round(y, 3)), []).append(weight)
    for weights in at.values():
        beside = {"textcoords": "offset points", "xytext": (8, 8), "fontsize": 8, "color": "tab:red"}
        axes.annotate(", ".join(weights), place[weights[0]], **beside)


def _errorbar(axes: Any, metrics: Mapping[str, Any], name: str, x: float, y: float, said: str = "", **style: Any):
    low, high = metrics[f"{name}/ndcg@10_lo"], metrics[f"{name}/ndcg@10_hi"]
    spread = [[max(0.0, y - low)], [max(0.0, high - y)]]  # rounding may put an end past the mean
    axes.errorbar(x, y, yerr=spread, capsize=3, label=said or name, **style)
