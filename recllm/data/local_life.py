"""Local-life logs as CSV: the layout of PIGEON (Lan et al., ACL 2025 Findings; github.com/tsinghua-fib-lab/PIGEON), and
any other through a map of its columns.

PIGEON's columns are userid, hour (a float such as 11.5; there is no date), loc (a scene such as "Business District"),
order (a category of service) and living_need (a label made by a model). The published sample is separated by tabs; the
separator is told by the header line. Fields may be quoted.

Where no venue is named a service is (scene, category). Without a time the file's order is all there is to order the
visits of a user by, and the data set says `time: order`.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from recllm.data.checkins import VENUE_SCHEMA, clock, completed
from recllm.data.prepare import Raw, quarantine
from recllm.data.tables import Table, first_reason, need, set_aside

PIGEON = ("user=userid", "hour=hour", "scene=loc", "category=order", "need=living_need")
FIELDS = ("user", "time", "hour", "venue", "title", "category", "root", "scene", "weather", "need", *VENUE_SCHEMA)
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
_RANGES = {"hour": (0, 24), "lat": (-90, 90), "lon": (-180, 180), "price": (1, 4), "rating": (0, 10)}


def column_map(pairs: Sequence[str]) -> dict[str, str]:
    """`["user=member", "category=cuisine"]` -> the file's column of each of `FIELDS` that it has.

    Raises:
        ValueError: not a pair, an unknown or repeated field, or user, category or what makes a service is missing.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        field, _, column = pair.partition("=")
        if not column or field not in FIELDS or field in columns:
            nearest = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest and nearest[0] != field else ""
            raise ValueError(f"columns: {pair!r} is not FIELD=COLUMN with each of {', '.join(FIELDS)} once{hint}")
        columns[field] = column
    for field in ("user", "category"):
        if field not in columns:
            raise ValueError(f"columns: no column for {field}; add {field}=COLUMN")
    if "venue" not in columns and "scene" not in columns:
        raise ValueError("columns: a service is a venue, or a category in a scene; add venue=COLUMN or scene=COLUMN")
    if "time" in columns and "hour" in columns:
        raise ValueError("columns: the hour follows from the time; leave out hour=, or time= where it has no hour")
    return columns


def read_local_life(
    path: str | Path,
    columns: Mapping[str, str],
    context: Sequence[str] = (),
    time_format: str = TIME_FORMAT,
) -> Raw:
    """Read a local-life log; `columns` is what `column_map` gives.

    Visits at a venue whose category or root is one of `context` are never targets. Of a venue that is described in
    several ways the first one counts.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file holds no row, or lacks a column.
    """
    table = _read_csv(Path(path))
    need(table, *columns.values())
    named = table.frame.select("_line", *(pl.col(column).alias(field) for field, column in columns.items()))
    table = set_aside(Table(named, table.bad, table.rows, table.file), _malformed(columns, time_format))
    visits = table.frame.with_columns(
        *(_number(name).alias(name) for name in _RANGES if name in columns),
        # Not a character that a name would have: "a, b" in "c" is not "a" in "b, c".
        (pl.col("venue") if "venue" in columns else pl.format("{}\x1f{}", "scene", "category")).alias("item"),
    )
    told = [name for name in ("hour", "weather", "scene", "need") if name in columns]
    target = ~pl.any_horizontal(pl.col(name).is_in(context) for name in _levels(columns))
    time = pl.col("time").str.to_datetime(time_format, strict=False)
    when = clock(time) if "time" in columns else [pl.int_range(pl.len()).over("user").alias("timestamp")]
    return Raw(
        events=completed(visits.select("user", "item", *when, *told, target.alias("target"))),
        items=_items(visits, columns),
        bad=table.bad,
        rows={table.file: table.rows},
        time="seconds" if "time" in columns else "order",
    )


def _read_csv(path: Path) -> Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give the CSV file of the log")
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    separator = max("\t;,", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    good, bad = [], []
    try:
        names = next(rows, [])
        for fields in filter(None, rows):
            if len(fields) != len(names):
                bad.append((path.name, rows.line_num, f"{len(fields)} fields, the header has {len(names)}"))
            elif any("\ufffd" in text for text in fields):
                bad.append((path.name, rows.line_num, "not UTF-8"))
            else:
                good.append((rows.line_num, *fields))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}; look for a quote that is never closed") from error
    if not good and not bad:
        raise ValueError(f"{path} holds no rows; it needs a header line and at least one row")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the header names a column twice ({', '.join(names)}); rename one")
    schema = {"_line": pl.Int64, **dict.fromkeys(names, pl.String)}
    return Table(pl.DataFrame(good, schema=schema, orient="row"), quarantine(bad), len(good) + len(bad), path.name)


def _malformed(columns: Mapping[str, str], time_format: str) -> pl.Expr:
    wanted = ["user", "category", "venue" if "venue" in columns else "scene"]
    checks = [(pl.col(name).str.strip_chars() == "", f"no {name}") for name in wanted]
    if "time" in columns:
        seconds = pl.col("time").str.to_datetime(time_format, strict=False).dt.epoch("s")
        checks.append((seconds < 0, f"the time is not {time_format}, or before 1970"))
    for name in filter(columns.__contains__, _RANGES):
        low, high = _RANGES[name]
        inside = _number(name).is_between(low, high, closed="left" if name == "hour" else "both")
        checks.append(((pl.col(name) != "") & ~inside.fill_null(False), f"{name} is not a number from {low} to {high}"))
    return first_reason(*checks)


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False)


def _levels(columns: Mapping[str, str]) -> list[str]:
    return [name for name in ("root", "category") if name in columns]


def _items(visits: pl.DataFrame, columns: Mapping[str, str]) -> pl.DataFrame:
    if "title" in columns:
        title = pl.col("title")
    else:
        title = pl.lit("") if "venue" in columns else pl.format("{}, {}", "category", "scene")
    facts = ((pl.col(name) if name in columns else pl.lit(None)).cast(kind) for name, kind in VENUE_SCHEMA.items())
    return visits.unique("item", keep="first", maintain_order=True).select(
        "item",
        title.alias("title"),
        pl.concat_list(_levels(columns)).alias("categories"),
        *(fact.alias(name) for name, fact in zip(VENUE_SCHEMA, facts, strict=True)),
    )
