import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from recllm.sid.transport import assign_balanced, balanced_sizes, relieve


def least_cost(costs_NK: np.ndarray, sizes_K: np.ndarray) -> float:
    """The brute-force twin: every cluster stands once for each of its places."""
    places_N = np.repeat(np.arange(len(sizes_K)), sizes_K)
    rows, columns = linear_sum_assignment(costs_NK[:, places_N].astype(np.float64))
    return float(costs_NK[rows, places_N[columns]].sum(dtype=np.float64))


def world(seed: int, items: int, clusters: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, clusters)).astype(np.float32)


def test_sizes_differ_by_at_most_one_and_the_larger_go_to_the_larger_loads() -> None:
    assert balanced_sizes(np.array([0, 5, 2, 1])).tolist() == [2, 2, 2, 2]
    assert balanced_sizes(np.array([0, 5, 3, 2])).tolist() == [2, 3, 3, 2]
    assert balanced_sizes(np.array([1, 0, 1])).tolist() == [1, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_the_assignment_costs_the_least_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, clusters = int(rng.integers(5, 120)), int(rng.integers(1, 12))
    costs = world(seed, items, clusters)
    costs[:, 0] -= 2.0  # everyone wants the first cluster
    start = rng.normal(size=clusters) * (seed % 3)
    codes, prices = assign_balanced(costs, start, step=0.1)
    loads = np.bincount(codes, minlength=clusters)
    assert loads.max() - loads.min() <= 1
    assert costs[np.arange(items), codes].sum(dtype=np.float64) == pytest.approx(least_cost(costs, loads), abs=1e-3)
    offers = costs + prices
    assert (offers[np.arange(items), codes] <= offers.min(1) + 1e-4).all(), "each item has its cheapest cluster"


def test_equal_items_are_shared_out_quickly_and_at_the_least_cost() -> None:
    costs = np.repeat(world(0, 6, 40), 60, axis=0)
    codes, _ = assign_balanced(costs, np.zeros(40), step=0.01)
    loads = np.bincount(codes, minlength=40)
    assert loads.tolist() == [9] * 40
    assert costs[np.arange(360), codes].sum(dtype=np.float64) == pytest.approx(least_cost(costs, loads), rel=1e-4)
    codes, _ = assign_balanced(np.zeros((100, 7), np.float32), np.zeros(7), step=0.0)
    assert sorted(np.bincount(codes, minlength=7)) == [14] * 5 + [15] * 2


def test_fewer_items_than_clusters() -> None:
    costs = world(3, 5, 20)
    costs[:, 4] = -9.0
    codes, _ = assign_balanced(costs, np.zeros(20), step=0.1)
    assert len(set(codes.tolist())) == 5 and 4 in codes


def test_the_auction_raises_the_price_of_what_is_in_demand() -> None:
    costs = world(1, 300, 10)
    costs[:, :2] -= 1.0
    before = np.bincount(costs.argmin(1), minlength=10)
    codes, prices = relieve(costs, np.zeros(10), step=0.05, passes=200)
    after = np.bincount(codes, minlength=10)
    assert after.max() - after.min() <= 1 < before.max() - before.min()
    assert prices[:2].min() > prices[2:].max() and prices.mean() == pytest.approx(0, abs=1e-5)
