"""Pareto points: a hand-made plane, a quadratic twin and invariants."""

import numpy as np
import pytest

from recllm.metrics.pareto import hypervolume, line_at, pareto_front


def brute_front(cost, quality):
    """Compare every point with every other."""

    def dominated(p):
        return any(
            cost[q] <= cost[p] and quality[q] >= quality[p] and (cost[q] < cost[p] or quality[q] > quality[p])
            for q in range(len(cost))
        )

    return [not dominated(p) for p in range(len(cost))]


def test_front_by_hand():
    cost, quality = [1, 2, 2, 3, 4, 1], [0.1, 0.3, 0.2, 0.3, 0.5, 0.1]
    assert pareto_front(cost, quality).tolist() == [True, True, False, False, True, True]
    assert pareto_front([], []).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_front_equals_the_quadratic_twin(seed):
    rng = np.random.default_rng(seed)
    cost, quality = rng.integers(0, 6, (2, 25))  # small integers: equal costs, equal qualities, equal points
    assert pareto_front(cost, quality).tolist() == brute_front(cost, quality)


def test_hypervolume_by_hand():
    # Two steps: from cost 1 to 3 at height 2, from 3 to 5 at height 4.
    assert hypervolume([1, 3], [2, 4], reference=(5, 0)) == 2 * 2 + 2 * 4
    assert hypervolume([1, 3], [2, 4], reference=(5, 1)) == 2 * 1 + 2 * 3
    assert hypervolume([1, 1, 3], [2, 2, 4], reference=(5, 0)) == 12  # a copy adds nothing
    assert hypervolume([6, 1], [9, -1], reference=(5, 0)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_equals_the_share_of_random_darts_and_grows_with_points(seed):
    rng = np.random.default_rng(seed)
    cost, quality = rng.random((2, 6))
    darts = rng.random((20_000, 2))
    hit = ((darts[:, :1] >= cost) & (darts[:, 1:] <= quality)).any(axis=1).mean()
    assert hypervolume(cost, quality, (1, 0)) == pytest.approx(hit, abs=0.02)
    areas = [hypervolume(cost[:size], quality[:size], (1, 0)) for size in range(1, 7)]
    assert (np.diff(areas) >= -1e-12).all()


def test_line_between_two_points_and_its_clamped_ends():
    cheap, dear = (1.0, 0.2), (3.0, 0.4)
    assert line_at(2.0, cheap, dear) == pytest.approx(0.3)
    assert line_at(2.0, dear, cheap) == pytest.approx(0.3)
    assert line_at(0.0, cheap, dear) == 0.2
    assert line_at(9.0, cheap, dear) == 0.4
    np.testing.assert_allclose(line_at(np.array([1.0, 1.5, 5.0]), cheap, dear), [0.2, 0.25, 0.4])
    assert line_at(1.0, (1.0, 0.2), (1.0, 0.5)) == 0.5


def test_a_dearer_and_worse_point_pulls_the_line_down():
    assert line_at(2.0, (1.0, 0.4), (3.0, 0.2)) == pytest.approx(0.3)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="shapes"):
        pareto_front([1, 2], [1])
    with pytest.raises(ValueError, match="NaN"):
        pareto_front([1.0], [np.nan])
