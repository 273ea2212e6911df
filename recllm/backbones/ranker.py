"""Fitting and using a ranker over a retriever's list: candidates, dense features, the training set of half A."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from recllm.backbones.din import DIN
from recllm.data.catalog import Catalog
from recllm.data.splits import Examples, RolesSplit

# Retriever score, log rank, log popularity, category overlap, co-occurrence with the recent items.
NUM_FEATURES = 5
_RECENT = 10


@dataclass(frozen=True)
class CandidateFeatures:
    """Dense features of (history, candidate) pairs, counted on the fitting fold only.

    `log_popularity_N` is log(1 + events), `category_NC` holds L2-normalised multi-hot rows, `cooccurrence_NN` the
    cosine of two items' user sets.
    """

    log_popularity_N: np.ndarray
    category_NC: sp.csr_matrix
    cooccurrence_NN: sp.csr_matrix

    @classmethod
    def from_fitting_fold(cls, split: RolesSplit, catalog: Catalog) -> CandidateFeatures:
        fold, items = split.fitting, len(catalog)
        user_M = np.repeat(np.arange(len(fold)), np.diff(fold.offsets_U1))
        ones_M = np.ones(len(fold.items_M), dtype=np.float32)
        bought_UN = sp.csr_matrix((ones_M, (user_M, fold.items_M)), shape=(len(fold), items))
        bought_UN.data[:] = 1.0
        scale = sp.diags(1.0 / np.sqrt(np.maximum(np.asarray(bought_UN.sum(0)).ravel(), 1.0)))
        names = sorted({name for row in catalog.categories for name in row})
        place = {name: column for column, name in enumerate(names)}
        row_M = np.repeat(np.arange(items), [len(row) for row in catalog.categories])
        column_M = np.array([place[name] for row in catalog.categories for name in row], dtype=np.int64)
        weight_M = np.array([len(row) ** -0.5 for row in catalog.categories for _ in row], dtype=np.float32)
        category_NC = sp.csr_matrix((weight_M, (row_M, column_M)), shape=(items, max(len(names), 1)))
        popularity_N = np.bincount(fold.items_M, minlength=items)
        return cls(np.log1p(popularity_N), category_NC, (scale @ (bought_UN.T @ bought_UN) @ scale).tocsr())

    def of(self, examples: Examples, items_EM: np.ndarray, scores_EM: np.ndarray) -> np.ndarray:
        """Features `EMF` (float32) of each example's candidates, given in retriever order with its scores."""
        recent_EN = self._recent(examples)
        row_EM = np.arange(len(examples))[:, None]
        spread_E1 = scores_EM.std(1, keepdims=True) + 1e-6
        overlap_EN = (recent_EN @ self.category_NC) @ self.category_NC.T
        together_EN = recent_EN @ self.cooccurrence_NN
        return np.stack(
            [
                (scores_EM - scores_EM.mean(1, keepdims=True)) / spread_E1,
                np.log1p(np.broadcast_to(np.arange(items_EM.shape[1]), items_EM.shape)),
                self.log_popularity_N[items_EM],
                np.asarray(overlap_EN[row_EM, items_EM].todense()).reshape(items_EM.shape),
                np.asarray(together_EN[row_EM, items_EM].todense()).reshape(items_EM.shape),
            ],
            axis=-1,
        ).astype(np.float32)

    def _recent(self, examples: Examples) -> sp.csr_matrix:
        history_ET = examples.padded_histories(_RECENT)
        row_M, _ = np.nonzero(history_ET)
        share_E = 1.0 / np.maximum((history_ET > 0).sum(1), 1)
        shape = (len(examples), len(self.log_popularity_N))
        return sp.csr_matrix((share_E[row_M].astype(np.float32), (row_M, history_ET[history_ET > 0] - 1)), shape=shape)


@dataclass(frozen=True)
class CandidateSet:
    """Candidate lists of some examples, ready for the ranker. `label_EM` marks the target (one a row, or none)."""

    history_ET: torch.Tensor
    items_EM: torch.Tensor
    feature_EMF: torch.Tensor
    label_EM: torch.Tensor

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
        """Shuffled batches of (history, candidate, feature, label); ids are item id + 1."""
        for rows in np.split(rng.permutation(len(self.items_EM)), np.arange(batch_size, len(self.items_EM), batch_size)):
            yield self.history_ET[rows], self.items_EM[rows] + 1, self.feature_EMF[rows], self.label_EM[rows]


def candidate_set(
    examples: Examples,
    items_EM: np.ndarray,
    scores_EM: np.ndarray,
    features: CandidateFeatures,
    max_len: int,
    inject_target: bool,
) -> CandidateSet:
    """Candidates from a retriever's list; with `inject_target` an absent target replaces the last candidate.

    Injection is for training alone: a ranker is never graded on a list that was told the answer. The injected target
    takes the replaced candidate's score, so its features do not give it away.
    """
    label_EM = items_EM == examples.targets_E[:, None]
    if inject_target:
        items_EM, missing_E = items_EM.copy(), ~label_EM.any(1)
        items_EM[missing_E, -1] = examples.targets_E[missing_E]
        label_EM = items_EM == examples.targets_E[:, None]
    feature_EMF = features.of(examples, items_EM, scores_EM)
    return CandidateSet(
        torch.from_numpy(examples.padded_histories(max_len)),
        torch.from_numpy(items_EM.astype(np.int64)),
        torch.from_numpy(feature_EMF),
        torch.from_numpy(label_EM),
    )


@torch.no_grad()
def rerank(model: DIN, candidates: CandidateSet, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Candidates re-ordered by the ranker: `items_EM` int32 and logits `scores_EM`, best first, ties in list order."""
    device = next(model.parameters()).device
    items, scores = [], []
    for begin in range(0, len(candidates.items_EM), batch_size):
        part = slice(begin, begin + batch_size)
        inputs = (candidates.history_ET[part], candidates.items_EM[part] + 1, candidates.feature_EMF[part])
        logit_BM = model(*(tensor.to(device) for tensor in inputs)).cpu()
        order_BM = torch.argsort(logit_BM, dim=1, descending=True, stable=True)
        items.append(candidates.items_EM[part].gather(1, order_BM))
        scores.append(logit_BM.gather(1, order_BM))
    return torch.cat(items).int().numpy(), torch.cat(scores).numpy()
