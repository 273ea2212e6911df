import numpy as np
import pytest
import torch

from recllm.backbones.ranks import best_items, count_ranks
from recllm.metrics.ranking import rank_of_targets


@pytest.mark.parametrize("levels", [2, 9, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_counted_ranks_are_the_metrics_own(seed, levels):
    """Few levels make many ties; lists of seen items hold repeats, the target and, some, nothing."""
    rng = np.random.default_rng(seed)
    scores_BN = torch.from_numpy(rng.integers(levels, size=(13, 57)).astype(np.float32))
    scores_BN[rng.random((13, 57)) < 0.05] = float("-inf")
    targets_B = rng.integers(57, size=13)
    exclude = [rng.integers(57, size=size).astype(np.int32) for size in rng.integers(0, 30, size=13)]
    exclude[0] = np.append(exclude[0], targets_B[:1]).astype(np.int32)
    kept = scores_BN.clone()
    for seen in (None, exclude, [np.zeros(0, dtype=np.int32)] * 13):
        expected_B = rank_of_targets(scores_BN.numpy(), targets_B, exclude=seen)
        np.testing.assert_array_equal(count_ranks(scores_BN, targets_B, seen), expected_B)
    assert torch.equal(scores_BN, kept), "the scores are left alone"


def test_a_score_that_is_no_number_is_refused():
    scores_BN = torch.zeros(3, 4)
    scores_BN[1, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN in row 1"):
        count_ranks(scores_BN, np.zeros(3, dtype=int))


@pytest.mark.parametrize("levels", [1, 3, 30, 10**6])
@pytest.mark.parametrize("k", [1, 5, 57])
def test_best_items_are_the_stable_sort(levels, k):
    rng = np.random.default_rng(levels + k)
    scores_BN = torch.from_numpy(rng.integers(levels, size=(20, 57)).astype(np.float32))
    scores_BN[rng.random((20, 57)) < 0.3] = float("-inf")
    top_BK, item_BK = best_items(scores_BN, k)
    for row, scores in enumerate(scores_BN.tolist()):
        expected = sorted(range(57), key=lambda item: (-scores[item], item))[:k]
        assert item_BK[row].tolist() == expected
        assert top_BK[row].tolist() == [scores[item] for item in expected]
