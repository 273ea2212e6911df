"""The network of an RQ-VAE (`rqvae`): encoder, codebooks, decoder, and how codes are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn


class Quantised(nn.Module):
    """Encoder, codebooks and decoder. `mean_D` and `scale` bring the vectors to mean 0 and variance 1."""

    def __init__(self, width: int, widths: Sequence[int], latent: int, level_sizes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = _mlp([width, *widths, latent])
        self.decoder = _mlp([latent, *reversed(widths), width])
        self.codebooks = nn.ParameterList([nn.Parameter(torch.zeros(size, latent)) for size in level_sizes])
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        """Latents (rows, latent width) of raw vectors (rows, width)."""
        return self.encoder((vectors_BD - self.mean_D) / self.scale)

    def quantise(
        self, latents_BD: torch.Tensor, beta: float, epsilon: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (rows, levels), straight-through sums of their entries (rows, latent width), and the codebook loss.

        With `epsilon` the last level's codes are those of an entropic transport plan to equally used codes.
        """
        residual_BD, total_BD, loss, codes = latents_BD, torch.zeros_like(latents_BD), latents_BD.new_zeros(()), []
        for level, entries_KD in enumerate(self.codebooks):
            distances_BK = squared_distances(residual_BD.detach(), entries_KD.detach())
            last = level == len(self.codebooks) - 1
            codes_B = sinkhorn_codes(distances_BK, epsilon) if epsilon and last else distances_BK.argmin(1)
            chosen_BD = entries_KD[codes_B]
            loss = loss + nn.functional.mse_loss(chosen_BD, residual_BD.detach())
            loss = loss + beta * nn.functional.mse_loss(residual_BD, chosen_BD.detach())
            residual_BD = residual_BD - chosen_BD.detach()
            total_BD = total_BD + chosen_BD.detach()
            codes.append(codes_B)
        return torch.stack(codes, dim=1), latents_BD + (total_BD - latents_BD).detach(), loss

    def loss(self, vectors_BD: torch.Tensor, beta: float, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss over raw vectors (rows, width), and their codes (rows, levels)."""
        codes_BL, quantised_BD, loss = self.quantise(self.encode(vectors_BD), beta, epsilon)
        target_BD = (vectors_BD - self.mean_D) / self.scale
        return loss + nn.functional.mse_loss(self.decoder(quantised_BD), target_BD), codes_BL

    def decode(self, codes_BL: torch.Tensor) -> torch.Tensor:
        """Raw vectors (rows, width) that the codes stand for."""
        total_BD = sum(entries_KD[codes_BL[:, level]] for level, entries_KD in enumerate(self.codebooks))
        return self.decoder(total_BD) * self.scale + self.mean_D


def squared_distances(vectors_BD: torch.Tensor, entries_KD: torch.Tensor) -> torch.Tensor:
    """(rows, codes): |x - e|^2, at least 0."""
    norms_BK = vectors_BD.square().sum(1)[:, None] + entries_KD.square().sum(1)
    return (norms_BK - 2 * vectors_BD @ entries_KD.T).clamp_min(0)


def sinkhorn_codes(distances_BK: torch.Tensor, epsilon: float, iterations: int = 50) -> torch.Tensor:
    """Code of each row (rows,) with the most mass in the entropic transport plan to equally used codes.

    Distances are scaled to the range [0, 1] first, so `epsilon` is free of units (LC-Rec, arXiv 2311.09049, eq. 3).
    """
    # Float64: exp(-1 / .003) is far below float32. The row's minimum may be taken off, it only scales the row.
    costs_BK = distances_BK.double()
    costs_BK = (costs_BK - costs_BK.min(1, keepdim=True).values) / (costs_BK.max() - costs_BK.min()).clamp_min(1e-12)
    plan_BK = torch.exp(-costs_BK / epsilon)
    weights_K = torch.ones_like(plan_BK[0])
    rows, codes = plan_BK.shape
    for _ in range(iterations):
        weights_B = 1 / (rows * (plan_BK @ weights_K)).clamp_min(1e-300)
        weights_K = 1 / (codes * (plan_BK.T @ weights_B)).clamp_min(1e-300)
    return (plan_BK * weights_K).argmax(1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
