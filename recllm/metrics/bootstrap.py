"""Bootstrap intervals: every reported mean comes with n and the percentile interval of its resampled means."""

from __future__ import annotations

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


def flat(prefix: str, interval: Interval) -> dict[str, float]:
    """The interval as flat metrics: `prefix`, `prefix_lo` and `prefix_hi`."""
    return {prefix: interval.mean, f"{prefix}_lo": interval.lo, f"{prefix}_hi": interval.hi}


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
