"""What planner episodes are played on: cached tool answers and the texts that describe them, for one role."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recllm.data.catalog import Catalog, top_categories
from recllm.data.interactions import Sequences
from recllm.data.prompts import planner_prompt
from recllm.data.splits import DATASET_FILE, Examples, load_split
from recllm.planner.texts import TOOLS, result_text
from recllm.provenance import read_json
from recllm.sid.table import SidTable
from recllm.tools.cache import DEPTH, ToolCache, examples_of

_LIKED_FROM = 20
_NAMED = 2
_SPAN = 10


@dataclass(frozen=True)
class Bench:
    """Examples of a role with the tools' cached answers. Tools are numbered as in `TOOLS`.

    `popularity_N` is each item's place among the fitting events: the share (0..1) that fell on less popular items.
    `timed` is false where the data set knows only the order of events.
    """

    examples: Examples
    cache: ToolCache
    sid_texts: list[str]
    categories: list[list[str]]
    popularity_N: np.ndarray
    timed: bool = True

    @classmethod
    def load(cls, dataset: str | Path, sid_table: str | Path, cache: str | Path, role: str) -> Bench:
        split, catalog, table = load_split(dataset), Catalog.load(dataset), SidTable.load(sid_table)
        return cls(
            examples=examples_of(split, role),
            cache=ToolCache.load(cache, role, split),
            sid_texts=[table.text(item) for item in range(len(catalog))],
            categories=catalog.categories,
            popularity_N=popularity(split.fitting, len(catalog)),
            timed=read_json(Path(dataset) / DATASET_FILE).get("time") == "seconds",
        )

    def __len__(self) -> int:
        return len(self.examples)

    def first(self, count: int) -> Bench:
        """The first `count` examples, for a model that is too slow for all."""
        return replace(self, examples=self.examples.subset(np.arange(count)), cache=self.cache.first(count))

    def prompt(self, row: int) -> list[dict[str, str]]:
        """The chat that opens an episode. It shows what retrieve finds, so that the choice is made after a look."""
        history = self.examples.history(row)
        liked = self.frequent_categories(history[-_LIKED_FROM:])
        texts = [self.sid_texts[item] for item in history]
        found = self.result("retrieve", row, self.items("retrieve", row, 10), None)
        return planner_prompt(texts, liked, len(history), self._span(row), found)

    def _span(self, row: int) -> int | None:
        """Minutes that the last items took, in bits, at most 9; None where times are not known."""
        if not self.timed:
            return None
        end = self.examples.position_E[row]
        times = self.examples.sequences.timestamps(self.examples.user_E[row])[max(0, end - _SPAN) : end]
        return min(9, int((times[-1] - times[0]) // 60).bit_length()) if len(times) else 0

    def frequent_categories(self, items: np.ndarray) -> list[str]:
        """The most frequent categories of some items, ties in alphabetical order."""
        return top_categories([self.categories[item] for item in items], _NAMED)

    def items(self, tool: str, row: int, count: int = DEPTH, m: int = DEPTH) -> np.ndarray:
        """The first `count` items of a tool; rank over the retriever's first `m` keeps its order among those."""
        found = self.cache.items_PEK[TOOLS.index(tool), row]
        if tool == "rank" and m < DEPTH:
            found = found[np.isin(found, self.cache.items_PEK[TOOLS.index("retrieve"), row, :m])]
        return found[found >= 0][:count]

    def cost(self, tool: str, row: int, m: int = DEPTH) -> int:
        """FLOPs of a call; ranking fewer candidates costs its share of the cached call over `DEPTH`."""
        cost = int(self.cache.cost_PE[TOOLS.index(tool), row])
        if tool == "rank" and m < DEPTH:
            base = self.cost("retrieve", row)
            return base + (cost - base) * m // DEPTH
        return cost

    def result(self, tool: str, row: int, items: np.ndarray, before: np.ndarray | None) -> str:
        """The text a tool answers with; `before` is the list of the call before it, if any."""
        digit = self.cache.margin_digit(TOOLS.index(tool), row)
        agreement = None if before is None else int(np.isin(items[:10], before[:10]).sum())
        shown = [self.sid_texts[item] for item in items[:10]]
        popular = min(9, int(10 * self.popularity_N[items[:10]].mean())) if len(items) else 0
        return result_text(shown, self.frequent_categories(items[:10]), digit, popular, agreement)


def popularity(fold: Sequences, items: int) -> np.ndarray:
    """Share of the fold's events that fell on less popular items than each item, `popularity_N` (0..1)."""
    events_N = np.bincount(fold.items_M, minlength=items)
    _, inverse_N = np.unique(events_N, return_inverse=True)
    events_at = np.bincount(inverse_N, weights=events_N)
    return ((np.cumsum(events_at) - events_at) / max(len(fold.items_M), 1))[inverse_N]
