"""A synthetic city with planted living needs and accidental visits (real logs come without that truth).

How a user's log comes about, given the rule (`worlds_rules.py`), the city and the user's lifestyle:

1. The user goes out on some days, drawn without looking at anything else, at most once a day.
2. A visit is accidental at a fixed rate. Then its hour and its scene are uniform, and its venue is drawn from the
   city's popularity: the three know nothing of one another.
3. Otherwise the day (weekend, weather) and the lifestyle give the need, and the need the hour, the scene and the
   category. The venue is, half of the time, that of an earlier visit of the same user to the category, whatever had led
   there; else a popular venue of the category, preferably in the scene.

One visit a day keeps the order of a log free of information, so that `worlds_bayes.py` is exact.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import polars as pl

from recllm.data.checkins import SCHEMA, earlier_alike
from recllm.data.prepare import Raw, prepare, quarantine, write_dataset
from recllm.needs.worlds_city import CITIES, City, draw, draw_near, make_city
from recllm.needs.worlds_rules import SCENES, WEATHERS, Rules, make_rules

# Of each user's events the last two are for the test, the two before for validation.
HELD_OUT = 2
# With fewer a user would have no two events to be fitted on, which the roles split asks for.
MIN_VISITS = 2 * HELD_OUT + 2
# A need's visit repeats an earlier one of its category at this rate, where there is one.
RETURN = 0.5
MONDAY = 1_704_067_200  # 2024-01-01, a Monday; timestamps count local seconds
DAY = 86_400


@dataclass(frozen=True)
class WorldOptions:
    """How large and how noisy a world is. `visits` is the mean number of events a user (Poisson, at least 6), and
    `accidental_rate` lies in [0, 1). The same `seed` in the other `city` gives the same rule and nothing else alike."""

    users: int = 2000
    visits: int = 40
    needs: int = 12
    rare_needs: int = 3
    venues: int = 600
    accidental_rate: float = 0.2
    days: int = 120
    seed: int = 0
    city: Literal["port", "hill"] = "port"

    def __post_init__(self) -> None:
        if self.city not in CITIES:
            raise ValueError(f"city {self.city!r} is unknown; the cities are {', '.join(CITIES)}")
        if not 0 <= self.accidental_rate < 1:
            raise ValueError(f"accidental_rate must lie in 0 to 1, 1 excluded; got {self.accidental_rate}")
        if self.users < 1 or not MIN_VISITS <= self.visits <= self.days:
            raise ValueError(
                f"a world needs a user, and visits of {MIN_VISITS} to days={self.days}, one a day at most; "
                f"got users={self.users}, visits={self.visits}"
            )


@dataclass(frozen=True)
class World:
    """A city and the log of its users, `M` events sorted by user and day.

    `user_M`, `day_M` (0 is a Monday), `second_M` of the day, `scene_M`, `venue_M` are seen; `need_M` (-1 where a visit
    is accidental) and `lifestyle_U` are the planted truth. All int64.
    """

    options: WorldOptions
    rules: Rules
    city: City
    user_M: np.ndarray
    day_M: np.ndarray
    second_M: np.ndarray
    scene_M: np.ndarray
    venue_M: np.ndarray
    need_M: np.ndarray
    lifestyle_U: np.ndarray

    @property
    def category_M(self) -> np.ndarray:
        """Category of every event, an index into `rules.categories`."""
        return self.city.category_V[self.venue_M]

    @property
    def accidental_M(self) -> np.ndarray:
        """Whether an event is accidental, bool."""
        return self.need_M < 0

    @cached_property
    def fold_M(self) -> np.ndarray:
        """ "fit", "validation" or "test" of every event: the last two of a user are the test's, the two before them
        validation's."""
        ends_M = np.cumsum(np.bincount(self.user_M))[self.user_M]
        left_M = ends_M - 1 - np.arange(len(self.user_M))
        return np.where(left_M < HELD_OUT, "test", np.where(left_M < 2 * HELD_OUT, "validation", "fit"))

    @property
    def visits(self) -> pl.DataFrame:
        """The events in the layout of visits.parquet."""
        weather_M = self.city.day_kind_Y[self.day_M] % len(WEATHERS)
        names = np.array([*(need.name for need in self.rules.needs), ""])
        columns = {
            "user_id": self.user_M,
            "item_id": self.venue_M,
            "timestamp": MONDAY + self.day_M * DAY + self.second_M,
            "hour": self.second_M / 3600,
            "weekday": self.day_M % 7,
            "weather": np.array(WEATHERS)[weather_M],
            "scene": np.array(SCENES)[self.scene_M],
            "fold": self.fold_M,
            "target": np.ones(len(self.user_M), dtype=bool),
            "need": names[self.need_M],
            "accidental": self.accidental_M,
        }
        return pl.DataFrame(columns).cast(SCHEMA)


def make_world(options: WorldOptions) -> World:
    """Draw a world; the same options always give the same one.

    Raises:
        ValueError: fewer than three venues a category, or needs that `make_rules` refuses.
    """
    rules = make_rules(options.needs, options.rare_needs, options.seed)
    rng = np.random.default_rng([options.seed, 1 + CITIES.index(options.city)])
    city = make_city(options.city, options.venues, options.days, rules, rng)
    lifestyle_U = rng.integers(len(rules.lifestyle_KN), size=options.users)
    length_U = np.clip(MIN_VISITS + rng.poisson(options.visits - MIN_VISITS, options.users), None, options.days)
    rank_UY = rng.random((options.users, options.days)).argsort(1).argsort(1)
    user_M, day_M = np.nonzero(rank_UY < length_U[:, None])

    scenes, size = len(SCENES), len(user_M)
    row_M = city.day_kind_Y[day_M] * len(rules.lifestyle_KN) + lifestyle_U[user_M]
    need_M = draw(rules.need_prior().reshape(-1, len(rules.needs)), row_M, rng)
    peak_M = rules.hours_N2[need_M, rng.integers(2, size=size)] * (2 * np.pi / 24)
    hour_M = rng.vonmises(peak_M, rules.kappa_N[need_M]) * (24 / (2 * np.pi)) % 24
    scene_M = draw(rules.scene_NS, need_M, rng)
    category_M = draw(rules.category_NC, need_M, rng)

    accidental_M = rng.random(size) < options.accidental_rate
    hour_M = np.where(accidental_M, rng.random(size) * 24, hour_M)
    scene_M = np.where(accidental_M, rng.integers(scenes, size=size), scene_M)
    anywhere_M = rng.choice(options.venues, size, p=city.popularity_V)
    category_M = np.where(accidental_M, city.category_V[anywhere_M], category_M)
    new_M = np.where(accidental_M, anywhere_M, draw_near(city, scene_M, category_M, rng))
    venue_M = _with_returns(new_M, user_M * len(rules.categories) + category_M, ~accidental_M, rng)

    second_M = (hour_M * 3600).astype(np.int64) % DAY
    need_M = np.where(accidental_M, -1, need_M)
    return World(options, rules, city, user_M, day_M, second_M, scene_M, venue_M, need_M, lifestyle_U)


def _with_returns(
    new_M: np.ndarray, code_M: np.ndarray, may_return_M: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Venues after some visits repeat an earlier one of their user and category (`code_M`), any with equal chance."""
    order_M, start_M, count_M = earlier_alike(code_M)
    repeats_M = may_return_M & (count_M > 0) & (rng.random(len(code_M)) < RETURN)
    earlier_M = order_M[start_M + (rng.random(len(code_M)) * count_M).astype(np.int64)]
    source_M = np.where(repeats_M, earlier_M, np.arange(len(code_M)))
    # The earlier visit may itself be a repeat: follow the pointers to the end, twice as far each time.
    while not np.array_equal(further_M := source_M[source_M], source_M):
        source_M = further_M
    return new_M[source_M]


def write_world(folder: str | Path, world: World) -> dict[str, float]:
    """Write a world as a data set with visits.parquet; return its counts.

    dataset.json also holds the options, the shares of `Rules.shares` and the description of every need.
    """
    visits = world.visits
    events = visits.select(pl.col("user_id", "item_id").cast(pl.String).name.replace("_id", ""), "timestamp")
    items = world.city.frame.with_row_index("item").with_columns(pl.col("item").cast(pl.String))
    raw = Raw(events, items, quarantine([]), {"world": visits.height})
    policies = SimpleNamespace(k_core=0, dedup="none", keep_unseen=True, max_bad_fraction=0)
    description = {
        "name": f"needs-world-{world.options.city}",
        "source": "made up by recllm/needs/worlds.py",
        "licence": "as the code",
        "world": {**asdict(world.options), **world.rules.shares()},
        "needs": {need.name: need.description for need in world.rules.needs},
    }
    prepared = prepare(raw, k=0, dedup="none", keep_unseen=True)
    return write_dataset(folder, prepared, raw, policies, description, visits)
