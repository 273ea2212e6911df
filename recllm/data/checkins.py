"""Visits with their context: a data set folder whose events also say when, where and in what weather.

Such a folder is an ordinary data set (catalog.parquet, interactions.parquet, dataset.json) with `visits.parquet` beside
it, one row an event in the order of interactions.parquet. Its catalogue has the categories of a venue as [root, leaf],
and the columns of `VENUE_SCHEMA`.

Which events are targets is written down event by event (`fold`), since it follows the calendar or the end of a user's
log; everything before an event, of whatever fold, is its history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.interactions import Sequences

FILE = "visits.parquet"
FOLDS = ("fit", "validation", "test")
# `hour` 0 to 24 and `weekday` 0 (Monday) to 6 are local, null where unknown; weather and scene are "" where unknown.
# `target`: may be asked for (a home or an office may not). `need` is "" and `accidental` null but in made-up worlds.
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
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; make the data set with data_prep/foursquare.py")
        frame = pl.read_parquet(path)
        for name, dtype in SCHEMA.items():
            if frame.schema.get(name) != dtype:
                found = frame.schema.get(name)
                raise ValueError(f"{path}: column {name} must be {dtype}, is {found}; run the data_prep script again")
        if unknown := sorted(set(frame["fold"].unique()) - set(FOLDS)):
            raise ValueError(f"{path}: unknown fold {unknown[0]!r}; the folds are {', '.join(FOLDS)}")
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
        user = int(np.searchsorted(self.sequences.offsets_U1, row, side="right")) - 1
        return np.arange(self.sequences.offsets_U1[user], row)


def write_visits(folder: str | Path, frame: pl.DataFrame) -> None:
    """Write visits.parquet; `frame` has the columns of `SCHEMA`, in the order of interactions.parquet."""
    frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()).write_parquet(Path(folder) / FILE)
