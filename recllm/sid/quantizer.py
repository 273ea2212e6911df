"""What every SID quantiser offers, and the report that compares them level by level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

CENTROIDS_FILE = "sid_centroids.safetensors"
LEVEL_LETTERS = "abcdefgh"


class Quantizer(Protocol):
    """Turns item vectors into code tuples, coarse level first.

    `level_sizes` holds the number of codes of each level. `centroids` holds one float32 array (codes, width) a
    level, in the quantiser's latent space; the sum of a tuple's centroids approximates the item's latent vector.
    """

    level_sizes: tuple[int, ...]

    def fit(self, vectors_ND: np.ndarray) -> Quantizer:
        """Learn the centroids from float vectors (items, width); returns itself. Deterministic under its seed."""
        ...

    def latents(self, vectors_ND: np.ndarray) -> np.ndarray:
        """The vectors as float32 in the space the centroids live in (for plain k-means: the vectors themselves)."""
        ...

    def encode(self, vectors_ND: np.ndarray) -> np.ndarray:
        """int32 codes (items, levels) of the vectors. Different items may get the same tuple."""
        ...

    @property
    def centroids(self) -> list[np.ndarray]:
        """float32 (codes of the level, latent width) for each level."""
        ...


def row_ids(codes_NL: np.ndarray) -> np.ndarray:
    """int64 (rows,): equal numbers for equal rows, numbered in the rows' lexical order. Codes are not negative."""
    ids_N = np.zeros(len(codes_NL), dtype=np.int64)
    for column_N in np.asarray(codes_NL, dtype=np.int64).T:
        # Renumbering after each column keeps the key small, whatever the number and size of the levels.
        ids_N = np.unique(ids_N * (column_N.max(initial=0) + 1) + column_N, return_inverse=True)[1]
    return ids_N


def collision_rate(codes_NL: np.ndarray) -> float:
    """1 - distinct tuples / items, in [0, 1): the share of items that have to give way to another."""
    ids_N = row_ids(codes_NL)
    return 1.0 - (int(ids_N.max(initial=-1)) + 1) / max(len(ids_N), 1)


def level_report(
    codes_NL: np.ndarray, level_sizes: Sequence[int], latents_ND: np.ndarray, centroids: Sequence[np.ndarray]
) -> dict[str, float]:
    """Flat metrics of each level, under its letter: `a/utilisation`, `a/perplexity`, `a/mse`, `a/collision_rate`.

    utilisation: share of the level's codes that some item carries. perplexity: exp of the entropy of the codes'
    use, between 1 and the level's size. mse: mean over items of the squared length of what is left after this
    level. collision_rate: of the tuples cut after this level. A de-duplicating level has no centroids and no mse.
    """
    report: dict[str, float] = {}
    residual_ND = np.asarray(latents_ND, dtype=np.float32)
    for level, size in enumerate(level_sizes):
        name = LEVEL_LETTERS[level]
        counts_K = np.bincount(codes_NL[:, level], minlength=size)
        share_K = counts_K[counts_K > 0] / len(codes_NL)
        report[f"{name}/utilisation"] = float((counts_K > 0).mean())
        report[f"{name}/perplexity"] = float(np.exp(-(share_K * np.log(share_K)).sum()))
        if level < len(centroids):
            residual_ND = residual_ND - centroids[level][codes_NL[:, level]]
            report[f"{name}/mse"] = float(np.square(residual_ND, dtype=np.float64).sum(1).mean())
        report[f"{name}/collision_rate"] = collision_rate(codes_NL[:, : level + 1])
    return report


def table_report(
    codes_NL: np.ndarray,
    unique_NM: np.ndarray,
    sizes: Sequence[int],
    latents_ND: np.ndarray,
    centroids: Sequence[np.ndarray],
) -> dict[str, float]:
    """Flat metrics of a SID table: the levels as the quantiser made them, and what the collision policy did.

    `codes_NL` are the quantiser's codes, `unique_NM` those of the table, which has the level `sizes`. `mse` and
    `mse_after_policy` are over the quantiser's levels; `moved_items` counts the items that lost their tuple.
    """
    levels = codes_NL.shape[1]
    report = {"items": len(codes_NL), "levels": len(sizes), "codes": sum(sizes)}
    report |= level_report(codes_NL, sizes[:levels], latents_ND, centroids)
    after = level_report(unique_NM, sizes, latents_ND, centroids)
    # A de-duplicating level is the policy's own: its figures are those after it.
    report |= {name: value for name, value in after.items() if name[0] in LEVEL_LETTERS[levels : len(sizes)]}
    last = f"{LEVEL_LETTERS[levels - 1]}/mse"
    report["mse"], report["mse_after_policy"] = report[last], after[last]
    report["collision_rate_before"], report["collision_rate_after"] = (
        collision_rate(codes_NL),
        collision_rate(unique_NM),
    )
    report["moved_items"] = int((codes_NL != unique_NM[:, :levels]).any(axis=1).sum())
    return report


def save_centroids(folder: str | Path, centroids: Sequence[np.ndarray]) -> None:
    """Write the centroids of all levels, `level_0` the coarsest, into `folder`."""
    from safetensors.numpy import save_file

    arrays = {f"level_{level}": np.ascontiguousarray(values_KD) for level, values_KD in enumerate(centroids)}
    save_file(arrays, Path(folder) / CENTROIDS_FILE)


def load_centroids(folder: str | Path) -> list[np.ndarray]:
    """The centroids float32 (codes, width) of each level; FileNotFoundError where the folder holds none."""
    from safetensors.numpy import load_file

    path = Path(folder) / CENTROIDS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make the table with train_sid_tokenizer.py")
    arrays = load_file(path)
    return [arrays[f"level_{level}"] for level in range(len(arrays))]
