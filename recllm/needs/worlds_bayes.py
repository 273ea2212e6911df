"""The best that can be known of a synthetic city's needs and accidental visits: a ceiling for learned ones.

The observer knows the rule, the city (popularity, scenes, calendar) and the rates: everything that `make_world` draws
from. It does not know a user's lifestyle, and infers it from the user's log, nor any need or accident. Two questions:

- `hindsight`: the whole log lies there, with the venue (and so the category) of every event; which were accidental, and
  what was the need? This is the filter's ceiling, and a clustering's.
- `foresight`: the day, hour and scene of an event and the user's earlier events are known, its venue is not; what is
  the need? This is a recommender's ceiling.

Both are exact. Given the lifestyle, events depend on one another through earlier venues alone, which the log shows; so
the log's likelihood is a product, and the lifestyle's posterior a sum of logarithms over a user's events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recllm.data.checkins import earlier_alike
from recllm.needs.worlds import RETURN, World
from recllm.needs.worlds_rules import SCENES

# An event is dropped where it is more likely accidental than not, which makes the fewest mistakes.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Posterior:
    """What the observer believes of some events: P(accidental) `accidental_M`, and P(not accidental, need) `need_MN`.

    The two sum to one for every event.
    """

    accidental_M: np.ndarray
    need_MN: np.ndarray

    @property
    def dropped_M(self) -> np.ndarray:
        """The Bayes filter: events that are more likely accidental than not, bool."""
        return self.accidental_M > THRESHOLD

    @property
    def best_need_M(self) -> np.ndarray:
        """The likeliest need of every event, if it has one."""
        return self.need_MN.argmax(1)


def hindsight(world: World, rows: np.ndarray | None = None, read: np.ndarray | None = None) -> Posterior:
    """Beliefs after the venue is seen, for some `rows` (all by default), in their order.

    Lifestyles are inferred from the rows in `read` (all by default), which should hold each user's first events up to
    the last that is asked about: a filter that is fitted on the fold "fit" reads that fold and no more.

    Raises:
        IndexError: a row that the world does not have.
    """
    rows, read = _all_unless(world, rows), _all_unless(world, read)
    log_MK = np.zeros((len(world.user_M), len(world.rules.lifestyle_KN)))
    log_MK[read] = _log_evidence(world)[read]
    log_UK = np.add.reduceat(log_MK, np.searchsorted(world.user_M, np.arange(world.options.users)))
    return _posterior(world, rows, (log_UK[world.user_M] - log_MK)[rows], *_seen(world))


def foresight(world: World, rows: np.ndarray | None = None) -> Posterior:
    """Beliefs before the venue is seen, for some `rows` (all by default): from day, hour, scene and earlier events.

    Earlier events are those of the same user, of whatever fold. `accidental_M` is what day, hour and scene say.

    Raises:
        IndexError: a row that the world does not have.
    """
    rows, log_MK = _all_unless(world, rows), _log_evidence(world)
    before_MK = np.cumsum(log_MK, axis=0) - log_MK
    earlier_MK = before_MK - before_MK[np.searchsorted(world.user_M, world.user_M)]
    return _posterior(world, rows, earlier_MK[rows], *_context(world))


def _all_unless(world: World, rows: np.ndarray | None) -> np.ndarray:
    return np.arange(len(world.user_M)) if rows is None else np.asarray(rows)


def _context(world: World) -> tuple[np.ndarray, np.ndarray]:
    """p(hour, scene | need), shape (M, N), and p(hour, scene | accidental), shape (M,); per hour."""
    hour_M = (world.second_M + 0.5) / 3600
    needful_MN = world.rules.hour_density(hour_M) * world.rules.scene_NS[:, world.scene_M].T
    return needful_MN, np.full(len(hour_M), 1 / (24 * len(SCENES)))


def _seen(world: World) -> tuple[np.ndarray, np.ndarray]:
    """p(hour, scene, venue | need, earlier venues), shape (M, N), and the same of an accident, shape (M,)."""
    needful_MN, accidental_M = _context(world)
    city, category_M = world.city, world.category_M
    same_category_M = earlier_alike(world.user_M * len(world.rules.categories) + category_M)[2]
    same_venue_M = earlier_alike(world.user_M * len(city.category_V) + world.venue_M)[2]
    returns_M = RETURN * (same_category_M > 0)
    new_M = (1 - returns_M) * city.near_SV[world.scene_M, world.venue_M]
    venue_M = new_M + returns_M * same_venue_M / np.maximum(same_category_M, 1)
    needful_MN = needful_MN * world.rules.category_NC[:, category_M].T * venue_M[:, None]
    return needful_MN, accidental_M * city.popularity_V[world.venue_M]


def _by_day(world: World, rows: np.ndarray, left_EX: np.ndarray, table_DXY: np.ndarray) -> np.ndarray:
    """Each row of `left_EX` times the table of its event's kind of day, shape (E, Y)."""
    product_EY = np.empty((len(rows), table_DXY.shape[2]))
    for kind, table_XY in enumerate(table_DXY):
        today_E = world.city.day_kind_Y[world.day_M[rows]] == kind
        product_EY[today_E] = left_EX[today_E] @ table_XY
    return product_EY


def _log_evidence(world: World) -> np.ndarray:
    """log p(event | lifestyle, day, earlier venues), shape (M, K)."""
    rate, (needful_MN, accidental_M) = world.options.accidental_rate, _seen(world)
    needful_MK = _by_day(world, _all_unless(world, None), needful_MN, world.rules.need_prior().swapaxes(1, 2))
    return np.log(rate * accidental_M[:, None] + (1 - rate) * needful_MK)


def _posterior(
    world: World, rows: np.ndarray, log_others_EK: np.ndarray, needful_MN: np.ndarray, accidental_M: np.ndarray
) -> Posterior:
    """Bayes' rule over lifestyle, accident and need for the events in `rows`, from the densities of all events.

    `log_others_EK` is what the user's other events say of the lifestyles, which are equally likely before any event.
    """
    rate = world.options.accidental_rate
    weight_EK = np.exp(log_others_EK - log_others_EK.max(1, keepdims=True))
    need_EN = (1 - rate) * _by_day(world, rows, weight_EK, world.rules.need_prior()) * needful_MN[rows]
    chance_E = rate * accidental_M[rows] * weight_EK.sum(1)
    total_E = need_EN.sum(1) + chance_E
    return Posterior(chance_E / total_E, need_EN / total_E[:, None])


def filter_scores(dropped_M: np.ndarray, accidental_M: np.ndarray) -> dict[str, float]:
    """Precision and recall of a set of dropped events. A share of nothing is left out.

    `accidental_M` is bool (what was planted: the realised scores) or a probability (a `Posterior`'s: the expected).
    """
    hit = float(accidental_M[dropped_M].sum())
    totals = {"precision": float(dropped_M.sum()), "recall": float(accidental_M.sum())}
    return {name: hit / total for name, total in totals.items() if total > 0}


def ceilings(world: World, rows: np.ndarray | None = None, read: np.ndarray | None = None) -> dict[str, float]:
    """What the Bayes observer reaches on some `rows`, having read others (`hindsight`), flat names to numbers.

    Names that end in `_expected` come from the posterior alone, the others from what was planted. Needs are scored on
    the events that have one: accuracy after (`need_accuracy`) and before the venue is seen (`need_accuracy_ahead`),
    normalised mutual information of the likeliest need with the planted one, and the share of the commonest need.
    """
    from sklearn.metrics import normalized_mutual_info_score

    rows = _all_unless(world, rows)
    after, ahead = hindsight(world, rows, read), foresight(world, rows)
    planted_M = world.need_M[rows]
    has_M = planted_M >= 0
    found = {"accidental_rate": float(1 - has_M.mean()), "dropped_share": float(after.dropped_M.mean())}
    found |= filter_scores(after.dropped_M, ~has_M)
    expected = filter_scores(after.dropped_M, after.accidental_M)
    found |= {f"{name}_expected": value for name, value in expected.items()}
    if has_M.any():
        for name, posterior in (("need_accuracy", after), ("need_accuracy_ahead", ahead)):
            found[name] = float((posterior.best_need_M == planted_M)[has_M].mean())
            found[f"{name}_expected"] = float(posterior.need_MN.max(1).sum() / posterior.need_MN.sum())
        found["need_nmi"] = float(normalized_mutual_info_score(planted_M[has_M], after.best_need_M[has_M]))
        found["majority_need"] = float(np.bincount(planted_M[has_M]).max() / has_M.sum())
    return found
