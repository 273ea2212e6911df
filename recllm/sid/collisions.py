"""What happens to items that the quantiser gave the same code tuple: each gets its own, or they share it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from recllm.sid.quantizer import LEVEL_LETTERS, row_ids

POLICIES = ("suffix", "nearest", "share")


def resolve_collisions(
    codes_NL: np.ndarray,
    level_sizes: Sequence[int],
    latents_ND: np.ndarray,
    centroids: Sequence[np.ndarray],
    policy: str,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Codes int32 (items, levels), unique unless shared, and the sizes of their levels.

    suffix: one more level numbers the items behind a tuple in item order (TIGER); its size is the largest such
    number of items. nearest: the item closest to the tuple's centroids keeps it, the others of the same prefix
    take free codes of the last level at the least summed squared error; where the prefix has none left, an item
    goes down from the longest prefix with room, each level the nearest code with room. share: the codes
    stay as they are, for a `SidTable` with `shared=True`. All are deterministic.

    Raises:
        ValueError: an unknown policy, more items than tuples (nearest), or a ninth level (suffix).
    """
    if policy == "suffix":
        return _suffix(codes_NL, level_sizes)
    if policy == "nearest":
        return _nearest(codes_NL, level_sizes, latents_ND, centroids), tuple(level_sizes)
    if policy == "share":
        return np.array(codes_NL, dtype=np.int32), tuple(level_sizes)
    raise ValueError(f"collision policy must be one of {', '.join(POLICIES)}; got {policy!r}")


def _suffix(codes_NL: np.ndarray, level_sizes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    if len(level_sizes) >= len(LEVEL_LETTERS):
        raise ValueError(
            f"{len(level_sizes)} levels leave no letter for a de-duplicating one: use {len(LEVEL_LETTERS) - 1} "
            "levels at most, or the collision policy 'nearest'"
        )
    ids_N = row_ids(codes_NL)
    order_N = np.argsort(ids_N, kind="stable")
    starts_G = np.flatnonzero(np.diff(ids_N[order_N], prepend=-1))
    sizes_G = np.diff(starts_G, append=len(ids_N))
    suffix_N = np.empty(len(ids_N), dtype=np.int32)
    suffix_N[order_N] = np.arange(len(ids_N)) - np.repeat(starts_G, sizes_G)
    codes_NM = np.concatenate([codes_NL, suffix_N[:, None]], axis=1).astype(np.int32)
    return codes_NM, (*level_sizes, int(sizes_G.max()))


def _nearest(
    codes_NL: np.ndarray, level_sizes: Sequence[int], latents_ND: np.ndarray, centroids: Sequence[np.ndarray]
) -> np.ndarray:
    room = math.prod(level_sizes)
    if len(codes_NL) > room:
        raise ValueError(
            f"{len(codes_NL)} items do not fit into {room} code tuples (levels {list(level_sizes)}): "
            "raise a level's size or use the collision policy 'suffix'"
        )
    codes_NL = np.array(codes_NL, dtype=np.int32)
    waiting_N = _losers(codes_NL, _residual(codes_NL, latents_ND, centroids, len(level_sizes)))
    if not waiting_N.any():
        return codes_NL
    _share_prefixes(codes_NL, waiting_N, level_sizes[-1], latents_ND, centroids)
    if waiting_N.any():
        _descend(codes_NL, waiting_N, level_sizes, latents_ND, centroids)
    return codes_NL


def _share_prefixes(
    codes_NL: np.ndarray, waiting_N: np.ndarray, size: int, latents_ND: np.ndarray, centroids: Sequence[np.ndarray]
) -> None:
    # Within each prefix the waiting items take free last codes; the cheapest assignment of all of them, not one by one.
    bucket_N = row_ids(codes_NL[:, :-1])
    order_N = np.argsort(bucket_N, kind="stable")
    bounds_G1 = np.append(np.flatnonzero(np.diff(bucket_N[order_N], prepend=-1)), len(order_N))
    items_M = order_N[waiting_N[order_N]]
    residual_MD = _residual(codes_NL[items_M], latents_ND[items_M], centroids, codes_NL.shape[1] - 1)
    costs_MK = _squared_distances(residual_MD, centroids[-1])
    starts_G1 = np.searchsorted(bucket_N[items_M], np.arange(len(bounds_G1)))
    for bucket in np.unique(bucket_N[items_M]):
        members = order_N[bounds_G1[bucket] : bounds_G1[bucket + 1]]
        free_K = np.ones(size, dtype=bool)
        free_K[codes_NL[members[~waiting_N[members]], -1]] = False
        free_F = np.flatnonzero(free_K)
        rows = slice(starts_G1[bucket], starts_G1[bucket + 1])
        movers, columns = linear_sum_assignment(costs_MK[rows][:, free_F])
        placed = items_M[rows][movers]
        codes_NL[placed, -1] = free_F[columns]
        waiting_N[placed] = False


def _losers(codes_NL: np.ndarray, residual_ND: np.ndarray) -> np.ndarray:
    # Of the items behind a tuple the closest one keeps it, ties to the lower item number.
    ids_N = row_ids(codes_NL)
    error_N = np.square(residual_ND, dtype=np.float64).sum(1)
    order_N = np.lexsort((np.arange(len(ids_N)), error_N, ids_N))
    losers_N = np.ones(len(ids_N), dtype=bool)
    losers_N[order_N[np.flatnonzero(np.diff(ids_N[order_N], prepend=-1))]] = False
    return losers_N


def _descend(
    codes_NL: np.ndarray,
    waiting_N: np.ndarray,
    level_sizes: Sequence[int],
    latents_ND: np.ndarray,
    centroids: Sequence[np.ndarray],
) -> None:
    levels = len(level_sizes)
    room = [math.prod(level_sizes[depth:]) for depth in range(levels + 1)]
    placed = codes_NL[~waiting_N]
    used = [Counter(map(tuple, placed[:, :depth].tolist())) for depth in range(levels + 1)]
    for item in np.flatnonzero(waiting_N):
        codes = tuple(codes_NL[item].tolist())
        depth = next(d for d in range(levels - 1, -1, -1) if used[d][codes[:d]] < room[d])
        prefix = codes[:depth]
        residual_D = _residual(codes_NL[item : item + 1], latents_ND[item : item + 1], centroids, depth)[0]
        for level in range(depth, levels):
            distances_K = _squared_distances(residual_D[None], centroids[level])[0]
            by_distance = np.argsort(distances_K, kind="stable").tolist()
            code = next(k for k in by_distance if used[level + 1][(*prefix, k)] < room[level + 1])
            residual_D = residual_D - centroids[level][code]
            prefix = (*prefix, code)
        codes_NL[item] = prefix
        for length in range(levels + 1):
            used[length][prefix[:length]] += 1


def _residual(codes_NL: np.ndarray, latents_ND: np.ndarray, centroids: Sequence[np.ndarray], levels: int) -> np.ndarray:
    residual_ND = np.array(latents_ND, dtype=np.float32)
    for level in range(levels):
        residual_ND -= centroids[level][codes_NL[:, level]]
    return residual_ND


def _squared_distances(vectors_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    products_NK = vectors_ND.astype(np.float64) @ centroids_KD.T.astype(np.float64)
    squares_N1 = np.square(vectors_ND, dtype=np.float64).sum(1)[:, None]
    return squares_N1 - 2 * products_NK + np.square(centroids_KD, dtype=np.float64).sum(1)
