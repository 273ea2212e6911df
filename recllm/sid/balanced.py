"""Balanced residual k-means: on every level the codes are carried by equally many items, give or take one.

Each level alternates between an assignment of the residuals to clusters and the clusters' means, like Lloyd's
algorithm, but a cluster has a price that is added to the squared distances and follows its load:

    c_i = argmin_k |r_i - v_k|^2 + p_k,   at prices p for which each code is chosen N / K times

which is the least squared error among balanced assignments (Bradley, Bennett and Demiriz, MSR-TR-2000-65, solve the
same problem as a linear program). While the means still move a few passes of an auction bring the loads near enough;
once they stand the assignment is solved exactly (`transport`). Codes used equally often carry the most information a
level can, and leave the most room for telling items apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from recllm.sid.rqkmeans import as_tensor, sums_by_code
from recllm.sid.transport import assign_balanced, relieve

# Passes of the auction a round: the next round goes on from their prices, so more of them buy nothing.
_PASSES = 10
# A price rises by this share of the mean squared error beyond what the last item to leave lost.
_STEP = 0.01


@dataclass
class BalancedKMeans:
    """Residual k-means with clusters of floor or ceil of items / codes, on each level.

    `rounds` means are taken a level; the start is a random sample of the vectors. The same seed and vectors give the
    same codes (same library versions and thread count). Memory: the (items, codes) float32 distances of a level, and
    twice that while they are balanced.
    """

    level_sizes: tuple[int, ...]
    rounds: int = 10
    seed: int = 0
    _centroids: list[torch.Tensor] = field(default_factory=list, init=False, repr=False)
    _prices: list[np.ndarray] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.level_sizes = tuple(int(size) for size in self.level_sizes)
        if not self.level_sizes or min(self.level_sizes) < 1:
            raise ValueError(f"level_sizes must be positive numbers of codes, got {list(self.level_sizes)}")

    @property
    def centroids(self) -> list[np.ndarray]:
        """float32 (codes, width) for each level; raises RuntimeError before `fit`."""
        if not self._centroids:
            raise RuntimeError("BalancedKMeans has no centroids yet: call fit first")
        return [centroids_KD.cpu().numpy() for centroids_KD in self._centroids]

    def fit(self, vectors_ND: np.ndarray | torch.Tensor) -> BalancedKMeans:
        """Learn all levels from vectors (items, width). Raises ValueError where they are empty or not finite."""
        residual_ND = as_tensor(vectors_ND).clone()
        generator = torch.Generator().manual_seed(self.seed)
        self._centroids, self._prices = [], []
        for size in self.level_sizes:
            centroids_KD, prices_K = self._fit_level(residual_ND, size, generator)
            codes_N = _assign(residual_ND, centroids_KD, prices_K)
            residual_ND -= centroids_KD[codes_N]
            self._centroids.append(centroids_KD)
            self._prices.append(prices_K)
        return self

    def latents(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """The vectors themselves as float32: k-means has no other space."""
        return as_tensor(vectors_ND).cpu().numpy()

    def encode(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """int32 codes (items, levels), balanced over the vectors handed in: those of `fit` get the codes it gave.

        Fewer vectors are balanced among themselves, from the prices that `fit` found; one alone gets the cheapest code.
        """
        residual_ND = as_tensor(vectors_ND).clone()
        if not self._centroids:
            raise RuntimeError("BalancedKMeans has no centroids yet: call fit first")
        levels = []
        for centroids_KD, prices_K in zip(self._centroids, self._prices, strict=True):
            centroids_KD = centroids_KD.to(residual_ND.device)
            codes_N = _assign(residual_ND, centroids_KD, prices_K)
            residual_ND -= centroids_KD[codes_N]
            levels.append(codes_N.cpu().numpy().astype(np.int32))
        return np.stack(levels, axis=1)

    def _fit_level(
        self, vectors_ND: torch.Tensor, size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, np.ndarray]:
        rows_K = torch.randperm(len(vectors_ND), generator=generator).repeat(-(-size // len(vectors_ND)))[:size]
        centroids_KD = vectors_ND[rows_K.to(vectors_ND.device)].clone()
        prices_K = np.zeros(size)
        for left in reversed(range(self.rounds)):
            costs_NK, step = _costs(vectors_ND, centroids_KD)
            codes_N, prices_K = relieve(costs_NK, prices_K, step, _PASSES)
            if left == 0:
                codes_N, prices_K = assign_balanced(costs_NK, prices_K, step)
            centroids_KD = _means(vectors_ND, codes_N, centroids_KD)
        return centroids_KD, prices_K


def _costs(vectors_ND: torch.Tensor, centroids_KD: torch.Tensor) -> tuple[np.ndarray, float]:
    # Squared distances less |x|^2, which is the same for all codes, and the step of the auction.
    costs_NK = torch.addmm(centroids_KD.square().sum(1), vectors_ND, centroids_KD.T, alpha=-2).cpu().numpy()
    norms_N = vectors_ND.square().sum(1).cpu().numpy()
    error = float((norms_N + costs_NK.min(1)).mean(dtype=np.float64))
    return costs_NK, _STEP * max(error, 0.0)


def _assign(vectors_ND: torch.Tensor, centroids_KD: torch.Tensor, prices_K: np.ndarray) -> torch.Tensor:
    costs_NK, step = _costs(vectors_ND, centroids_KD)
    return torch.from_numpy(assign_balanced(costs_NK, prices_K, step)[0]).to(vectors_ND.device)


def _means(vectors_ND: torch.Tensor, codes_N: np.ndarray, centroids_KD: torch.Tensor) -> torch.Tensor:
    # An empty cluster stays where it is.
    codes = torch.from_numpy(codes_N).to(vectors_ND.device)
    counts_K = torch.bincount(codes, minlength=len(centroids_KD))
    means_KD = sums_by_code(vectors_ND, codes, len(centroids_KD)) / counts_K.clamp_min(1)[:, None]
    return torch.where(counts_K[:, None] > 0, means_KD, centroids_KD)
