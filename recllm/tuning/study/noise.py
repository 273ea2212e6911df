"""How much better a score must be to count as better."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from recllm.tuning.study.trial import LEAST_EPSILON


def epsilon_of(scores_by_seed: Sequence[float], kappa: float = 1.0) -> float:
    """The noise threshold `max(1e-4, kappa * sigma)`: sigma is the standard deviation of one configuration's scores
    over seeds (methods 1.3).

    Trials that failed have a score of minus infinity and do not count; with fewer than two that did not, sigma is 0.

    Raises:
        ValueError: kappa is negative or not finite.
    """
    if not 0 <= kappa < math.inf:
        raise ValueError(f"kappa must be a number of at least 0, got {kappa}")
    good = [score for score in scores_by_seed if math.isfinite(score)]
    return max(LEAST_EPSILON, kappa * statistics.stdev(good)) if len(good) > 1 else LEAST_EPSILON
