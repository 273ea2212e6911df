"""Coverage, Gini and novelty against brute force, and tables computed by hand."""

import itertools
import math

import numpy as np
import pytest

from recllm.metrics.catalogue import coverage, exposure, gini, novelty, validity

SEEDS = range(5)


def random_lists(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    items = int(rng.integers(3, 40))
    return rng.integers(-1, items, size=(int(rng.integers(1, 30)), int(rng.integers(1, 8)))), items


@pytest.mark.parametrize("seed", SEEDS)
def test_exposure_and_coverage_by_counting(seed):
    lists_BK, items = random_lists(seed)
    named = [item for row in lists_BK.tolist() for item in row if item >= 0]
    assert exposure(lists_BK, items).tolist() == [named.count(item) for item in range(items)]
    assert coverage(exposure(lists_BK, items)) == pytest.approx(len(set(named)) / items)


@pytest.mark.parametrize("seed", SEEDS)
def test_gini_is_half_the_mean_difference(seed):
    lists_BK, items = random_lists(seed)
    x_N = exposure(lists_BK, items).tolist()
    differences = sum(abs(a - b) for a, b in itertools.product(x_N, repeat=2))
    assert gini(x_N) == pytest.approx(differences / (2 * items * sum(x_N)))


@pytest.mark.parametrize("seed", SEEDS)
def test_novelty_item_by_item(seed):
    lists_BK, items = random_lists(seed)
    events = np.random.default_rng(seed).integers(0, 50, items)
    total = sum(events.tolist()) + items
    bits = [-math.log2((events[item] + 1) / total) for row in lists_BK.tolist() for item in row if item >= 0]
    assert novelty(lists_BK, events) == pytest.approx(sum(bits) / len(bits))


@pytest.mark.parametrize(
    ("exposures", "covered", "inequality"),
    [
        ([2, 2, 2, 2], 1.0, 0.0),
        ([0, 0, 0, 7], 0.25, 0.75),
        ([0, 0, 3, 3], 0.5, 0.5),
        ([1, 2, 3, 4], 1.0, 0.25),  # (-3 - 2 + 3 + 12) / (4 * 10)
        ([4, 2, 1, 3], 1.0, 0.25),
        ([0, 0, 0, 0], 0.0, 0.0),
    ],
)
def test_coverage_and_gini_by_hand(exposures, covered, inequality):
    assert coverage(np.array(exposures)) == covered
    assert gini(np.array(exposures)) == pytest.approx(inequality)


def test_novelty_by_hand():
    # With one more each, the shares are 4/8, 2/8, 1/8, 1/8: 1, 2, 3 and 3 bits.
    events = np.array([3, 1, 0, 0])
    assert novelty(np.array([[0, 1], [0, 1]]), events) == pytest.approx(1.5)
    assert novelty(np.array([[2, -1], [0, -1]]), events) == pytest.approx(2.0)
    assert novelty(np.array([[-1, -1]]), events) == 0.0


def test_validity_is_the_share_of_items_among_what_was_named():
    assert validity(np.array([[0, 1], [4, -1]]), 5) == 1.0
    assert validity(np.array([[0, 5], [7, -1], [1, -2]]), 5) == pytest.approx(2 / 5)
    assert validity(np.full((2, 3), -1), 5) == 1.0


@pytest.mark.parametrize(
    ("lists", "complaint"),
    [
        ([[0, 9]], "list 0 names item 9, the catalogue holds 0 to 4"),
        ([[0, 1], [2, -2]], "list 1 names item -2"),
        ([0, 1], "item ids of shape"),
        ([[0.5]], "item ids of shape"),
    ],
)
def test_ids_outside_the_catalogue_are_refused(lists, complaint):
    with pytest.raises(ValueError, match=complaint):
        exposure(np.array(lists), 5)
