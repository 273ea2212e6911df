"""How soon a study gets somewhere: best-so-far curves, trials to a target, and their intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recllm.metrics.bootstrap import Interval, mean_interval

# The best 10%, 5% and 2% of configurations.
SHARES = (0.10, 0.05, 0.02)


class Curve(NamedTuple):
    """Mean best-so-far of several studies after each trial, with the ends of its 95% bootstrap interval."""

    mean_T: np.ndarray
    lo_T: np.ndarray
    hi_T: np.ndarray


def best_so_far(scores_T: Sequence[float]) -> np.ndarray:
    """The best score after each trial; minus infinity until one ended well."""
    return np.maximum.accumulate(np.asarray(scores_T, dtype=np.float64))


def trials_to(scores_T: Sequence[float], target: float, budget: int) -> int:
    """Trials until a score reaches the target, the first trial being 1; a miss counts budget + 1."""
    reached_T = np.asarray(scores_T, dtype=np.float64)[:budget] >= target
    return int(reached_T.argmax()) + 1 if reached_T.any() else budget + 1


def mean_curve(best_ST: np.ndarray) -> Curve:
    """The curve of studies of equal length; before one ended well a study counts 0."""
    parts = [mean_interval(best_S) for best_S in np.where(np.isfinite(best_ST), best_ST, 0.0).T]
    return Curve(*(np.array([getattr(part, name) for part in parts]) for name in ("mean", "lo", "hi")))


def mean_of_medians(trials: Sequence[np.ndarray], confidence: float = 0.95, draws: int = 2000) -> Interval:
    """Median over seeds, mean over surfaces, and its percentile bootstrap interval: seeds are drawn anew, surfaces not.

    Args:
        trials: one array of numbers a surface, one number a seed.

    Raises:
        ValueError: no surface, or one without seeds.
    """
    means_R = _resampled(trials, draws, 0)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(means_R, [tail, 1 - tail])
    mean = float(np.mean([np.median(trials_S) for trials_S in trials]))
    return Interval(mean, float(lo), float(hi), sum(len(trials_S) for trials_S in trials))


def ratio_of_medians(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], confidence: float = 0.95, draws: int = 2000
) -> Interval:
    """`mean_of_medians` of one over that of the other, on the same surfaces, each with seeds of its own.

    Raises:
        ValueError: as `mean_of_medians`.
    """
    ratios_R = _resampled(one, draws, 1) / _resampled(other, draws, 2)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(ratios_R, [tail, 1 - tail])
    ratio = mean_of_medians(one, draws=1).mean / mean_of_medians(other, draws=1).mean
    return Interval(ratio, float(lo), float(hi), sum(len(trials_S) for trials_S in one))


def _resampled(trials: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    if not trials or not all(len(trials_S) for trials_S in trials):
        raise ValueError("a median needs a surface, and each surface a seed")
    rng, total_R = np.random.default_rng(seed), np.zeros(draws)
    for trials_S in trials:
        place_RS = rng.integers(len(trials_S), size=(draws, len(trials_S)))
        total_R += np.median(np.asarray(trials_S, dtype=np.float64)[place_RS], axis=1)
    return total_R / len(trials)
