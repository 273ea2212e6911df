"""KuaiRec (Gao et al., CIKM 2022, arXiv 2202.10842): watch logs of a video app as CSV.

Layout as its README describes it (github.com/chongminggao/KuaiRec, kuairec.com), files in the folder or in `data/`:

| file | columns used |
|---|---|
| big_matrix.csv, small_matrix.csv | user_id, video_id, timestamp (seconds, with a fraction), watch_ratio |
| item_categories.csv | video_id, feat (a list of tags, `"[27, 9]"`) |
| item_daily_features.csv | video_id, video_tag_name (a row a video and day) |
| kuairec_caption_category.csv (version 2) | video_id, caption, first/second/third_level_category_name |

Only the matrix is needed. Titles are captions, or else tag names; categories are category names, or else tags. The
small matrix lacks the timestamp of about four rows in a hundred, which sequences cannot do without: those rows are set
aside (recipes/configs/kuairec/small.yaml allows for it). Views of one second keep the order of their fractions.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recllm.data.prepare import Raw
from recllm.data.tables import Table, first_reason, need, set_aside

SOURCE = "KuaiRec, logs of the Kuaishou video app (kuairec.com)"
LICENCE = "CC BY-SA 4.0"
_LEVELS = tuple(f"{level}_level_category_name" for level in ("first", "second", "third"))
_UNKNOWN = ("", "UNKNOWN", "null", "nan", "NaN", "-124")


def read_kuairec(folder: str | Path, matrix: str = "big", min_watch_ratio: float = 1.0) -> Raw:
    """Read KuaiRec; a view whose watch ratio is above `min_watch_ratio` is one positive event, all others are none.

    Raises:
        FileNotFoundError: the matrix is missing.
        ValueError: a file without rows, or a column is missing.
    """
    folder = Path(folder)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    views = _views(_csv(folder, f"{matrix}_matrix.csv"))
    events = views.frame.filter(pl.col("watch_ratio") > min_watch_ratio).select("user", "item", "timestamp")
    tables = [views, *(part for part in (_captions(folder), _tags(folder), _tag_names(folder)) if part is not None)]
    return Raw(
        events=events,
        items=_items(tables[1:]),
        bad=pl.concat([table.bad for table in tables]),
        rows={table.file: table.rows for table in tables},
    )


def _csv(folder: Path, name: str) -> Table:
    """All columns as text; quoted fields may hold commas and line breaks. A row that is cut short ends in nulls."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put the unpacked files of KuaiRec into {folder}")
    options = {"infer_schema": False, "truncate_ragged_lines": True, "encoding": "utf8-lossy"}
    try:
        frame = pl.read_csv(path, row_index_name="_line", row_index_offset=2, **options)
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{path} holds no rows; it needs a header line and at least one row") from error
    if not frame.height:
        raise ValueError(f"{path} holds no rows; it needs a header line and at least one row")
    frame = frame.with_columns(pl.col("_line").cast(pl.Int64))
    return Table(frame, frame.clear().select(file=pl.lit(name), row="_line", reason=pl.lit("")), frame.height, name)


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False)


def _views(table: Table) -> Table:
    need(table, "user_id", "video_id", "timestamp", "watch_ratio")
    time = _number("timestamp")
    checks = (
        (pl.col("user_id") == "", "no user_id"),
        (pl.col("video_id") == "", "no video_id"),
        (~_number("watch_ratio").is_finite(), "watch_ratio is not a number"),
        # 2**53: above it a float no longer holds every second.
        (~(time.is_finite() & time.is_between(0, 2**53)), "timestamp is no time"),
    )
    table = set_aside(table, first_reason(*checks))
    # Seconds are what a data set holds; which of two views in one second came first is still told by their order.
    frame = table.frame.sort(time, maintain_order=True).select(
        pl.col("user_id").alias("user"),
        pl.col("video_id").alias("item"),
        time.cast(pl.Int64).alias("timestamp"),
        _number("watch_ratio").alias("watch_ratio"),
    )
    return Table(frame, table.bad, table.rows, table.file)


def _video_table(folder: Path, name: str, *columns: str) -> Table | None:
    """A table about videos without the rows that name none, or None where the file is not there."""
    if not (folder / name).is_file():
        return None
    table = _csv(folder, name)
    need(table, "video_id", *columns)
    # Lines that are no row of their own come out of unquoted line breaks in captions.
    no_video = pl.col("video_id").cast(pl.Int64, strict=False).is_null()
    return set_aside(table, first_reason((no_video, "video_id is not a number")))


def _known(name: str) -> pl.Expr:
    text = pl.col(name).str.strip_chars()
    return pl.when(~text.is_in(_UNKNOWN)).then(text)


def _captions(folder: Path) -> Table | None:
    table = _video_table(folder, "kuairec_caption_category.csv", "caption", *_LEVELS)
    if table is None:
        return None
    names = pl.concat_list(_known(name) for name in _LEVELS).list.drop_nulls()
    frame = table.frame.select(pl.col("video_id").alias("item"), _known("caption").alias("title"), categories=names)
    return Table(frame, table.bad, table.rows, table.file)


def _tags(folder: Path) -> Table | None:
    table = _video_table(folder, "item_categories.csv", "feat")
    if table is None:
        return None
    tags = pl.col("feat").str.extract_all(r"\d+").list.eval(pl.format("tag {}", pl.element()))
    frame = table.frame.select(pl.col("video_id").alias("item"), title=pl.lit(None, pl.String), categories=tags)
    return Table(frame, table.bad, table.rows, table.file)


def _tag_names(folder: Path) -> Table | None:
    table = _video_table(folder, "item_daily_features.csv", "video_tag_name")
    if table is None:
        return None
    empty = pl.lit([], dtype=pl.List(pl.String))
    frame = table.frame.select(
        pl.col("video_id").alias("item"), _known("video_tag_name").alias("title"), empty.alias("categories")
    )
    frame = frame.drop_nulls("title").unique("item", keep="first", maintain_order=True)
    return Table(frame, table.bad, table.rows, table.file)


def _items(tables: list[Table]) -> pl.DataFrame:
    """One row a video: of what the tables say, in their order, the first title and the first categories."""
    schema = {"item": pl.String, "title": pl.String, "categories": pl.List(pl.String)}
    stacked = pl.concat([table.frame.select(list(schema)) for table in tables] or [pl.DataFrame(schema=schema)])
    some = pl.when(pl.col("categories").list.len() > 0).then(pl.col("categories"))
    grouped = stacked.with_columns(some.alias("categories")).group_by("item", maintain_order=True)
    return grouped.agg(
        pl.col("title").drop_nulls().first().fill_null(""),
        pl.col("categories").drop_nulls().first().fill_null(pl.lit([], dtype=pl.List(pl.String))),
    )
