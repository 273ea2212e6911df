"""The curve as a picture: accuracy against tokens with the Pareto front, and the think share against the strength."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recllm.evaluation.report import blank_figure, save_figure
from recllm.merging.analysis import Analysis
from recllm.merging.curve import HIGH, LOW
from recllm.merging.methods import DIRECT
from recllm.merging.results import Results, Row

FILES = ("curve.png", "curve.svg")
_WIDE = 8.0  # tokens whose ends differ by this factor stand on a logarithmic axis
_CLOSE = 0.03  # of the picture: closer points share one text
_MARKERS = "ovs^DPX*<>hp"
_LONGEST = 40  # characters of a method's name


def plot_curve(found: Analysis, folder: Path, chosen: Row | None = None) -> None:
    """Write `curve.png` and `curve.svg`.

    Left: a line a method and setting in the method's colour, 95% intervals as thin bars, the front as a dark staircase
    whose points are numbered as in the report, the parents as large marks. Right, where think shares are known: the
    share against the strength, with the two levels that bound the phases. `chosen` is marked by a star.
    """
    from matplotlib.ticker import LogLocator

    results = found.results
    figure, left = blank_figure("mean tokens of a completion", "accuracy")
    thinks = bool(found.phases)
    figure.set_size_inches(12.5 if thinks else 8, 5.4)
    styles = _styles(results)
    _lines(left, results, styles)
    _staircase(left, found.front)
    _parents(left, results.parents)
    if chosen is not None:
        mark = {"markersize": 20, "color": "gold", "markeredgecolor": "black", "linestyle": "none", "zorder": 4}
        left.plot(chosen.tokens, chosen.accuracy, "*", label="this model", **mark)
    tokens = [row.tokens for row in results.rows]
    if min(tokens) > 0 and max(tokens) / min(tokens) > _WIDE:
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(lambda value, _: f"{value:,.3g}" if value < 100 else f"{value:,.0f}")
        left.xaxis.set_minor_formatter(lambda value, _: "")
    _numbers(left, found.front)
    if thinks:
        grid = figure.add_gridspec(1, 2, width_ratios=(7, 4.5))
        left.set_subplotspec(grid[0])
        _shares(figure.add_subplot(grid[1]), results, styles)
    left.legend(fontsize=8, loc="best", framealpha=0.85)
    for name in FILES:
        save_figure(figure, folder / name)


def said(text: str) -> str:
    """A method's name as matplotlib shows it: no formulas, nothing hidden, not too long."""
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    return line.replace("\\", "/").replace("$", r"\$").lstrip("_") or "-"


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """Method -> colour and marker, in the table's order."""
    from matplotlib import colormaps

    colours = [colormaps["tab20"](index) for index in (*range(0, 20, 2), *range(1, 20, 2))]
    methods = list(dict.fromkeys(row.method for row in results.rows))
    return {
        method: {"color": colours[place % 20], "marker": _MARKERS[place % len(_MARKERS)]}
        for place, method in enumerate(methods)
    }


def _lines(axes: Any, results: Results, styles: Mapping[str, dict[str, Any]]) -> None:
    counts: dict[str, int] = {}
    for line, rows in results.series().items():
        counts[line.method] = counts.get(line.method, 0) + 1
        if len(rows) > 1:
            style = {"color": styles[line.method]["color"], "linewidth": 1.1, "alpha": 0.75}
            axes.plot([row.tokens for row in rows], [row.accuracy for row in rows], _dash(rows), **style)
    for method, style in styles.items():
        rows = [row for row in results.rows if row.method == method]
        count = counts.get(method, 0)
        twin = ", the same line" if all(row.twin for row in rows) else ""
        label = said(method) + (f" ({count} settings)" if count > 1 else "") + twin
        bars = {"fmt": style["marker"], "color": style["color"], "markersize": 4.5, "elinewidth": 0.7, "label": label}
        place = [row.tokens for row in rows], [row.accuracy for row in rows]
        container = axes.errorbar(*place, xerr=_spread(rows, "tokens"), yerr=_spread(rows, "accuracy"), **bars)
        for bar in container[2]:
            bar.set_alpha(0.35)


def _dash(rows: list[Row]) -> str:
    return ":" if any(row.twin for row in rows) else "-"


def _spread(rows: Iterable[Row], name: str) -> list[list[float]]:
    """Lengths of the bars below and above; none where an interval is not known."""

    def length(row: Row, end: str, sign: int) -> float:
        value, edge = getattr(row, name), getattr(row, f"{name}_{end}")
        return 0.0 if edge is None else max(0.0, sign * (edge - value))  # rounding may put an end past the mean

    rows = list(rows)
    return [[length(row, "lo", -1) for row in rows], [length(row, "hi", 1) for row in rows]]


def _staircase(axes: Any, front: tuple[Row, ...]) -> None:
    x, y = [row.tokens for row in front], [row.accuracy for row in front]
    axes.step(x, y, where="post", color="0.15", linewidth=1.6, alpha=0.8, zorder=2.5, label="Pareto front")
    axes.plot(x, y, "o", markersize=10, markerfacecolor="none", color="0.15", zorder=2.6)


def _numbers(axes: Any, front: tuple[Row, ...]) -> None:
    """The places of the front's points in the report's table, one text for those that stand close together."""
    groups: list[list[tuple[int, Row, Any]]] = []
    for number, row in enumerate(front, 1):
        at = axes.transAxes.inverted().transform(axes.transData.transform((row.tokens, row.accuracy)))
        if groups and abs(at - groups[-1][-1][2]).max() < _CLOSE:
            groups[-1].append((number, row, at))
        else:
            groups.append([(number, row, at)])
    for group in groups:
        (first, *_), (last, row, _) = group[0], group[-1]
        beside = {"textcoords": "offset points", "xytext": (-5, 8), "ha": "right", "fontsize": 8}
        axes.annotate(f"{first}" if first == last else f"{first}-{last}", (row.tokens, row.accuracy), **beside)


def _parents(axes: Any, parents: Mapping[str, Row]) -> None:
    for role, row in parents.items():
        mark = {"markersize": 13, "markeredgecolor": "white", "color": "black", "zorder": 3}
        axes.plot(row.tokens, row.accuracy, "s" if role == DIRECT else "D", label=f"{role} parent", **mark)


def _shares(axes: Any, results: Results, styles: Mapping[str, dict[str, Any]]) -> None:
    for line, rows in results.series().items():
        rows = [row for row in rows if row.think_share is not None]
        if len(rows) > 1:
            style = {**styles[line.method], "markersize": 3.5, "linewidth": 1.2, "alpha": 0.8}
            axes.plot([row.strength for row in rows], [row.think_share for row in rows], _dash(rows), **style)
    for level in (LOW, HIGH):
        axes.axhline(level, color="0.4", linewidth=0.8, linestyle="--")
        axes.annotate(f"{level:g}", (0.0, level), xytext=(3, 3), textcoords="offset points", fontsize=8, color="0.4")
    axes.set(xlabel="strength (0: direct parent, 1: thinking parent)", ylabel="share of completions that think")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
