"""Ranking metrics: a hand-made table, brute-force twins and invariants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recllm.metrics.ranking import ndcg_at_k, rank_in_list, rank_of_targets, recall_at_k, reciprocal_rank

# Four users, lists of three; user 0 hits at once, user 1 on the third place, user 2 never, user 3 on the second.
LISTS = np.array([[7, 1, 2], [3, 4, 9], [5, 6, 8], [0, 2, -1]])
TARGETS = np.array([7, 9, 1, 2])
HITS = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]])
LOG3 = 1 / math.log2(3)

BY_HAND = [
    (ndcg_at_k, 1, [1, 0, 0, 0]),
    (ndcg_at_k, 2, [1, 0, 0, LOG3]),
    (ndcg_at_k, 3, [1, 0.5, 0, LOG3]),
    (recall_at_k, 1, [1, 0, 0, 0]),
    (recall_at_k, 2, [1, 0, 0, 1]),
    (recall_at_k, 3, [1, 1, 0, 1]),
    (reciprocal_rank, 2, [1, 0, 0, 1 / 2]),
    (reciprocal_rank, None, [1, 1 / 3, 0, 1 / 2]),
]


@pytest.mark.parametrize(("metric", "k", "expected"), BY_HAND)
def test_hand_made_hit_matrix(metric, k, expected):
    np.testing.assert_array_equal(TARGETS[:, None] == LISTS, HITS.astype(bool))
    np.testing.assert_allclose(metric(rank_in_list(LISTS, TARGETS), k), expected, atol=1e-15)


def test_rank_in_list_by_hand():
    assert rank_in_list(LISTS, TARGETS).tolist() == [0, 2, math.inf, 1]
    assert rank_in_list(np.array([[4, 4, 5]]), np.array([4])).tolist() == [0]  # the first place of a repeated id
    assert rank_in_list(np.zeros((2, 0), dtype=int), np.array([0, 1])).tolist() == [math.inf, math.inf]
    assert rank_in_list(np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int)).tolist() == []


def test_rank_of_targets_by_hand():
    scores = np.array([[0.9, 0.5, 0.1, 0.5], [0.2, 0.2, 0.2, 0.2], [1.0, 2.0, 3.0, 4.0]])
    assert rank_of_targets(scores, np.array([1, 3, 0])).tolist() == [1.5, 1.5, 3.0]
    assert rank_of_targets(scores, np.array([1, 3, 0]), [[0, 0], [0, 1], [3, 0]]).tolist() == [0.5, 0.5, 2.0]
    assert rank_of_targets(scores[:0], np.zeros(0, int)).shape == (0,)
    assert rank_of_targets(np.array([[-np.inf, 1.0, -np.inf]]), np.array([0])).tolist() == [1.5]


def brute_rank(scores_N, target, excluded):
    """Mean place of the target over both orders of every tie, by counting one item at a time."""
    rank = 0.0
    for item, score in enumerate(scores_N):
        if item == target or item in excluded:
            continue
        rank += 1.0 if score > scores_N[target] else 0.5 if score == scores_N[target] else 0.0
    return rank


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_the_brute_force_twin(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (20, 15)).astype(np.float32)  # few values: many ties
    targets = rng.integers(0, 15, 20)
    excluded = [rng.integers(0, 15, rng.integers(0, 9)) for _ in range(20)]
    mask = np.zeros(scores.shape, dtype=bool)
    for row, ids in enumerate(excluded):
        mask[row, ids] = True
    expected = [brute_rank(*row, set(ids.tolist())) for *row, ids in zip(scores, targets, excluded, strict=True)]
    before = scores.copy()
    np.testing.assert_array_equal(rank_of_targets(scores, targets, excluded), expected)
    np.testing.assert_array_equal(rank_of_targets(scores, targets, mask), expected)
    np.testing.assert_array_equal(scores, before)


def test_ranks_by_score_and_by_list_agree():
    rng = np.random.default_rng(3)
    scores = rng.permuted(np.tile(np.arange(12.0), (30, 1)), axis=1)
    targets = rng.integers(0, 12, 30)
    lists = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(rank_of_targets(scores, targets), rank_in_list(lists, targets))


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("metric", [ndcg_at_k, recall_at_k, reciprocal_rank])
def test_a_tie_of_two_is_worth_the_mean_of_its_orders(metric, k):
    for place in range(12):
        both_orders = metric(np.array([place, place + 1.0]), k).mean()
        assert metric(np.array([place + 0.5]), k)[0] == pytest.approx(both_orders, abs=1e-15)


@given(
    st.lists(st.floats(0, 40) | st.just(math.inf), min_size=1, max_size=20),
    st.integers(1, 30),
    st.sampled_from([ndcg_at_k, recall_at_k, reciprocal_rank]),
)
def test_values_stay_in_bounds_and_never_rise_with_the_rank(ranks, k, metric):
    values = metric(np.sort(ranks), k)
    assert (values >= 0).all() and (values <= 1).all()
    assert (np.diff(values) <= 1e-12).all()
    assert (metric(np.sort(ranks), k + 1) >= values - 1e-12).all()
    assert (metric(np.array([float(k)]), k) == 0).all()


@given(st.integers(0, 8), st.integers(1, 9))
def test_raising_the_targets_score_never_hurts(target, k):
    scores = np.random.default_rng(0).normal(size=(1, 9))
    better = scores.copy()
    better[0, target] += 0.7
    values = [ndcg_at_k(rank_of_targets(s, np.array([target])), k)[0] for s in (scores, better)]
    assert values[1] >= values[0]


def test_a_constant_scorer_earns_no_credit():
    ranks = rank_of_targets(np.zeros((50, 1000)), np.arange(50))
    assert ndcg_at_k(ranks, 10).max() == 0
    assert recall_at_k(ranks, 10).max() == 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: rank_of_targets(np.zeros(3), np.zeros(3, int)), "shape"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0, 3])), "example 1"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0])), "2 targets"),
        (lambda: rank_of_targets(np.zeros((1, 3)), np.array([0.0])), "item ids"),
        (lambda: rank_of_targets(np.array([[0.0, 1], [np.nan, 1]]), np.array([0, 1])), "NaN in row 1"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0, 1]), [[0], [5]]), "example 1"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0, 1]), [[1], [-1]]), "example 1 .* outside 0..2"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0, 1]), [[0]]), "exclusion lists"),
        (lambda: rank_of_targets(np.zeros((2, 3)), np.array([0, 1]), np.zeros((3, 2), bool)), "mask"),
        (lambda: rank_in_list(LISTS, np.array([7, 9, 1, -1])), "example 3"),
        (lambda: ndcg_at_k(np.array([1.0]), 0), "k must"),
        (lambda: recall_at_k(np.array([-1.0]), 3), "start at 0"),
        (lambda: reciprocal_rank(np.array([np.nan])), "NaN"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
