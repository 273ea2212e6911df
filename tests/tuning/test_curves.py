"""Curves and trials to a target, against tables made by hand and a slow bootstrap."""

import math
import statistics

import numpy as np
import pytest

from recllm.tuning.reports.curves import best_so_far, mean_curve, mean_of_medians, ratio_of_medians, trials_to


def test_trials_to_a_target_count_from_one_and_a_miss_one_more_than_the_budget():
    scores = [0.1, 0.3, 0.2, 0.5]
    assert [trials_to(scores, target, 4) for target in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)] == [1, 1, 2, 2, 4, 4, 5]
    assert trials_to(scores, 0.5, 3) == 4
    assert trials_to([0.1], 0.5, 60) == 61


def test_the_best_so_far_never_falls():
    assert best_so_far([-math.inf, 0.2, 0.1, 0.4, -math.inf]).tolist() == [-math.inf, 0.2, 0.2, 0.4, 0.4]


def test_a_curve_is_the_mean_of_studies_and_its_interval_shrinks_to_nothing_where_they_agree():
    curve = mean_curve(np.array([[-math.inf, 0.2, 0.4], [0.1, 0.2, 0.6], [0.2, 0.2, 0.2]]))
    assert curve.mean_T == pytest.approx([0.1, 0.2, 0.4])
    assert curve.lo_T[1] == curve.hi_T[1] == pytest.approx(0.2)
    assert 0.2 <= curve.lo_T[2] < 0.4 < curve.hi_T[2] <= 0.6 and curve.lo_T[0] >= 0


def test_medians_are_over_seeds_and_means_over_surfaces():
    trials = [np.array([1, 2, 61]), np.array([10, 20, 30, 40])]
    found = mean_of_medians(trials)
    assert (found.mean, found.n) == ((2 + 25) / 2, 7)
    assert 5.5 <= found.lo < found.mean < found.hi <= 50.5
    rng, slow = np.random.default_rng(9), []
    for _ in range(4000):
        slow.append(np.mean([statistics.median(rng.choice(trials_S, len(trials_S))) for trials_S in trials]))
    lo, hi = np.quantile(slow, [0.025, 0.975])
    assert (found.lo, found.hi) == (pytest.approx(lo, abs=1.5), pytest.approx(hi, abs=1.5))
    assert mean_of_medians([np.full(5, 7), np.full(3, 9)])[:3] == (8, 8, 8)


def test_ratios_are_of_the_means_and_independent():
    one, other = [np.array([5, 6, 7]), np.array([2, 2, 2])], [np.array([20, 30, 40]), np.array([10, 10, 10])]
    found = ratio_of_medians(one, other)
    assert found.mean == pytest.approx(4 / 20) and found.lo < 0.2 < found.hi
    assert (7 / 2 + 1) / 15 >= found.hi > found.lo >= (5 / 2 + 1) / 25
    assert ratio_of_medians(one, one).lo < 1 < ratio_of_medians(one, one).hi


def test_nothing_has_no_median():
    for trials in ([], [np.array([1.0]), np.array([])]):
        with pytest.raises(ValueError, match="a median needs a surface"):
            mean_of_medians(trials)
