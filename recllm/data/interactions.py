"""The events of a data set as one flat array per column, cut into users by offsets (CSR)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.frames import read_frame

FILE = "interactions.parquet"
SCHEMA = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}


@dataclass(frozen=True)
class Sequences:
    """Events of every user in time order.

    `user_ids_U` int32 names the users, `items_M` int32 and `timestamps_M` int64 (seconds, or an ordinal where the
    data set says `time: order`) hold all M events, and the events of row `u` are `offsets_U1[u]:offsets_U1[u + 1]`.
    """

    user_ids_U: np.ndarray
    items_M: np.ndarray
    timestamps_M: np.ndarray
    offsets_U1: np.ndarray

    @classmethod
    def load(cls, dataset_dir: str | Path) -> Sequences:
        """Read `interactions.parquet` of a data set folder.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: wrong columns, nulls, negative ids, or rows not sorted by user and timestamp.
        """
        path = Path(dataset_dir) / FILE
        frame = read_frame(path, SCHEMA)
        try:
            return cls.from_arrays(*(frame[name].to_numpy() for name in SCHEMA))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; run the data_prep script again") from error

    @classmethod
    def from_arrays(cls, users_M: np.ndarray, items_M: np.ndarray, timestamps_M: np.ndarray) -> Sequences:
        """Build from one row per event, sorted by user and then timestamp; equal timestamps keep their order.

        Raises:
            ValueError: columns of unequal length, no event, negative ids, or rows out of order.
        """
        users_M = np.ascontiguousarray(users_M, dtype=np.int32)
        items_M = np.ascontiguousarray(items_M, dtype=np.int32)
        timestamps_M = np.ascontiguousarray(timestamps_M, dtype=np.int64)
        if not len(users_M) == len(items_M) == len(timestamps_M):
            raise ValueError("the event columns differ in length")
        if len(users_M) == 0:
            raise ValueError("there is no event")
        if users_M.min() < 0 or items_M.min() < 0:
            raise ValueError("a user or item id is negative")
        step_M = np.diff(users_M)
        if (step_M < 0).any() or ((step_M == 0) & (np.diff(timestamps_M) < 0)).any():
            raise ValueError("events are not sorted by user and timestamp")
        starts_U = np.concatenate([[0], np.flatnonzero(step_M) + 1])
        offsets_U1 = np.append(starts_U, len(users_M)).astype(np.int64)
        return cls(users_M[starts_U], items_M, timestamps_M, offsets_U1)

    @classmethod
    def from_lists(cls, histories: list[list[int]]) -> Sequences:
        """Build from one list of items per user, with ordinals for timestamps. An empty list is an empty user."""
        lengths_U = np.array([len(history) for history in histories], dtype=np.int64)
        items_M = np.array([item for history in histories for item in history], dtype=np.int32)
        return cls(
            np.arange(len(histories), dtype=np.int32),
            items_M,
            _ordinals(lengths_U),
            np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.user_ids_U)

    @property
    def lengths_U(self) -> np.ndarray:
        """Number of events of every user, int64."""
        return np.diff(self.offsets_U1)

    @cached_property
    def user_M(self) -> np.ndarray:
        """Row of the user of every event, int64."""
        return np.repeat(np.arange(len(self)), self.lengths_U)

    def items(self, u: int) -> np.ndarray:
        """Items of row `u` in time order, an int32 view."""
        return self.items_M[self.offsets_U1[u] : self.offsets_U1[u + 1]]

    def timestamps(self, u: int) -> np.ndarray:
        """Timestamps of row `u`, an int64 view."""
        return self.timestamps_M[self.offsets_U1[u] : self.offsets_U1[u + 1]]

    def leading(self, lengths_U: np.ndarray) -> Sequences:
        """The same users with only the first `lengths_U` events of each (0 leaves an empty user).

        Raises:
            ValueError: a length is negative or above the user's number of events.
        """
        lengths_U = np.asarray(lengths_U, dtype=np.int64)
        if lengths_U.shape != (len(self),) or (lengths_U < 0).any() or (lengths_U > self.lengths_U).any():
            raise ValueError("lengths_U must give each user a length between 0 and its number of events")
        rows_M = np.repeat(self.offsets_U1[:-1], lengths_U) + _ordinals(lengths_U)
        offsets_U1 = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
        return Sequences(self.user_ids_U, self.items_M[rows_M], self.timestamps_M[rows_M], offsets_U1)


def _ordinals(lengths_U: np.ndarray) -> np.ndarray:
    """0..n-1 for each length n, laid end to end, int64."""
    ends_U = np.cumsum(lengths_U)
    return np.arange(lengths_U.sum(), dtype=np.int64) - np.repeat(ends_U - lengths_U, lengths_U)
