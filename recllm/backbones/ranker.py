"""Fitting and using a ranker over a retriever's list: candidates, dense features, the training set of half A."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from recllm.backbones.din import DIN
from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples, RolesSplit

# Items of the history that a pair feature looks at: the last one, the last few, and so on.
_WINDOWS = (1, 3, 10, 50)
# Score, log rank, log popularity, popularity shift, category overlap; co-occurrence and transition for each window.
NUM_FEATURES = 5 + 2 * len(_WINDOWS)
_RECENT = 10
_TRANSITION_REACH = 5
# Transitions of rare items are shrunk towards zero as if these had been seen going nowhere.
_TRANSITION_PRIOR = 20.0


@dataclass(frozen=True)
class CandidateFeatures:
    """Dense features of (history, candidate) pairs, counted on the fitting fold only.

    `log_popularity_N` is log(1 + events), `category_NC` holds L2-normalised multi-hot rows, `cooccurrence_NN` the
    cosine of two items' user sets, `transition_NN` how often the second followed the first within five events, each
    counted as one over the distance.
    """

    log_popularity_N: np.ndarray
    category_NC: sp.csr_matrix
    cooccurrence_NN: sp.csr_matrix
    transition_NN: sp.csr_matrix

    @classmethod
    def from_fitting_fold(cls, split: RolesSplit, catalog: Catalog) -> CandidateFeatures:
        fold, items = split.fitting, len(catalog)
        popularity_N = np.bincount(fold.items_M, minlength=items)
        return cls(np.log1p(popularity_N), _categories(catalog), _cooccurrence(fold, items), _transitions(fold, items))

    def of(self, examples: Examples, items_EM: np.ndarray, scores_EM: np.ndarray) -> np.ndarray:
        """Features `EMF` (float32) of each example's candidates, given in retriever order with its scores."""
        recent_EN = self._recent(examples, _RECENT)
        usual_E1 = np.asarray(recent_EN @ self.log_popularity_N)[:, None]
        spread_E1 = scores_EM.std(1, keepdims=True) + 1e-6
        columns = [
            (scores_EM - scores_EM.mean(1, keepdims=True)) / spread_E1,
            np.log1p(np.broadcast_to(np.arange(items_EM.shape[1]), items_EM.shape)),
            self.log_popularity_N[items_EM],
            self.log_popularity_N[items_EM] - usual_E1,
            _at((recent_EN @ self.category_NC) @ self.category_NC.T, items_EM),
        ]
        for window in _WINDOWS:
            recent_EN = self._recent(examples, window)
            columns += [_at(recent_EN @ pairs_NN, items_EM) for pairs_NN in (self.cooccurrence_NN, self.transition_NN)]
        return np.stack(columns, axis=-1).astype(np.float32)

    def _recent(self, examples: Examples, window: int) -> sp.csr_matrix:
        history_ET = examples.padded_histories(window)
        row_M, _ = np.nonzero(history_ET)
        share_E = 1.0 / np.maximum((history_ET > 0).sum(1), 1)
        shape = (len(examples), len(self.log_popularity_N))
        return sp.csr_matrix((share_E[row_M].astype(np.float32), (row_M, history_ET[history_ET > 0] - 1)), shape=shape)


def _at(values_EN: sp.csr_matrix, items_EM: np.ndarray) -> np.ndarray:
    rows_EM = np.broadcast_to(np.arange(len(items_EM))[:, None], items_EM.shape)
    return np.asarray(values_EN[rows_EM.ravel(), items_EM.ravel()]).reshape(items_EM.shape)


def _categories(catalog: Catalog) -> sp.csr_matrix:
    names = sorted({name for row in catalog.categories for name in row})
    place = {name: column for column, name in enumerate(names)}
    row_M = np.repeat(np.arange(len(catalog)), [len(row) for row in catalog.categories])
    column_M = np.array([place[name] for row in catalog.categories for name in row], dtype=np.int64)
    weight_M = np.array([len(row) ** -0.5 for row in catalog.categories for _ in row], dtype=np.float32)
    return sp.csr_matrix((weight_M, (row_M, column_M)), shape=(len(catalog), max(len(names), 1)))


def _cooccurrence(fold: Sequences, items: int) -> sp.csr_matrix:
    user_M = np.repeat(np.arange(len(fold)), np.diff(fold.offsets_U1))
    ones_M = np.ones(len(fold.items_M), dtype=np.float32)
    seen_UN = sp.csr_matrix((ones_M, (user_M, fold.items_M)), shape=(len(fold), items))
    seen_UN.data[:] = 1.0
    scale_NN = sp.diags(1.0 / np.sqrt(np.maximum(np.asarray(seen_UN.sum(0)).ravel(), 1.0)))
    return (scale_NN @ (seen_UN.T @ seen_UN) @ scale_NN).tocsr()


def _transitions(fold: Sequences, items: int) -> sp.csr_matrix:
    user_M = np.repeat(np.arange(len(fold)), np.diff(fold.offsets_U1))
    counts_NN = sp.csr_matrix((items, items), dtype=np.float32)
    for distance in range(1, _TRANSITION_REACH + 1):
        same_M = user_M[:-distance] == user_M[distance:]
        first_M, second_M = fold.items_M[:-distance][same_M], fold.items_M[distance:][same_M]
        weight_M = np.full(len(first_M), 1.0 / distance, dtype=np.float32)
        counts_NN = counts_NN + sp.csr_matrix((weight_M, (first_M, second_M)), shape=(items, items))
    total_N = np.asarray(counts_NN.sum(1)).ravel() + _TRANSITION_PRIOR
    return (sp.diags((1.0 / total_N).astype(np.float32)) @ counts_NN).tocsr()


@dataclass(frozen=True)
class CandidateSet:
    """Candidate lists of some examples, ready for the ranker. `label_EM` marks the target (one a row, or none)."""

    history_ET: torch.Tensor
    items_EM: torch.Tensor
    feature_EMF: torch.Tensor
    label_EM: torch.Tensor

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
        """Shuffled batches of (history, candidate, feature, label); ids are item id + 1."""
        for rows in np.split(
            rng.permutation(len(self.items_EM)), np.arange(batch_size, len(self.items_EM), batch_size)
        ):
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
