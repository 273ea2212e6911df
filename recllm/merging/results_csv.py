"""Somebody else's results as a table: a CSV with the columns method, strength, accuracy, tokens and n.

think_share, density, seed and label are read where they are there; any other column is left out, and that is said. The
file may be separated by commas, semicolons or tabs, in UTF-8 with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recllm.data.markdown import code
from recllm.merging.methods import DIRECT, THINKING
from recllm.merging.results import Results, Row, from_sweep, missing_parents, with_twins

COLUMNS = ("method", "strength", "accuracy", "tokens", "n")
OPTIONAL = ("think_share", "density", "seed", "label")
SCALES = ("auto", "fraction", "percent")
_NAMES = {
    DIRECT: ("direct", "instruct", "non_thinking"),
    THINKING: ("thinking", "reasoning"),
}
# Methods that are a parent at strength 0 and 1, and those of the straight line.
_STRAIGHT = ("linear", "weighted_average", "average", "interpolation", "model_interpolation")
_STOP_AT_PARENTS = (*_STRAIGHT, "slerp")
_ON_THE_LINE = ("linear", "task_arithmetic")
_Z = 1.959963984540054  # of a 95% interval


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% score interval of a share among n (Wilson 1927); the share need not be a whole number of n-ths."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


@dataclass
class _Reader:
    """The cells of one file, with what was noticed on the way."""

    path: Path
    notes: list[str] = field(default_factory=list)

    def fail(self, line: int, what: str) -> ValueError:
        return ValueError(f"{self.path}: line {line}: {what}")

    def rows(self) -> list[tuple[int, dict[str, str]]]:
        """(line, column -> cell) of every row that is not empty; of equal rows the first."""
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
        head = text.lstrip().split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            table = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
        except csv.Error as error:
            raise self.fail(reader.line_num, f"{error}; mend the quotes") from error
        table = [(line, cells) for line, cells in table if any(cells)]
        if len(table) < 2:
            raise ValueError(f"{self.path} has no rows; expected a header with {', '.join(COLUMNS)} and a row a point")
        names = self._names(table[0][1])
        found: dict[tuple[str, ...], int] = {}
        rows = []
        for line, cells in table[1:]:
            if len(cells) != len(names):
                raise self.fail(line, f"{len(cells)} cells, the header has {len(names)}; quote cells that hold a comma")
            if (first := found.setdefault(tuple(cells), line)) != line:
                self.notes.append(f"line {line} repeats line {first} and was left out")
            else:
                rows.append((line, dict(zip(names, cells, strict=True))))
        return rows

    def _names(self, cells: Sequence[str]) -> list[str]:
        names = [cell.lower() for cell in cells]
        if absent := [name for name in COLUMNS if name not in names]:
            raise ValueError(
                f"{self.path}: no column {', '.join(absent)}; it has {', '.join(names)} and needs {', '.join(COLUMNS)}"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{self.path}: column {', '.join(twice)} is there twice; keep one")
        if others := [name for name in names if name not in COLUMNS + OPTIONAL]:
            self.notes.append(f"columns that are not read: {', '.join(map(code, others))}")
        return names

    def number(self, line: int, cells: Mapping[str, str], name: str) -> float:
        text = cells[name]
        try:
            value = float(text) if re.fullmatch(r"[-+.\deE]+", text) else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fail(
                line, f"{name} is {text!r}; write a number, with a point and without separators of thousands"
            )
        return value

    def optional(self, line: int, cells: Mapping[str, str], name: str) -> float | None:
        return self.number(line, cells, name) if cells.get(name) else None

    def scale(self, values: Sequence[float], name: str, asked: str, mixed: bool) -> float:
        """What the column is divided by: 100 where it holds percent."""
        above = any(value > 1 for value in values)
        if asked == "auto" and above and mixed and (low := [value for value in values if 0 < value <= 1]):
            raise ValueError(
                f"{self.path}: {name} holds values above 1 and {low[0]:g}: shares or percent? Say accuracy_scale"
            )
        percent = asked == "percent" or (asked == "auto" and above)
        if asked == "auto" and values:
            self.notes.append(
                f"{name} was taken for {'percent' if percent else 'shares from 0 to 1'}, as its values say"
            )
        return 100.0 if percent else 1.0


def read_csv(path: str | Path, accuracy_scale: str = "auto") -> Results:
    """Read somebody's results.

    Args:
        accuracy_scale: "fraction" (0 to 1), "percent" (0 to 100), or "auto": percent where a value is above 1.

    The parents are the rows with the methods `direct` and `thinking` (or instruct, reasoning), else strength 0 and 1 of
    the straight line, of SLERP, or of whatever comes first.

    Raises:
        ValueError: a column is missing, a cell is no number or out of range, or two rows are one point; the message
            names the file, the line and the column.
    """
    if accuracy_scale not in SCALES:
        raise ValueError(f"accuracy_scale must be {', '.join(SCALES[:-1])} or {SCALES[-1]}, got {accuracy_scale!r}")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give a CSV with the columns {', '.join(COLUMNS)}")
    reader = _Reader(path)
    cells = reader.rows()
    of_accuracy = reader.scale([reader.number(*row, "accuracy") for row in cells], "accuracy", accuracy_scale, True)
    shares = [value for row in cells if (value := reader.optional(*row, "think_share")) is not None]
    of_share = reader.scale(shares, "think_share", "auto", False)
    rows = [_row(reader, line, entry, of_accuracy, of_share) for line, entry in cells]
    _check_distinct(reader, cells, rows)
    parents = _parents(rows)
    reader.notes.append(
        "only means are known: intervals are binomial in n, p-values are unpaired and take the tokens as exact"
    )
    if len({row.n for row in rows}) > 1:
        reader.notes.append("points have different n: they may not have been asked the same questions")
    rows = _with_ends(rows, parents)
    lines = {row.key: row.strength for row in rows if _plain(row.method) in _ON_THE_LINE and not row.setting}
    parents = {role: next(row for row in rows if row.key == parent.key) for role, parent in parents.items()}
    notes = (*reader.notes, *missing_parents(parents))
    return Results(
        path, with_twins(rows, lines, (row.key for row in parents.values())), parents, planned=len(rows), notes=notes
    )


def read_results(sweep: str | Path | None, table: str | Path | None, accuracy_scale: str = "auto") -> Results:
    """The table of a sweep's folder, or of a CSV.

    Raises:
        ValueError: neither or both are given, and as `from_sweep` and `read_csv`.
    """
    if bool(sweep) == bool(table):
        raise ValueError("give either the folder of a sweep (sweep) or a CSV of results (table)")
    return from_sweep(sweep) if sweep else read_csv(table, accuracy_scale)


def _row(reader: _Reader, line: int, cells: Mapping[str, str], of_accuracy: float, of_share: float) -> Row:
    method = cells["method"]
    if not method:
        raise reader.fail(line, "method is empty; write its name")
    strength, share = reader.optional(line, cells, "strength"), reader.optional(line, cells, "think_share")
    accuracy, tokens, n = (reader.number(line, cells, name) for name in ("accuracy", "tokens", "n"))
    axes: dict[str, Any] = {name: reader.optional(line, cells, name) for name in ("density", "seed")}
    share = None if share is None else share / of_share
    for name, value in (("strength", strength), ("accuracy", accuracy / of_accuracy), ("think_share", share)):
        if value is not None and not 0 <= value <= 1:
            top = {"accuracy": of_accuracy, "think_share": of_share}.get(name, 1.0)
            raise reader.fail(line, f"{name} is {cells[name]}; it must lie between 0 and {top:g}")
    if tokens < 0:
        raise reader.fail(line, f"tokens is {cells['tokens']}; a completion cannot have fewer than 0")
    if n < 1 or n != int(n):
        raise reader.fail(line, f"n is {cells['n']}; it must be the number of questions, a whole one from 1 on")
    axes = {key: value for key, value in axes.items() if value is not None}
    setting = " ".join(f"{key}={value:g}" for key, value in axes.items())
    told = [method, *([] if strength is None else [f"strength={strength:g}"]), *([setting] if setting else [])]
    accuracy /= of_accuracy
    lo, hi = wilson(accuracy, int(n))
    return Row(
        key=f"csv-{line}",
        method=method,
        label=cells.get("label") or " ".join(told),
        axes=axes,
        setting=setting,
        strength=strength,
        accuracy=accuracy,
        accuracy_lo=lo,
        accuracy_hi=hi,
        tokens=tokens,
        n=int(n),
        think_share=share,
    )


def _check_distinct(reader: _Reader, cells: Sequence[tuple[int, Mapping[str, str]]], rows: Sequence[Row]) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    for (line, entry), row in zip(cells, rows, strict=True):
        label = entry.get("label", "") if row.strength is None else ""
        first = seen.setdefault((row.method, row.strength, row.setting, label), line)
        if first != line:
            raise reader.fail(
                line, f"{row.label} is there twice, first in line {first}, with other values; keep one row a point"
            )


def _plain(method: str) -> str:
    return re.sub(r"[\s-]+", "_", method.strip().lower())


def _parents(rows: Sequence[Row]) -> dict[str, Row]:
    found = {}
    for role, strength in ((DIRECT, 0.0), (THINKING, 1.0)):
        ranked = [row for row in rows if _plain(row.method) in _NAMES[role]]
        ends = [row for row in rows if row.strength == strength]
        for names in (_STRAIGHT, ("slerp",)):
            ranked += [row for row in ends if _plain(row.method) in names]
        ranked += ends
        if ranked:
            found[role] = ranked[0]
    return found


def _with_ends(rows: Sequence[Row], parents: Mapping[str, Row]) -> list[Row]:
    """The parents at their strengths, and where the lines end that stop at them."""
    strengths = {parent.key: 0.0 if role == DIRECT else 1.0 for role, parent in parents.items()}
    placed = [replace(row, strength=strengths.get(row.key, row.strength)) for row in rows]
    return [replace(row, ends=tuple(strengths)) if _plain(row.method) in _STOP_AT_PARENTS else row for row in placed]
