"""Patterns of a log: what people do when, for which derived need; and which visits are typical enough to keep.

A folder of three files, made by `data_prep/need_patterns.py` and read against the visits that it was made from. Derived
needs are names for groups that a model found; nobody stated them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recllm.data.checkins import Visits
from recllm.data.frames import read_frame
from recllm.provenance import read_json, write_json

VERSION = 1
PATTERNS, EVENTS, ABOUT = "patterns.parquet", "events.parquet", "patterns.json"
# `hour` is the circular mean of the kept visits behind a pattern (null where no hour is known), `weekend` their share
# on a weekend, `scene` and `weather` the commonest. `support` counts these visits and `users` their users.
# `confidence` is P(category | context), the context being hours up to two from `hour`, the commoner kind of day and the
# scene; `lift` is that divided by P(category). All of it on the fold "fit".
PATTERN_SCHEMA = {
    "pattern_id": pl.Int32,
    "need": pl.String,
    "need_type": pl.String,
    "category": pl.String,
    "hour": pl.Float32,
    "weekend": pl.Float32,
    "scene": pl.String,
    "weather": pl.String,
    "support": pl.Int64,
    "users": pl.Int64,
    "confidence": pl.Float32,
    "lift": pl.Float32,
}
# One row a visit. `pattern_id` is that of the likeliest need and the category, also where the visit is dropped; -1,
# with need and type "", where there is no such pattern. Visits that may not be asked for have none, are never kept, and
# have the typicality NaN.
EVENT_SCHEMA = {
    "pattern_id": pl.Int32,
    "need": pl.String,
    "need_type": pl.String,
    "typicality": pl.Float32,
    "kept": pl.Boolean,
}


@dataclass(frozen=True)
class Patterns:
    """Patterns (`frame`, row i is pattern i), what every visit is (`events`, in the order of the visits), and how they
    were found (`about`: options, the cut, teacher, choices)."""

    frame: pl.DataFrame
    events: pl.DataFrame
    about: Mapping[str, Any]

    @property
    def need_types(self) -> list[str]:
        """Types of the needs, sorted."""
        return sorted(set(self.frame["need_type"]))

    @classmethod
    def load(cls, folder: str | Path, visits: Visits) -> Patterns:
        """Read a folder of patterns of these visits.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or of another version, or the patterns are those of other visits.
        """
        folder = Path(folder)
        about = read_json(folder / ABOUT)
        if not isinstance(about, dict) or about.get("version") != VERSION:
            raise ValueError(f"{folder / ABOUT}: wanted version {VERSION}; run data_prep/need_patterns.py again")
        frame = read_frame(folder / PATTERNS, PATTERN_SCHEMA, nullable=("hour",))
        events = read_frame(folder / EVENTS, EVENT_SCHEMA)
        if events.height != len(visits) or about.get("visits") != _digest(visits):
            raise ValueError(
                f"{folder / EVENTS}: its {events.height} rows are not those of the {len(visits)} visits; run "
                "data_prep/need_patterns.py on this data set"
            )
        if frame["pattern_id"].to_list() != list(range(frame.height)):
            raise ValueError(f"{folder / PATTERNS}: pattern_id must run from 0; run data_prep/need_patterns.py again")
        if not events["pattern_id"].is_between(-1, frame.height - 1).all():
            raise ValueError(
                f"{folder / EVENTS}: a pattern_id is not in {PATTERNS}; run data_prep/need_patterns.py again"
            )
        return cls(frame, events, about)

    def save(self, folder: str | Path, visits: Visits) -> None:
        """Write the three files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.select(pl.col(name).cast(dtype) for name, dtype in PATTERN_SCHEMA.items()).write_parquet(
            folder / PATTERNS
        )
        self.events.select(pl.col(name).cast(dtype) for name, dtype in EVENT_SCHEMA.items()).write_parquet(
            folder / EVENTS
        )
        about = {"version": VERSION, **self.about, "need_types": self.need_types, "visits": _digest(visits)}
        write_json(folder / ABOUT, about)


def _digest(visits: Visits) -> str:
    """Of who went where and when."""
    digest = hashlib.sha256()
    visits.feed(digest)
    return digest.hexdigest()
