from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from recllm.sid.build import QUANTIZERS, build_quantizer, reconstruct, reconstruction_report, save_quantizer
from recllm.sid.collisions import POLICIES, resolve_collisions
from recllm.sid.quantizer import collision_rate, load_centroids, table_report
from recllm.sid.rqvae import RQVAE
from recllm.sid.table import SidTable


@dataclass
class Settings:
    levels: list[int] = field(default_factory=lambda: [9, 5, 7])
    kmeans_init: str = "sketch++"
    kmeans_iterations: int = 5
    balanced_rounds: int = 3
    rqvae_widths: list[int] = field(default_factory=lambda: [16, 8])
    rqvae_latent: int = 4
    rqvae_beta: float = 0.25
    rqvae_sinkhorn: float = 0.003
    rqvae_epochs: int = 2
    rqvae_batch_size: int = 64
    rqvae_lr: float = 1e-3
    rqvae_patience: int = 2
    seed: int = 3


VECTORS = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantiser_takes_level_sizes_as_a_list_and_keeps_the_protocol(name: str, tmp_path: Path) -> None:
    quantizer = build_quantizer(name, Settings())
    codes = quantizer.fit(VECTORS).encode(VECTORS)
    assert quantizer.level_sizes == (9, 5, 7) and codes.shape == (200, 3) and codes.dtype == np.int32
    assert (codes >= 0).all() and (codes < [9, 5, 7]).all()
    latents, centroids = quantizer.latents(VECTORS), quantizer.centroids
    assert latents.dtype == np.float32 and [c.shape for c in centroids] == [(k, latents.shape[1]) for k in (9, 5, 7)]
    for policy in POLICIES:
        unique, sizes = resolve_collisions(codes, quantizer.level_sizes, latents, centroids, policy)
        table = SidTable(unique, sizes, shared=policy == "share")
        report = table_report(codes, unique, sizes, latents, centroids)
        for level, size in enumerate((9, 5, 7)):
            letter = "abc"[level]
            assert 0 < report[f"{letter}/utilisation"] <= 1 <= report[f"{letter}/perplexity"] <= size + 1e-6
        assert report["collision_rate_before"] == collision_rate(codes) == report["c/collision_rate"]
        assert (report["collision_rate_after"] == 0) == (policy != "share")
        assert len(table) == 200
        more = reconstruction_report(quantizer, VECTORS, codes, unique)
        assert (more["reconstruction_mse_after_policy"] != more["reconstruction_mse"]) == (policy == "nearest")
    save_quantizer(tmp_path, quantizer)
    assert all(np.array_equal(a, b) for a, b in zip(load_centroids(tmp_path), centroids, strict=True))


def test_reconstructions_by_hand() -> None:
    quantizer = build_quantizer("kmeans", Settings()).fit(VECTORS)
    codes = quantizer.encode(VECTORS)
    expected = np.stack([sum(quantizer.centroids[level][row[level]] for level in range(3)) for row in codes])
    suffixed = np.concatenate([codes, np.ones_like(codes[:, :1])], axis=1)
    assert np.allclose(reconstruct(quantizer, suffixed), expected, atol=1e-6)
    report = reconstruction_report(quantizer, VECTORS, codes, suffixed)
    assert report["reconstruction_mse"] == pytest.approx(np.square(VECTORS - expected).sum(1).mean(), rel=1e-5)


def test_the_settings_arrive(tmp_path: Path) -> None:
    rqvae = build_quantizer("rqvae", Settings(rqvae_epochs=7, seed=11))
    assert (rqvae.epochs, rqvae.seed, rqvae.widths, rqvae.sinkhorn, rqvae.beta) == (7, 11, (16, 8), 0.003, 0.25)
    kmeans = build_quantizer("kmeans", Settings(kmeans_init="sample", kmeans_iterations=2))
    assert (kmeans.init, kmeans.max_iterations, kmeans.seed) == ("sample", 2, 3)
    assert build_quantizer("balanced", Settings(balanced_rounds=8)).rounds == 8
    with pytest.raises(ValueError, match="kmeans, balanced, rqvae"):
        build_quantizer("k-means", Settings())
    fitted = build_quantizer("rqvae", Settings()).fit(VECTORS)
    save_quantizer(tmp_path, fitted)
    assert np.array_equal(RQVAE.load(tmp_path).encode(VECTORS), fitted.encode(VECTORS))
