"""The score by hand, and the cut against every cut that there is."""

import numpy as np
import pytest

from recllm.needs.typicality import Weights, cut, likenesses, typicality


def test_the_score_by_hand():
    found = typicality(np.array([9.0]), np.array([-2.0]), np.array([0.5]), np.array([3]), Weights(1, 2, 4, 8))
    assert found.tolist() == pytest.approx([np.log(10) - 4 + 2 + 8 * np.log(4)])


def test_likeness_is_the_cosine_to_the_mean_of_fitted_members():
    feature_EF = np.array([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-5.0, 0.0), (3.0, 4.0)])
    pattern_E, fitted_E = np.array([0, 0, 0, 0, -1]), np.array([True, True, False, False, True])
    half = np.sqrt(0.5)
    assert likenesses(feature_EF, pattern_E, fitted_E) == pytest.approx([half, half, 1, -half, 0])


def mistakes(limit, typical_E, accident_E):
    return np.where(typical_E < limit, 1 - accident_E, accident_E).sum()


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_makes_fewer_mistakes(seed):
    rng = np.random.default_rng(seed)
    # Ties, too.
    typical_E = rng.integers(8, size=25) / 2
    accident_E = np.clip(1 / (1 + np.exp(typical_E - 2)) + rng.normal(0, 0.3, 25), 0, 1)
    found = mistakes(cut(typical_E, accident_E), typical_E, accident_E)
    best = min(mistakes(limit, typical_E, accident_E) for limit in np.arange(-0.25, 5, 0.25))
    assert found == pytest.approx(best)


def test_the_cut_follows_the_data():
    typical_E = np.linspace(-4, 4, 81)
    assert abs(cut(typical_E, 1 / (1 + np.exp(typical_E)))) <= 0.1, "pure log-odds are cut at even odds"
    assert abs(cut(typical_E, 1 / (1 + np.exp(typical_E - 2))) - 2) <= 0.1
    assert cut(typical_E, np.zeros(81)) < -4, "nothing accidental, nothing dropped"
    assert cut(typical_E, np.ones(81)) > 4
    with pytest.raises(ValueError, match="no event"):
        cut(np.array([]), np.array([]))
