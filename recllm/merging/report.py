"""A sweep as a person reads it: report.md with the Pareto set, what to use, what improves on a parent; results.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recllm.data.markdown import code, prose
from recllm.evaluation.report import markdown_table, print_page
from recllm.merging.analysis import Analysis
from recllm.merging.curve import HIGH, LOW, Phase
from recllm.merging.improvement import LEVEL, Choice, Comparison
from recllm.merging.report_plot import FILES, plot_curve
from recllm.merging.results import Results, Row
from recllm.metrics.bootstrap import Interval

REPORT_FILE, RESULTS_FILE = "report.md", "results.csv"
_MOST = 15  # rows of a table of comparisons; results.csv has all
_COLUMNS = ("key", "method", "label", "strength", "density", "accuracy", "accuracy_lo", "accuracy_hi", "tokens")
_COLUMNS += ("tokens_lo", "tokens_hi", "think_share", "n", "twin")


def write_report(found: Analysis, folder: Path, title: str) -> None:
    """Write report.md, curve.png, curve.svg and results.csv."""
    plot_curve(found, folder)
    write_results(found, folder / RESULTS_FILE)
    (folder / REPORT_FILE).write_text(markdown(found, title), encoding="utf-8")


def print_report(folder: Path) -> None:
    """The written report on the terminal."""
    print_page(folder / REPORT_FILE)


def write_results(found: Analysis, path: Path) -> None:
    """Every point as a row of CSV. Twins name the point that they are."""
    best = {row.key for row in found.front}
    beside = {(one.row.key, one.parent): one for one in found.comparisons}
    extra = [f"{name}_{role}" for role in found.results.parents for name in ("improves", "p", "p_holm")]
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, lineterminator="\n")
        out.writerow([*_COLUMNS, "front", *extra])
        for row in found.results.rows:
            cells = [getattr(row, name) for name in _COLUMNS] + [row.key in best]
            for role in found.results.parents:
                one = beside.get((row.key, role))
                cells += [one.improves, one.p, one.p_holm] if one else ["", "", ""]
            out.writerow([_inert(cell) for cell in cells])


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")):
        return f"'{cell}"
    return "" if cell is None else cell


def markdown(found: Analysis, title: str) -> str:
    """The whole report as a page of Markdown."""
    parts = [f"# {prose(title)}", _said(found), f"![The curve]({FILES[0]})", "## Parents", _parent_table(found.results)]
    parts += ["## Pareto set", _front_text(found), markdown_table(_front_rows(found))]
    parts += ["## What to use", _choice_text(found), markdown_table(_choice_rows(found.choices))]
    for role in found.results.parents:
        parts += _improvement_parts(found, role)
    if found.area:
        parts += ["## Area under the front", *_area_parts(found)]
    if found.controls:
        parts += ["## How strength steers", _STEER, markdown_table(_control_rows(found), right=True)]
    if found.divergence:
        parts += ["## How far the parents are apart", markdown_table(_divergence_rows(found), right=True)]
    return "\n\n".join(parts) + "\n"


def _said(found: Analysis) -> str:
    results = found.results
    asked = f" of {code(results.evaluator)}" if results.evaluator else ""
    methods = len({row.method for row in results.merges})
    merges = f"{len(results.merges)} merges of {methods} methods and {len(results.parents)} parents"
    lines = [
        f"{merges}, {results.rows[0].n:,} questions{asked} each, "
        f"95% intervals. Accuracy is to be high, tokens are to be few. Read from {code(results.source.name)}."
    ]
    twins = [row for row in results.rows if row.twin]
    if twins:
        names = {row.key: row.label for row in results.rows}
        told = "; ".join(f"{code(row.label)} is {code(names[row.twin])}" for row in twins[:_MOST])
        more = f"; and {len(twins) - _MOST} more" if len(twins) > _MOST else ""
        lines.append(f"The same merge by mathematics, drawn but not counted: {told}{more}.")
    lines += [f"Note: {note}." for note in results.notes]
    return "\n\n".join(lines)


def _parent_table(results: Results) -> str:
    rows = [["parent", "accuracy", "tokens", "thinks"]]
    rows += [[role, *_measured(row)] for role, row in results.parents.items()]
    return markdown_table(rows) if len(rows) > 1 else "No parent was measured."


def _measured(row: Row) -> list[str]:
    tokens = f"{row.tokens:,.1f}"
    if row.tokens_lo is not None:
        tokens += f" [{row.tokens_lo:,.1f}, {row.tokens_hi:,.1f}]"
    share = "-" if row.think_share is None else f"{row.think_share:.1%}"
    return [f"{row.accuracy:.4f} [{row.accuracy_lo:.4f}, {row.accuracy_hi:.4f}]", tokens, share]


def _front_text(found: Analysis) -> str:
    text = (
        f"{len(found.front)} points that no other beats in both. A budget of mean tokens is served best by the last "
        "row that it reaches."
    )
    if found.kept:
        text += (
            f" On a random half of the questions alone the set has {found.kept[0]} points; {found.kept[1]} of them are "
            "in that of the other half, too."
        )
    return text


def _front_rows(found: Analysis) -> list[list[str]]:
    roles = {row.key: f", the {role} parent" for role, row in found.results.parents.items()}
    rows = [["", "point", "key", "accuracy", "tokens", "thinks", "for budgets"]]
    ends = [f"{row.tokens:,.1f}" for row in found.front]
    for number, row in enumerate(found.front):
        until = f"{ends[number]} to {ends[number + 1]}" if number + 1 < len(ends) else f"{ends[number]} or more"
        rows.append([f"{number + 1}", code(row.label) + roles.get(row.key, ""), code(row.key), *_measured(row), until])
    return rows


def _choice_text(found: Analysis) -> str:
    if all(choice.is_held_out for choice in found.choices):
        return (
            "Points were chosen on a random half of the questions and read on the other half, so that a winner's "
            "figures are not its own luck. p is of one test on that other half."
        )
    return (
        "Chosen and read on the same questions: without each question's values there is no other half to read on, and "
        "the winner's accuracy is its luck, too."
    )


def _choice_rows(choices: Iterable[Choice]) -> list[list[str]]:
    rows = [["wanted", "point", "key", "accuracy", "tokens", "p"]]
    for choice in choices:
        wanted = _wanted(choice.purpose)
        if choice.row is None:
            rows.append([wanted, "none", "-", "-", "-", "-"])
            continue
        p = f"{choice.comparison.p:.4f}" if choice.comparison else "-"
        told = [code(choice.row.label), code(choice.row.key), span(choice.accuracy), span(choice.tokens, 1)]
        rows.append([wanted, *told, p])
    return rows


def _wanted(purpose: str) -> str:
    kind, _, value = purpose.partition(" ")
    if kind == "budget":
        return f"at most {float(value):,g} tokens"
    return "highest accuracy" if kind == "best" else f"improvement over the {value} parent"


def span(interval: Interval | None, digits: int = 4, signed: bool = False) -> str:
    """A mean and the ends of its interval, which are left out where they are the mean."""
    if interval is None:
        return "-"
    sign = "+" if signed else ""
    mean, lo, hi = (f"{value + 0.0:{sign},.{digits}f}" for value in interval[:3])
    return mean if interval.lo == interval.hi == interval.mean else f"{mean} [{lo}, {hi}]"


def _improvement_parts(found: Analysis, role: str) -> list[str]:
    mine = [one for one in found.comparisons if one.parent == role]
    if not mine:
        return []
    good = sorted((one for one in mine if one.improves), key=lambda one: (one.p, -one.accuracy.mean))
    parts = [f"## Pareto improvements over the {role} parent", improvement_text(found, mine)]
    if good:
        rows = [["point", "key", "accuracy, difference", "tokens, difference", "p", "p, Holm"]]
        for one in good[:_MOST]:
            told = [code(one.row.label), code(one.row.key), span(one.accuracy, 4, True), span(one.tokens, 1, True)]
            rows.append([*told, f"{one.p:.4f}", f"{one.p_holm:.4f}"])
        parts.append(markdown_table(rows))
    return parts


def improvement_text(found: Analysis, mine: Sequence[Comparison]) -> str:
    """What may be said of Pareto improvements over one parent, in a paragraph."""
    good, shown = sum(one.improves for one in mine), sum(one.is_shown for one in mine)
    tests, allowed = len(found.comparisons), f" (less {found.margin:g})" if found.margin else ""
    text = f"Of {len(mine)} merges {good} have no lower accuracy{allowed} at no more tokens, one of the two strictly. "
    if shown:
        text += f"{shown} of them stand at p <= {LEVEL:g} after Holm's correction for {tests} comparisons."
    elif good:
        least = min(one.p_holm for one in mine if one.improves)
        text += (
            f"None stands after Holm's correction for {tests} comparisons (least corrected p {least:.3f}): chance is "
            "not ruled out."
        )
    else:
        text += "No improvement is claimed."
    kind = "paired bootstrap over questions" if found.results.paired else "unpaired, tokens taken as exact"
    equal = "" if found.margin else " An accuracy that is no more than equal cannot be shown without a margin."
    return f"{text} p: {kind}, both claims at once.{equal}"


def _area_parts(found: Analysis) -> list[str]:
    share = "" if found.area.share is None else f", {found.area.share:.3f} of the rectangle between the parents"
    text = (
        f"Hypervolume {found.area.value:,.3f} tokens x accuracy{share}. Reference: the accuracy of the worse parent at "
        "the tokens of the longer one."
    )
    rows = [["method", "hypervolume alone"]]
    rows += [[code(name), f"{area.value:,.3f}"] for name, area in _ranked(found.areas)]
    return [text, markdown_table(rows, right=True)]


def _ranked(areas: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(areas.items(), key=lambda entry: -entry[1].value)


_STEER = (
    "Along each line of points that differ in strength alone: rank correlation of strength and tokens, the largest "
    f"jump of tokens between neighbours, and the strengths at which the share that thinks reaches {LOW:g} and {HIGH:g} "
    "(interpolated; - where it does not, or is there from the start)."
)


def _control_rows(found: Analysis) -> list[list[str]]:
    rows = [["line", "Spearman", "largest jump", "between", f"thinks {LOW:g}", f"thinks {HIGH:g}", "share"]]
    for name, one in found.controls.items():
        rank = "-" if one.spearman is None else f"{one.spearman:.3f}"
        jump = f"{one.jump:+,.1f} ({one.jump_share:.0%} of the range)"
        rows.append([code(name), rank, jump, f"{one.jump_from:g} and {one.jump_to:g}", *_phase(found.phases.get(name))])
    return rows


def _phase(one: Phase | None) -> list[str]:
    if one is None:
        return ["-", "-", "-"]
    ends = ["-" if value is None else f"{value:.3f}" for value in (one.low, one.high)]
    course = "never falls" if one.is_monotone else f"falls by up to {one.fall:.3f}"
    again = f", crosses again {one.returns} times" if one.returns else ""
    return [*ends, f"{one.start:.2f} to {one.end:.2f}, {course}{again}"]


def _divergence_rows(found: Analysis) -> list[list[str]]:
    rows = [["module", "parameters", "gap norm", "relative gap", "sigma", "cosine", "sign conflicts"]]
    has_base = found.divergence["all"].task_cosine is not None
    rows[0] += (
        ["direct from base", "thinking from base", "cosine of the two", "their sign conflicts"] if has_base else []
    )
    for name, one in found.divergence.items():
        cells = [name, f"{one.parameters:,}", f"{one.gap_norm:.4g}", f"{one.relative_gap:.4f}", f"{one.sigma:.4f}"]
        cells += [f"{one.cosine:.5f}", f"{one.sign_conflicts:.2%}"]
        if has_base:
            cells += [f"{one.direct_task:.4f}", f"{one.thinking_task:.4f}", f"{one.task_cosine:.4f}"]
            cells += [f"{one.task_sign_conflicts:.1%}"]
        rows.append(cells)
    return rows
