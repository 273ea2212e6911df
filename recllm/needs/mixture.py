"""A mixture model of a log of visits: each visit follows one of N needs, or is accidental.

    p(visit of u) = sum_k P(k | u) [ (1 - a) sum_n P(n | k, day) h_n(hour) s_n(scene) c_n(category) v(venue)
                                     + a h_0 s_0 c_0(category) v_0(venue) ]

A user belongs to one of K classes with their own shares of the needs. A need has two daily peaks (von Mises; near each
other where it has one), its scenes and its categories. With a need, the venue is at rate `returns` one of the user's
earlier visits to the category, else a new one, popular in the category and near the scene. An accident is independent
of its context: hour and scene are uniform, the category has the accidents' share and the venue its popularity there. So
what the needs leave unexplained is accidental, and no need has a uniform share that could as well be an accident's.

Fitted by expectation and maximisation. That log-odds of need against accident is the pointwise mutual information of
context and category made whole: it also knows the user, and what the user does again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recllm.needs.context import Contexts

PEAKS = 2
HOURS = 24.0
# Concentrations. A peak narrower than half an hour is a coincidence. Two peaks wider than three hours can make up a day
# on which nothing is accidental.
KAPPA_RANGE = (2.0, 60.0)


@dataclass(frozen=True)
class Log:
    """What the mixture reads of `E` events, their order free. `alike_E`, `same_E`: earlier visits of the user to the
    category and the venue. Sizes are those of the whole data set, so that other folds can be read later."""

    user_E: np.ndarray
    hour_E: np.ndarray
    day_E: np.ndarray
    scene_E: np.ndarray
    category_E: np.ndarray
    item_E: np.ndarray
    alike_E: np.ndarray
    same_E: np.ndarray
    category_V: np.ndarray
    users: int
    days: int
    scenes: int
    categories: int

    @classmethod
    def of(cls, contexts: Contexts, rows: np.ndarray) -> Log:
        """Some rows of a data set."""
        whole = {
            "user_E": contexts.user_M,
            "hour_E": contexts.hour_M,
            "day_E": contexts.day_M,
            "scene_E": contexts.scene_M,
            "category_E": contexts.category_M,
            "item_E": contexts.item_M,
            "alike_E": contexts.alike_M,
            "same_E": contexts.same_M,
        }
        sizes = (contexts.users, contexts.day_kinds, len(contexts.scenes), len(contexts.categories))
        return cls(*(value_M[rows] for value_M in whole.values()), contexts.category_V, *sizes)

    def __len__(self) -> int:
        return len(self.user_E)


@dataclass(frozen=True)
class Mixture:
    """Parameters for `N` needs, `K` classes of users, `D` kinds of day, `S` scenes, `C` categories, `V` venues.

    `prior_DKN`, `class_K`, `scene_NS`, `category_NC` and `weight_NP` sum to one over their last axis; `peak_NP` are
    angles, `kappa_NP` concentrations. `accident_C` is the categories' share among accidents, `popular_V` the venues'
    share within their category and `near_SV` the same from a scene. `accidents` and `returns` are rates.
    """

    class_K: np.ndarray
    prior_DKN: np.ndarray
    peak_NP: np.ndarray
    kappa_NP: np.ndarray
    weight_NP: np.ndarray
    scene_NS: np.ndarray
    category_NC: np.ndarray
    accident_C: np.ndarray
    popular_V: np.ndarray
    near_SV: np.ndarray
    accidents: float
    returns: float

    @property
    def needs(self) -> int:
        """Number of needs."""
        return len(self.peak_NP)

    def parameters(self) -> int:
        """How many free numbers the needs and classes take, for the information criterion.

        Venues, accidents and rates are left out: they are the same whatever the numbers of needs and classes.
        """
        days, classes, needs = self.prior_DKN.shape
        covered = int((self.category_NC > 0).sum()) - needs
        return needs * (3 * PEAKS - 1 + self.scene_NS.shape[1] + days - 2) + covered + classes * needs - 1

    def peaks(self, hour_E: np.ndarray) -> np.ndarray:
        """Density per hour of every need's peaks, weighted, shape (E, N, P); unknown hours (NaN) are uniform."""
        angle_E11 = np.nan_to_num(hour_E)[:, None, None] * (2 * np.pi / HOURS)
        bump = np.exp(self.kappa_NP * (np.cos(angle_E11 - self.peak_NP) - 1))
        # i0(kappa) * exp(-kappa), since the bump is scaled to stay below 1.
        scale_NP = self.weight_NP / (HOURS * np.i0(self.kappa_NP) * np.exp(-self.kappa_NP))
        return np.where(np.isnan(hour_E)[:, None, None], self.weight_NP / HOURS, bump * scale_NP)


@dataclass(frozen=True)
class Densities:
    """p(hour, scene, category, venue) of each event under each need, `need_EN` (times 1 - accidents), and as an
    accident, `accident_E` (times accidents). `again_E`: of a visit with a need, the chance that it is a return."""

    need_EN: np.ndarray
    accident_E: np.ndarray
    again_E: np.ndarray


def densities(mixture: Mixture, log: Log) -> Densities:
    """What every event is under every need and as an accident, before its user and its day are looked at."""
    may_E = log.alike_E > 0
    again_E = mixture.returns * may_E * log.same_E / np.maximum(log.alike_E, 1)
    venue_E = (1 - mixture.returns * may_E) * mixture.near_SV[log.scene_E, log.item_E] + again_E
    # Hours repeat by the minute: densities are computed once for each that occurs.
    hour_H, at_E = np.unique(log.hour_E.round(2), return_inverse=True)
    need_EN = mixture.peaks(hour_H).sum(-1)[at_E]
    need_EN *= mixture.scene_NS.T[log.scene_E]
    need_EN *= mixture.category_NC.T[log.category_E]
    need_EN *= ((1 - mixture.accidents) * venue_E)[:, None]
    anywhere_E = mixture.accident_C[log.category_E] * mixture.popular_V[log.item_E]
    return Densities(need_EN, mixture.accidents * anywhere_E / (HOURS * log.scenes), again_E / venue_E)


def by_day(log: Log) -> list[np.ndarray]:
    """The events of each kind of day."""
    return [np.flatnonzero(log.day_E == day) for day in range(log.days)]


def class_likelihoods(mixture: Mixture, log: Log, found: Densities) -> np.ndarray:
    """p(event | class of its user, day), float64 of shape (E, K)."""
    chance_EK = np.empty((len(log), len(mixture.class_K)))
    for day, rows in enumerate(by_day(log)):
        chance_EK[rows] = found.need_EN[rows] @ mixture.prior_DKN[day].T
    # An event that nothing explains is an accident without a say on the class.
    return np.maximum(chance_EK + found.accident_E[:, None], 1e-300)


def class_evidence(chance_EK: np.ndarray, log: Log) -> np.ndarray:
    """Sum over a user's events of log p(event | class), shape (U, K)."""
    evidence_UK = np.zeros((log.users, chance_EK.shape[1]))
    np.add.at(evidence_UK, log.user_E, np.log(chance_EK))
    return evidence_UK


@dataclass(frozen=True)
class Posterior:
    """Beliefs about `E` events: P(need, no accident) `need_EN` and P(accident) `accident_E`, which sum to one."""

    need_EN: np.ndarray
    accident_E: np.ndarray

    @property
    def need_E(self) -> np.ndarray:
        """The likeliest need of every event, if it has one."""
        return self.need_EN.argmax(1)

    @property
    def log_odds_E(self) -> np.ndarray:
        """Log-odds of a need against an accident, natural logarithm, cut at plus and minus 30."""
        least = np.exp(-30.0)
        needful_E = self.need_EN.sum(1)
        return np.log(np.maximum(needful_E, least)) - np.log(np.maximum(self.accident_E, least))


def posterior(mixture: Mixture, log: Log, evidence_UK: np.ndarray, read: bool) -> Posterior:
    """Bayes' rule for some events.

    evidence_UK: what the events that were fitted on say of the users' classes (`class_evidence`). read: whether the
    events of `log` are among those; else each adds its own evidence.
    """
    found = densities(mixture, log)
    chance_EK = class_likelihoods(mixture, log, found)
    log_EK = (evidence_UK + np.log(mixture.class_K))[log.user_E] - (np.log(chance_EK) if read else 0)
    weight_EK = np.exp(log_EK - log_EK.max(1, keepdims=True))
    need_EN = np.empty_like(found.need_EN)
    for day, rows in enumerate(by_day(log)):
        need_EN[rows] = found.need_EN[rows] * (weight_EK[rows] @ mixture.prior_DKN[day])
    accident_E = np.maximum(found.accident_E, 1e-300) * weight_EK.sum(1)
    total_E = need_EN.sum(1) + accident_E
    return Posterior(need_EN / total_E[:, None], accident_E / total_E)
