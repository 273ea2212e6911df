"""What recommended lists do to a catalogue: how much of it they reach, how evenly, and how well known it is.

Lists are item ids of shape (examples, places), best first, -1 where a list is short.
"""

from __future__ import annotations

import numpy as np


def exposure(lists_BK: np.ndarray, items: int) -> np.ndarray:
    """How often each item was recommended, `exposure_N` int64.

    Raises:
        ValueError: an id outside the catalogue, or lists that are not of two dimensions.
    """
    lists_BK = np.asarray(lists_BK)
    if lists_BK.ndim != 2 or not np.issubdtype(lists_BK.dtype, np.integer):
        raise ValueError(f"lists must hold item ids of shape (examples, places), got {lists_BK.dtype} {lists_BK.shape}")
    outside_BK = (lists_BK < -1) | (lists_BK >= items)
    if outside_BK.any():
        row, place = np.argwhere(outside_BK)[0]
        raise ValueError(f"list {row} names item {lists_BK[row, place]}, the catalogue holds 0 to {items - 1}")
    return np.bincount(lists_BK[lists_BK >= 0], minlength=items)


def validity(lists_BK: np.ndarray, items: int) -> float:
    """Share of the recommended ids that are items of the catalogue, 0..1; 1 where nothing was recommended."""
    named = np.asarray(lists_BK)
    named = named[named != -1]
    return float(((named >= 0) & (named < items)).mean()) if len(named) else 1.0


def coverage(exposure_N: np.ndarray) -> float:
    """Share of the catalogue that was recommended at least once, 0..1."""
    return float((np.asarray(exposure_N) > 0).mean())


def gini(exposure_N: np.ndarray) -> float:
    """Gini coefficient of the exposures: 0 where all items get the same, 1 - 1/N where one item gets everything.

    `sum_i (2 i - N - 1) x_i / (N sum_i x_i)` over the exposures x_1 <= ... <= x_N. 0 where nothing was recommended.
    """
    sorted_N = np.sort(np.asarray(exposure_N, dtype=np.float64))
    count, total = len(sorted_N), sorted_N.sum()
    if total == 0:
        return 0.0
    return float((2 * np.arange(1, count + 1) - count - 1) @ sorted_N / (count * total))


def novelty(lists_BK: np.ndarray, events_N: np.ndarray) -> float:
    """Mean self-information of the recommended items in bits: -log2 of each item's share of the events.

    `events_N` counts each item's events in the fitting fold. One event is added to each item, so that an item without
    any has a finite novelty (Zhou et al., PNAS 2010, take the share of users; the same idea). 0 where nothing was
    recommended.
    """
    events_N = np.asarray(events_N, dtype=np.float64) + 1
    bits_N = -np.log(events_N / events_N.sum()) / np.log(2)
    exposure_N = exposure(lists_BK, len(events_N))
    return float(exposure_N @ bits_N / exposure_N.sum()) if exposure_N.any() else 0.0
