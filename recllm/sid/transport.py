"""Assignment of items to clusters of prescribed sizes at the least summed cost, exactly.

This is a transportation problem. Items of one cluster are interchangeable as far as its size is concerned, so the
search runs on a graph of the clusters alone: the arc from cluster a to b is the cheapest move of an item of a to b.
Starting from each item's cheapest cluster under the prices handed in, items move from overfull to underfull clusters
along shortest paths, and the prices follow the distances, which keeps every arc's reduced cost non-negative and the
result optimal (successive shortest paths with potentials; Ahuja, Magnanti and Orlin, Network Flows, chapter 9.7).
Several paths are used after each search: all of them are tight once the prices moved. Good prices leave few to find.
"""

from __future__ import annotations

import numpy as np

# Costs of a move that differ by less than this share of the mean cost count as equal: about float32 rounding.
_TIE = 1e-6
# Passes of the auction, once with the step asked for and once with a tenth of it, before the search for paths.
_PASSES = 30


def balanced_sizes(loads_K: np.ndarray) -> np.ndarray:
    """Cluster sizes int64 (clusters,) with the sum of `loads_K` that differ by at most one.

    The larger ones go to the clusters with the larger loads, ties to the lower cluster.
    """
    items, clusters = int(loads_K.sum()), len(loads_K)
    sizes_K = np.full(clusters, items // clusters, dtype=np.int64)
    sizes_K[np.argsort(-loads_K, kind="stable")[: items % clusters]] += 1
    return sizes_K


def relieve(costs_NK: np.ndarray, prices_K: np.ndarray, step: float, passes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearly balanced int64 codes (items,), and the prices float64 (clusters,) that brought them about.

    An auction (Bertsekas, 1988) in which all overfull clusters act at once: each gives its surplus, the items that
    lose least, to their next best clusters and raises its price to what the last of them lost, and `step` more (in
    units of the costs). Ends where the sizes are those of `balanced_sizes`, or after `passes`.
    """
    clusters = costs_NK.shape[1]
    prices_K = prices_K.astype(costs_NK.dtype)
    codes_N = (costs_NK + prices_K).argmin(1)
    loads_K = np.bincount(codes_N, minlength=clusters)
    sizes_K = balanced_sizes(loads_K)
    for _ in range(passes):
        surplus_K = np.bincount(codes_N, minlength=clusters) - sizes_K
        if not surplus_K.any():
            break
        items_M = np.flatnonzero(surplus_K[codes_N] > 0)
        own_M, rows_M = codes_N[items_M], np.arange(len(items_M))
        offers_MK = costs_NK[items_M] + prices_K
        own_offers_M = offers_MK[rows_M, own_M]
        offers_MK[rows_M, own_M] = np.inf
        next_M = offers_MK.argmin(1)
        losses_M = offers_MK[rows_M, next_M] - own_offers_M
        order_M = np.lexsort((losses_M, own_M))
        firsts_K = np.searchsorted(own_M[order_M], np.arange(clusters))
        leaves_M = order_M[rows_M - firsts_K[own_M[order_M]] < surplus_K[own_M[order_M]]]
        codes_N[items_M[leaves_M]] = next_M[leaves_M]
        over = np.flatnonzero(surplus_K > 0)
        prices_K[over] += losses_M[order_M[firsts_K[over] + surplus_K[over] - 1]] + step
    return codes_N, prices_K.astype(np.float64) - prices_K.mean(dtype=np.float64)


def assign_balanced(costs_NK: np.ndarray, prices_K: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """int64 codes (items,) of clusters whose sizes differ by at most one, and the prices float64 (clusters,).

    `costs_NK` are finite float32 costs. The codes minimise their sum, up to a millionth of the mean cost an item, for
    the sizes that `balanced_sizes` gives near `prices_K`. Each item's cluster is its cheapest one under the prices
    returned, up to rounding. Both prices handed in and `step`, the start of an auction, decide only how long it takes
    and which clusters are the larger ones.
    """
    clusters = costs_NK.shape[1]
    for finer in (1.0, 0.1):
        _, prices_K = relieve(costs_NK, prices_K, step * finer, _PASSES)
    codes_N = (costs_NK + prices_K).argmin(1)
    loads_K = np.bincount(codes_N, minlength=clusters)
    surplus_K = loads_K - balanced_sizes(loads_K)
    tie = _TIE * float(np.abs(costs_NK).mean(dtype=np.float64))
    moves_KK = np.full((clusters, clusters), np.inf)
    changed = np.flatnonzero(loads_K)
    while surplus_K.any():
        members = _members(codes_N, clusters)
        for cluster in changed:
            items_M = members[cluster]
            extra_MK = costs_NK[items_M]
            # An empty cluster has no moves.
            moves_KK[cluster] = (extra_MK - extra_MK[:, [cluster]]).min(0) if len(items_M) else np.inf
            moves_KK[cluster, cluster] = np.inf
        distance_K, before_K = _shortest_paths(moves_KK + prices_K - prices_K[:, None], surplus_K > 0)
        prices_K = prices_K - distance_K
        changed = _move_along(costs_NK, codes_N, surplus_K, members, moves_KK + tie, distance_K, before_K)
    return codes_N, prices_K


def _members(codes_N: np.ndarray, clusters: int) -> list[np.ndarray]:
    order_N = np.argsort(codes_N, kind="stable")
    return np.split(order_N, np.searchsorted(codes_N[order_N], np.arange(1, clusters)))


def _shortest_paths(lengths_KK: np.ndarray, sources_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Bellman-Ford over all arcs at once; paths are short. Only a strict gain replaces a predecessor, so there are no
    # cycles of them, not even of arcs of no length.
    np.maximum(lengths_KK, 0, out=lengths_KK)
    distance_K = np.where(sources_K, 0.0, np.inf)
    before_K = np.full(len(distance_K), -1)
    changed = np.flatnonzero(sources_K)
    while len(changed):
        through_CK = distance_K[changed, None] + lengths_KK[changed]
        best_K = through_CK.argmin(0)
        reached_K = through_CK[best_K, np.arange(len(best_K))]
        nearer_K = reached_K < distance_K
        distance_K[nearer_K] = reached_K[nearer_K]
        before_K[nearer_K] = changed[best_K[nearer_K]]
        changed = np.flatnonzero(nearer_K)
    return distance_K, before_K


def _move_along(
    costs_NK: np.ndarray,
    codes_N: np.ndarray,
    surplus_K: np.ndarray,
    members: list[np.ndarray],
    limits_KK: np.ndarray,
    distance_K: np.ndarray,
    before_K: np.ndarray,
) -> np.ndarray:
    # Nearest sinks first, as many items a path as its narrowest arc has that cost no more than the arc's limit and did
    # not move yet: one, unless costs are tied. Returns the clusters that gained or lost an item.
    touched: set[int] = set()
    sinks = np.flatnonzero(surplus_K < 0)
    for sink in sinks[np.argsort(distance_K[sinks], kind="stable")].tolist():
        path = [sink]
        while before_K[path[-1]] >= 0:
            path.append(int(before_K[path[-1]]))
        width = min(surplus_K[path[-1]], -surplus_K[sink])
        movers = []
        for here, there in zip(path[1:], path[:-1], strict=True):
            items_M = members[here][codes_N[members[here]] == here] if width > 0 else members[here][:0]
            extra_M = costs_NK[items_M, there] - costs_NK[items_M, here]
            movers.append(items_M[extra_M <= limits_KK[here, there]])
            width = min(width, len(movers[-1]))
        if width <= 0:
            continue
        for there, items_M in zip(path[:-1], movers, strict=True):
            codes_N[items_M[:width]] = there
        touched.update(path)
        surplus_K[path[-1]] -= width
        surplus_K[sink] += width
    return np.array(sorted(touched))
