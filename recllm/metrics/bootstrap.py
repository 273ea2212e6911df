"""Bootstrap intervals: every reported mean comes with n and the percentile interval of its resampled means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

_CHUNK = 4_000_000  # resampled indices held at once: 16 MB of them, 32 MB of values


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval, over n examples; all in the unit of the values."""

    mean: float
    lo: float
    hi: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.lo:.4f}, {self.hi:.4f}] (n={self.n})"


def mean_interval(values_E: np.ndarray, confidence: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of the values and its percentile bootstrap interval, examples being resampled with replacement.

    Args:
        values_E: one finite value per example (booleans count as 0 and 1).
        confidence: coverage of the interval, between 0 and 1.
        draws: resamples; the ends carry a Monte Carlo error of a few percent of the width at 2000.
        seed: the same seed and values give the same interval.

    Raises:
        ValueError: no values, a NaN or infinite one, more than one dimension, or a confidence outside (0, 1).
    """
    values_E = np.asarray(values_E, dtype=np.float64)
    if values_E.ndim != 1 or not values_E.size:
        raise ValueError(f"an interval needs one dimension and at least one value, got shape {values_E.shape}")
    if not np.isfinite(values_E).all():
        raise ValueError(f"value {int((~np.isfinite(values_E)).argmax())} is not finite")
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"confidence must lie between 0 and 1 and draws be positive, got {confidence} and {draws}")
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(_resampled_means(values_E, draws, seed), [tail, 1 - tail])
    return Interval(float(values_E.mean()), float(lo), float(hi), len(values_E))


def paired_interval(
    a_E: np.ndarray, b_E: np.ndarray, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of mean(a - b) where a and b are measured on the same examples, in the same order.

    Resampling the differences keeps the pairs together, which is far narrower than comparing two intervals.

    Raises:
        ValueError: a and b of different shapes, and as `mean_interval`.
    """
    a_E, b_E = np.asarray(a_E, dtype=np.float64), np.asarray(b_E, dtype=np.float64)
    if a_E.shape != b_E.shape:
        raise ValueError(f"paired values need one shape, got {a_E.shape} and {b_E.shape}")
    return mean_interval(a_E - b_E, confidence, draws, seed)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Intervals where examples of one cluster (the visits of a user) depend on one another: whole clusters are drawn.

    `cluster_E` names each example's cluster. A resample draws as many clusters as there are, with replacement, and
    takes the mean over all examples of those drawn, so that large clusters weigh more, as they do in the mean itself.

    Raises:
        ValueError: no example, or more than one dimension.
    """

    cluster_E: np.ndarray
    confidence: float = 0.95
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if np.ndim(self.cluster_E) != 1 or not len(self.cluster_E):
            raise ValueError(f"clusters need one dimension and an example, got shape {np.shape(self.cluster_E)}")

    @cached_property
    def _place_E(self) -> np.ndarray:
        return np.unique(self.cluster_E, return_inverse=True)[1]

    @cached_property
    def _times_RG(self) -> np.ndarray:
        """How often each resample draws each cluster."""
        groups = int(self._place_E.max()) + 1
        drawn = np.random.default_rng(self.seed).multinomial(groups, np.full(groups, 1 / groups), size=self.draws)
        return drawn.astype(np.float64)

    def mean(self, values_E: np.ndarray, where_E: np.ndarray | None = None) -> Interval:
        """Mean of the values, of those examples alone that `where_E` (bool) names, with its interval.

        Raises:
            ValueError: no example is left, or a value is not finite.
        """
        values_E, where_E = self._checked(values_E, where_E)
        with np.errstate(invalid="ignore"):
            means_R = self._sums(values_E, where_E) / self._sums(np.ones(len(values_E)), where_E)
        return Interval(float(values_E[where_E].mean()), *self._ends(means_R), int(where_E.sum()))

    def gain(self, a_E: np.ndarray, b_E: np.ndarray, where_E: np.ndarray | None = None) -> Interval | None:
        """mean(a) / mean(b) - 1 with its interval, a and b being measured on the same examples.

        None where mean(b) is 0, or is in so many resamples that the interval has no end.
        """
        (a_E, where_E), (b_E, _) = self._checked(a_E, where_E), self._checked(b_E, where_E)
        sums_R = self._sums(b_E, where_E)
        if (sums_R <= 0).mean() > (1 - self.confidence) / 2 or b_E[where_E].sum() <= 0:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            gains_R = self._sums(a_E, where_E) / sums_R - 1
        mean = float(a_E[where_E].sum() / b_E[where_E].sum() - 1)
        return Interval(mean, *self._ends(gains_R), int(where_E.sum()))

    def _checked(self, values_E: np.ndarray, where_E: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        values_E = np.asarray(values_E, dtype=np.float64)
        where_E = np.ones(len(self.cluster_E), dtype=bool) if where_E is None else np.asarray(where_E, dtype=bool)
        if values_E.shape != where_E.shape or where_E.shape != np.shape(self.cluster_E):
            raise ValueError(f"{len(self.cluster_E)} clustered examples, and values of shape {values_E.shape}")
        if not where_E.any() or not np.isfinite(values_E[where_E]).all():
            raise ValueError("a mean needs one example at least, and finite values")
        return values_E, where_E

    def _sums(self, values_E: np.ndarray, where_E: np.ndarray) -> np.ndarray:
        groups = self._times_RG.shape[1]
        return self._times_RG @ np.bincount(self._place_E[where_E], values_E[where_E], groups)

    def _ends(self, values_R: np.ndarray) -> tuple[float, float]:
        # A resample without any of the examples has no mean.
        tail = (1 - self.confidence) / 2
        lo, hi = np.quantile(values_R[np.isfinite(values_R)], [tail, 1 - tail])
        return float(lo), float(hi)


def flat(prefix: str, interval: Interval) -> dict[str, float]:
    """The interval as flat metrics: `prefix`, `prefix_lo` and `prefix_hi`."""
    return {prefix: interval.mean, f"{prefix}_lo": interval.lo, f"{prefix}_hi": interval.hi}


def flat_gain(prefix: str, name: str, before_E: np.ndarray, after_E: np.ndarray) -> dict[str, float]:
    """Flat means of a value before and after with their intervals, and of the paired gain: `PREFIX/before_NAME`,
    `after_` and `gain_`."""
    found = {"before": mean_interval(before_E), "after": mean_interval(after_E)}
    found["gain"] = paired_interval(after_E, before_E)
    return {key: value for when, one in found.items() for key, value in flat(f"{prefix}/{when}_{name}", one).items()}


def _resampled_means(values_E: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means of `draws` samples of the values, each as large as the original."""
    rng = np.random.default_rng(seed)
    n = len(values_E)
    distinct, counts = np.unique(values_E, return_counts=True)
    if len(distinct) * 8 < n:
        # A cut metric has few distinct values (NDCG@10: eleven). How often each of them is drawn is multinomial,
        # so the same distribution comes at a cost that does not grow with n.
        return rng.multinomial(n, counts / n, size=draws) @ distinct / n
    # Centred, so that a large common offset costs no digits.
    centre = values_E.mean()
    offsets_E = values_E - centre
    rows = max(1, _CHUNK // n)
    chunks = [
        offsets_E[rng.integers(0, n, size=(min(rows, draws - start), n), dtype=np.int32)].mean(axis=1)
        for start in range(0, draws, rows)
    ]
    return centre + np.concatenate(chunks)
