"""Amazon reviews as McAuley's lab publishes them (2014, 2018, 2023), and plain TSV folders made from them.

| format | files | event keys | item keys |
|---|---|---|---|
| 2014 | reviews_*.json, meta_*.json (Python literals) | reviewerID, asin, unixReviewTime | asin, title, categories |
| 2018 | *.json, meta_*.json | reviewerID, asin, unixReviewTime | asin, title, category |
| 2023 | *.jsonl, meta_*.jsonl | user_id, parent_asin, timestamp (ms) | parent_asin, title, categories |
| tsv | interactions.tsv, items.tsv | user_id, item_id, timestamp | item_id, title, ... |
| sequences | sequences.tsv, items.tsv | user_id, items (in order, by spaces) | item_id, title, ... |

Every file may be gzipped. Every review or listed item counts as one positive implicit event.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from recllm.data.jsonl import read_json_lines
from recllm.data.prepare import Raw
from recllm.data.tables import Table, find, first_reason, need, read_table, set_aside

Format = Literal["auto", "2014", "2018", "2023", "tsv", "sequences"]
DATA_VARIABLE = "RECLLM_DATA"
SOURCE = "Amazon reviews, McAuley lab (UCSD)"
LICENCE = "research data: cite the source, do not redistribute"
_LIST = pl.List(pl.String)


@dataclass(frozen=True)
class _Keys:
    """Which keys of the JSON lines mean what."""

    user: str
    item: str
    time: str
    per_second: int
    categories: str
    categories_type: pl.DataType
    brand: str
    literal: bool = False


_JSON = {
    "2014": _Keys("reviewerID", "asin", "unixReviewTime", 1, "categories", pl.List(_LIST), "brand", literal=True),
    "2018": _Keys("reviewerID", "asin", "unixReviewTime", 1, "category", _LIST, "brand"),
    "2023": _Keys("user_id", "parent_asin", "timestamp", 1000, "categories", _LIST, "store"),
}


def locate(name: str, data: str | Path | None = None) -> Path:
    """The folder of the data set `name`: `data` itself, or where it has a sub-folder `name` that one; without
    `data`, folder `name` under the environment variable RECLLM_DATA.

    Raises:
        FileNotFoundError: there is no such folder, or neither is given.
    """
    root = data or os.environ.get(DATA_VARIABLE)
    if not root:
        raise FileNotFoundError(f"no data for {name}: pass --data DIR, or set {DATA_VARIABLE} to a folder with {name}/")
    folder = Path(root) / name
    if folder.is_dir():
        return folder
    if data and Path(data).is_dir():
        return Path(data)
    raise FileNotFoundError(f"{folder} is no folder; --data and {DATA_VARIABLE} name the folder that holds {name}/")


def detect_format(folder: Path) -> Format:
    """The format of a folder by the names of its files.

    Raises:
        ValueError: none of the known names is there.
    """
    names = [path.name.removesuffix(".gz") for path in sorted(folder.iterdir())]
    if "interactions.tsv" in names:
        return "tsv"
    if "sequences.tsv" in names:
        return "sequences"
    if any(name.endswith(".jsonl") for name in names):
        return "2023"
    if any(name.startswith("reviews_") and name.endswith(".json") for name in names):
        return "2014"
    if any(name.endswith(".json") for name in names):
        return "2018"
    raise ValueError(
        f"{folder} holds no known file ({', '.join(names) or 'it is empty'}); it needs interactions.tsv or "
        "sequences.tsv with items.tsv, or reviews and meta_* as .json or .jsonl, each plain or gzipped"
    )


def read_amazon(folder: str | Path, form: Format = "auto") -> Raw:
    """Read one Amazon data set.

    Raises:
        FileNotFoundError: a file of the format is missing.
        ValueError: unknown format, several candidates for a file, an empty file or a missing column.
    """
    folder = Path(folder)
    form = detect_format(folder) if form == "auto" else form
    if form in _JSON:
        events, items = _reviews(folder, form), _metadata(folder, form)
    elif form == "tsv":
        events, items = _interactions(folder), _items(folder)
    elif form == "sequences":
        events, items = _sequences(folder), _items(folder)
    else:
        raise ValueError(f"unknown format {form!r}; choose auto, tsv, sequences, {', '.join(_JSON)}")
    return Raw(
        events=events.frame.select("user", "item", "timestamp"),
        items=items.frame.drop("_line"),
        bad=pl.concat([events.bad, items.bad]),
        rows={events.file: events.rows, items.file: items.rows},
        time="order" if form == "sequences" else "seconds",
    )


def _json_file(folder: Path, form: Format, meta: bool) -> Path:
    ending = ".jsonl" if form == "2023" else ".json"
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name.removesuffix(".gz").endswith(ending) and path.name.startswith("meta_") == meta
    ]
    wanted = f"{'meta_*' if meta else 'reviews'}{ending}[.gz]"
    if not found:
        raise FileNotFoundError(f"{folder} holds no {wanted}; put reviews and metadata of one category there")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds several files for {wanted}: {names}; leave one")
    return found[0]


def _no_key(name: str) -> tuple[tuple[pl.Expr, str], tuple[pl.Expr, str]]:
    # A list or object where a string belongs arrives as its JSON text.
    return (
        (pl.col(name).str.strip_chars() == "", f"no {name}"),
        (pl.col(name).str.contains(r"^[\[{]"), f"{name} is no string"),
    )


def _reviews(folder: Path, form: Format) -> Table:
    keys = _JSON[form]
    fields = {keys.user: pl.String, keys.item: pl.String, keys.time: pl.Int64}
    table = read_json_lines(_json_file(folder, form, meta=False), fields)
    no_time = (~pl.col(keys.time).is_between(0, 2**53), f"no {keys.time}, or not a time")
    table = set_aside(table, first_reason(*_no_key(keys.user), *_no_key(keys.item), no_time))
    frame = table.frame.select(
        pl.col(keys.user).alias("user"),
        pl.col(keys.item).alias("item"),
        (pl.col(keys.time) // keys.per_second).alias("timestamp"),
    )
    return Table(frame, table.bad, table.rows, table.file)


def _metadata(folder: Path, form: Format) -> Table:
    keys = _JSON[form]
    fields = {
        keys.item: pl.String,
        "title": pl.String,
        keys.categories: keys.categories_type,
        keys.brand: pl.String,
    }
    table = read_json_lines(_json_file(folder, form, meta=True), fields, literal=keys.literal)
    table = set_aside(table, first_reason(*_no_key(keys.item)))
    categories = pl.col(keys.categories)
    if keys.categories_type != _LIST:  # several paths per item become one list without repeats
        categories = categories.list.eval(pl.element().explode())
    frame = table.frame.select(
        "_line",
        pl.col(keys.item).alias("item"),
        "title",
        categories.alias("categories"),
        pl.col(keys.brand).alias("brand"),
    )
    return Table(frame, table.bad, table.rows, table.file)


def _tsv(folder: Path, name: str) -> Table:
    found = find(folder, name)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no {name} or {name}.gz")
    return read_table(*found)


def _interactions(folder: Path) -> Table:
    table = _tsv(folder, "interactions.tsv")
    need(table, "user_id", "item_id", "timestamp")
    time = pl.col("timestamp").cast(pl.Int64, strict=False)
    table = set_aside(
        table,
        first_reason(
            (pl.col("user_id") == "", "empty user_id"),
            (pl.col("item_id") == "", "empty item_id"),
            (~time.is_between(0, 2**53), "timestamp is no time in whole seconds"),
        ),
    )
    frame = table.frame.select(pl.col("user_id").alias("user"), pl.col("item_id").alias("item"), time)
    return Table(frame, table.bad, table.rows, table.file)


def _sequences(folder: Path) -> Table:
    table = _tsv(folder, "sequences.tsv")
    need(table, "user_id", "items")
    table = set_aside(
        table,
        first_reason(
            (pl.col("user_id") == "", "empty user_id"),
            (pl.col("items").str.strip_chars() == "", "empty items"),
            # Joining two rows of one user would guess which came first.
            (~pl.col("user_id").is_first_distinct(), "user_id has a row already"),
        ),
    )
    items = pl.col("items").str.split(" ").list.filter(pl.element() != "")
    frame = table.frame.select(pl.col("user_id").alias("user"), items.alias("item"))
    frame = frame.with_columns(pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64).alias("timestamp"))
    return Table(frame.explode("item", "timestamp"), table.bad, table.rows, table.file)


def _items(folder: Path) -> Table:
    table = _tsv(folder, "items.tsv")
    need(table, "item_id", "title")
    table = set_aside(table, first_reason((pl.col("item_id") == "", "empty item_id")))
    # Two names are the catalogue's own.
    frame = table.frame.drop("item", "source_id", strict=False).rename({"item_id": "item"})
    if "categories" not in frame.columns:
        frame = frame.with_columns(pl.lit([], dtype=_LIST).alias("categories"))
    elif frame["categories"].str.contains("|", literal=True).any():
        frame = frame.with_columns(pl.col("categories").str.split("|"))
    else:
        # A path by commas; a comma before a space belongs to a name ("Tapes, Adhesives & Sealants").
        inside = pl.col("categories").str.replace_all(", ", "\x1f", literal=True).str.split(",")
        frame = frame.with_columns(inside.list.eval(pl.element().str.replace_all("\x1f", ", ", literal=True)))
    return Table(frame, table.bad, table.rows, table.file)
