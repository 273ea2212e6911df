"""First values of the embedding rows of sid tokens, from the base rows of a language model.

mean: the mean base row of all title tokens of the items that carry the code. noise: the mean base row and normal noise
of the base rows' spread. centroid: where the code's items lie in the space of the item vectors, mapped into the
model's space by a ridge regression from item vectors to the mean title row, and brought to a base row's usual distance
from the mean row.

A code's place is the mean vector of the items that carry it. For residual k-means that is, on every level, the mean of
the parents' centroids plus the mean of the residual, so that one definition serves all levels and all quantisers. The
deeper the level the less of it is left beside the mean of all items, and titles' means shrink likewise: hence the
scaling, which keeps the direction. Base rows that a softmax tells apart have about one length; rows that started
shorter by an order would all look alike to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recllm.sid.table import SidTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INITS = ("mean", "noise", "centroid")
# Rows of embeddings are gathered for so many title tokens, or items, at a time (times width: the memory in use).
_BLOCK_TOKENS = 65536
_BLOCK_ITEMS = 4096
# Ridge penalty as a share of the mean eigenvalue of the item vectors' covariance.
_RIDGE = 0.1
# A code whose items lie this near the mean of all items, as a share of the usual distance, has no direction.
_NOWHERE = 1e-4


@dataclass(frozen=True)
class TitleTokens:
    """Tokens of all titles in one row: `ids_M` token ids, `items_M` the item each belongs to, rising."""

    ids_M: np.ndarray
    items_M: np.ndarray


def title_tokens(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str]) -> TitleTokens:
    """The titles' tokens, `titles[i]` that of item i; without special tokens."""
    ids: list[list[int]] = tokenizer(list(titles), add_special_tokens=False)["input_ids"] if len(titles) else []
    lengths_N = np.array([len(tokens) for tokens in ids], dtype=np.int64)
    flat_M = np.fromiter((token for tokens in ids for token in tokens), dtype=np.int64, count=int(lengths_N.sum()))
    return TitleTokens(flat_M, np.repeat(np.arange(len(ids)), lengths_N))


def initial_rows(
    base_VD: torch.Tensor,
    table: SidTable,
    init: str,
    seed: int,
    words: TitleTokens | None = None,
    vectors_NW: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 rows (codes, width) of the sid tokens in level order, and the mean base row (width,).

    `base_VD` holds the rows of the base vocabulary; `words` is needed by mean and centroid, `vectors_NW` (items, any
    width) by centroid. A code without titled items gets the mean row under mean; one without items, or whose items
    lie at the mean of all, gets a row of noise under centroid.
    """
    mean_D = base_VD.mean(0, dtype=torch.float32)
    if init == "mean":
        return _title_means(base_VD, mean_D, table, words), mean_D
    spread_D = (base_VD.float() - mean_D).square().mean(0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise_KD = torch.randn(sum(table.level_sizes), len(mean_D), generator=generator).to(mean_D) * spread_D
    if init == "noise":
        return mean_D + noise_KD, mean_D
    places_KW, used_K = code_places(table, vectors_NW)
    heading_KD = places_KW.to(mean_D) @ _title_map(base_VD, mean_D, words, vectors_NW)
    lengths_K1 = heading_KD.norm(dim=1, keepdim=True)
    usual = (base_VD.float() - mean_D).norm(dim=1).median()
    known_K1 = used_K.to(mean_D.device)[:, None] & (lengths_K1 > _NOWHERE * lengths_K1.max())
    return mean_D + torch.where(known_K1, heading_KD / lengths_K1.clamp_min(1e-30) * usual, noise_KD), mean_D


def code_places(table: SidTable, vectors_NW: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean vector of the items that carry each code, less the mean of all items, float32 (codes, item width), and
    whether any item carries it (codes,), in level order."""
    centred_NW = torch.from_numpy(np.asarray(vectors_NW, dtype=np.float32))
    centred_NW = centred_NW - centred_NW.mean(0)
    places, used = [], []
    for level, size in enumerate(table.level_sizes):
        codes_N = torch.from_numpy(table.codes_NL[:, level].astype(np.int64))
        counts_K = torch.bincount(codes_N, minlength=size)
        sums_KW = torch.zeros(size, centred_NW.shape[1]).index_add_(0, codes_N, centred_NW)
        places.append(sums_KW / counts_K.clamp_min(1)[:, None])
        used.append(counts_K > 0)
    return torch.cat(places), torch.cat(used)


def _title_map(base_VD: torch.Tensor, mean_D: torch.Tensor, words: TitleTokens, vectors_NW: np.ndarray) -> torch.Tensor:
    # Ridge regression (item width, model width) of titled items' mean title row on their vectors, both centred.
    titled_T, counts_T = np.unique(words.items_M, return_counts=True)
    vectors_TW = torch.from_numpy(np.asarray(vectors_NW, dtype=np.float32)[titled_T]).to(mean_D)
    vectors_TW = vectors_TW - vectors_TW.mean(0)
    moments_WD = vectors_TW.new_zeros(vectors_TW.shape[1], len(mean_D))
    ends_T = np.cumsum(counts_T)
    for first in range(0, len(titled_T), _BLOCK_ITEMS):
        counts_B = counts_T[first : first + _BLOCK_ITEMS]
        words_M = slice(int(ends_T[first] - counts_T[first]), int(ends_T[first + len(counts_B) - 1]))
        owners_M = _long(np.repeat(np.arange(len(counts_B)), counts_B), base_VD)
        rows_MD = base_VD[_long(words.ids_M[words_M], base_VD)].float() - mean_D
        titles_BD = rows_MD.new_zeros(len(counts_B), len(mean_D)).index_add_(0, owners_M, rows_MD)
        titles_BD /= _long(counts_B, base_VD)[:, None]
        # Centred vectors need no centred targets: a constant falls out of the product.
        moments_WD += vectors_TW[first : first + len(counts_B)].T @ titles_BD
    covariance_WW = vectors_TW.T @ vectors_TW
    penalty = _RIDGE * covariance_WW.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(covariance_WW + penalty * torch.eye(len(covariance_WW)).to(mean_D), moments_WD)


def _title_means(base_VD: torch.Tensor, mean_D: torch.Tensor, table: SidTable, words: TitleTokens) -> torch.Tensor:
    size = sum(table.level_sizes)
    firsts_L = np.cumsum([0, *table.level_sizes[:-1]])
    sums_KD = mean_D.new_zeros(size, len(mean_D))
    counts_K = mean_D.new_zeros(size)
    for start in range(0, len(words.ids_M), _BLOCK_TOKENS):
        block = slice(start, start + _BLOCK_TOKENS)
        vectors_MD = base_VD[_long(words.ids_M[block], base_VD)].float()
        for codes_M in (table.codes_NL[words.items_M[block]] + firsts_L).T:
            index_M = _long(codes_M, base_VD)
            sums_KD.index_add_(0, index_M, vectors_MD)
            counts_K.index_add_(0, index_M, torch.ones_like(vectors_MD[:, 0]))
    means_KD = sums_KD / counts_K.clamp_min(1)[:, None]
    return torch.where(counts_K[:, None] > 0, means_KD, mean_D)


def _long(values: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(like.device)
