"""TAOBAO-MM (MUSE, arXiv 2512.07216; taobao-mm.github.io): clicks on ads after up to 1,000 earlier behaviours.

Layout of `raw/` on the Hub (TaoBao-MM/Taobao-MM), columns named by number as in MUSE's code (alimama-tech/MUSE):

| file | columns used |
|---|---|
| train_samples.parquet, test_samples.parquet | label_0 (`[0, 1]` is a click), 129_1 user, 205 item |
| train_user_features.parquet, test_user_features.parquet | 129_1 user, 150_2_180 items of the history, oldest first |
| item_features.parquet | 205 item, 206 category |
| scl_embedding_int8_p90.parquet | 205 item, 205_c int8 vector of 128 in units of 1/127 |

There are no times: order is all. Sampling as for GLASS (arXiv 2602.05663): clicks only; target items with at least
`min_item_clicks` clicks in train that are clicked in test, too; `items` of those drawn at random; users who clicked
one of them, with at least `min_history` known items among the last 50 of their history.

A user's sequence is the history and then the clicks, in the files' order. Who clicked in test is taken from the test
files alone: the train file's clicks lie before that history ends. The split `last_event` makes each user's latest click
the target, validation for one half of the users and test for the other, where the original cuts test samples in halves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.prepare import Raw, quarantine

SOURCE = "TAOBAO-MM, display advertising of Taobao (taobao-mm.github.io)"
LICENCE = "Apache-2.0, for research"
USER, ITEM, LABEL, HISTORY, CATEGORY, VECTOR = "129_1", "205", "label_0", "150_2_180", "206", "205_c"
FILES = ("train_samples", "test_samples", "train_user_features", "test_user_features", "item_features")
VECTOR_FILE = "scl_embedding_int8_p90.parquet"
SHORT = 50
_ROWS = 4096
_EVENTS = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}


def read_taobao_mm(
    folder: str | Path,
    *,
    items: int = 10_000,
    min_item_clicks: int = 5,
    min_history: int = 40,
    users: int | None = None,
    sampled_history: bool = False,
    seed: int = 42,
) -> Raw:
    """Read and sample TAOBAO-MM. Files are scanned, and only the sampled users' histories are ever held.

    `users` takes so many of the users at most, drawn by `seed`; `sampled_history` keeps only sampled items in
    histories too, which makes the catalogue as small as `items`. `min_history` counts before that.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a column is missing, or no item is left.
    """
    folder = Path(folder)
    folder = folder / "raw" if (folder / "raw").is_dir() else folder
    wanted = {
        "train_samples": (LABEL, USER, ITEM),
        "test_samples": (LABEL, USER, ITEM),
        "train_user_features": (USER, HISTORY),
        "test_user_features": (USER, HISTORY),
        "item_features": (ITEM, CATEGORY),
    }
    scans = {name: _scan(folder, name, columns) for name, columns in wanted.items()}
    bad = pl.concat([_malformed(name, scans[name], wanted[name]) for name in FILES])
    clicks = {part: _clicks(scans[f"{part}_samples"]) for part in ("train", "test")}
    chosen = _sample_items(clicks["train"], clicks["test"], min_item_clicks, items, seed)
    clicks = {part: frame.filter(pl.col(ITEM).is_in(chosen.implode())) for part, frame in clicks.items()}
    clicks["train"] = clicks["train"].join(clicks["test"], on=USER, how="anti", maintain_order="left")
    kept = None if users is None else _sample_users(clicks, users, seed)
    parts = []
    for part, frame in clicks.items():
        frame = frame if kept is None else frame.filter(pl.col(USER).is_in(kept.implode()))
        path, only = folder / f"{part}_user_features.parquet", chosen if sampled_history else None
        parts.append(_sequences(frame, _histories(path, frame[USER].unique(), min_history, only)))
    events = pl.concat(parts)
    rows = {f"{name}.parquet": scans[name].select(pl.len()).collect().item() for name in FILES}
    return Raw(events, _items(scans["item_features"], events), bad, rows, time="order")


def read_vectors(folder: str | Path, source_ids: list[str]) -> np.ndarray | None:
    """Vectors float32 (items, 128) of the items with these keys, zeros where the file has none; None without a file."""
    folder = Path(folder)
    path = (folder / "raw" if (folder / "raw").is_dir() else folder) / VECTOR_FILE
    if not path.is_file():
        return None
    order = pl.LazyFrame({ITEM: source_ids}).with_columns(pl.col(ITEM).cast(pl.Int64)).with_row_index("_row")
    found = pl.scan_parquet(path).select(ITEM, VECTOR).join(order, on=ITEM).collect()
    width = int(found[VECTOR].list.len().max() or 0)
    vectors_ND = np.zeros((len(source_ids), width), dtype=np.float32)
    vectors_ND[found["_row"].to_numpy()] = np.array(found[VECTOR].to_list(), dtype=np.float32).reshape(-1, width) / 127
    return vectors_ND


def _scan(folder: Path, name: str, columns: tuple[str, ...]) -> pl.LazyFrame:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download raw/ of the data set TaoBao-MM/Taobao-MM")
    scan = pl.scan_parquet(path)
    if missing := [column for column in columns if column not in scan.collect_schema()]:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}")
    return scan.select(columns)


def _malformed(name: str, scan: pl.LazyFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    """Rows with a null, which take no part: filters and joins below leave them out."""
    numbered = scan.with_row_index("_row", offset=1)
    rows = []
    for column in columns:
        found = numbered.filter(pl.col(column).is_null()).select("_row").collect()
        rows += [(f"{name}.parquet", row, f"no {column}") for row in found["_row"].to_list()]
    return quarantine(rows)


def _clicks(samples: pl.LazyFrame) -> pl.DataFrame:
    clicked = pl.col(LABEL).list.get(0, null_on_oob=True) == 0
    return samples.filter(clicked).select(USER, ITEM).drop_nulls().collect()


def _sample_items(train: pl.DataFrame, test: pl.DataFrame, least: int, items: int, seed: int) -> pl.Series:
    frequent = train.group_by(ITEM).len().filter(pl.col("len") >= least)[ITEM]
    common = frequent.filter(frequent.is_in(test[ITEM].unique().implode())).sort()
    if not len(common):
        raise ValueError(f"no item has {least} clicks in train and one in test; lower min_item_clicks")
    if len(common) <= items:
        return common
    return common.gather(np.sort(np.random.default_rng(seed).choice(len(common), items, replace=False)))


def _sample_users(clicks: dict[str, pl.DataFrame], users: int, seed: int) -> pl.Series:
    everyone = pl.concat(clicks.values())[USER].unique().sort()
    if len(everyone) <= users:
        return everyone
    return everyone.gather(np.sort(np.random.default_rng(seed).choice(len(everyone), users, replace=False)))


def _histories(path: Path, users: pl.Series, least: int, only: pl.Series | None) -> pl.DataFrame:
    """One row a user with its history; 0 pads histories in the joined files and is no item.

    Users with fewer than `least` items among their last 50 are left out. Read a few thousand rows at a time: the
    published file's row groups hold a million users each.
    """
    import pyarrow.parquet as pq

    chosen = None if only is None else pl.element().is_in(only.to_list())
    parts = [pl.DataFrame(schema={USER: pl.Int64, HISTORY: pl.List(pl.Int64)})]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=_ROWS, columns=[USER, HISTORY]):
        rows = pl.from_arrow(batch).filter(pl.col(USER).is_in(users.implode())).drop_nulls()
        rows = rows.with_columns(pl.col(HISTORY).list.eval(pl.element().filter(pl.element() != 0)))
        rows = rows.filter(pl.col(HISTORY).list.tail(SHORT).list.len() >= least)
        if chosen is not None:
            rows = rows.with_columns(pl.col(HISTORY).list.eval(pl.element().filter(chosen)))
        parts.append(rows)
    return pl.concat(parts).unique(USER, keep="first", maintain_order=True)


def _items(features: pl.LazyFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The items that occur, with their category for all text; there are no titles."""
    known = features.drop_nulls().unique(ITEM, keep="first", maintain_order=True)
    category = pl.concat_list(pl.format("category {}", pl.col(CATEGORY))).cast(pl.List(pl.String))
    about = known.select(pl.col(ITEM).cast(pl.String).alias("item"), title=pl.lit(""), categories=category)
    return about.join(events.select("item").unique().lazy(), on="item", how="semi").collect()


def _sequences(clicks: pl.DataFrame, histories: pl.DataFrame) -> pl.DataFrame:
    """Events of these users: the history, then the clicks; the timestamp is the ordinal."""
    grouped = clicks.group_by(USER, maintain_order=True).agg(ITEM)
    joined = grouped.join(histories, on=USER, maintain_order="left")
    whole = joined.select(USER, item=pl.concat_list(HISTORY, ITEM))
    whole = whole.with_columns(timestamp=pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64))
    return whole.explode("item", "timestamp").rename({USER: "user"}).cast(_EVENTS)
