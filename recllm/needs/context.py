"""What a visit's circumstances are, as the clustering and the mixture behind derived needs read them.

Nothing here is estimated from events but scales of features, and those come from the rows that are fitted on. Earlier
visits of the same user are part of an event's circumstances, of whatever fold they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import WEEKEND, Visits, earlier_alike

_EARTH_KM = 6371.0
_DAY = 86_400
# How far apart two visits are at most by each feature, next to 2 for opposite hours. Hour, day and scene lead; what
# varies within any need (how far, how long ago, how dear) breaks ties.
_DAY_WEIGHT, _SCENE_WEIGHT, _WEATHER_WEIGHT, _LOOSE_WEIGHT = 0.35, 0.35, 0.1, 0.05


@dataclass(frozen=True)
class Contexts:
    """The events of a data set, coded: `M` rows as visits.parquet has them, all arrays int64 unless said otherwise.

    `hour_M` is float64, 0 to 24, NaN where unknown. `weekend_M` is 0, 1, or 2 where the day is unknown. `weather_M`
    and `scene_M` index `weathers` and `scenes`, `category_M` indexes `categories`, names of leaves ("" where unknown);
    `category_V` is the category of every venue. `user_M` counts users in the order of the log. `alike_M` and `same_M`
    are how many earlier visits the user paid to the category and to the venue. Float64 and NaN where unknown:
    `distance_M` km from the user's visit before, `recency_M` days since it, `price_M` 1 to 4.
    """

    hour_M: np.ndarray
    weekend_M: np.ndarray
    weather_M: np.ndarray
    scene_M: np.ndarray
    category_M: np.ndarray
    item_M: np.ndarray
    user_M: np.ndarray
    alike_M: np.ndarray
    same_M: np.ndarray
    distance_M: np.ndarray
    recency_M: np.ndarray
    price_M: np.ndarray
    category_V: np.ndarray
    weathers: tuple[str, ...]
    scenes: tuple[str, ...]
    categories: tuple[str, ...]
    roots: tuple[str, ...]

    @property
    def day_M(self) -> np.ndarray:
        """Kind of day: weekend or not (or unknown) and weather, in one number."""
        return self.weekend_M * len(self.weathers) + self.weather_M

    @property
    def day_kinds(self) -> int:
        """How many kinds of day there can be."""
        return 3 * len(self.weathers)

    @property
    def users(self) -> int:
        """Users of the log."""
        return int(self.user_M[-1]) + 1


def contexts_of(visits: Visits, catalog: Catalog) -> Contexts:
    """Code the events of a data set. The columns `need` and `accidental` are not read: they may hold the truth.

    Raises:
        ValueError: a visit to an item that the catalogue lacks.
    """
    frame, items_M = visits.frame, visits.sequences.items_M.astype(np.int64)
    if len(items_M) and items_M.max() >= len(catalog):
        raise ValueError(f"visits: item {items_M.max()} is not in the catalogue of {len(catalog)}; run data_prep again")
    categories, category_V = np.unique([leaf for _, leaf in catalog.kinds], return_inverse=True)
    root_of = {leaf: root for root, leaf in reversed(catalog.kinds)}
    user_M = visits.sequences.user_M
    weekday_M = frame["weekday"].cast(pl.Int64).fill_null(-1).to_numpy()
    weathers, weather_M = _codes(frame["weather"])
    scenes, scene_M = _codes(frame["scene"])
    category_M = category_V[items_M]
    distance_M, recency_M = _since_before(user_M, items_M, visits.sequences.timestamps_M, catalog.frame)
    return Contexts(
        hour_M=frame["hour"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        weekend_M=np.where(weekday_M < 0, 2, weekday_M >= WEEKEND).astype(np.int64),
        weather_M=weather_M,
        scene_M=scene_M,
        category_M=category_M,
        item_M=items_M,
        user_M=user_M,
        alike_M=earlier_alike(user_M * len(categories) + category_M)[2],
        same_M=earlier_alike(user_M * len(catalog) + items_M)[2],
        distance_M=distance_M,
        recency_M=recency_M,
        price_M=_column(catalog.frame, "price")[items_M],
        category_V=category_V,
        weathers=weathers,
        scenes=scenes,
        categories=tuple(categories.tolist()),
        roots=tuple(root_of[name] for name in categories.tolist()),
    )


def _codes(texts_M: pl.Series) -> tuple[tuple[str, ...], np.ndarray]:
    names, code_M = np.unique(texts_M.to_numpy().astype(str), return_inverse=True)
    return tuple(names.tolist()), code_M.astype(np.int64)


def _column(frame: pl.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(frame.height, np.nan)
    return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _since_before(
    user_M: np.ndarray, item_M: np.ndarray, second_M: np.ndarray, venues: pl.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Kilometres (haversine) and days from the user's visit before; NaN where there is none or no position."""
    lat_M, lon_M = (np.radians(_column(venues, name))[item_M] for name in ("lat", "lon"))
    half = np.sin(np.diff(lat_M) / 2) ** 2
    half = half + np.cos(lat_M[1:]) * np.cos(lat_M[:-1]) * np.sin(np.diff(lon_M) / 2) ** 2
    first = np.diff(user_M) != 0
    away = np.where(first, np.nan, 2 * _EARTH_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
    days = np.where(first, np.nan, np.diff(second_M) / _DAY)
    return np.concatenate([[np.nan], away])[: len(user_M)], np.concatenate([[np.nan], days])[: len(user_M)]


def features(contexts: Contexts, fitted: np.ndarray) -> np.ndarray:
    """Context features of every event, float64 of shape (M, F), for Euclidean distances within a category.

    The hour on the circle, weekend, scene and weather as indicators, and distance, recency (both logarithmic) and
    price, standardised by the rows `fitted` and cut at three deviations. What is unknown lies in the middle.
    """
    angle_M = contexts.hour_M * (2 * np.pi / 24)
    known = (np.arange(3) == contexts.weekend_M[:, None])[:, :2] * _DAY_WEIGHT
    columns = [
        np.nan_to_num(np.cos(angle_M))[:, None],
        np.nan_to_num(np.sin(angle_M))[:, None],
        known,
        np.eye(len(contexts.scenes))[contexts.scene_M] * _SCENE_WEIGHT,
        np.eye(len(contexts.weathers))[contexts.weather_M] * _WEATHER_WEIGHT,
    ]
    for loose_M in (np.log1p(contexts.distance_M), np.log1p(contexts.recency_M), contexts.price_M):
        columns.append(_standard(loose_M, fitted)[:, None] * _LOOSE_WEIGHT)
    return np.concatenate(columns, axis=1)


def _standard(value_M: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    known = value_M[fitted][~np.isnan(value_M[fitted])]
    if len(known) == 0 or known.std() == 0:
        return np.zeros(len(value_M))
    return np.nan_to_num(np.clip((value_M - known.mean()) / known.std(), -3, 3))
