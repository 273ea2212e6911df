"""Visits as questions to a needs model: the prompt of each, its reference need, and what else an answer may list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from recllm.data.checkins import WEEKEND, Visits
from recllm.needs.faults import need_fault
from recllm.needs.prompts import OFTEN, VISITS, Context, Told, needs_prompt
from recllm.needs.rewards import Places
from recllm.needs.schema import SERVICES, ServiceNames

if TYPE_CHECKING:
    from recllm.needs.patterns import Patterns

# Services within this distance of the user's usual position are near, in kilometres.
_NEAR = 3.0
_KM_A_DEGREE = 111.2


@dataclass(frozen=True, eq=False)
class Asking:
    """Writes the prompts of visits."""

    visits: Visits
    places: Places
    names: ServiceNames

    def chat(self, row: int, stage: str, given: tuple[str, str] | None = None) -> list[dict[str, str]]:
        """The prompt that asks about the visit of a row, with what is known before it; see `needs_prompt`."""
        hour_M, weekday_M, weather_M, scene_M = self._contexts
        now = Context(hour_M[row], weekday_M[row], weather_M[row], scene_M[row])
        past_T = self.visits.history(row)
        hours = [hour_M[past] for past in past_T[-VISITS:].tolist()]
        return self.asked(now, self.visits.sequences.items_M[past_T], hours, stage, given)

    def asked(
        self,
        now: Context,
        items_T: np.ndarray,
        hours: Sequence[float | None],
        stage: str,
        given: tuple[str, str] | None = None,
    ) -> list[dict[str, str]]:
        """The prompt of a context after visits to some items, oldest first; `hours` are those of the last ones, or
        nothing where no hour is known."""
        last = items_T[-VISITS:].tolist()
        known = hours or [None] * len(last)
        recent = [self._told(item, hour) for item, hour in zip(last, known, strict=True)]
        often = [self._told(item) for item in self._often(items_T)]
        return needs_prompt(now, recent, stage, given, often)

    def _often(self, items_T: np.ndarray) -> list[int]:
        """Candidates among the items that came more than once, the commonest first, the latest of equally common."""
        found, ago, count = np.unique(items_T[::-1], return_index=True, return_counts=True)
        best = found[np.lexsort((ago, -count))][: int((count > 1).sum())].tolist()
        return [item for item in best if item in self.places.candidates][:OFTEN]

    @cached_property
    def _contexts(self) -> tuple[list, ...]:
        return tuple(self.visits.frame[name].to_list() for name in ("hour", "weekday", "weather", "scene"))

    def _told(self, item: int, hour: float | None = None) -> Told:
        return Told(self.places.category_N[item], str(self.names.write(item)), hour)


def references(visits: Visits, patterns: Patterns, places: Places, fold: str, all_events: bool = False) -> pl.DataFrame:
    """The targets of a fold that a model can learn from, in the order of the visits.

    Columns `row`, `target`, `category`, `need`, `need_type`, `typicality`. Left out are targets that are no candidate,
    and needs with a fault (`faults.py`), which no reward would pay for.

    all_events: also events that the patterns drop (an ablation); one without a derived need gets that of the nearest
    pattern: of its category if there is one, then by hour and weekend.
    """
    rows = places.answerable(visits, fold)
    items = visits.sequences.items_M[rows]
    events = patterns.events.select("need", "need_type", "typicality", "kept")
    found = events[rows].with_columns(
        row=pl.Series(rows),
        target=pl.Series(items),
        category=pl.Series([places.category_N[item] for item in items.tolist()], dtype=pl.String),
    )
    if all_events:
        found = _with_nearest(found, visits.frame, patterns.frame)
    else:
        found = found.filter("kept")
    pairs = found.select("need", "category").unique().rows()
    sound = {pair for pair in pairs if not need_fault(pair[0], [pair[1]], places.venues)}
    kept = [pair in sound for pair in found.select("need", "category").iter_rows()]
    found = found.filter(pl.Series(kept, dtype=pl.Boolean)).drop("kept")
    # What the patterns cannot place comes last.
    return found.with_columns(
        pl.col("typicality").fill_nan(pl.col("typicality").filter(pl.col("typicality").is_not_nan()).min())
    )


def _with_nearest(found: pl.DataFrame, visits: pl.DataFrame, patterns: pl.DataFrame) -> pl.DataFrame:
    """`found` with the nearest pattern's need wherever an event has none."""
    bare = np.flatnonzero((found["need"] == "").to_numpy())
    if not len(bare) or not patterns.height:
        return found
    hour_P, weekend_P = (patterns[name].to_numpy() for name in ("hour", "weekend"))
    category_P = patterns["category"].to_numpy()
    needs, types = found["need"].to_list(), found["need_type"].to_list()
    rows, categories = found["row"].to_list(), found["category"].to_list()
    hour_M, weekday_M = visits["hour"].to_list(), visits["weekday"].to_list()
    for i in bare.tolist():
        hour, weekday = hour_M[rows[i]], weekday_M[rows[i]]
        apart_P = np.abs(hour_P - (hour if hour is not None else hour_P)) % 24
        weekend = float(weekday >= WEEKEND) if weekday is not None else weekend_P
        # A pattern without a known hour is neither near nor far.
        clock_P = np.nan_to_num(np.minimum(apart_P, 24 - apart_P) / 12, nan=0.5)
        far_P = clock_P + np.abs(weekend_P - weekend)
        # Nothing by the clock outweighs another category.
        nearest = int(np.argmin(far_P + 10.0 * (category_P != categories[i])))
        needs[i], types[i] = patterns["need"][nearest], patterns["need_type"][nearest]
    return found.with_columns(need=pl.Series(needs, dtype=pl.String), need_type=pl.Series(types, dtype=pl.String))


@dataclass(frozen=True, eq=False)
class Others:
    """What a shown answer lists behind its target: see `__call__`. Popularity is that of the fold "fit"."""

    visits: Visits
    places: Places
    position_N2: np.ndarray

    @classmethod
    def of(cls, visits: Visits, places: Places, catalog_frame: pl.DataFrame) -> Others:
        """`catalog_frame` may have the columns `lat` and `lon` (degrees); without them nothing is near."""
        known = {"lat", "lon"} <= set(catalog_frame.columns)
        size = catalog_frame.height
        position_N2 = catalog_frame.select("lat", "lon").to_numpy() if known else np.full((size, 2), np.nan)
        return cls(visits, places, position_N2.astype(np.float64))

    def __call__(self, row: int, target: int) -> list[int]:
        """Items for the places behind `target`, itself left out: the user's own earlier venues of its category, the
        ones visited most first, then its popular ones, those near the middle of the user's earlier visits before the
        others, then popular ones of any category."""
        category = self.places.category_N[target]
        past_T = self.visits.sequences.items_M[self.visits.history(row)]
        own, count = np.unique(past_T[::-1], return_counts=True)
        mine = [
            int(item)
            for item in own[np.argsort(-count, kind="stable")]
            if self.places.category_N[item] == category and item in self.places.candidates
        ]
        popular_C = self._of_category[category]
        near_C = self._near(past_T, popular_C)
        listed = [*mine, *popular_C[near_C].tolist(), *popular_C[~near_C].tolist(), *self._popular]
        return [item for item in dict.fromkeys(listed) if item != target][: SERVICES - 1]

    def _near(self, past_T: np.ndarray, items_C: np.ndarray) -> np.ndarray:
        place_T2 = self.position_N2[past_T]
        place_T2 = place_T2[~np.isnan(place_T2).any(1)]
        if not len(place_T2):
            return np.zeros(len(items_C), dtype=bool)
        usual_2 = np.median(place_T2, axis=0)
        gap_C2 = (self.position_N2[items_C] - usual_2) * _KM_A_DEGREE
        gap_C2[:, 1] *= np.cos(np.radians(usual_2[0]))
        return np.hypot(*gap_C2.T) < _NEAR

    @cached_property
    def _visits_N(self) -> np.ndarray:
        return self.visits.fitted_counts(len(self.position_N2))

    @cached_property
    def _sorted(self) -> np.ndarray:
        items = np.array(sorted(self.places.candidates))
        return items[np.argsort(-self._visits_N[items], kind="stable")]

    @cached_property
    def _popular(self) -> list[int]:
        return self._sorted[: 2 * SERVICES].tolist()

    @cached_property
    def _of_category(self) -> dict[str, np.ndarray]:
        found: dict[str, list[int]] = {}
        for item in self._sorted.tolist():
            found.setdefault(self.places.category_N[item], []).append(item)
        return {name: np.array(items) for name, items in found.items()}
