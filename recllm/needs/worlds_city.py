"""A city of the synthetic world: its venues, their popularity, and its weather. Two cities share none of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recllm.data.checkins import VENUE_SCHEMA, WEEKEND
from recllm.needs.worlds_rules import SCENES, WEATHERS, Rules

CITIES = ("port", "hill")
MIN_VENUES = 3  # a category
# How many times as likely a venue is in its own scene.
NEAR = 6.0
DISTRICTS = 12
_WEATHER_SHARES = {"port": (0.35, 0.3, 0.35), "hill": (0.55, 0.3, 0.15)}
_CENTRES = {"port": (54.0, 10.0), "hill": (47.0, 11.0)}
_FIRST = {
    "port": "Amber Anchor Beacon Breeze Cobalt Copper Coral Drift Ebb Ferry Grey Gull Haven Indigo Keel Lantern Mast "
    "Mist Narrow Opal Pearl Quay Rope Sail Salt Shell Silver Tide Wharf Windward",
    "hill": "Alder Ash Birch Bramble Briar Cedar Clover Crag Elm Fern Fir Gable Garnet Granite Hazel Heath Holly Ivy "
    "Juniper Larch Linden Maple Moss Oak Pine Rowan Slate Thistle Willow Yarrow",
}
_SECOND = (
    "Arch Archway Bell Bridge Corner Court Crown Gate Grove Hand Key Lane Light Mill Mirror Passage Post Row Square "
    "Star Steps Terrace Well Yard"
)


@dataclass(frozen=True)
class City:
    """Venues and calendar, which the two cities do not share.

    Of `V` venues: the catalogue's `frame` (columns of recllm/data/checkins.py), `category_V` (index into
    `Rules.categories`), `popularity_V` (sums to one) and `near_SV`, the share of a category's new visits that a venue
    gets from each scene (sums to one over the venues of a category). `day_kind_Y` is the kind of every day.
    """

    frame: pl.DataFrame
    category_V: np.ndarray
    popularity_V: np.ndarray
    near_SV: np.ndarray
    day_kind_Y: np.ndarray


def make_city(name: str, count: int, days: int, rules: Rules, rng: np.random.Generator) -> City:
    """Draw a city with `count` venues and `days` days of weather; `name` is one of `CITIES`.

    Raises:
        ValueError: fewer than three venues a category.
    """
    categories = len(rules.categories)
    if count < MIN_VENUES * categories:
        raise ValueError(f"venues must be at least {MIN_VENUES * categories}, {MIN_VENUES} a category; got {count}")
    weather_Y = rng.choice(len(WEATHERS), days, p=_WEATHER_SHARES[name])
    category_V = np.repeat(np.arange(categories), MIN_VENUES)
    category_V = rng.permutation(np.append(category_V, rng.integers(categories, size=count - len(category_V))))
    popularity_V = rng.lognormal(0, 1, count)
    popularity_V /= popularity_V.sum()
    district_V = rng.integers(DISTRICTS, size=count)
    scene_V = district_V % len(SCENES)
    near_SV = popularity_V * np.where(scene_V == np.arange(len(SCENES))[:, None], NEAR, 1.0)
    total_SC = np.stack([np.bincount(category_V, weights_V, categories) for weights_V in near_SV])
    centre_P2 = np.array(_CENTRES[name]) + rng.normal(0, 0.04, (DISTRICTS, 2))
    place_V2 = centre_P2[district_V] + rng.normal(0, 0.005, (count, 2))
    names = [f"{first} {second}" for first in _FIRST[name].split() for second in _SECOND.split()]
    columns = {
        "title": [
            names[place % len(names)] + (f" {1 + place // len(names)}" if place >= len(names) else "")
            for place in rng.permutation(count)
        ],
        "categories": [list(rules.categories[category]) for category in category_V],
        "lat": place_V2[:, 0],
        "lon": place_V2[:, 1],
        "price": rng.integers(1, 5, count),
        # What is popular is rated well, with much noise.
        "rating": np.clip(7 + 0.6 * np.log(popularity_V * count) + rng.normal(0, 0.8, count), 0, 10).round(1),
    }
    frame = pl.DataFrame(columns).cast(VENUE_SCHEMA)
    weekend_Y = np.arange(days) % 7 >= WEEKEND
    return City(
        frame, category_V, popularity_V, near_SV / total_SC[:, category_V], weekend_Y * len(WEATHERS) + weather_Y
    )


def draw_near(city: City, scene_M: np.ndarray, category_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A venue of the category, as popularity and scene have it."""
    categories = int(city.category_V.max()) + 1
    own_CV = city.category_V == np.arange(categories)[:, None]
    table_RV = (city.near_SV[:, None, :] * own_CV).reshape(-1, len(city.category_V))
    return draw(table_RV, scene_M * categories + category_M, rng)


def draw(table_RX: np.ndarray, row_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw for every entry of `row_M` from the distribution in that row of the table."""
    rows, width = table_RX.shape
    edges_RX = table_RX.cumsum(1)
    # All rows laid end to end, so that one search draws for all.
    flat_X = (edges_RX / edges_RX[:, -1:] + np.arange(rows)[:, None]).ravel()
    found_M = np.searchsorted(flat_X, row_M + rng.random(len(row_M)), side="right") - row_M * width
    return np.minimum(found_M, width - 1)
