"""Counting baselines: what is popular in a context, and what the user did in such contexts.

Both count labels of visits (a venue, a derived need) and give every label a share of one, so that the rare cells of a
context lean on the common ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recllm.data.checkins import WEEKEND, Visits

# Hours of a bin; an unknown hour has a bin of its own.
_HOURS = 3
_BINS = 24 // _HOURS + 1


@dataclass(frozen=True, eq=False)
class Cells:
    """Contexts of M visits in cells, from coarse to fine: everything, the hour bin, with the weekend, with scene and
    weather. `cells_LM` numbers the cells of each level, `parents` leads each cell of a level to the one above."""

    cells_LM: np.ndarray
    parents: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Cells:
        """The cells of all rows of a frame of visits."""
        hour = (pl.col("hour") % 24 // _HOURS).fill_null(_BINS - 1).cast(pl.Int64)
        weekend = pl.when(pl.col("weekday").is_null()).then(2).otherwise(pl.col("weekday") >= WEEKEND).cast(pl.Int64)
        place = pl.concat_str("scene", "weather", separator="|").rank("dense") - 1
        parts = frame.select(hour.alias("hour"), weekend.alias("weekend"), place.cast(pl.Int64).alias("place"))
        codes = [np.zeros(frame.height, dtype=np.int64)]
        for name in parts.columns:
            codes.append(codes[-1] * (int(parts[name].max()) + 1) + parts[name].to_numpy())
        levels, parents = [], []
        for code_M in codes:
            _, first, cell_M = np.unique(code_M, return_index=True, return_inverse=True)
            parents.append(levels[-1][first] if levels else np.zeros(1, dtype=np.int64))
            levels.append(cell_M)
        return cls(np.stack(levels), tuple(parents))


@dataclass(frozen=True, eq=False)
class PopularByContext:
    """Shares of C labels in the cell of each row; a cell counts its own visits and `lean` visits of the cell above.

    label_M is the label of every visit, -1 for none; `rows` are those that are counted (the fold "fit").
    """

    cells: Cells
    label_M: np.ndarray
    rows: np.ndarray
    labels: int
    lean: float = 100.0

    @cached_property
    def share_XC(self) -> np.ndarray:
        """Shares of the labels in every finest cell, float32, each summing to one."""
        rows = self.rows[self.label_M[self.rows] >= 0]
        # Every label keeps a trace, so that none is out of the question.
        share_XC = np.full((1, self.labels), 1 / self.labels)
        for cell_M, parent_X in zip(self.cells.cells_LM, self.cells.parents, strict=True):
            cells = len(parent_X)
            code = cell_M[rows] * self.labels + self.label_M[rows]
            count_XC = np.bincount(code, minlength=cells * self.labels).reshape(cells, self.labels)
            total_X1 = count_XC.sum(1, keepdims=True)
            share_XC = (count_XC + self.lean * share_XC[parent_X]) / (total_X1 + self.lean)
        return share_XC.astype(np.float32)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Shares `BC` in the contexts of some rows."""
        return self.share_XC[self.cells.cells_LM[-1][rows]]


@dataclass(frozen=True, eq=False)
class OwnHistory:
    """Shares of the user's own earlier visits, an alike context and a recent visit counting more, and `lean` visits
    that go by popularity in the context.

    A visit `n` places back weighs exp(-n / memory); one within two hours of the time of day `1 + alike` times that, and
    half of the addition where one of the two is on a weekend and the other is not.
    """

    visits: Visits
    popular: PopularByContext
    memory: float = 100.0
    alike: float = 5.0
    lean: float = 1.0

    @cached_property
    def _clock(self) -> tuple[np.ndarray, np.ndarray]:
        frame = self.visits.frame
        return frame["hour"].to_numpy(), (frame["weekday"].fill_null(0) >= WEEKEND).to_numpy()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Shares `BC` for some rows."""
        scores_BC = self.lean * self.popular(rows)
        hour_M, weekend_M = self._clock
        for row_C, row in zip(scores_BC, rows, strict=True):
            past_T = self.visits.history(row)
            label_T = self.popular.label_M[past_T]
            apart_T = np.abs(hour_M[past_T] - hour_M[row])
            # An unknown hour is like none.
            near_T = np.minimum(apart_T, 24 - apart_T) <= 2
            same_T = np.where(weekend_M[past_T] == weekend_M[row], 1.0, 0.5)
            weight_T = np.exp((past_T - row) / self.memory) * (1 + self.alike * near_T * same_T)
            row_C += np.bincount(label_T[label_T >= 0], weight_T[label_T >= 0], self.popular.labels)
        return scores_BC / scores_BC.sum(1, keepdims=True)
