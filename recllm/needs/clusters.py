"""Behavioural clusters: dense groups of like circumstances within a category, and which of them belong together.

A need leads to several categories. So clusters are found category by category, where a common hour is no sign of
anything but the category's own habit, and then joined across categories by their profiles of hour, scene and day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recllm.needs.context import Contexts

NOISE = -1
# A category with fewer visits is left to the mixture: density says nothing there.
_LEAST_VISITS = 30
_LEAST_CLUSTER, _NEIGHBOURS = 10, 10
_HOURS = 24
# Concentration of the kernel that hours of a profile are smoothed with: a standard deviation of 1.4 hours.
_KAPPA = 8.0
# A profile is drawn to that of all events as if by so many of them.
_PRIOR_EVENTS = 5.0


@dataclass(frozen=True)
class ClusterOptions:
    """How clusters are found within a category.

    method: `hdbscan` (density), or `kmeans` (mini-batch k-means, for logs of millions). share: the smallest cluster's
    share of its category (at least 10 visits). per_cluster: visits a cluster of `kmeans`, on average. outliers: share
    of a category's visits, those farthest from their centroid, that `kmeans` starts as noise (HDBSCAN finds its own;
    either is only where the mixture starts from). seed: of k-means.
    """

    method: Literal["hdbscan", "kmeans"] = "hdbscan"
    share: float = 0.02
    per_cluster: int = 200
    outliers: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("hdbscan", "kmeans"):
            raise ValueError(f"method {self.method!r} of clustering is unknown; give hdbscan or kmeans")
        if not (0 < self.share < 1 and 0 <= self.outliers < 1 and self.per_cluster >= 1):
            raise ValueError(f"0 < share < 1, 0 <= outliers < 1 and per_cluster >= 1 must hold, got {self}")


def cluster(feature_EF: np.ndarray, category_E: np.ndarray, options: ClusterOptions) -> np.ndarray:
    """A cluster for each of `E` events, int64, 0 and up with none empty; `NOISE` where an event is like no others.

    No cluster has events of two categories.
    """
    label_E = np.full(len(category_E), NOISE, dtype=np.int64)
    found, finder = 0, _density if options.method == "hdbscan" else _means
    for category in np.unique(category_E):
        rows = np.flatnonzero(category_E == category)
        if len(rows) >= _LEAST_VISITS:
            own = finder(feature_EF[rows], options)
            label_E[rows] = np.where(own == NOISE, NOISE, own + found)
            found += own.max() + 1
    return label_E


def _density(feature_EF: np.ndarray, options: ClusterOptions) -> np.ndarray:
    from sklearn.cluster import HDBSCAN

    least = max(_LEAST_CLUSTER, round(options.share * len(feature_EF)))
    return HDBSCAN(min_cluster_size=least, min_samples=_NEIGHBOURS, copy=True).fit_predict(feature_EF)


def _means(feature_EF: np.ndarray, options: ClusterOptions) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    count = max(1, len(feature_EF) // options.per_cluster)
    model = MiniBatchKMeans(count, n_init=1, random_state=options.seed)
    label_E = model.fit_predict(feature_EF)
    away_E = np.linalg.norm(feature_EF - model.cluster_centers_[label_E], axis=1)
    label_E = np.where(away_E > np.quantile(away_E, 1 - options.outliers), NOISE, label_E)
    _, kept_E = np.unique(label_E[label_E != NOISE], return_inverse=True)
    label_E[label_E != NOISE] = kept_E
    return label_E


def profiles(contexts: Contexts, rows: np.ndarray, label_E: np.ndarray) -> np.ndarray:
    """What hours, scenes and days the clusters have, float64 of shape (clusters, 24 + scenes + kinds of day).

    Each part is the square root of a distribution, so that Euclidean distances are Hellinger's, which count alike
    however often a scene occurs.
    """
    inside = label_E != NOISE
    rows, label_E = rows[inside], label_E[inside]
    count = int(label_E.max(initial=-1)) + 1
    hour_CH = np.zeros((count, _HOURS))
    known = ~np.isnan(contexts.hour_M[rows])
    np.add.at(hour_CH, (label_E[known], contexts.hour_M[rows[known]].astype(np.int64) % _HOURS), 1)
    kernel_H = np.exp(_KAPPA * (np.cos(np.arange(_HOURS) * 2 * np.pi / _HOURS) - 1))
    spectrum = np.fft.rfft(hour_CH, axis=1) * np.fft.rfft(kernel_H / kernel_H.sum())
    hour_CH = np.clip(np.fft.irfft(spectrum, _HOURS, axis=1), 0, None)
    scene_CS, day_CD = np.zeros((count, len(contexts.scenes))), np.zeros((count, contexts.day_kinds))
    np.add.at(scene_CS, (label_E, contexts.scene_M[rows]), 1)
    np.add.at(day_CD, (label_E, contexts.day_M[rows]), 1)
    parts = []
    for part_CX in (hour_CH, scene_CS, day_CD):
        common_X = part_CX.sum(0) / max(part_CX.sum(), 1)
        drawn_CX = part_CX + _PRIOR_EVENTS * common_X
        parts.append(np.sqrt(drawn_CX / np.maximum(drawn_CX.sum(1, keepdims=True), 1e-9)))
    return np.concatenate(parts, axis=1)


def joined(profile_CX: np.ndarray, label_E: np.ndarray, needs: int) -> np.ndarray:
    """Need of every event (`NOISE` where it has no cluster), by Ward's merging of the clusters' profiles into `needs`,
    or into as many as there are clusters."""
    from sklearn.cluster import AgglomerativeClustering

    if len(profile_CX) <= max(needs, 1):
        return label_E
    need_C = AgglomerativeClustering(needs, linkage="ward").fit_predict(profile_CX)
    return np.where(label_E == NOISE, NOISE, need_C[label_E])
