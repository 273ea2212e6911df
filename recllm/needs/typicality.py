"""How typical a visit is of what people do, and where the accidental ones are cut off.

    tau = a log(1 + users of the pattern) + b log-odds + c cos(x, centroid of the pattern) + d log(1 + repeats)

(methods.md 3.3). Its second term there is the pointwise mutual information of context bin and category; here it is the
mixture's log-odds of a need against an accident, which has the same ratio of a joint to independent chances in it, and
also knows the user's class and what the user does again. Repeats therefore count twice unless d is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Weights:
    """a, b, c, d of the formula."""

    users: float = 0.1
    odds: float = 1.0
    likeness: float = 0.5
    repeats: float = 0.1


def typicality(
    users_E: np.ndarray, odds_E: np.ndarray, likeness_E: np.ndarray, repeats_E: np.ndarray, weights: Weights
) -> np.ndarray:
    """tau of every event, float64: distinct users of its pattern, log-odds, cosine to the centroid, and how many
    earlier visits its user paid to the venue."""
    found_E = weights.users * np.log1p(users_E) + weights.odds * odds_E
    return found_E + weights.likeness * likeness_E + weights.repeats * np.log1p(repeats_E)


def likenesses(feature_EF: np.ndarray, pattern_E: np.ndarray, fitted_E: np.ndarray) -> np.ndarray:
    """Cosine of each event's features to the mean of its pattern's fitted members, -1 to 1; 0 without a pattern.

    pattern_E: -1 for none. fitted_E: which events make up the means, bool.
    """
    count = int(pattern_E.max(initial=-1)) + 1
    centroid_CF = np.zeros((count, feature_EF.shape[1]))
    members_E = fitted_E & (pattern_E >= 0)
    np.add.at(centroid_CF, pattern_E[members_E], feature_EF[members_E])
    has_E = pattern_E >= 0
    likeness_E = np.zeros(len(pattern_E))
    own_EF, mean_EF = feature_EF[has_E], centroid_CF[pattern_E[has_E]]
    length_E = np.linalg.norm(own_EF, axis=1) * np.linalg.norm(mean_EF, axis=1)
    likeness_E[has_E] = (own_EF * mean_EF).sum(1) / np.maximum(length_E, 1e-12)
    return likeness_E


def cut(typicality_E: np.ndarray, accident_E: np.ndarray) -> float:
    """The typicality below which an event is dropped: where the fewest mistakes are expected.

    accident_E: P(accident) of each event. A dropped event is a mistake with chance 1 - P(accident), a kept one with
    P(accident). The cut lies half way between two events, or beyond the ends where all or none are to be dropped; of
    several equally good ones the lowest.

    Raises:
        ValueError: no event.
    """
    if len(typicality_E) == 0:
        raise ValueError("no event to estimate the cut from: the fold fit has no targets")
    order_E = np.argsort(typicality_E, kind="stable")
    value_E = typicality_E[order_E]
    mistakes_C = np.concatenate([[0.0], np.cumsum(1 - 2 * accident_E[order_E])])
    # Between equal values nothing can be cut.
    mistakes_C[1:-1][np.diff(value_E) == 0] = np.inf
    place = int(mistakes_C.argmin())
    if place == 0:
        return float(np.nextafter(value_E[0], -np.inf))
    if place == len(value_E):
        return float(np.nextafter(value_E[-1], np.inf))
    return float((value_E[place - 1] + value_E[place]) / 2)
