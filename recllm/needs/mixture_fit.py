"""Fitting the mixture of needs and accidents by expectation and maximisation.

Which categories a need covers is decided cell by cell as the Bayesian information criterion has it: a cell is struck
out where the likelihood that it adds is not worth half the logarithm of the number of events. Without that every need
keeps a trickle of every category, and takes the accidents of its hours for its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recllm.needs.clusters import NOISE
from recllm.needs.mixture import (
    HOURS,
    KAPPA_RANGE,
    PEAKS,
    Log,
    Mixture,
    Posterior,
    by_day,
    class_evidence,
    class_likelihoods,
    densities,
)

_BINS = 96
# Trust in the clusters that the first step starts from; the rest is spread.
_START = 0.8
# Events that a class's needs are drawn with to their common shares, and those of a class on a kind of day to the
# product of class and day.
_CLASS_PRIOR, _DAY_PRIOR = 5.0, 20.0
_SCENE_PRIOR = 1.0
# New visits that a venue's share from a scene is drawn with to its popularity, and visits that each venue starts with.
_NEAR_PRIOR, _VENUE_PRIOR = 20.0, 0.2
# Fit settles before cells are struck out.
_SETTLE = 6
_TINY = 1e-6


@dataclass(frozen=True)
class Fit:
    """A fitted mixture with its log-likelihood on the `events` it was fitted on, what those say of the users' classes
    (`evidence_UK`), and what each event was (`posterior`)."""

    mixture: Mixture
    likelihood: float
    evidence_UK: np.ndarray
    posterior: Posterior

    @property
    def criterion(self) -> float:
        """Half the Bayesian information criterion with its sign changed, so that more is better."""
        return self.likelihood - 0.5 * self.mixture.parameters() * np.log(len(self.posterior.accident_E))


@dataclass(frozen=True)
class Counts:
    """What an expectation step leaves: weights of needs `need_EN`, of accidents `accident_E`, of returns `again_E`;
    of needs by day and class, `day_DKN`; of classes, `class_K`."""

    need_EN: np.ndarray
    accident_E: np.ndarray
    again_E: np.ndarray
    day_DKN: np.ndarray
    class_K: np.ndarray


def start_counts(log: Log, label_E: np.ndarray, classes: int, seed: int) -> tuple[Counts, np.ndarray]:
    """Where the first maximisation starts from: clusters joined into needs, and classes by k-means on users' shares."""
    needs = int(label_E.max()) + 1
    need_EN = np.full((len(log), needs), (1 - _START) / (2 * needs))
    known = label_E != NOISE
    need_EN[known, label_E[known]] += _START
    need_EN[~known] = (1 - _START) / needs
    return spread(log, need_EN, classes, seed)


def spread(log: Log, need_EN: np.ndarray, classes: int, seed: int) -> tuple[Counts, np.ndarray]:
    from sklearn.cluster import KMeans

    share_UN = np.zeros((log.users, need_EN.shape[1]))
    np.add.at(share_UN, log.user_E, need_EN)
    share_UN += _CLASS_PRIOR * share_UN.sum(0) / share_UN.sum()
    share_UN = np.sqrt(share_UN / share_UN.sum(1, keepdims=True))
    present_U = np.bincount(log.user_E, minlength=log.users) > 0
    classes = min(classes, int(present_U.sum()))
    class_U = np.zeros(log.users, dtype=np.int64)
    if classes > 1:
        class_U[present_U] = KMeans(classes, n_init=2, random_state=seed).fit_predict(share_UN[present_U])
    member_UK = 0.9 * np.eye(classes)[class_U] + 0.1 / classes
    day_DKN = np.stack([member_UK[log.user_E[rows]].T @ need_EN[rows] for rows in by_day(log)])
    again_E = 0.5 * need_EN.sum(1) * (log.same_E > 0)
    covers_NC = np.ones((need_EN.shape[1], log.categories), dtype=bool)
    return Counts(need_EN, 1 - need_EN.sum(1), again_E, day_DKN, member_UK[present_U].sum(0)), covers_NC


def fit(
    log: Log, start: tuple[Counts, np.ndarray], steps: int, settled: bool = False, last: Mixture | None = None
) -> Fit:
    """Run `steps` steps of expectation and maximisation from some counts and covered cells.

    settled: cells may be struck out from the first step on, as where a fit goes on. last: the mixture that it goes on
    from, whose hours are not begun anew.
    """
    counts, covers_NC = start
    table = _Table(log)
    mixture = last
    for step in range(steps):
        mixture, covers_NC = _maximise(table, counts, mixture, covers_NC, settled or step >= _SETTLE)
        counts, likelihood, evidence_UK = expect(mixture, log)
    return Fit(mixture, likelihood, evidence_UK, Posterior(counts.need_EN, counts.accident_E))


def expect(mixture: Mixture, log: Log) -> tuple[Counts, float, np.ndarray]:
    found = densities(mixture, log)
    chance_EK = class_likelihoods(mixture, log, found)
    evidence_UK = class_evidence(chance_EK, log)
    log_UK = evidence_UK + np.log(mixture.class_K)
    top_U1 = log_UK.max(1, keepdims=True)
    member_UK = np.exp(log_UK - top_U1)
    total_U1 = member_UK.sum(1, keepdims=True)
    member_UK /= total_U1
    weight_EK = member_UK[log.user_E] / chance_EK
    need_EN, day_DKN = np.empty_like(found.need_EN), np.zeros_like(mixture.prior_DKN)
    for day, rows in enumerate(by_day(log)):
        day_DKN[day] = (weight_EK[rows].T @ found.need_EN[rows]) * mixture.prior_DKN[day]
        need_EN[rows] = found.need_EN[rows] * (weight_EK[rows] @ mixture.prior_DKN[day])
    accident_E = np.clip(1 - need_EN.sum(1), 0, 1)
    counts = Counts(need_EN, accident_E, need_EN.sum(1) * found.again_E, day_DKN, member_UK.sum(0))
    return counts, float((top_U1 + np.log(total_U1)).sum()), evidence_UK


class _Table:
    """The log's hours, scenes and categories as indicators, so that all counts are one sparse product."""

    def __init__(self, log: Log) -> None:
        from scipy.sparse import csr_array

        self.log = log
        known = ~np.isnan(log.hour_E)
        bin_E = (np.nan_to_num(log.hour_E) / HOURS * _BINS).astype(np.int64) % _BINS
        rows = np.concatenate([bin_E[known], _BINS + log.scene_E, _BINS + log.scenes + log.category_E])
        every = np.arange(len(log))
        columns = np.concatenate([every[known], every, every])
        shape = (_BINS + log.scenes + log.categories, len(log))
        self.indicator_XE = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def counts(self, value_EN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums over hours (N, bins), scenes (N, S) and categories (N, C)."""
        total_NX = (self.indicator_XE @ value_EN).T
        return np.split(total_NX, [_BINS, _BINS + self.log.scenes], axis=1)


def _maximise(
    table: _Table, counts: Counts, last: Mixture | None, covers_NC: np.ndarray, strike: bool
) -> tuple[Mixture, np.ndarray]:
    log, needful_E = table.log, counts.need_EN.sum(1)
    hour_NB, scene_NS, category_NC = table.counts(counts.need_EN)
    if strike:
        covers_NC = covers_NC & ~_weak(table, counts.need_EN, category_NC, covers_NC)
    category_NC = np.where(covers_NC, category_NC + _TINY, 0)
    scene_NS = scene_NS + _SCENE_PRIOR
    peak_NP, kappa_NP, weight_NP = _peaks(hour_NB, last)
    accident_C = np.bincount(log.category_E, counts.accident_E, log.categories) + 1
    popular_V, near_SV = _venues(log, needful_E - counts.again_E, counts.accident_E)
    may_E = log.alike_E > 0
    class_K = counts.class_K + 1
    mixture = Mixture(
        class_K=class_K / class_K.sum(),
        prior_DKN=_prior(counts.day_DKN),
        peak_NP=peak_NP,
        kappa_NP=kappa_NP,
        weight_NP=weight_NP,
        scene_NS=scene_NS / scene_NS.sum(1, keepdims=True),
        category_NC=category_NC / category_NC.sum(1, keepdims=True),
        accident_C=accident_C / accident_C.sum(),
        popular_V=popular_V,
        near_SV=near_SV,
        accidents=float(np.clip(counts.accident_E.mean(), _TINY, 1 - _TINY)),
        returns=float(np.clip(counts.again_E[may_E].sum() / max(needful_E[may_E].sum(), _TINY), 0, 1 - _TINY)),
    )
    return mixture, covers_NC


def _weak(table: _Table, need_EN: np.ndarray, category_NC: np.ndarray, covers_NC: np.ndarray) -> np.ndarray:
    """Cells to strike out now: of each category at most the weakest, and none that is its need's last.

    Without a cell each of its events loses log(1 - its share in it), and the need's other cells share what it had.
    """
    loss_NC = table.counts(-np.log1p(-np.minimum(need_EN, 1 - _TINY)))[2]
    total_N1 = np.maximum(category_NC.sum(1, keepdims=True), _TINY)
    regain_NC = -total_N1 * np.log1p(-np.minimum(category_NC / total_N1, 1 - _TINY))
    worth_NC = np.where(covers_NC, loss_NC - regain_NC, np.inf)
    weakest_NC = worth_NC == worth_NC.min(0)
    last_N1 = covers_NC.sum(1, keepdims=True) <= PEAKS
    return (worth_NC < 0.5 * np.log(len(need_EN))) & (weakest_NC | (worth_NC < 0.5)) & ~last_N1


def _prior(day_DKN: np.ndarray) -> np.ndarray:
    """P(need | kind of day, class), drawn to the product of what the class and what the kind of day says."""
    day_DN, class_KN = day_DKN.sum(1), day_DKN.sum(0)
    common_N = (day_DN.sum(0) + _TINY) / (day_DN.sum() + _TINY * day_DN.shape[1])
    class_KN = (class_KN + _CLASS_PRIOR * common_N) / (class_KN.sum(1, keepdims=True) + _CLASS_PRIOR)
    today_DN = (day_DN + _DAY_PRIOR * common_N) / (day_DN.sum(1, keepdims=True) + _DAY_PRIOR)
    product_DKN = class_KN * (today_DN / common_N)[:, None, :]
    product_DKN /= product_DKN.sum(-1, keepdims=True)
    return (day_DKN + _DAY_PRIOR * product_DKN) / (day_DKN.sum(-1, keepdims=True) + _DAY_PRIOR)


def _peaks(hour_NB: np.ndarray, last: Mixture | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Peaks, concentrations and weights of every need's hours, a few steps further than the last.

    The concentration for a mean resultant length R is R (2 - R^2) / (1 - R^2) (Banerjee et al., JMLR 6, 2005).
    """
    angle_B = (np.arange(_BINS) + 0.5) * (2 * np.pi / _BINS)
    circle_B = np.exp(1j * angle_B)
    hour_NB = hour_NB + _TINY
    if last is None:
        peak_NP = _first_peaks(hour_NB, circle_B)
        kappa_NP, weight_NP = np.full(peak_NP.shape, 4.0), np.full(peak_NP.shape, 1 / PEAKS)
    else:
        peak_NP, kappa_NP, weight_NP = last.peak_NP, last.kappa_NP, last.weight_NP
    for _ in range(3):
        bump_NPB = np.exp(kappa_NP[..., None] * (np.cos(angle_B - peak_NP[..., None]) - 1))
        bump_NPB *= (weight_NP / (np.i0(kappa_NP) * np.exp(-kappa_NP)))[..., None]
        part_NPB = hour_NB[:, None] * bump_NPB / np.maximum(bump_NPB.sum(1, keepdims=True), 1e-300)
        total_NP = part_NPB.sum(-1) + _TINY
        mean_NP = (part_NPB * circle_B).sum(-1) / total_NP
        length_NP = np.minimum(np.abs(mean_NP), 1 - 1e-4)
        peak_NP = np.angle(mean_NP)
        kappa_NP = np.clip(length_NP * (2 - length_NP**2) / (1 - length_NP**2), *KAPPA_RANGE)
        weight_NP = (total_NP + _CLASS_PRIOR) / (total_NP + _CLASS_PRIOR).sum(1, keepdims=True)
    return peak_NP, kappa_NP, weight_NP


def _first_peaks(hour_NB: np.ndarray, circle_B: np.ndarray) -> np.ndarray:
    """Opposite peaks where the second harmonic is the stronger one, else two beside the mean."""
    first_N, second_N = (hour_NB * circle_B).sum(1), (hour_NB * circle_B**2).sum(1)
    middle_N = np.where(np.abs(second_N) > 1.2 * np.abs(first_N), np.angle(second_N) / 2 + np.pi / 2, np.angle(first_N))
    apart_N = np.where(np.abs(second_N) > 1.2 * np.abs(first_N), np.pi / 2, 0.4)
    return np.stack([middle_N - apart_N, middle_N + apart_N], axis=1)


def _venues(log: Log, new_E: np.ndarray, accident_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Venues' shares of their category's new visits: everywhere (V,), and from each scene (S, V)."""
    size = len(log.category_V)
    count_V = np.bincount(log.item_E, new_E + accident_E, size) + _VENUE_PRIOR
    popular_V = count_V / np.bincount(log.category_V, count_V, log.categories)[log.category_V]
    new_SV = np.bincount(log.scene_E * size + log.item_E, new_E, log.scenes * size).reshape(log.scenes, size)
    total_SC = np.stack([np.bincount(log.category_V, new_V, log.categories) for new_V in new_SV])
    near_SV = (new_SV + _NEAR_PRIOR * popular_V) / (total_SC[:, log.category_V] + _NEAR_PRIOR)
    return popular_V, near_SV
