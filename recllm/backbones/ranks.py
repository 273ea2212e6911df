"""Ranks by counting: how many items score above a target, and how many tie with it. The catalogue is not sorted.

The rank is that of `recllm.metrics.ranking.rank_of_targets`, tie rule included, at a fraction of its passes over the
scores: a row is compared twice while it lies in the cache, and no mask of the whole batch is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def count_ranks(
    scores_BN: torch.Tensor, targets_B: np.ndarray, exclude: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Expected rank of each target: (number scored higher) + (number tied with it) / 2, `rank_B` float64 from 0.

    Args:
        scores_BN: a score per example and item, on any device; -inf is allowed.
        targets_B: item ids.
        exclude: for each example the items that do not compete (an id may repeat); the target always does.

    Raises:
        ValueError: a score is NaN.
    """
    broken_B = scores_BN.amax(1).isnan()
    if broken_B.any():
        raise ValueError(f"scores hold NaN in row {int(broken_B.int().argmax())}")
    target_B = torch.from_numpy(np.asarray(targets_B, dtype=np.int64)).to(scores_BN.device)
    best_B1 = scores_BN.gather(1, target_B[:, None])
    if scores_BN.device.type == "cpu":
        above_B, level_B = _count_rows(scores_BN.numpy(), best_B1.numpy()[:, 0])
    else:
        above_B = (scores_BN > best_B1).sum(1).cpu().numpy()
        level_B = (scores_BN == best_B1).sum(1).cpu().numpy()
    level_B = level_B - 1  # the target ties with itself
    if exclude is not None:
        row_P, item_P = _pairs(exclude, np.asarray(targets_B), scores_BN.shape[1])
        place = torch.from_numpy(row_P).to(scores_BN.device), torch.from_numpy(item_P).to(scores_BN.device)
        lost_P, best_P = scores_BN[place].cpu().numpy(), best_B1[:, 0][place[0]].cpu().numpy()
        above_B = above_B - np.bincount(row_P[lost_P > best_P], minlength=len(above_B))
        level_B = level_B - np.bincount(row_P[lost_P == best_P], minlength=len(level_B))
    return above_B + level_B / 2


def best_items(scores_BN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest scores of each row and their items, `BK` each, best first, ties to the lower id.

    A row is sorted whole only where items beyond the k-th tie with it.
    """
    top_BK, item_BK = scores_BN.topk(k)
    # By id first, then by score in a sort that keeps the order of equals.
    item_BK, by_id_BK = item_BK.sort(dim=1)
    top_BK, by_score_BK = top_BK.gather(1, by_id_BK).sort(dim=1, descending=True, stable=True)
    item_BK = item_BK.gather(1, by_score_BK)
    for row in _rows_with_more(scores_BN, top_BK[:, -1:], k):
        item_BK[row] = torch.argsort(scores_BN[row], descending=True, stable=True)[:k]
    return top_BK, item_BK


def _rows_with_more(scores_BN: torch.Tensor, least_B1: torch.Tensor, k: int) -> list[int]:
    """Rows with more than k scores of at least `least_B1`."""
    if scores_BN.device.type != "cpu":
        return ((scores_BN >= least_B1).sum(1) > k).nonzero()[:, 0].tolist()
    pairs = zip(scores_BN.numpy(), least_B1[:, 0].numpy(), strict=True)
    return [row for row, (scores_N, least) in enumerate(pairs) if np.count_nonzero(scores_N >= least) > k]


def _count_rows(scores_BN: np.ndarray, best_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # numpy counts a boolean row with vector instructions, but not along the axis of a matrix.
    above_B, least_B = np.empty(len(best_B), dtype=np.int64), np.empty(len(best_B), dtype=np.int64)
    for row, best in enumerate(best_B):
        above_B[row] = np.count_nonzero(scores_BN[row] > best)
        least_B[row] = np.count_nonzero(scores_BN[row] >= best)
    return above_B, least_B - above_B


def _pairs(exclude: Sequence[np.ndarray], targets_B: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, item) of every excluded cell but the targets', each once."""
    row_P = np.repeat(np.arange(len(exclude)), [len(ids) for ids in exclude])
    item_P = np.concatenate([np.zeros(0, dtype=np.int64), *exclude]).astype(np.int64)
    kept_P = item_P != targets_B[row_P]
    cell_P = np.unique(row_P[kept_P] * items + item_P[kept_P])
    return cell_P // items, cell_P % items
