"""Counts of the fitting fold added to a backbone's scores: transitions, co-occurrence, popularity.

    final = z(model) + a_t * transition + a_i * itemCF + a_p * log(1 + events)

z is the model's scores of a user with mean 0 and deviation 1, so that a weight means the same at any temperature.
Transition and itemCF are means over the user's last `recent_k` items of each one's table row. Source: the prior branch
of VirtualMLE's search space. Everything is counted on the fitting fold alone: a target never enters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from recllm.backbones.base import Backbone, uses_time
from recllm.backbones.ranks import best_items
from recllm.data.interactions import Sequences

NORMS = ("sqrt", "count", "none")
FILE = "priors.safetensors"
_PARTS = ("data", "indices", "indptr")


@dataclass(frozen=True)
class PriorOptions:
    """What is counted and how much it weighs.

    Args:
        transition, item_cf, popularity: the weights a_t, a_i and a_p; 0 leaves a part out.
        norm: a pair's count over the root of both items' events (`sqrt`, a cosine), over the first item's (`count`, a
            probability), or as it is (`none`).
        recent_k: last items of a history whose rows are averaged.
        topk: strongest neighbours that each item keeps, ties to the lower id; 0 keeps all.
        window: how many events apart two events may be and still make a pair. A transition from one to the other at
            distance d counts 1 / d, an itemCF pair 1 in both directions.
        rerank: only so many of the model's best items take part, and stay before all others; 0 is the catalogue.

    Raises:
        ValueError: an unknown norm, or a number out of range.
    """

    transition: float = 0.0
    item_cf: float = 0.0
    popularity: float = 0.0
    norm: str = "sqrt"
    recent_k: int = 5
    topk: int = 100
    window: int = 5
    rerank: int = 0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"prior norm {self.norm!r} is unknown; choose one of {', '.join(NORMS)}")
        for name, least in (("recent_k", 1), ("window", 1), ("topk", 0), ("rerank", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"prior {name} must be at least {least}, got {getattr(self, name)}")

    @property
    def active(self) -> bool:
        """Whether any part has a weight."""
        return any((self.transition, self.item_cf, self.popularity))


@dataclass(frozen=True)
class Priors:
    """The tables: `transition_NN` and `item_cf_NN` float32 CSR, row the item in the history; `log_popularity_N`."""

    options: PriorOptions
    transition_NN: sp.csr_matrix
    item_cf_NN: sp.csr_matrix
    log_popularity_N: np.ndarray

    @classmethod
    def from_fitting_fold(cls, fold: Sequences, items: int, options: PriorOptions) -> Priors:
        """Count on `split.fitting`, which holds nothing that is ever a target."""
        events_N = np.bincount(fold.items_M, minlength=items)
        directed_NN, together_NN = pairs(fold, items, options.window)
        scaled = (normed(pairs_NN, events_N, options.norm) for pairs_NN in (directed_NN, together_NN))
        kept = (strongest(pairs_NN, options.topk) for pairs_NN in scaled)
        return cls(options, *kept, np.log1p(events_N).astype(np.float32))

    def of(self, history_BT: np.ndarray) -> np.ndarray:
        """What is added to the scores, `BN` float32, for left-aligned histories of item id + 1 (0 is padding)."""
        options, items = self.options, len(self.log_popularity_N)
        length_B1 = (history_BT > 0).sum(1, keepdims=True)
        column_T = np.arange(history_BT.shape[1])
        recent_BT = (column_T < length_B1) & (column_T >= length_B1 - options.recent_k)
        row_P, _ = np.nonzero(recent_BT)
        share_P = (1.0 / np.maximum(recent_BT.sum(1), 1))[row_P].astype(np.float32)
        recent_BN = sp.csr_matrix((share_P, (row_P, history_BT[recent_BT] - 1)), shape=(len(history_BT), items))
        added_BN = np.tile(np.float32(options.popularity) * self.log_popularity_N, (len(history_BT), 1))
        for weight, pairs_NN in ((options.transition, self.transition_NN), (options.item_cf, self.item_cf_NN)):
            if weight:
                found_BN = (recent_BN @ pairs_NN).tocoo()
                added_BN[found_BN.row, found_BN.col] += np.float32(weight) * found_BN.data
        return added_BN

    def save(self, folder: str | Path) -> None:
        """Write priors.safetensors, the options in its header."""
        arrays = {"log_popularity_N": self.log_popularity_N}
        for name in ("transition_NN", "item_cf_NN"):
            arrays |= sparse_arrays(name, getattr(self, name))
        save_file(arrays, Path(folder) / FILE, metadata={"options": json.dumps(asdict(self.options))})

    @classmethod
    def load(cls, folder: str | Path) -> Priors:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder has no priors.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; train with a prior weight that is not 0")
        with safe_open(path, framework="numpy") as stored:
            options = PriorOptions(**json.loads(stored.metadata()["options"]))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        items = len(arrays["log_popularity_N"])
        tables = (sparse_table(name, arrays, (items, items)) for name in ("transition_NN", "item_cf_NN"))
        return cls(options, *tables, arrays["log_popularity_N"])


def sparse_arrays(name: str, table: sp.csr_matrix) -> dict[str, np.ndarray]:
    """The arrays that a CSR table is saved as, `name` before each."""
    return {f"{name}.{part}": getattr(table, part) for part in _PARTS}


def sparse_table(name: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> sp.csr_matrix:
    """The CSR table that `sparse_arrays` took apart."""
    return sp.csr_matrix(tuple(arrays[f"{name}.{part}"] for part in _PARTS), shape)


class WithPriors(torch.nn.Module):
    """A backbone whose scores are the model's, standardised for each user, plus the priors. Not trained."""

    def __init__(self, model: Backbone, priors: Priors):
        super().__init__()
        self.model, self.priors = model, priors
        self.max_len, self.num_items, self.uses_time = model.max_len, model.num_items, uses_time(model)

    @torch.no_grad()
    def score(self, history_BT: torch.Tensor, time_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of every item, `scores_BN`, as `Backbone.score`."""
        given = (history_BT,) if time_BT is None else (history_BT, time_BT)
        scores_BN = self.model.score(*given).float()
        added_BN = torch.from_numpy(self.priors.of(history_BT.cpu().numpy())).to(scores_BN.device)
        spread_B1 = scores_BN.std(1, correction=0, keepdim=True).clamp(min=1e-9)
        standard_BN = (scores_BN - scores_BN.mean(1, keepdim=True)) / spread_B1
        count = self.priors.options.rerank
        if not 0 < count < standard_BN.shape[1]:
            return standard_BN + added_BN
        chosen_BK = best_items(standard_BN, count)[1]
        final_BK = standard_BN.gather(1, chosen_BK) + added_BN.gather(1, chosen_BK)
        # The others move down together, so that no weight, a negative one either, lets one of them in.
        rest_B1 = standard_BN.scatter(1, chosen_BK, float("-inf")).amax(1, keepdim=True)
        down_B1 = (rest_B1 - final_BK.amin(1, keepdim=True)).clamp(min=0) + 1.0
        return (standard_BN - down_B1).scatter(1, chosen_BK, final_BK)

    def flops(self, history_length: int) -> int:
        """The model's cost, a multiply and an add for each of its scores, and the table rows that are added up."""
        options = self.priors.options
        rows = min(max(history_length, 1), options.recent_k)
        tables = [self.priors.transition_NN] * bool(options.transition) + [self.priors.item_cf_NN] * bool(
            options.item_cf
        )
        neighbours = sum(table.nnz for table in tables) // self.num_items
        return self.model.flops(history_length) + 4 * self.num_items + 2 * rows * neighbours


def pairs(fold: Sequences, items: int, window: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Counts of ordered pairs, weighted 1 / distance, and of pairs in both directions; no item pairs with itself."""
    user_M = fold.user_M
    directed_NN = sp.csr_matrix((items, items), dtype=np.float32)
    together_NN = sp.csr_matrix((items, items), dtype=np.float32)
    for distance in range(1, min(window, int(fold.lengths_U.max(initial=1)) - 1) + 1):
        kept_P = (user_M[:-distance] == user_M[distance:]) & (fold.items_M[:-distance] != fold.items_M[distance:])
        pair_2P = fold.items_M[:-distance][kept_P], fold.items_M[distance:][kept_P]
        ones_NN = sp.csr_matrix((np.ones(len(pair_2P[0]), dtype=np.float32), pair_2P), shape=(items, items))
        directed_NN = directed_NN + ones_NN / np.float32(distance)
        together_NN = together_NN + ones_NN
    return directed_NN, (together_NN + together_NN.T).tocsr()


def normed(pairs_NN: sp.csr_matrix, events_N: np.ndarray, norm: str) -> sp.csr_matrix:
    """The counts over what `PriorOptions.norm` says, float32."""
    if norm == "none":
        return pairs_NN
    share_N = (1.0 / np.maximum(events_N, 1)).astype(np.float32)
    if norm == "count":
        return (sp.diags(share_N) @ pairs_NN).tocsr()
    root_NN = sp.diags(np.sqrt(share_N))
    return (root_NN @ pairs_NN @ root_NN).tocsr()


def strongest(pairs_NN: sp.csr_matrix, topk: int) -> sp.csr_matrix:
    """Each row's `topk` largest entries, float32 and sorted by column, ties to the lower id; 0 keeps all."""
    pairs_NN = pairs_NN.astype(np.float32)
    pairs_NN.sort_indices()
    if not topk:
        return pairs_NN
    kept_P = np.ones(pairs_NN.nnz, dtype=bool)
    for row in np.flatnonzero(np.diff(pairs_NN.indptr) > topk):
        first, last = pairs_NN.indptr[row : row + 2]
        kept_P[first + np.argsort(-pairs_NN.data[first:last], kind="stable")[topk:]] = False
    indptr_N1 = np.append(0, np.cumsum(kept_P))[pairs_NN.indptr]
    return sp.csr_matrix((pairs_NN.data[kept_P], pairs_NN.indices[kept_P], indptr_N1), shape=pairs_NN.shape)
