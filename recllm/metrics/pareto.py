"""Points in the (cost, quality) plane: which of them are worth having, and what mixing two of them gives.

Cost is to be small, quality to be large. A point is dominated where another is no dearer and no worse, and strictly
better in one of the two.
"""

from __future__ import annotations

import numpy as np

Point = tuple[float, float]


def pareto_front(cost_P: np.ndarray, quality_P: np.ndarray) -> np.ndarray:
    """Boolean mask of the points that no other point dominates; equal points stand or fall together.

    Raises:
        ValueError: cost and quality of different lengths, or a NaN.
    """
    cost_P, quality_P = _checked(cost_P, quality_P)
    order = np.lexsort((-quality_P, cost_P))  # cheap first, the better first among equally cheap
    sorted_cost, sorted_quality = cost_P[order], quality_P[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(sorted_quality)])[:-1]
    better = sorted_quality > best_before
    # A point that only equals the best so far is kept if it is a copy of the front point that set it.
    front = np.maximum.accumulate(np.where(better, np.arange(len(order)), 0))
    copy = (sorted_cost == sorted_cost[front]) & (sorted_quality == sorted_quality[front])
    mask_P = np.zeros(len(cost_P), dtype=bool)
    mask_P[order] = better | copy
    return mask_P


def line_at(cost: float | np.ndarray, a: Point, b: Point) -> float | np.ndarray:
    """Quality at `cost` on the segment between two (cost, quality) points: what tossing a coin between them gives.

    Outside the segment the nearer end's quality holds. Where both points cost the same, the better one counts.
    """
    (low_cost, low_quality), (high_cost, high_quality) = sorted([a, b])
    if low_cost == high_cost:
        value = np.full(np.shape(cost), max(low_quality, high_quality), dtype=np.float64)
    else:
        value = np.interp(cost, [low_cost, high_cost], [low_quality, high_quality])
    return float(value) if np.ndim(cost) == 0 else value


def hypervolume(cost_P: np.ndarray, quality_P: np.ndarray, reference: Point) -> float:
    """Area that the points dominate, bounded by a reference (cost, quality) that is dearer and worse than they are.

    Its unit is cost x quality. Points beyond the reference add nothing; adding a point never shrinks the area.
    """
    cost_P, quality_P = _checked(cost_P, quality_P)
    useful_P = pareto_front(cost_P, quality_P) & (cost_P < reference[0]) & (quality_P > reference[1])
    steps = np.unique(np.stack([cost_P[useful_P], quality_P[useful_P]], axis=1), axis=0)  # by cost, copies once
    if not len(steps):
        return 0.0
    widths = np.diff(np.append(steps[:, 0], reference[0]))
    return float((widths * (steps[:, 1] - reference[1])).sum())


def _checked(cost_P: np.ndarray, quality_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cost_P, quality_P = np.asarray(cost_P, dtype=np.float64), np.asarray(quality_P, dtype=np.float64)
    if cost_P.ndim != 1 or cost_P.shape != quality_P.shape:
        raise ValueError(f"each point needs a cost and a quality, got shapes {cost_P.shape} and {quality_P.shape}")
    if np.isnan(cost_P).any() or np.isnan(quality_P).any():
        raise ValueError("a cost or quality is NaN")
    return cost_P, quality_P
