"""What GLASS (arXiv 2602.05663) works out from item vectors once: prototypes, tiers, nearest first-level codes."""

from __future__ import annotations

import logging

import numpy as np

from recllm.data.long_history import Tiers

logger = logging.getLogger(__name__)

# Edges of the cosine tiers in the published code; -1 and 1 close the outer two.
EDGES = (-0.1, 0.0, 0.1)
# A tier with more of the pairs than this leaves the others next to nothing to tell.
_TOO_FULL = 0.9


def centred(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors without their mean, float32.

    The edges were made for contrastive vectors, whose cosines lie around 0. Those of text encoders share a direction:
    with MiniLM's vectors of Beauty's titles 99.5% of all cosines lie above 0.1, and without the mean a quarter in each.
    """
    return (vectors_ND - vectors_ND.mean(0)).astype(np.float32)


def prototypes(vectors_ND: np.ndarray, code_N: np.ndarray, codes: int) -> np.ndarray:
    """h_a = mean of the vectors of the items whose first code is a, float32 (codes, width).

    A code that no item has gets the mean of all items, as in the published code.

    Raises:
        ValueError: vectors and codes of different numbers of items.
    """
    if len(vectors_ND) != len(code_N):
        raise ValueError(
            f"{len(vectors_ND)} item vectors for {len(code_N)} items: take those of the SID table's folder"
        )
    count_K = np.bincount(code_N, minlength=codes)
    sum_KD = np.zeros((codes, vectors_ND.shape[1]))
    np.add.at(sum_KD, code_N, vectors_ND)
    mean_KD = sum_KD / np.maximum(count_K, 1)[:, None]
    mean_KD[count_K == 0] = vectors_ND.mean(0)
    return mean_KD.astype(np.float32)


def cosines(a_MD: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """Cosine of every pair, float32 (M, K); 0 where one of the two vectors is zero."""
    units = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (a_MD, b_KD)]
    return (units[0] @ units[1].T).astype(np.float32)


def tiers_of(vectors_ND: np.ndarray, prototype_KD: np.ndarray, edges: tuple[float, ...] = EDGES) -> Tiers:
    """The tier of each item's cosine with each prototype: a tier holds its lower edge, the last one its upper too."""
    tier_NK = np.searchsorted(np.asarray(edges, dtype=np.float32), cosines(vectors_ND, prototype_KD), side="right")
    share = np.bincount(tier_NK.reshape(-1), minlength=len(edges) + 1).max() / max(tier_NK.size, 1)
    if share > _TOO_FULL:
        logger.warning("SID-Tier: %.0f%% of all cosines fall into one tier, its token will say little", 100 * share)
    return Tiers(tier_NK.astype(np.uint8), len(edges) + 1)


def nearest_codes(prototype_KD: np.ndarray, code_N: np.ndarray, k: int) -> np.ndarray:
    """The k other codes in use whose prototypes have the largest cosine with each code's, int64 (codes, k), best first.

    Raises:
        ValueError: fewer than k other codes are in use.
    """
    used = np.unique(code_N)
    if k > len(used) - 1:
        raise ValueError(f"{k} neighbours of a first-level code asked for, {len(used) - 1} other codes are in use")
    like_KU = cosines(prototype_KD, prototype_KD[used])
    like_KU[used, np.arange(len(used))] = -np.inf
    return used[np.argsort(-like_KU, axis=1, kind="stable")[:, :k]].astype(np.int64)
