"""What is known about why an item follows: plain facts, from which a teacher explains and a filter checks.

Facts are JSON. Items carry labels: H1, H2, ... a user's last items, oldest first; V an item on the way; A and B the two
items of a pair. A text cites items by label, so what it cites can be checked. All of it comes from the fitting fold:
the tables of co-occurrence, the histories and the next items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from recllm.data.catalog import Catalog
from recllm.data.text import neutralise
from recllm.rationales.cooccurrence import Cooccurrence

# Items of a history that facts list, and of these the most that are named as cues.
SHOWN, CUES = 10, 2
# Last items of a history over which usage is counted.
RECENT = 5
_TITLE_LENGTH = 60


@dataclass(frozen=True)
class EvidenceBook:
    """Facts about items of one catalogue, with the tables that link them."""

    catalog: Catalog
    tables: Cooccurrence

    def next_item(self, history: np.ndarray, target: int) -> dict[str, Any]:
        """Facts about a user's next item: the last items, the cues among them, shared categories and usage.

        history: item ids, oldest first. `cues` are the items of the history that Swing links to the target, at most
        `CUES`, the strongest first, ties to the later one; each has `users`, how many people have both. Where there is
        none, `path` is the strongest way of two links (`from` a label, `over` an item labelled V), or None. `shared`
        are the target's categories that the last items have, `usage` how many of the last `RECENT` have one of them.
        """
        shown = [int(item) for item in history[-SHOWN:]]
        labels = {place: f"H{place + 1}" for place in range(len(shown))}
        wanted = self.categories(target)
        strength = self._strengths(shown, target)
        linked = [place for place in range(len(shown)) if strength[place] > 0]
        cues = sorted(linked, key=lambda place: (-strength[place], -place))[:CUES]
        named = [set(self.categories(item)) for item in shown]
        return {
            "history": [{"label": labels[place], **self._item(item)} for place, item in enumerate(shown)],
            "cues": [
                {"label": labels[place], "users": self.tables.common_users(shown[place], target)} for place in cues
            ],
            "path": None if cues else self._path(shown, labels, target),
            "target": self._item(target),
            "shared": [name for name in wanted if any(name in names for names in named)],
            "usage": sum(bool(names & set(wanted)) for names in named[-RECENT:]),
        }

    def pair(self, item: int, other: int) -> dict[str, Any]:
        """Facts about two items that co-occurrence links: both, shared categories, how many people have both, and
        which relations hold from the first to the second."""
        theirs = self.categories(other)
        return {
            "items": [{"label": label, **self._item(one)} for label, one in (("A", item), ("B", other))],
            "shared": [name for name in self.categories(item) if name in theirs],
            "users": self.tables.common_users(item, other),
            "relations": sorted(self.tables.links(item, other)),
        }

    def linked_pairs(self, per_item: int) -> Iterator[tuple[int, int]]:
        """Each item with its strongest neighbours by Swing, in order of items."""
        for item in range(len(self.catalog)):
            for other in self.tables.neighbours(item, "swing", per_item)[0]:
                yield item, int(other)

    def categories(self, item: int) -> list[str]:
        """An item's categories as they may stand in a prompt."""
        return [name for name in (neutralise(name) for name in self.catalog.categories[item]) if name]

    def _item(self, item: int) -> dict[str, Any]:
        return {"title": title_of(self.catalog.titles[item]), "categories": self.categories(item)}

    def _path(self, shown: list[int], labels: dict[int, str], target: int) -> dict[str, Any] | None:
        """The best way over one item: the largest product of two Swing scores; None where there is none."""
        arriving_N = self._arriving_NN[target]
        best: tuple[float, int, int] | None = None
        for place, item in enumerate(shown):
            way_N = self.tables.swing_NN[item].multiply(arriving_N).tocsr()
            if way_N.nnz:
                found = (float(way_N.data.max()), place, int(way_N.indices[way_N.data.argmax()]))
                best = max(best, found) if best else found
        if best is None:
            return None
        return {"from": labels[best[1]], "over": {"label": "V", **self._item(best[2])}}

    def _strengths(self, shown: list[int], target: int) -> np.ndarray:
        """Swing from each item to the target, 0 where they are not linked."""
        row = self._arriving_NN
        span = slice(row.indptr[target], row.indptr[target + 1])
        scores = dict(zip(row.indices[span].tolist(), row.data[span].tolist(), strict=True))
        return np.array([scores.get(item, 0.0) for item in shown])

    @cached_property
    def _arriving_NN(self) -> sp.csr_matrix:
        """Swing by the item that it leads to."""
        return self.tables.swing_NN.T.tocsr()


def title_of(title: str) -> str:
    """A title as data: neutralised, without double quotes, at most 60 characters."""
    return neutralise(title, max_length=_TITLE_LENGTH).replace('"', "'")
