"""The rule of the synthetic city: its needs, its categories, and what each need asks of a context and of a category.

The table below is written by hand so that names, descriptions and categories fit together; a seed moves the hours,
weights the scenes and the categories and makes the lifestyles. Two cities with one seed have one rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WEATHERS = ("clear", "cloudy", "rain")
SCENES = ("residential area", "business district", "shopping street", "campus", "station", "waterfront")
# A day is of one of six kinds: weekend * len(WEATHERS) + weather.
DAY_KINDS = 2 * len(WEATHERS)
LIFESTYLES = 12
# Share of all needs that one rare need has.
RARE_SHARE = 0.015
# A need covers a category that it leads to at least this often.
COVERED = 0.05
# Share of a need's visits that is spread over all scenes.
ANY_SCENE = 0.3
LEAVES = {
    "Food": "Bakery, Breakfast Spot, Sandwich Shop, Noodle House, Food Court, Sushi Restaurant, Pizza Place, "
    "Steakhouse",
    "Drinks": "Coffee Shop, Tea House, Juice Bar, Ice Cream Parlour, Wine Bar, Pub",
    "Nightlife": "Cocktail Lounge, Night Club, Karaoke Box, Music Hall",
    "Shops": "Supermarket, Convenience Store, Bookshop, Clothes Shop, Gift Shop, Florist",
    "Outdoors": "City Park, Playground, Riverside Walk, Football Pitch",
    "Sport and Health": "Gym, Swimming Pool, Yoga Studio, Pharmacy, Clinic",
    "Culture": "Cinema, Museum, Theatre, Library",
    "Services": "Hair Salon, Launderette, Spa",
}


@dataclass(frozen=True)
class Need:
    """A living need: `name` is "Maslow level / sub-need", `description` a sentence that names no category.

    It comes up around each of one or two `hours` (0 to 24, standard deviation `spread`), `weekend` times as often on a
    weekend day as on a weekday, in a weather in proportion to `weather` (clear, cloudy, rain), mostly in `scenes`, and
    is met by venues of the leaf categories `leaves`, which a comma parts.
    """

    name: str
    description: str
    hours: tuple[float, ...]
    spread: float
    weekend: float
    weather: tuple[float, float, float]
    scenes: tuple[str, ...]
    leaves: str


_ANY = (1.0, 1.0, 1.0)
_HOME, _WORK, _STREET, _CAMPUS, _STATION, _WATER = SCENES
# The first of them make a world with fewer needs, and the last of those are the rare ones.
NEEDS = (
    Need(
        "physiological / quick breakfast",
        "Something fast and filling on the way in, to get a working morning started.",
        *((7.6,), 1.2, 0.15, _ANY, (_WORK, _STATION)),
        "Bakery, Breakfast Spot, Coffee Shop, Convenience Store, Juice Bar, Supermarket",
    ),
    Need(
        "physiological / working lunch",
        "A filling midday meal within the hour, close to the desk.",
        *((12.5,), 1.2, 0.15, _ANY, (_WORK, _CAMPUS)),
        "Sandwich Shop, Noodle House, Food Court, Sushi Restaurant, Coffee Shop, Supermarket",
    ),
    Need(
        "physiological / afternoon break",
        "A short pause in the afternoon with a sip and something sweet.",
        *((15.5,), 1.5, 1.0, (1.0, 1.5, 1.0), (_STREET, _CAMPUS)),
        "Coffee Shop, Tea House, Juice Bar, Ice Cream Parlour, Bakery, Food Court, Bookshop",
    ),
    Need(
        "love and belonging / dinner with friends",
        "An evening meal shared around a table, with time to talk.",
        *((19.5,), 1.4, 1.5, _ANY, (_WATER, _STREET)),
        "Pizza Place, Steakhouse, Sushi Restaurant, Wine Bar, Pub, Noodle House, Cocktail Lounge",
    ),
    Need(
        "love and belonging / night out",
        "Staying up late in good company, loud and light-hearted.",
        *((23.3,), 1.7, 4.0, _ANY, (_WATER, _STATION)),
        "Cocktail Lounge, Night Club, Karaoke Box, Music Hall, Pub, Wine Bar, Pizza Place",
    ),
    Need(
        "safety / running the household",
        "Filling the cupboards at home and getting chores done for the days ahead.",
        *((17.8,), 1.7, 0.7, _ANY, (_HOME,)),
        "Supermarket, Convenience Store, Pharmacy, Launderette, Bakery, Florist",
    ),
    Need(
        "esteem / keeping fit",
        "Working up a sweat to stay in shape.",
        *((6.3, 20.5), 1.4, 1.0, _ANY, (_HOME, _CAMPUS)),
        "Gym, Swimming Pool, Yoga Studio, Football Pitch, Riverside Walk, Juice Bar, City Park",
    ),
    Need(
        "self-actualisation / widening the mind",
        "Seeing, hearing or reading something inspiring, with a roof overhead.",
        *((14.5,), 2.2, 4.0, (0.3, 1.0, 3.0), (_STREET, _CAMPUS)),
        "Museum, Theatre, Cinema, Library, Bookshop, Music Hall, City Park, Tea House",
    ),
    Need(
        "love and belonging / outing with children",
        "A bright free day in the open with the little ones.",
        *((11.0,), 2.0, 8.0, (4.0, 1.0, 0.1), (_WATER, _HOME)),
        "City Park, Playground, Swimming Pool, Ice Cream Parlour, Museum, Riverside Walk, Cinema, Library, Pizza Place",
    ),
    Need(
        "safety / feeling unwell",
        "Getting help with an ache or a fever before it grows worse.",
        *((9.6,), 1.5, 0.2, (0.6, 1.0, 1.6), (_HOME,)),
        "Clinic, Pharmacy, Supermarket",
    ),
    Need(
        "esteem / looking one's best",
        "Being groomed and freshly dressed before an important occasion.",
        *((17.0,), 1.7, 2.0, _ANY, (_STREET,)),
        "Hair Salon, Spa, Clothes Shop, Yoga Studio, Gym",
    ),
    Need(
        "love and belonging / present for a host",
        "Something thoughtful to hand over at the door when invited.",
        *((18.3,), 1.4, 2.0, _ANY, (_STATION, _STREET)),
        "Gift Shop, Florist, Bookshop, Clothes Shop, Bakery",
    ),
    Need(
        "self-actualisation / quiet study",
        "Hours of reading and writing undisturbed.",
        *((10.0,), 1.7, 0.4, (0.8, 1.0, 1.4), (_CAMPUS,)),
        "Library, Coffee Shop, Tea House, Bookshop",
    ),
    Need(
        "love and belonging / evening for two",
        "Unhurried hours together with a loved one after sunset.",
        *((21.3,), 1.4, 2.0, (1.6, 1.0, 0.6), (_WATER,)),
        "Wine Bar, Cinema, Theatre, Riverside Walk",
    ),
)


@dataclass(frozen=True)
class Rules:
    """What both cities share, for `N` needs, `C` categories, `K` lifestyles, `S` scenes and `D` kinds of day.

    `categories` are (root, leaf). Of a need, `hours_N2` are its two peaks (equal where it has one) and `kappa_N` the
    concentration of the von Mises distribution around each; `scene_NS` and `category_NC` sum to one over their last
    axis; `day_ND` says how many times as often as on average it comes up on a kind of day. `lifestyle_KN` is how
    often those who live so have each need on an average day.
    """

    needs: tuple[Need, ...]
    categories: tuple[tuple[str, str], ...]
    hours_N2: np.ndarray
    kappa_N: np.ndarray
    scene_NS: np.ndarray
    category_NC: np.ndarray
    day_ND: np.ndarray
    lifestyle_KN: np.ndarray

    def shares(self) -> dict[str, float]:
        """How far needs and categories are from one to one: the share of needs that cover three categories or more,
        and of categories that two needs or more cover (`COVERED`)."""
        covers_NC = self.category_NC >= COVERED
        return {
            "needs_with_3_categories": float((covers_NC.sum(1) >= 3).mean()),
            "categories_under_2_needs": float((covers_NC.sum(0) >= 2).mean()),
        }

    def need_prior(self) -> np.ndarray:
        """P(need | kind of day, lifestyle), float64 of shape (D, K, N)."""
        weight_DKN = self.day_ND.T[:, None, :] * self.lifestyle_KN
        return weight_DKN / weight_DKN.sum(-1, keepdims=True)

    def hour_density(self, hour_M: np.ndarray) -> np.ndarray:
        """Density per hour of each need at a time of day (0 to 24), shape (M, N)."""
        angle_MN2 = (hour_M[:, None, None] - self.hours_N2) * (2 * np.pi / 24)
        bump_MN = np.exp(self.kappa_N[:, None] * (np.cos(angle_MN2) - 1)).mean(-1)
        # i0(kappa) * exp(-kappa), since the bump is scaled to stay below 1.
        return bump_MN / (24 * np.i0(self.kappa_N) * np.exp(-self.kappa_N))


def make_rules(needs: int, rare_needs: int, seed: int) -> Rules:
    """The rule of a seed, with the first `needs` of the table, the last `rare_needs` of them rare.

    Raises:
        ValueError: fewer needs than keep the promise on `Rules.shares` (1/2 and 1/3), more than the table has, or no
            need that is not rare.
    """
    if not (2 <= needs <= len(NEEDS) and 0 <= rare_needs < needs):
        raise ValueError(f"needs must be 2 to {len(NEEDS)} and more than rare_needs; got {needs} and {rare_needs}")
    rng = np.random.default_rng([seed, 0])
    chosen = NEEDS[:needs]
    met = {leaf for need in chosen for leaf in need.leaves.split(", ")}
    categories = [(root, leaf) for root, names in LEAVES.items() for leaf in names.split(", ") if leaf in met]
    hours_N2 = np.array([(need.hours[0], need.hours[-1]) for need in chosen]) + rng.normal(0, 0.3, (needs, 1))
    spread_N = np.array([need.spread for need in chosen]) * rng.lognormal(0, 0.1, needs)
    rules = Rules(
        needs=chosen,
        categories=tuple(categories),
        hours_N2=hours_N2 % 24,
        kappa_N=(24 / (2 * np.pi * spread_N)) ** 2,
        scene_NS=(1 - ANY_SCENE) * _weights([need.scenes for need in chosen], SCENES, rng) + ANY_SCENE / len(SCENES),
        category_NC=_weights([need.leaves.split(", ") for need in chosen], [leaf for _, leaf in categories], rng),
        day_ND=np.array([_day_weights(need) for need in chosen]),
        lifestyle_KN=_lifestyles(needs, rare_needs, rng),
    )
    shares = rules.shares()
    if shares["needs_with_3_categories"] < 1 / 2 or shares["categories_under_2_needs"] < 1 / 3:
        raise ValueError(f"a world of {needs} needs overlaps too little ({shares}); ask for more needs")
    return rules


def _weights(chosen: list, names: list | tuple, rng: np.random.Generator) -> np.ndarray:
    """One distribution a need over `names`, uneven among its own and zero elsewhere."""
    table_NX = np.zeros((len(chosen), len(names)))
    for row_X, own in zip(table_NX, chosen, strict=True):
        places = [list(names).index(name) for name in own]
        # Half of it even, so that none of its own ends below `COVERED`.
        row_X[places] = 0.5 / len(own) + 0.5 * rng.dirichlet(np.full(len(own), 3.0))
    return table_NX


def _day_weights(need: Need) -> np.ndarray:
    """Weight of every kind of day; one on average over a week of even weather."""
    weight_D = np.outer([1.0, need.weekend], need.weather).ravel()
    return weight_D / (weight_D @ np.repeat([5 / 7, 2 / 7], len(WEATHERS)) / len(WEATHERS))


def _lifestyles(needs: int, rare_needs: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of the needs: each lifestyle has a few that dominate, and every need somewhere above zero."""
    common, rare = needs - rare_needs, RARE_SHARE * rare_needs
    common_KN = 0.1 / common + 0.9 * rng.dirichlet(np.full(common, 0.3), LIFESTYLES)
    rare_KN = np.full((LIFESTYLES, rare_needs), RARE_SHARE)
    return np.concatenate([(1 - rare) * common_KN, rare_KN], axis=1)
