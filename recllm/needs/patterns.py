"""Patterns of a data set's visits, read from the folder that data_prep/need_patterns.py writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from recllm.data.checkins import Visits
from recllm.data.frames import read_frame

EVENTS = {
    "pattern_id": pl.Int32, "need": pl.String, "need_type": pl.String, "typicality": pl.Float32, "kept": pl.Boolean
}  # fmt: skip
PATTERNS = {
    "pattern_id": pl.Int32, "need": pl.String, "need_type": pl.String, "category": pl.String, "hour": pl.Float32,
    "weekend": pl.Float32,
}  # fmt: skip


@dataclass(frozen=True)
class Patterns:
    """`frame` has a row a pattern, `events` a row a visit."""

    frame: pl.DataFrame
    events: pl.DataFrame

    @cached_property
    def need_types(self) -> list[str]:
        """The types of the patterns' needs, sorted."""
        return sorted(set(self.frame["need_type"]))

    @classmethod
    def load(cls, folder: str | Path, visits: Visits) -> Patterns:
        """Read a folder; ValueError where its rows are not those of the visits."""
        events = read_frame(Path(folder) / "events.parquet", EVENTS)
        if events.height != len(visits):
            raise ValueError(f"{folder} has {events.height} events, the data set {len(visits)} visits; make it again")
        return cls(read_frame(Path(folder) / "patterns.parquet", PATTERNS), events)
