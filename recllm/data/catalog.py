"""The catalogue of a data set: one row per item, addressed by `item_id` 0..N-1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from recllm.data.frames import read_frame

FILE = "catalog.parquet"
SCHEMA = {"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)}


@dataclass(frozen=True)
class Catalog:
    """Items in id order. Row `i` of `frame` is item `i`.

    `frame` has at least item_id int32, title str ("" where unknown) and categories list<str> ([] where unknown).
    Further columns depend on the source; `source_id` is the source's own key, raw and never to be put in a prompt.
    """

    frame: pl.DataFrame

    @classmethod
    def load(cls, dataset_dir: str | Path) -> Catalog:
        """Read `catalog.parquet` of a data set folder.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: a column is missing or has another type, or the ids are not 0..N-1 in order.
        """
        path = Path(dataset_dir) / FILE
        frame = read_frame(path, SCHEMA, nullable=SCHEMA)
        ids_N = frame["item_id"]
        if len(ids_N) == 0 or ids_N.null_count() or not (ids_N == pl.Series(range(len(ids_N)), dtype=pl.Int32)).all():
            raise ValueError(f"{path}: item_id must run from 0 to N-1 in order; run the data_prep script again")
        return cls(frame)

    def __len__(self) -> int:
        return self.frame.height

    @cached_property
    def titles(self) -> list[str]:
        """Title of every item, "" where unknown."""
        return self.frame["title"].fill_null("").to_list()

    @cached_property
    def categories(self) -> list[list[str]]:
        """Categories of every item, [] where unknown."""
        return self.frame["categories"].fill_null([]).to_list()

    @cached_property
    def kinds(self) -> list[tuple[str, str]]:
        """Parent and category of every item, where categories go from root to leaf: its last two names, "" for none."""
        return [tuple(["", "", *names][-2:]) for names in self.categories]


def top_categories(rows: Sequence[Sequence[str]], named: int = 3) -> list[str]:
    """The most frequent categories of some items, ties in alphabetical order."""
    counts = Counter(name for names in rows for name in names)
    return [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:named]]
