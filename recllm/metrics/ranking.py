"""Ranking metrics over the whole catalogue, for one relevant item per example: the only NDCG in the project.

A metric is computed in two steps: a rank (0 is best) from scores or from a list, then a value per example from the
rank. Values stay per example, so that an interval can be drawn around their mean (`recllm.metrics.bootstrap`).

Ties are neither luck nor skill. An item that shares its score with others, or its SID with other items, gets the mean
of the places that the group takes, which may be fractional: a constant scorer lands in the middle of the catalogue,
not at its head. A value at a fractional rank is interpolated linearly between the two neighbouring places, so it is
the expectation over the orders of a tie of two, equals the textbook value at whole ranks, and falls with the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Exclusion = np.ndarray | Sequence[np.ndarray]


def rank_of_targets(scores_BN: np.ndarray, targets_B: np.ndarray, exclude: Exclusion | None = None) -> np.ndarray:
    """Expected rank of each target among all items: (number scored higher) + (number tied with it) / 2.

    Args:
        scores_BN: a score per example and item, higher is better; -inf is allowed, NaN is not.
        targets_B: item id of each example's relevant item, in 0..N-1.
        exclude: items that do not compete (the seen-item policy): a boolean mask of shape (B, N), or for each example
            an array of item ids, where an id may repeat. The target itself always competes.

    Returns:
        rank_B, float64, from 0 to N-1.

    Raises:
        ValueError: shapes that do not agree, an id outside the catalogue, or a NaN score.
    """
    scores_BN = np.asarray(scores_BN)
    if scores_BN.ndim != 2:
        raise ValueError(f"scores must have shape (examples, items), got {scores_BN.shape}")
    count, items = scores_BN.shape
    targets_B = _checked_targets(targets_B, count, items)
    if count == 0:
        return np.zeros(0)
    if np.isnan(scores_BN.max(axis=1)).any():
        raise ValueError(f"scores hold NaN in row {int(np.isnan(scores_BN.max(axis=1)).argmax())}")
    best_B = scores_BN[np.arange(count), targets_B]
    higher_B = np.count_nonzero(scores_BN > best_B[:, None], axis=1)
    tied_B = np.count_nonzero(scores_BN == best_B[:, None], axis=1) - 1  # the target ties with itself
    if exclude is not None:
        # Count what drops out instead of masking: the scores are neither copied nor changed.
        rows, ids = _excluded_pairs(exclude, count, items)
        kept = ids != targets_B[rows]
        rows, ids = rows[kept], ids[kept]
        higher_B = higher_B - np.bincount(rows[scores_BN[rows, ids] > best_B[rows]], minlength=count)
        tied_B = tied_B - np.bincount(rows[scores_BN[rows, ids] == best_B[rows]], minlength=count)
    return higher_B + tied_B / 2


def rank_in_list(lists_BK: np.ndarray, targets_B: np.ndarray) -> np.ndarray:
    """Place of each target in its ranked list, infinite where the list does not hold it.

    Args:
        lists_BK: item ids, best first; -1 pads a short list. A repeated id counts at its first place.
        targets_B: item ids >= 0.

    Returns:
        rank_B, float64: 0..K-1, or inf.

    Raises:
        ValueError: shapes that do not agree, or a negative target (it would match the padding).
    """
    lists_BK = np.asarray(lists_BK)
    if lists_BK.ndim != 2:
        raise ValueError(f"lists must have shape (examples, places), got {lists_BK.shape}")
    targets_B = _checked_targets(targets_B, len(lists_BK), None)
    if lists_BK.shape[1] == 0:
        return np.full(len(lists_BK), np.inf)
    hit_BK = lists_BK == targets_B[:, None]
    return np.where(hit_BK.any(axis=1), hit_BK.argmax(axis=1), np.inf)


def rank_in_scored_list(hit_BK: np.ndarray, scores_BK: np.ndarray, competes_BK: np.ndarray) -> np.ndarray:
    """Expected rank of each target in a list with scores, as `rank_of_targets` counts, inf where the list lacks it.

    Args:
        hit_BK: true where a place holds the target; the first such place has its score.
        scores_BK: a score per place. competes_BK: the places that count, the target's among them.
    """
    own_B1 = np.take_along_axis(scores_BK, hit_BK.argmax(1)[:, None], axis=1)
    higher_B = (competes_BK & (scores_BK > own_B1)).sum(1)
    tied_B = (competes_BK & (scores_BK == own_B1)).sum(1) - 1
    return np.where(hit_BK.any(1), higher_B + tied_B / 2, np.inf)


def ndcg_at_k(rank_B: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each example with one relevant item: 1 / log2(rank + 2) within the first k places, else 0.

    Args:
        rank_B: ranks from 0, whole or fractional (interpolated, see the module), inf for an absent target.
        k: places that count, at least 1.
    """
    return _interpolated(_at(rank_B), k, 1 / np.log2(np.arange(k + 2) + 2.0))


def recall_at_k(rank_B: np.ndarray, k: int) -> np.ndarray:
    """Recall@k (with one relevant item also the hit rate): 1 within the first k places, else 0.

    A fractional rank between the places k-1 and k gives the fraction of the group's orders that hit.
    """
    return _interpolated(_at(rank_B), k, np.ones(k + 2))


def reciprocal_rank(rank_B: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 / (rank + 1), and 0 for an absent target; with `k`, 0 beyond the first k places."""
    rank_B = _at(rank_B)
    if k is None:
        finite_B = rank_B[np.isfinite(rank_B)]
        k = int(finite_B.max()) + 2 if finite_B.size else 1
    return _interpolated(rank_B, k, 1 / (np.arange(k + 2) + 1.0))


def _interpolated(rank_B: np.ndarray, k: int, value_of_place: np.ndarray) -> np.ndarray:
    """The value at each rank, linear between whole places, where places k and beyond are worth nothing."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    value_of_place[k:] = 0.0
    rank_B = np.minimum(rank_B, k)  # from here on nothing changes, and inf would spoil the subtraction
    below_B = np.floor(rank_B).astype(np.int64)
    fraction_B = rank_B - below_B
    return value_of_place[below_B] * (1 - fraction_B) + value_of_place[below_B + 1] * fraction_B


def _at(rank_B: np.ndarray) -> np.ndarray:
    rank_B = np.asarray(rank_B, dtype=np.float64)
    if np.isnan(rank_B).any() or (rank_B < 0).any():
        raise ValueError("ranks start at 0 and must not be NaN; an absent target has the rank inf")
    return rank_B


def _checked_targets(targets_B: np.ndarray, count: int, items: int | None) -> np.ndarray:
    targets_B = np.asarray(targets_B)
    if targets_B.shape != (count,):
        raise ValueError(f"{count} examples need {count} targets, got shape {targets_B.shape}")
    if count and not np.issubdtype(targets_B.dtype, np.integer):
        raise ValueError(f"targets are item ids, got {targets_B.dtype}")
    wrong_B = (targets_B < 0) | (targets_B >= (np.inf if items is None else items))
    if wrong_B.any():
        row = int(wrong_B.argmax())
        raise ValueError(f"target {int(targets_B[row])} of example {row} is no item of the catalogue")
    return targets_B.astype(np.int64)


def _excluded_pairs(exclude: Exclusion, count: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, item ids) of every excluded cell, each once."""
    if isinstance(exclude, np.ndarray) and exclude.dtype == np.bool_:
        if exclude.shape != (count, items):
            raise ValueError(f"the exclusion mask has shape {exclude.shape}, the scores {(count, items)}")
        return np.nonzero(exclude)
    if len(exclude) != count:
        raise ValueError(f"{count} examples need {count} exclusion lists, got {len(exclude)}")
    lengths_B = np.fromiter((len(ids) for ids in exclude), dtype=np.int64, count=count)
    rows = np.repeat(np.arange(count), lengths_B)
    if not len(rows):
        return rows, rows
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in exclude])
    if (ids < 0).any() or (ids >= items).any():
        row = int(rows[((ids < 0) | (ids >= items)).argmax()])
        raise ValueError(f"the exclusion list of example {row} holds an id outside 0..{items - 1}")
    cells = np.unique(rows * items + ids)  # a history may hold an item twice; it drops out once
    return cells // items, cells % items
