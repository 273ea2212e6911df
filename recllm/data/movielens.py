"""MovieLens in RecBole's atomic files: tab-separated `NAME.inter` and `NAME.item` with `column:type` headers."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recllm.data.prepare import Raw
from recllm.data.tables import Table, find, first_reason, need, read_table, set_aside

NAMES = ("ml-100k", "ml-1m")
SOURCE = "GroupLens MovieLens, as atomic files of RecBole"
LICENCE = "GroupLens research licence: cite, do not redistribute, no commercial use without permission"
_TITLES = ("movie_title", "title")
_GENRES = ("genre", "class", "genres")
_YEARS = ("release_year", "year")


def read_movielens(source: str | Path, name: str, min_rating: float = 0.0) -> Raw:
    """Read one MovieLens set from a folder, wheel or zip.

    Every rating of at least `min_rating` counts as one positive implicit event; ratings themselves are not kept.

    Raises:
        FileNotFoundError: `source` or one of its two files is missing.
        ValueError: a file is empty or lacks a column.
    """
    source = Path(source)
    tables = []
    for suffix in (f"{name}.inter", f"{name}.item"):
        found = find(source, suffix)
        if found is None:
            raise FileNotFoundError(f"{source} holds no {suffix}; pass --data with the folder, wheel or zip that does")
        tables.append(read_table(*found, typed_header=True))
    ratings, movies = _ratings(tables[0]), _movies(tables[1])
    events = ratings.frame.filter(pl.col("rating") >= min_rating).select("user", "item", "timestamp")
    return Raw(
        events=events,
        items=movies.frame,
        bad=pl.concat([ratings.bad, movies.bad]),
        rows={ratings.file: ratings.rows, movies.file: movies.rows},
    )


def _ratings(table: Table) -> Table:
    need(table, "user_id", "item_id", "rating", "timestamp")
    number = {name: pl.col(name).cast(pl.Float64, strict=False) for name in ("rating", "timestamp")}
    table = set_aside(
        table,
        first_reason(
            (pl.col("user_id") == "", "empty user_id"),
            (pl.col("item_id") == "", "empty item_id"),
            (~number["rating"].is_finite(), "rating is not a number"),
            # 2**53: above it a float no longer holds every second.
            (~(number["timestamp"].is_finite() & number["timestamp"].is_between(0, 2**53)), "timestamp is no time"),
        ),
    )
    frame = table.frame.select(
        pl.col("user_id").alias("user"),
        pl.col("item_id").alias("item"),
        number["timestamp"].cast(pl.Int64),
        number["rating"],
    )
    return Table(frame, table.bad, table.rows, table.file)


def _movies(table: Table) -> Table:
    need(table, "item_id")
    title, genres, year = (_first_of(table, names) for names in (_TITLES, _GENRES, _YEARS))
    table = set_aside(table, first_reason((pl.col("item_id") == "", "empty item_id")))
    frame = table.frame.select(
        pl.col("item_id").alias("item"),
        pl.col(title).alias("title"),
        pl.col(genres).str.split(" ").list.filter(pl.element() != "").alias("categories"),
        # A year that is not one ("unkonwn" in ml-100k) is unknown, not malformed.
        pl.col(year).cast(pl.Float64, strict=False).cast(pl.Int32, strict=False).alias("year"),
    )
    return Table(frame, table.bad, table.rows, table.file)


def _first_of(table: Table, names: tuple[str, ...]) -> str:
    for name in names:
        if name in table.frame.columns:
            return name
    need(table, names[0])
    raise AssertionError("need() raises for a missing column")
