import numpy as np
import pytest
import torch

from recllm.sid.balanced import BalancedKMeans
from recllm.sid.quantizer import level_report
from recllm.sid.rqkmeans import ResidualKMeans


def skewed(seed: int = 0, items: int = 500, width: int = 6) -> np.ndarray:
    """Groups of very different sizes: plain k-means makes unequal clusters of them."""
    rng = np.random.default_rng(seed)
    group_N = (items ** rng.random(items) / items * 12).astype(int)
    return (rng.normal(size=(13, width))[group_N] * 4 + rng.normal(size=(items, width))).astype(np.float32)


def inertia(vectors: np.ndarray, codes: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.square(vectors - centroids[codes], dtype=np.float64).sum())


@pytest.mark.parametrize("sizes", [(16, 7), (12, 3, 120)])
def test_cluster_sizes_differ_by_at_most_one_on_every_level(sizes: tuple[int, ...]) -> None:
    vectors = skewed()
    codes = BalancedKMeans(sizes).fit(vectors).encode(vectors)
    assert codes.dtype == np.int32
    for level, size in enumerate(sizes):
        loads = np.bincount(codes[:, level], minlength=size)
        assert loads.max() - loads.min() <= 1 and loads.sum() == 500
    plain = ResidualKMeans(sizes).fit(vectors).encode(vectors)
    assert np.ptp(np.bincount(plain[:, 0], minlength=sizes[0])) > 20


def test_centroids_are_the_means_of_balanced_clusters_and_no_random_start_is_better_by_much() -> None:
    vectors = skewed(1)
    quantizer = BalancedKMeans((20,), rounds=20).fit(vectors)
    ours = inertia(vectors, quantizer.encode(vectors)[:, 0], quantizer.centroids[0])
    others = [BalancedKMeans((20,), rounds=40, seed=seed).fit(vectors) for seed in range(1, 6)]
    best = min(inertia(vectors, other.encode(vectors)[:, 0], other.centroids[0]) for other in others)
    assert ours <= 1.1 * best
    shuffled = np.random.default_rng(0).permutation(np.arange(500) % 20)
    means = np.stack([vectors[shuffled == code].mean(0) for code in range(20)])
    assert ours < 0.6 * inertia(vectors, shuffled, means)


def test_fit_vectors_get_their_residuals_codes() -> None:
    vectors = skewed(2)
    quantizer = BalancedKMeans((8, 5)).fit(vectors)
    codes, centroids = quantizer.encode(vectors), quantizer.centroids
    report = level_report(codes, (8, 5), vectors, centroids)
    assert np.square(vectors).sum(1).mean() > report["a/mse"] > report["b/mse"]
    assert report["a/perplexity"] == pytest.approx(8, rel=1e-3) and report["b/perplexity"] == pytest.approx(5)
    residual = vectors - centroids[0][codes[:, 0]]
    second = BalancedKMeans((5,)).fit(residual)
    assert inertia(residual, codes[:, 1], centroids[1]) <= 1.1 * inertia(
        residual, second.encode(residual)[:, 0], second.centroids[0]
    ), "the second level was fitted on what the first left over"


def test_the_seed_decides_and_the_caller_keeps_vectors_and_random_state() -> None:
    vectors = skewed(3)
    kept, state = vectors.copy(), torch.get_rng_state()
    one, same, other = (BalancedKMeans((16, 16), seed=seed).fit(vectors) for seed in (1, 1, 2))
    assert np.array_equal(one.encode(vectors), same.encode(torch.from_numpy(vectors)))
    assert not np.array_equal(one.encode(vectors), other.encode(vectors))
    assert np.array_equal(vectors, kept) and torch.equal(state, torch.get_rng_state())


def test_one_vector_alone_gets_the_cheapest_code_and_few_are_balanced() -> None:
    vectors = skewed(4)
    quantizer = BalancedKMeans((10, 4)).fit(vectors)
    assert quantizer.encode(vectors[:1]).shape == (1, 2)
    assert np.ptp(np.bincount(quantizer.encode(vectors[:40])[:, 0], minlength=10)) <= 1
    few = BalancedKMeans((16, 4)).fit(np.repeat(vectors[:5], 2, axis=0))
    assert len(np.unique(few.encode(np.repeat(vectors[:5], 2, axis=0))[:, 0])) == 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        BalancedKMeans((2,)).fit(np.array([[0.0], [np.inf]]))
    with pytest.raises(ValueError, match="level_sizes"):
        BalancedKMeans(())
    with pytest.raises(RuntimeError, match="fit"):
        BalancedKMeans((2,)).encode(np.zeros((3, 2)))
