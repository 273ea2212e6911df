"""Visits with their context: a data set folder whose events also say when, where and in what weather.

Such a folder is an ordinary data set (catalog.parquet, interactions.parquet, dataset.json) with `visits.parquet` beside
it, one row an interaction, in their order. Which events are targets is written down event by event (`fold`), since it
follows the calendar or the end of a user's log; everything before an event, of whatever fold, is its history.
`load_split` reads the same folds, so sequential backbones are trained and graded on the very events that a model of
needs is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recllm.data.frames import read_frame
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples, FoldsSplit
from recllm.data.text import neutralise

FILE = "visits.parquet"
FOLDS = ("fit", "validation", "test")
# The first day of the weekend, Monday being 0.
WEEKEND = 5
# `hour` 0 to 24 and `weekday` 0 (Monday) to 6 are local, null where unknown; weather and scene are "" where unknown.
# `target`: may be asked for (a home or an office may not). `need` is "" where the source states none, and `accidental`
# null but in made-up worlds. Timestamps are seconds of the local clock, read as if it were UTC.
SCHEMA = {
    "user_id": pl.Int32,
    "item_id": pl.Int32,
    "timestamp": pl.Int64,
    "hour": pl.Float32,
    "weekday": pl.Int8,
    "weather": pl.String,
    "scene": pl.String,
    "fold": pl.String,
    "target": pl.Boolean,
    "need": pl.String,
    "accidental": pl.Boolean,
}
# Degrees; price 1 to 4 and rating 0 to 10, null where unknown.
VENUE_SCHEMA = {"lat": pl.Float64, "lon": pl.Float64, "price": pl.Float32, "rating": pl.Float32}
# What an event is where its source is silent; those that may stay null are `_UNKNOWN`.
_SILENT = {"hour": None, "weekday": None, "weather": "", "scene": "", "target": True, "need": "", "accidental": None}
_UNKNOWN = tuple(name for name, value in _SILENT.items() if value is None)
_DAY, _WEEK = 86_400, 604_800
# 1970 began on a Thursday.
_FIRST_MONDAY = 4 * _DAY


@dataclass(frozen=True)
class Visits:
    """The events of a data set with their context, `M` rows sorted by user and time, as `Sequences` has them."""

    frame: pl.DataFrame
    sequences: Sequences

    @classmethod
    def load(cls, dataset_dir: str | Path) -> Visits:
        """Read a data set's visits.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a column is missing or of another type, an unknown fold, or rows that are not interactions'.
        """
        path = Path(dataset_dir) / FILE
        frame = read_frame(path, SCHEMA, nullable=_UNKNOWN)
        if unknown := sorted(set(frame["fold"].unique()) - set(FOLDS)):
            raise ValueError(f"{path}: unknown fold {unknown[0]!r}; folds are {', '.join(FOLDS)}: run data_prep again")
        sequences = Sequences.load(dataset_dir)
        same = np.array_equal(frame["item_id"].to_numpy(), sequences.items_M)
        if not same or not np.array_equal(frame["timestamp"].to_numpy(), sequences.timestamps_M):
            raise ValueError(f"{path}: its rows are not those of interactions.parquet; run the data_prep script again")
        return cls(frame, sequences)

    def __len__(self) -> int:
        return self.frame.height

    def rows(self, fold: str) -> np.ndarray:
        """Rows of a fold's targets, int64: events that may be asked for."""
        if fold not in FOLDS:
            raise ValueError(f"fold {fold!r} is unknown; the folds are {', '.join(FOLDS)}")
        return np.flatnonzero(((self.frame["fold"] == fold) & self.frame["target"]).to_numpy())

    def history(self, row: int) -> np.ndarray:
        """Rows of the same user before `row`, oldest first, int64."""
        return np.arange(self.sequences.offsets_U1[self.sequences.user_M[row]], row)

    def fitted_counts(self, items: int) -> np.ndarray:
        """How often each of so many items is visited in the fold "fit", int64."""
        return np.bincount(self.frame.filter(pl.col("fold") == "fit")["item_id"].to_numpy(), minlength=items)

    def feed(self, digest: Any) -> None:
        """Tell a digest of `hashlib` who went where and when."""
        for array in (self.sequences.offsets_U1, self.sequences.items_M, self.sequences.timestamps_M):
            digest.update(array.astype("<i8").tobytes())


def write_visits(folder: str | Path, frame: pl.DataFrame) -> None:
    """Write visits.parquet; `frame` has the columns of `SCHEMA`, in the order of interactions.parquet."""
    frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()).write_parquet(Path(folder) / FILE)


def clock(local_time: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """`timestamp`, `hour` and `weekday` of a local date and time (a polars datetime without a zone)."""
    seconds = local_time.dt.epoch("s")
    hour = (seconds % _DAY / 3600).cast(SCHEMA["hour"])
    return seconds.alias("timestamp"), hour.alias("hour"), (local_time.dt.weekday() - 1).alias("weekday")


def completed(events: pl.DataFrame) -> pl.DataFrame:
    """A reader's events (user, item, timestamp and what it knows) with every context column of `SCHEMA` but `fold`.

    Text is made harmless, as `neutralise` does it.
    """
    silent = {name: value for name, value in _SILENT.items() if name not in events.columns}
    events = events.with_columns(*(pl.lit(value).alias(name) for name, value in silent.items()))
    events = events.with_columns(*(pl.col(name).cast(SCHEMA[name]) for name in _SILENT))
    return events.with_columns(*(_harmless(events[name]) for name in ("weather", "scene", "need")))


def _harmless(texts_M: pl.Series) -> pl.Series:
    known = texts_M.unique()
    return texts_M.replace_strict(known, pl.Series(map(neutralise, known), dtype=pl.String), return_dtype=pl.String)


def last_folds(visits: pl.DataFrame, targets: int) -> pl.Series:
    """Folds by the end of each log: of the events that may be asked for, the last `targets` are test.

    As many before those are validation, and the rest fit. Events that may not be asked for fall in the fold of the last
    target before them. A user with no target left for fitting goes there whole. `visits` are a data set's events in its
    order, with `target`.

    Raises:
        ValueError: `targets` is below 1, or no user has more than twice as many.
    """
    if targets < 1:
        raise ValueError(f"targets must be at least 1, got {targets}")
    so_far, of_all = pl.col("target").cum_sum().over("user_id"), pl.col("target").sum().over("user_id")
    ahead = of_all.cast(pl.Int64) - so_far.cast(pl.Int64)
    long = of_all > 2 * targets
    fold = pl.when(long & (ahead < targets)).then(pl.lit("test"))
    fold = fold.when(long & (ahead < 2 * targets)).then(pl.lit("validation")).otherwise(pl.lit("fit"))
    found = visits.select(fold.alias("fold"))["fold"]
    if not (found == "test").any():
        raise ValueError(f"no user has more than {2 * targets} visits that may be asked for; lower targets={targets}")
    return found


def calendar_folds(visits: pl.DataFrame, validation_share: float = 0.15, test_share: float = 0.15) -> pl.Series:
    """Folds by calendar time: the last weeks are test, those before validation.

    Weeks are whole and begin on Monday; the test weeks are the fewest last ones in which at least `test_share` of the
    users (or sessions that stand for users) start, and the validation weeks follow likewise. An event belongs to the
    fold in which it happens. So every fitted event is older than every target, whoever it belongs to; a session that
    starts before a cut and reaches past it is cut there, and its head is its tail's history.

    Raises:
        ValueError: a share is not above 0, they leave nothing, or the weeks are too few for three folds.
    """
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise ValueError(
            f"validation_share={validation_share} and test_share={test_share} must lie above 0 and sum to below 1"
        )
    start_U = visits.group_by("user_id").agg(pl.col("timestamp").min())["timestamp"].to_numpy()
    week_U = np.sort((start_U - _FIRST_MONDAY) // _WEEK)[::-1]
    # The tolerance keeps .15 + .15 of ten from counting as more than three.
    places = (math.ceil(share * len(week_U) - 1e-9) - 1 for share in (validation_share + test_share, test_share))
    validation_week, test_week = (int(week_U[place]) for place in places)
    if not week_U[-1] < validation_week < test_week:
        raise ValueError(
            f"sessions start in {len(np.unique(week_U))} weeks, too few for validation_share={validation_share} and "
            f"test_share={test_share}; lower them, or bring a longer log"
        )
    week = (pl.col("timestamp") - _FIRST_MONDAY) // _WEEK
    fold = pl.when(week >= test_week).then(pl.lit("test")).when(week >= validation_week).then(pl.lit("validation"))
    return visits.select(fold.otherwise(pl.lit("fit")).alias("fold"))["fold"]


def folds_split(visits: Visits) -> FoldsSplit:
    """The split that the folds of some visits make.

    Raises:
        ValueError: a user's folds do not follow each other in time.
    """
    sequences, user_M = visits.sequences, visits.sequences.user_M
    fold_M = visits.frame["fold"].replace_strict(FOLDS, range(len(FOLDS)), return_dtype=pl.Int64).to_numpy()
    backwards = np.flatnonzero((np.diff(fold_M) < 0) & (np.diff(user_M) == 0))
    if len(backwards):
        user = sequences.user_ids_U[user_M[backwards[0]]]
        raise ValueError(f"user {user}: a {FOLDS[fold_M[backwards[0]]]} visit comes before one of an earlier fold")
    fit_length_U = np.bincount(user_M[fold_M == 0], minlength=len(sequences))

    def examples(fold: str) -> Examples:
        rows = visits.rows(fold)
        return Examples(user_M[rows], rows - sequences.offsets_U1[user_M[rows]], sequences)

    return FoldsSplit(sequences, fit_length_U, examples("validation"), examples("test"))


def target_counts(visits: Visits) -> dict[str, int]:
    """How many targets each fold has, and how many visits are context only."""
    counts = {f"{fold}_targets": len(visits.rows(fold)) for fold in FOLDS}
    return {**counts, "context_events": len(visits) - sum(counts.values())}


def earlier_alike(code_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows grouped by code: `order_M` sorts by code and then row, `start_M` is where in it a row's group begins, and
    `count_M` how many earlier rows have the same code."""
    order_M = np.argsort(code_M, kind="stable")
    ordered_M = code_M[order_M]
    start_M = np.searchsorted(ordered_M, code_M)
    count_M = np.empty_like(start_M)
    count_M[order_M] = np.arange(len(code_M)) - np.searchsorted(ordered_M, ordered_M)
    return order_M, start_M, count_M
