"""What planner episodes are played on: cached tool answers and the texts that describe them, for one role."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recllm.data.catalog import Catalog
from recllm.data.prompts import planner_prompt
from recllm.data.splits import Examples, load_split
from recllm.planner.texts import TOOLS, result_text
from recllm.sid.table import SidTable
from recllm.tools.cache import DEPTH, ToolCache, examples_of

_LIKED_FROM = 20
_NAMED = 2


@dataclass(frozen=True)
class Bench:
    """Examples of a role with the tools' cached answers. Tools are numbered as in `TOOLS`."""

    examples: Examples
    cache: ToolCache
    sid_texts: list[str]
    categories: list[list[str]]

    @classmethod
    def load(cls, dataset: str | Path, sid_table: str | Path, cache: str | Path, role: str) -> Bench:
        split, catalog, table = load_split(dataset), Catalog.load(dataset), SidTable.load(sid_table)
        texts = [table.text(item) for item in range(len(catalog))]
        return cls(examples_of(split, role), ToolCache.load(cache, role, split), texts, catalog.categories)

    def __len__(self) -> int:
        return len(self.examples)

    def prompt(self, row: int) -> list[dict[str, str]]:
        """The chat that opens an episode."""
        history = self.examples.history(row)
        liked = self.frequent_categories(history[-_LIKED_FROM:])
        return planner_prompt([self.sid_texts[item] for item in history], liked, len(history))

    def frequent_categories(self, items: np.ndarray) -> list[str]:
        """The most frequent categories of some items, ties in alphabetical order."""
        counts: dict[str, int] = {}
        for item in items:
            for name in self.categories[item]:
                counts[name] = counts.get(name, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))[:_NAMED]

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
        shown = [self.sid_texts[item] for item in items]
        return result_text(shown, self.frequent_categories(items[:10]), digit, agreement)
