"""From settings to a quantiser and from its codes to a SID table's folder: what the recipe strings together."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from recllm.sid.balanced import BalancedKMeans
from recllm.sid.quantizer import Quantizer, save_centroids
from recllm.sid.rqkmeans import ResidualKMeans
from recllm.sid.rqvae import RQVAE

QUANTIZERS = ("kmeans", "balanced", "rqvae")


class QuantizerSettings(Protocol):
    """What `build_quantizer` reads, each only where the quantiser has it: the recipe's arguments."""

    levels: list[int]
    kmeans_init: str
    kmeans_iterations: int
    balanced_rounds: int
    rqvae_widths: list[int]
    rqvae_latent: int
    rqvae_beta: float
    rqvae_sinkhorn: float
    rqvae_epochs: int
    rqvae_batch_size: int
    rqvae_lr: float
    rqvae_patience: int
    seed: int


def build_quantizer(name: str, settings: QuantizerSettings) -> Quantizer:
    """The quantiser `kmeans`, `balanced` or `rqvae`, not fitted yet; ValueError for another name."""
    levels, seed = tuple(settings.levels), settings.seed
    if name == "kmeans":
        return ResidualKMeans(levels, settings.kmeans_init, settings.kmeans_iterations, seed=seed)
    if name == "balanced":
        return BalancedKMeans(levels, rounds=settings.balanced_rounds, seed=seed)
    if name == "rqvae":
        return RQVAE(
            levels,
            widths=tuple(settings.rqvae_widths),
            latent=settings.rqvae_latent,
            beta=settings.rqvae_beta,
            sinkhorn=settings.rqvae_sinkhorn,
            epochs=settings.rqvae_epochs,
            batch_size=settings.rqvae_batch_size,
            lr=settings.rqvae_lr,
            patience=settings.rqvae_patience,
            seed=seed,
        )
    raise ValueError(f"quantizer must be one of {', '.join(QUANTIZERS)}; got {name!r}")


def reconstruct(quantizer: Quantizer, codes_NL: np.ndarray) -> np.ndarray:
    """float32 (items, width): the item vectors that the codes stand for, in the space of the vectors themselves.

    `codes_NL` may have a de-duplicating level more than the quantiser; it carries nothing of the vector.
    """
    codes_NL = codes_NL[:, : len(quantizer.level_sizes)]
    if isinstance(quantizer, RQVAE):
        return quantizer.decode(codes_NL)
    return sum(centroids_KD[codes_NL[:, level]] for level, centroids_KD in enumerate(quantizer.centroids))


def reconstruction_report(
    quantizer: Quantizer, vectors_ND: np.ndarray, codes_NL: np.ndarray, unique_NM: np.ndarray
) -> dict[str, float]:
    """`reconstruction_mse` of the quantiser's codes and `reconstruction_mse_after_policy` of the table's.

    Mean over items of the squared distance between an item's vector and what its codes stand for: the one error that
    compares quantisers, since the levels' mse of an RQ-VAE are in its own latent space.
    """
    report = {}
    for name, codes in (("", codes_NL), ("_after_policy", unique_NM)):
        error_ND = reconstruct(quantizer, codes) - vectors_ND
        report[f"reconstruction_mse{name}"] = float(np.square(error_ND, dtype=np.float64).sum(1).mean())
    return report


def save_quantizer(folder: str | Path, quantizer: Quantizer) -> None:
    """Write the centroids into `folder`, and the network of an RQ-VAE besides."""
    save_centroids(folder, quantizer.centroids)
    if isinstance(quantizer, RQVAE):
        quantizer.save(folder)
