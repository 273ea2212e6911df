import numpy as np
import pytest

from recllm.metrics.bootstrap import paired_interval
from recllm.metrics.compare import compare_ranks, load_ranks, save_ranks


@pytest.fixture
def runs(tmp_path):
    """Two runs on users 7, 3, 5 (in unlike order), and one on others."""
    for name, users, ranks in (
        ("base", [7, 3, 5], [0.0, 4.0, np.inf]),
        ("better", [3, 5, 7], [0.0, 9.0, 0.0]),
        ("others", [1, 2, 3], [0.0, 0.0, 0.0]),
    ):
        (tmp_path / name).mkdir()
        save_ranks(tmp_path / name, {"validation": (np.array([1]), np.array([2.5])), "test": (np.array(users), ranks)})
    return tmp_path


def test_differences_are_taken_user_by_user(runs):
    found = compare_ranks(runs / "better", runs / "base", ks=(5, 10))
    mean, difference = found["ndcg@10"]
    base, better = np.array([1 / np.log2(6), 0, 1]), np.array([1, 1 / np.log2(11), 1])  # users 3, 5, 7
    assert mean == pytest.approx(base.mean())
    expected = paired_interval(better, base)
    assert difference == pytest.approx(expected) and difference.n == 3
    assert found["recall@5"][0] == pytest.approx(2 / 3) and found["recall@5"][1].mean == 0.0
    assert found["recall@10"][1].mean == pytest.approx(1 / 3)


def test_ranks_come_back_by_role(runs):
    assert load_ranks(runs / "base", "validation").rows() == [(1, 2.5)]
    assert load_ranks(runs / "base", "test").rows() == [(7, 0.0), (3, 4.0), (5, np.inf)]


def test_what_cannot_be_compared_is_refused(runs):
    with pytest.raises(ValueError, match=r"others ranked 3 users and .*base 3, and they are not the same ones"):
        compare_ranks(runs / "others", runs / "base")
    with pytest.raises(ValueError, match="has no ranks of 'routing'; it has test, validation"):
        load_ranks(runs / "base", "routing")
    with pytest.raises(FileNotFoundError, match=r"ranks\.parquet is missing"):
        load_ranks(runs, "test")
