"""The points of a sweep with what was measured at each: one table, from a sweep's folder or from somebody's CSV.

The straight line between the parents has two names, linear and task arithmetic: at one strength they are one merge by
mathematics, so the second of them has the first as its `twin`, and nothing that counts or chooses takes twins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recllm.merging.ledger import AGAIN, LEDGER_FILE, Sweep, read_sweep
from recllm.merging.methods import DEFAULTS, DIRECT, METHODS, THINKING
from recllm.merging.space import ENDS, Point


class Line(NamedTuple):
    """What points of one line have in common: they differ in strength alone."""

    method: str
    setting: str

    def __str__(self) -> str:
        return f"{self.method} {self.setting}".strip()


@dataclass(frozen=True, eq=False)
class Row:
    """One point and what was measured of it.

    Attributes:
        key: the point's key; of a CSV, `csv-` and the number of the line.
        axes: what was varied, defaults included; of a CSV, the columns density and seed where it has them.
        setting: the axes but the strength, for people; what rows of one method and setting differ in is the strength.
        strength: from 0 (direct) to 1 (thinking), None where it is no single number.
        accuracy, accuracy_lo, accuracy_hi: in [0, 1]; the ends of the 95% interval.
        tokens: mean tokens of a completion; the ends are None where nothing tells them.
        think_share: share of the completions that think, None where it was not measured.
        n: questions.
        ends: keys of the points that this method and setting are at strength 0 and 1.
        twin: key of the row that is the same merge by mathematics and comes first, "" where there is none.
        value_Q, tokens_Q: each question's mean value and tokens, None where only means are known.
    """

    key: str
    method: str
    label: str
    axes: Mapping[str, Any]
    setting: str
    strength: float | None
    accuracy: float
    accuracy_lo: float
    accuracy_hi: float
    tokens: float
    n: int
    tokens_lo: float | None = None
    tokens_hi: float | None = None
    think_share: float | None = None
    ends: tuple[str, ...] = ()
    twin: str = ""
    value_Q: np.ndarray | None = field(default=None, repr=False)
    tokens_Q: np.ndarray | None = field(default=None, repr=False)

    @property
    def density(self) -> float | None:
        """Share of the entries that the method keeps, where it has such an axis."""
        return self.axes.get("density")


@dataclass(frozen=True, eq=False)
class Results:
    """A table of points.

    Attributes:
        source: the folder or file it was read from.
        parents: `direct` and `thinking` -> the row of that parent; one that was not measured is missing.
        folders: role -> the parent's folder, where the source names one.
        planned: how many points the sweep has, finished or not.
        notes: what a reader of the figures should know of how they were read.
    """

    source: Path
    rows: tuple[Row, ...]
    parents: Mapping[str, Row]
    folders: Mapping[str, str] = field(default_factory=dict)
    evaluator: str = ""
    planned: int = 0
    notes: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether every row has each question's values, so that points are compared question by question."""
        return all(row.value_Q is not None for row in self.rows)

    @cached_property
    def distinct(self) -> tuple[Row, ...]:
        """The rows without twins."""
        return tuple(row for row in self.rows if not row.twin)

    @cached_property
    def merges(self) -> tuple[Row, ...]:
        """The rows without twins and without the parents: what was tried."""
        own = {row.key for row in self.parents.values()}
        return tuple(row for row in self.distinct if row.key not in own)

    def row(self, key: str) -> Row:
        """The row of a point, by its key or by a beginning of it that no other has.

        Raises:
            ValueError: no row, or several.
        """
        found = [row for row in self.rows if row.key == key] or [row for row in self.rows if row.key.startswith(key)]
        if len(found) != 1 or not key:
            known = ", ".join(row.key for row in (found or self.rows)[:8])
            raise ValueError(f"{self.source}: {len(found)} points with the key {key!r}; take one of {known}")
        return found[0]

    def series(self) -> dict[Line, list[Row]]:
        """Line -> its rows by strength, rising; a line is a method with one setting of its other axes.

        A method that stops at the parents has them at its ends. Rows without one strength belong to none, and twins of
        a whole line make a line of their own, so that it can be seen.
        """
        known, found = {row.key: row for row in self.rows}, {}
        for row in self.rows:
            if row.strength is not None:
                found.setdefault(Line(row.method, row.setting), []).append(row)
        for rows in found.values():
            there = {row.strength for row in rows}
            ends = [known[key] for key in rows[0].ends if key in known]
            rows += [end for end in ends if end.strength not in there]
        return {line: sorted(rows, key=lambda row: row.strength) for line, rows in found.items()}


def with_twins(rows: Iterable[Row], lines: Mapping[str, float | None], parents: Iterable[str] = ()) -> tuple[Row, ...]:
    """The rows with their twins marked. `lines`: key -> `Point.line`. Parents are never twins, whatever the order."""
    first = {line: key for key in parents if (line := lines.get(key)) is not None}
    marked = []
    for row in rows:
        line = lines.get(row.key)
        if line is None:
            marked.append(row)
        else:
            known = first.setdefault(line, row.key)
            marked.append(row if known == row.key else replace(row, twin=known))
    return tuple(marked)


def from_sweep(sweep: Sweep | str | Path) -> Results:
    """The finished points of a sweep, with each question's values.

    Raises:
        ValueError: no point is finished, points were asked other numbers of questions, and as `read_sweep`.
    """
    sweep = sweep if isinstance(sweep, Sweep) else read_sweep(sweep)
    points = [point for point in sweep.points if point.key in sweep.records]
    if not points:
        raise ValueError(f"{sweep.folder}: no point is finished; run the sweep first")
    lines, ends = {point.key: point.line for point in points}, {role: end.key for role, end in ENDS.items()}
    rows = with_twins((_row(sweep, point) for point in points), lines, ends.values())
    for row in rows:
        if row.n != rows[0].n:
            raise ValueError(
                f"{sweep.folder}: point {row.key} was asked {row.n} questions and {rows[0].key} {rows[0].n}: they "
                "cannot be compared; sweep into another folder"
            )
    parents = {role: row for role, key in ends.items() for row in rows if row.key == key}
    notes = [] if sweep.complete else [f"{len(points)} of {len(sweep.points)} points are finished; the rest is missing"]
    notes += missing_parents(parents)
    folders = {role: str(entry["folder"]) for role, entry in sweep.parents.items()}
    name = str(sweep.evaluator.get("name", ""))
    return Results(sweep.folder, rows, parents, folders, name, len(sweep.points), tuple(notes))


def _row(sweep: Sweep, point: Point) -> Row:
    record, samples = sweep.records[point.key], sweep.samples(point.key)
    measured = ("accuracy", "accuracy_lo", "accuracy_hi", "tokens", "tokens_lo", "tokens_hi", "think_share")
    absent = [name for name in (*measured, "questions") if not isinstance(record.get(name), int | float)]
    if absent or record["questions"] != len(samples.value_QS):
        wrong = f"lacks {', '.join(absent)}" if absent else f"tells {record['questions']} questions, its samples others"
        raise ValueError(
            f"{sweep.folder}: the line of point {point.key} {wrong}; take the line out of {LEDGER_FILE}, {AGAIN}"
        )
    return Row(
        key=point.key,
        method=point.method,
        label=point.label,
        axes=point.axes,
        setting=_setting(point),
        strength=point.strength,
        ends=_ends(point),
        n=len(samples.value_QS),
        value_Q=samples.value_Q,
        tokens_Q=samples.tokens_Q,
        **{name: float(record[name]) for name in measured},
    )


def _setting(point: Point) -> str:
    usual = {**DEFAULTS, "base": METHODS[point.method].bases[0]}
    told = {key: value for key, value in point.axes.items() if key not in ("strength", "config")}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in told.items() if value != usual.get(key))


def _ends(point: Point) -> tuple[str, ...]:
    if point.strength is None:
        return ()
    return tuple(Point.of(point.method, **{**point.axes, "strength": end}).key for end in (0.0, 1.0))


def missing_parents(parents: Mapping[str, Row]) -> list[str]:
    """A note on each parent that was not measured."""
    return [
        f"the {role} parent was not measured: nothing is compared with it"
        for role in (DIRECT, THINKING)
        if role not in parents
    ]
