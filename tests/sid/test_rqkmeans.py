from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from recllm.sid.quantizer import level_report, load_centroids, save_centroids
from recllm.sid.rqkmeans import ResidualKMeans


def clusters(seed: int = 0, items: int = 600, groups: int = 8, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width)) * 5
    return (centres[rng.integers(groups, size=items)] + rng.normal(size=(items, width)) * 0.3).astype(np.float32)


@pytest.mark.parametrize("init", ["sketch++", "k-means++", "sample"])
def test_codes_are_the_nearest_centroids_of_the_residual(init: str) -> None:
    vectors = clusters()
    quantizer = ResidualKMeans((8, 5, 3), init).fit(vectors)
    residual = vectors.astype(np.float64)
    for level, centroids in enumerate(quantizer.centroids):
        distances = np.square(residual[:, None] - centroids[None]).sum(2)
        codes = quantizer.encode(vectors)[:, level]
        # Equal up to float32 rounding between two centroids equally far.
        assert np.allclose(distances[np.arange(len(codes)), codes], distances.min(1), atol=1e-4)
        residual -= centroids[codes]
    assert quantizer.encode(vectors).dtype == np.int32


def test_each_level_lowers_the_error() -> None:
    vectors = clusters(groups=40)
    quantizer = ResidualKMeans((6, 6, 6)).fit(vectors)
    report = level_report(quantizer.encode(vectors), quantizer.level_sizes, vectors, quantizer.centroids)
    assert np.square(vectors).sum(1).mean() > report["a/mse"] > report["b/mse"] > report["c/mse"] > 0


def test_separated_clusters_are_found() -> None:
    vectors = clusters()
    quantizer = ResidualKMeans((8,)).fit(vectors)
    report = level_report(quantizer.encode(vectors), (8,), vectors, quantizer.centroids)
    assert report["a/mse"] == pytest.approx(5 * 0.09, rel=0.1), "what is left is the noise inside the clusters"


def test_as_good_as_scikit_learn() -> None:
    vectors = np.random.default_rng(3).normal(size=(2000, 16)).astype(np.float32)
    quantizer = ResidualKMeans((32,), max_iterations=100, tolerance=0).fit(vectors)
    ours = level_report(quantizer.encode(vectors), (32,), vectors, quantizer.centroids)["a/mse"]
    theirs = KMeans(32, n_init=1, random_state=0, max_iter=100).fit(vectors).inertia_ / len(vectors)
    assert ours <= 1.02 * theirs


def test_seeding_on_a_sketch_is_as_good_as_on_the_vectors() -> None:
    vectors = clusters(2, items=1500, groups=64, width=200)

    def error(init: str) -> float:
        found = [ResidualKMeans((64,), init, 2, seed=seed).fit(vectors) for seed in range(3)]
        return sum(level_report(q.encode(vectors), (64,), vectors, q.centroids)["a/mse"] for q in found) / 3

    assert error("sketch++") <= 1.2 * error("k-means++") < 0.5 * error("sample")


def test_one_step_is_lloyds() -> None:
    vectors = clusters(1)
    first = ResidualKMeans((8,), "sample", max_iterations=0, seed=5).fit(vectors)
    codes = first.encode(vectors)[:, 0]
    second = ResidualKMeans((8,), "sample", max_iterations=1, seed=5).fit(vectors).centroids[0]
    for code in np.unique(codes):
        assert np.allclose(second[code], vectors[codes == code].mean(0), atol=1e-5)


def test_the_seed_decides() -> None:
    vectors = clusters(groups=60)
    one, same, other = (ResidualKMeans((16, 16), seed=seed).fit(vectors) for seed in (1, 1, 2))
    assert np.array_equal(one.encode(vectors), same.encode(vectors))
    assert all(np.array_equal(a, b) for a, b in zip(one.centroids, same.centroids, strict=True))
    assert not np.array_equal(one.encode(vectors), other.encode(vectors))
    global_state = torch.get_rng_state()
    ResidualKMeans((4,)).fit(vectors)
    assert torch.equal(global_state, torch.get_rng_state())


@pytest.mark.parametrize("init", ["sketch++", "k-means++", "sample"])
def test_fewer_vectors_than_codes_are_reproduced(init: str) -> None:
    vectors = np.repeat(clusters(items=5), 2, axis=0)
    quantizer = ResidualKMeans((16, 4), init).fit(vectors)
    codes = quantizer.encode(vectors)
    report = level_report(codes, (16, 4), vectors, quantizer.centroids)
    assert report["b/mse"] == pytest.approx(0, abs=1e-6)
    assert len(np.unique(codes, axis=0)) == 5
    assert np.array_equal(codes[::2], codes[1::2])


def test_no_code_is_left_unused_while_vectors_are_badly_served() -> None:
    vectors = np.concatenate([np.zeros((500, 2)), np.eye(2) * 3, -np.eye(2) * 3]).astype(np.float32)
    codes = ResidualKMeans((5,), "sample").fit(vectors).encode(vectors)
    assert len(np.unique(codes)) == 5


def test_centroids_are_saved_and_loaded(tmp_path: Path) -> None:
    centroids = ResidualKMeans((5, 3)).fit(clusters()).centroids
    with pytest.raises(FileNotFoundError, match="train_sid_tokenizer"):
        load_centroids(tmp_path)
    save_centroids(tmp_path, centroids)
    loaded = load_centroids(tmp_path)
    assert len(loaded) == 2 and all(np.array_equal(a, b) for a, b in zip(loaded, centroids, strict=True))


def test_tensors_and_arrays_are_quantised_alike() -> None:
    vectors = clusters()
    kept = vectors.copy()
    quantizer = ResidualKMeans((8, 4)).fit(torch.from_numpy(vectors))
    assert np.array_equal(
        quantizer.encode(vectors), ResidualKMeans((8, 4)).fit(vectors).encode(torch.from_numpy(vectors))
    )
    assert np.array_equal(vectors, kept), "the caller's vectors are not touched"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1 is not finite"):
        ResidualKMeans((2,)).fit(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="shape"):
        ResidualKMeans((2,)).fit(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="level_sizes"):
        ResidualKMeans((2, 0))
    with pytest.raises(ValueError, match="init"):
        ResidualKMeans((2,), "random")
    with pytest.raises(RuntimeError, match="fit"):
        ResidualKMeans((2,)).encode(np.zeros((3, 2)))
