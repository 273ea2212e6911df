"""What a contestant answers: a need with its type, categories best first, services best first.

Models of needs answer all of it (`recllm/needs/model.py`). A contestant that knows services only, by a score for each,
ranks the categories by the sum of their services' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recllm.needs.rewards import Places
from recllm.needs.schema import SERVICES

# Categories that a ranking keeps: as many as any metric looks at.
CATEGORIES = 10
_BATCH = 256
# Rows of visits -> non-negative scores of the askable services, float (B, C), higher is better.
Scorer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class NeedsAnswers:
    """Answers to E rows of visits.

    needs, types: texts, or None for a contestant that states none. categories_EK: category names, best first, at most
    `CATEGORIES` each. services_EK: item ids, int64 (E, 10), best first, -1 pads.

    Raises:
        ValueError: the parts are of different lengths, or the services of another shape.
    """

    needs: list[str] | None
    types: list[str] | None
    categories_EK: list[list[str]]
    services_EK: np.ndarray

    def __post_init__(self) -> None:
        if self.services_EK.shape != (len(self.categories_EK), SERVICES):
            raise ValueError(
                f"{len(self.categories_EK)} answers with services of shape {self.services_EK.shape}; "
                f"each has {SERVICES}, -1 pads"
            )
        if any(part is not None and len(part) != len(self) for part in (self.needs, self.types)):
            raise ValueError(f"needs or types are not as many as the {len(self)} answers")

    def __len__(self) -> int:
        return len(self.categories_EK)

    def take(self, index: np.ndarray) -> NeedsAnswers:
        """The answers of some places, in that order."""
        needs, types, categories = (
            None if part is None else [part[i] for i in index] for part in (self.needs, self.types, self.categories_EK)
        )
        return NeedsAnswers(needs, types, categories, self.services_EK[index])


def joined(parts: Sequence[NeedsAnswers]) -> NeedsAnswers:
    """Answers of several batches, end to end. ValueError for none, or where some state needs and others do not."""
    if len({part.needs is None for part in parts}) != 1:
        raise ValueError("there are no answers, or some state needs and others do not")

    def texts(name: str) -> list[str] | None:
        known = [getattr(part, name) for part in parts]
        return None if None in known else [text for each in known for text in each]

    categories_EK = [names for part in parts for names in part.categories_EK]
    return NeedsAnswers(
        texts("needs"), texts("types"), categories_EK, np.concatenate([part.services_EK for part in parts])
    )


@dataclass(frozen=True, eq=False)
class Askable:
    """The services that may be answered, as columns of scores: item ids `items_C`, rising, and the place of their
    category among `names` (alphabetical) `category_C`, int64."""

    items_C: np.ndarray
    category_C: np.ndarray
    names: list[str]

    @classmethod
    def of(cls, places: Places) -> Askable:
        """The candidates of some places."""
        items = sorted(places.candidates)
        place = {name: i for i, name in enumerate(places.categories)}
        return cls(np.array(items), np.array([place[places.category_N[item]] for item in items]), places.categories)

    def __len__(self) -> int:
        return len(self.items_C)

    @cached_property
    def column_N(self) -> np.ndarray:
        """Column of every item up to the last askable one, -1 for those that are not askable."""
        column_N = np.full(int(self.items_C[-1]) + 1, -1)
        column_N[self.items_C] = np.arange(len(self))
        return column_N

    def columns(self, items_M: np.ndarray) -> np.ndarray:
        """Columns of some items, -1 where an item is not askable."""
        inside_M = items_M < len(self.column_N)
        return np.where(inside_M, self.column_N[np.where(inside_M, items_M, 0)], -1)


def answer_by_scores(score: Scorer, rows: np.ndarray, askable: Askable) -> NeedsAnswers:
    """The services of the highest scores, and the categories with the highest sums of them; equal ones in order.

    Raises:
        ValueError: a score that is negative or no number.
    """
    parts = [_ranked(score(rows[at : at + _BATCH]), askable) for at in range(0, len(rows), _BATCH)]
    return joined(parts)


def _ranked(scores_BC: np.ndarray, askable: Askable) -> NeedsAnswers:
    if not (scores_BC >= 0).all():
        raise ValueError("scores of services must be numbers from 0 on: their sums rank the categories")
    sums_BK = np.stack([np.bincount(askable.category_C, row_C, len(askable.names)) for row_C in scores_BC])
    categories = [[askable.names[i] for i in best_K] for best_K in _best(sums_BK, CATEGORIES)]
    services_BK = np.full((len(scores_BC), SERVICES), -1, dtype=np.int64)
    best_BK = _best(scores_BC, SERVICES)
    services_BK[:, : best_BK.shape[1]] = askable.items_C[best_BK]
    return NeedsAnswers(None, None, categories, services_BK)


def _best(scores_BC: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k best scores of each row, best first, the lower column of equal ones."""
    k = min(k, scores_BC.shape[1])
    # The kth score decides who is in; of those that equal it the first columns are.
    least_B1 = np.partition(scores_BC, -k, axis=1)[:, -k][:, None]
    above_BC = scores_BC > least_B1
    room_B1 = k - above_BC.sum(1, keepdims=True)
    level_BC = scores_BC == least_B1
    kept_BC = above_BC | (level_BC & (np.cumsum(level_BC, axis=1) <= room_B1))
    columns_BK = np.nonzero(kept_BC)[1].reshape(len(scores_BC), k)
    order_BK = np.argsort(-np.take_along_axis(scores_BC, columns_BK, 1), axis=1, kind="stable")
    return np.take_along_axis(columns_BK, order_BK, 1)
