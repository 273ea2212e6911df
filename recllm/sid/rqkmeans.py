"""Residual k-means: each level clusters what the levels before it left over.

    c_j = argmin_k |r_{j-1} - v_{j,k}|^2,   r_j = r_{j-1} - v_{j,c_j},   r_0 = the item's vector

Lloyd's iterations run as matrix products in torch, on the device of the tensor handed in (numpy arrays: main memory).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

# Rows per block of the (rows, codes) distance matrix: 32768 x 256 float32 are 32 MiB.
_BLOCK_ROWS = 32768
# k-means++ looks at this many rows per code at most; each of its steps reads all rows it looks at.
_SEEDING_ROWS_PER_CODE = 16
# "sketch++" looks at more rows, in a projection to fewer axes.
_SKETCH_ROWS_PER_CODE = 32
_SKETCH_WIDTH = 64
# A squared distance below this share of the largest squared length is float32 rounding, not distance.
_ROUNDING = 1e-6


@dataclass
class ResidualKMeans:
    """Residual k-means with its own number of codes on every level (codebook resizing).

    `init` is "k-means++", "sketch++" (the same on a random projection to 64 axes of twice as many rows: cheaper, and
    as good) or "sample" (distinct random rows). Iterations stop after `max_iterations` or when the summed squared
    error falls by less than `tolerance` of itself; more of them on one level hardly lower the error of the last. The
    same seed and vectors give the same codes (same library versions and thread count). More codes than distinct
    vectors is allowed: some codes stay unused.
    """

    level_sizes: tuple[int, ...]
    init: str = "sketch++"
    max_iterations: int = 12
    tolerance: float = 1e-4
    seed: int = 0
    _centroids: list[torch.Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.level_sizes = tuple(int(size) for size in self.level_sizes)
        if not self.level_sizes or min(self.level_sizes) < 1:
            raise ValueError(f"level_sizes must be positive numbers of codes, got {list(self.level_sizes)}")
        if self.init not in _SEEDINGS:
            raise ValueError(f"init must be one of {', '.join(_SEEDINGS)}; got {self.init!r}")

    @property
    def centroids(self) -> list[np.ndarray]:
        """float32 (codes, width) for each level; raises RuntimeError before `fit`."""
        if not self._centroids:
            raise RuntimeError("ResidualKMeans has no centroids yet: call fit first")
        return [centroids_KD.cpu().numpy() for centroids_KD in self._centroids]

    def fit(self, vectors_ND: np.ndarray | torch.Tensor) -> ResidualKMeans:
        """Learn all levels from vectors (items, width). Raises ValueError where they are empty or not finite."""
        residual_ND = as_tensor(vectors_ND).clone()
        # One generator on the CPU for all devices, so that the seed means the same on each of them.
        generator = torch.Generator().manual_seed(self.seed)
        self._centroids = []
        for size in self.level_sizes:
            centroids_KD = self._fit_level(residual_ND, size, generator)
            codes_N, _ = _assign(residual_ND, centroids_KD)
            residual_ND -= centroids_KD[codes_N]
            self._centroids.append(centroids_KD)
        return self

    def latents(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """The vectors themselves as float32: plain k-means has no other space."""
        return as_tensor(vectors_ND).cpu().numpy()

    def encode(self, vectors_ND: np.ndarray | torch.Tensor) -> np.ndarray:
        """int32 codes (items, levels): the nearest centroid of each level's residual, ties to the lower code."""
        residual_ND = as_tensor(vectors_ND).clone()
        if not self._centroids:
            raise RuntimeError("ResidualKMeans has no centroids yet: call fit first")
        levels = []
        for centroids_KD in self._centroids:
            centroids_KD = centroids_KD.to(residual_ND.device)
            codes_N, _ = _assign(residual_ND, centroids_KD)
            residual_ND -= centroids_KD[codes_N]
            levels.append(codes_N)
        return torch.stack(levels, dim=1).to(torch.int32).cpu().numpy()

    def _fit_level(self, vectors_ND: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
        centroids_KD = _SEEDINGS[self.init](vectors_ND, size, generator)
        norms_N = vectors_ND.square().sum(1)
        before = float("inf")
        for _ in range(self.max_iterations):
            codes_N, nearest_N = _assign(vectors_ND, centroids_KD)
            errors_N = (norms_N + nearest_N).clamp_min(0)
            error = float(errors_N.sum(dtype=torch.float64))
            # Rounding leaves small errors on vectors that lie on their centroid: those are served well.
            errors_N = torch.where(errors_N > _ROUNDING * norms_N.max(), errors_N, 0)
            centroids_KD, moved_empty = _update(vectors_ND, codes_N, errors_N, centroids_KD)
            if not moved_empty and before - error <= self.tolerance * error:
                break
            before = error
        return centroids_KD


def as_tensor(vectors_ND: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The vectors as float32 (items, width) on their device; ValueError where empty, ill shaped or not finite."""
    tensor_ND = torch.as_tensor(vectors_ND).to(torch.float32)
    if tensor_ND.ndim != 2 or tensor_ND.shape[0] == 0 or tensor_ND.shape[1] == 0:
        raise ValueError(f"vectors must have the shape (items, width), neither of them 0; got {tuple(tensor_ND.shape)}")
    if not torch.isfinite(tensor_ND).all():
        row = int((~torch.isfinite(tensor_ND)).any(dim=1).nonzero()[0])
        raise ValueError(f"vector of item {row} is not finite")
    return tensor_ND


def _assign(vectors_ND: torch.Tensor, centroids_KD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Nearest centroid and the squared distance to it less |x|^2, which is the same for all codes.
    norms_K = centroids_KD.square().sum(1)
    codes, distances = [], []
    for block_BD in vectors_ND.split(_BLOCK_ROWS):
        nearest_B, codes_B = torch.addmm(norms_K, block_BD, centroids_KD.T, alpha=-2).min(dim=1)
        codes.append(codes_B)
        distances.append(nearest_B)
    return torch.cat(codes), torch.cat(distances)


def _update(
    vectors_ND: torch.Tensor, codes_N: torch.Tensor, errors_N: torch.Tensor, centroids_KD: torch.Tensor
) -> tuple[torch.Tensor, bool]:
    # Means of the clusters; an empty one moves to a vector that is badly served. Returns whether one moved.
    size = len(centroids_KD)
    counts_K = torch.bincount(codes_N, minlength=size)
    means_KD = sums_by_code(vectors_ND, codes_N, size) / counts_K.clamp_min(1)[:, None]
    empty_E = (counts_K == 0).nonzero().squeeze(1)
    means_KD[empty_E] = centroids_KD[empty_E]
    if len(empty_E) == 0:
        return means_KD, False
    worst_E = torch.sort(errors_N, descending=True, stable=True).indices[: len(empty_E)]
    worst_E = worst_E[errors_N[worst_E] > 0]
    means_KD[empty_E[: len(worst_E)]] = vectors_ND[worst_E]
    return means_KD, len(worst_E) > 0


def sums_by_code(vectors_ND: torch.Tensor, codes_N: torch.Tensor, size: int) -> torch.Tensor:
    """float32 (size, width): the sum of the vectors of each code, the same from run to run on every device."""
    sums_KD = vectors_ND.new_zeros(size, vectors_ND.shape[1])
    if not vectors_ND.is_cuda:
        return sums_KD.index_add_(0, codes_N, vectors_ND)
    # index_add_ on a GPU adds in an order that changes from run to run; a product with the one-hot matrix does not.
    for block_BD, codes_B in zip(vectors_ND.split(_BLOCK_ROWS), codes_N.split(_BLOCK_ROWS), strict=True):
        sums_KD += torch.nn.functional.one_hot(codes_B, size).to(block_BD.dtype).T @ block_BD
    return sums_KD


def _sample(vectors_ND: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    # Distinct rows while there are any; where codes outnumber rows the rest repeats them and stays unused.
    rows_K = torch.randperm(len(vectors_ND), generator=generator)
    rows_K = rows_K.repeat(-(-size // len(rows_K)))[:size]
    return vectors_ND[rows_K.to(vectors_ND.device)].clone()


def _plus_plus(vectors_ND: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    rows_S = torch.randperm(len(vectors_ND), generator=generator)[: size * _SEEDING_ROWS_PER_CODE]
    rows_SD = vectors_ND[rows_S.to(vectors_ND.device)]
    return rows_SD[_spread_rows(rows_SD, size, generator)].clone()


def _sketched_plus_plus(vectors_ND: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    # Distances survive a random projection nearly unchanged (Johnson and Lindenstrauss 1984), and k-means++ is bound
    # by reading the rows once a code.
    rows_S = torch.randperm(len(vectors_ND), generator=generator)[: size * _SKETCH_ROWS_PER_CODE]
    rows_SD = vectors_ND[rows_S.to(vectors_ND.device)]
    axes_DW = torch.randn(vectors_ND.shape[1], _SKETCH_WIDTH, generator=generator).to(rows_SD)
    sketch_SW = rows_SD @ axes_DW if vectors_ND.shape[1] > _SKETCH_WIDTH else rows_SD
    return rows_SD[_spread_rows(sketch_SW, size, generator)].clone()


def _spread_rows(rows_SD: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    # Greedy k-means++ (Arthur and Vassilvitskii 2007): a few rows are drawn in proportion to their squared distance,
    # the one that leaves the least is kept. The indices (size,) of the rows chosen.
    norms_S, rows_DS = rows_SD.square().sum(1), rows_SD.T.contiguous()
    floor = _ROUNDING * float(norms_S.max())
    draws_KC = torch.rand(size, 2 + int(math.log(size)), generator=generator, dtype=torch.float64)
    chosen = [0]
    closest_S = (norms_S + norms_S[0] - 2 * (rows_SD @ rows_SD[0])).clamp_min(0)
    for draws_C in draws_KC[1:]:
        mass_S = torch.where(closest_S > floor, closest_S, 0).to(torch.float64).cumsum(0)
        if float(mass_S[-1]) == 0:  # fewer distinct rows than codes
            break
        drawn_C = torch.searchsorted(mass_S, draws_C.to(mass_S.device) * mass_S[-1], right=True)
        drawn_C = drawn_C.clamp_max(len(rows_SD) - 1)
        # Candidates lie in rows: reading along a row is twice as fast as across.
        distance_CS = norms_S + norms_S[drawn_C, None] - 2 * (rows_SD[drawn_C] @ rows_DS)
        closest_CS = torch.minimum(closest_S, distance_CS.clamp_min(0))
        best = int(closest_CS.sum(1).argmin())
        closest_S = closest_CS[best]
        chosen.append(int(drawn_C[best]))
    chosen += [index % len(rows_SD) for index in range(size - len(chosen))]
    return torch.tensor(chosen, device=rows_SD.device)


_SEEDINGS = {"sketch++": _sketched_plus_plus, "k-means++": _plus_plus, "sample": _sample}
