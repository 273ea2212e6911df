"""Which items go together, counted on the fitting fold: Swing, ItemCF and item-to-item transitions.

U_i are the users who have item i, I_u the items of user u; a repeated item counts once in both.

    Swing, `pair`   s(i, j) = sum over pairs {u, v} in U_i n U_j of w_u w_v / (alpha + |I_u n I_v|), w_u = |I_u|^-1/2
    Swing, `user`   s(i, j) = sum over u in U_i n U_j of 1 / (alpha + |I_u|)
    ItemCF          s(i, j) = |U_i n U_j| / (|U_i| |U_j|)^1/2
    transition      s(i, j) = share of i's events that are directly followed by j

`pair` is Swing as published (Yang et al. 2020, arXiv 2010.05525, section 3): two users who share little else say more.
A pair of users counts once here. Sums over ordered pairs are twice as large, and rank alike. Other code weighs a user
by (|I_u| + a)^-b, leaves the weight out, or drops users with few or many items. `user` is TwiSTAR's simplified form,
for pairs with at least `min_common_users`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from recllm.backbones.priors import normed, pairs, sparse_arrays, sparse_table, strongest
from recllm.data.interactions import Sequences

RELATIONS = ("swing", "item_cf", "transition")
FORMS = ("pair", "user")
TABLES = ("swing_NN", "item_cf_NN", "transition_NN", "users_NU")
FILE = "cooccurrence.safetensors"
# Numbers held at once by a step, 32 MB of float64. Results do not depend on it beyond the last bit.
BLOCK = 1 << 22
# Largest square of sums kept dense, 256 MB: scattering into it is five times faster than merging sparse tables.
DENSE = 1 << 25


@dataclass(frozen=True)
class CooccurrenceOptions:
    """How items are counted together.

    Args:
        topk: strongest neighbours that each item keeps in each table, ties to the lower id; 0 keeps all.
        swing: the form of Swing, `pair` or `user`; see the module.
        alpha: what Swing adds to a number of items, at least 0; the larger, the less small overlaps stand out.
        min_common_users: fewest users that a pair shares under `user`. Under `pair` it takes two by construction.

    Raises:
        ValueError: an unknown form, or a number out of range.
    """

    topk: int = 50
    swing: Literal["pair", "user"] = "pair"
    alpha: float = 1.0
    min_common_users: int = 2

    def __post_init__(self) -> None:
        if self.swing not in FORMS:
            raise ValueError(f"swing form {self.swing!r} is unknown; choose one of {', '.join(FORMS)}")
        for name, least in (("topk", 0), ("alpha", 0), ("min_common_users", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Cooccurrence:
    """The tables: float32 CSR `NN` with an empty diagonal, row the item asked about, sorted by column.

    `users_NU` (float32 CSR of ones) has the users of each item, rows of the fitting fold.
    """

    options: CooccurrenceOptions
    swing_NN: sp.csr_matrix
    item_cf_NN: sp.csr_matrix
    transition_NN: sp.csr_matrix
    users_NU: sp.csr_matrix

    @classmethod
    def from_fitting_fold(cls, fold: Sequences, items: int, options: CooccurrenceOptions) -> Cooccurrence:
        """Count on `split.fitting`, which holds nothing that is ever a target; `items` is the catalogue's size.

        Raises:
            ValueError: the fold has an item outside the catalogue.
        """
        owned_UN = item_sets(fold, items)
        tables = swing(owned_UN, options), item_cf(owned_UN, options.topk), transition(fold, items, options.topk)
        return cls(options, *tables, owned_UN.T.tocsr())

    def neighbours(self, item: int, relation: str = "swing", k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The at most `k` strongest neighbours of an item, best first, ties to the lower id.

        Returns:
            Item ids, int32, and scores, float32: of the same length, above 0, and empty where nothing goes with it.

        Raises:
            ValueError: an unknown relation, or an item outside the catalogue.
        """
        row_N = self._row(item, relation)
        best_K = np.argsort(-row_N.data, kind="stable")[:k]
        return row_N.indices[best_K], row_N.data[best_K]

    def links(self, item: int, other: int) -> dict[str, float]:
        """The relations that have `other` among the kept neighbours of `item`, each with its score.

        Not symmetric: a transition has a direction, and `item` may be too weak a neighbour for `other` to keep.

        Raises:
            ValueError: an item outside the catalogue.
        """
        scores = {relation: float(self._row(item, relation)[0, self._known(other)]) for relation in RELATIONS}
        return {relation: score for relation, score in scores.items() if score}

    def common_users(self, item: int, other: int) -> int:
        """How many users of the fitting fold have both items, whether they are neighbours or not."""
        sets = (self.users_NU[self._known(one)].indices for one in (item, other))
        return len(np.intersect1d(*sets, assume_unique=item != other))

    def _row(self, item: int, relation: str) -> sp.csr_matrix:
        if relation not in RELATIONS:
            raise ValueError(f"relation {relation!r} is unknown; choose one of {', '.join(RELATIONS)}")
        return getattr(self, f"{relation}_NN")[self._known(item)]

    def _known(self, item: int) -> int:
        if not 0 <= item < self.users_NU.shape[0]:
            raise ValueError(f"item {item} is not in the catalogue of {self.users_NU.shape[0]} items")
        return item

    def save(self, folder: str | Path) -> None:
        """Write cooccurrence.safetensors, the options and the number of users in its header."""
        arrays: dict[str, np.ndarray] = {}
        for name in TABLES:
            arrays |= sparse_arrays(name, getattr(self, name))
        header = {"options": json.dumps(asdict(self.options)), "users": str(self.users_NU.shape[1])}
        save_file(arrays, Path(folder) / FILE, metadata=header)

    @classmethod
    def load(cls, folder: str | Path) -> Cooccurrence:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder has no tables.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; count the tables on the fitting fold and save them there")
        with safe_open(path, framework="numpy") as stored:
            options = CooccurrenceOptions(**json.loads(stored.metadata()["options"]))
            users = int(stored.metadata()["users"])
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        items = len(arrays["users_NU.indptr"]) - 1
        width = {name: users if name == "users_NU" else items for name in TABLES}
        return cls(options, *(sparse_table(name, arrays, (items, width[name])) for name in TABLES))


def item_sets(fold: Sequences, items: int) -> sp.csr_matrix:
    """The items of each user as float32 CSR `UN` of ones, repeats counted once.

    Raises:
        ValueError: the fold has an item outside the catalogue.
    """
    if fold.items_M.max(initial=-1) >= items:
        raise ValueError(f"the fold has item {fold.items_M.max()}, the catalogue {items} items; pass its own catalogue")
    ones_M = np.ones(len(fold.items_M), np.float32)
    owned_UN = sp.csr_matrix((ones_M, (fold.user_M, fold.items_M)), shape=(len(fold), items))
    owned_UN.sum_duplicates()
    owned_UN.data[:] = 1.0
    return owned_UN


def swing(owned_UN: sp.csr_matrix, options: CooccurrenceOptions) -> sp.csr_matrix:
    """Swing of the users' item sets in the form that `options` names."""
    if options.swing == "pair":
        with threadpool_limits(1, user_api="blas"):  # on squares so small a second thread waits more than it works
            sums = _pair_sums(owned_UN, options.alpha)
        return _kept_by_row(sums.rows, owned_UN.shape[1], options.topk)
    users_NU = owned_UN.T.tocsr()
    share_UN = sp.diags(1.0 / (options.alpha + np.maximum(np.diff(owned_UN.indptr), 1))) @ owned_UN

    def rows(first: int, last: int) -> sp.csr_matrix:
        common_RN = users_NU[first:last] @ owned_UN
        return (users_NU[first:last] @ share_UN).multiply(common_RN >= options.min_common_users).tocsr()

    return _kept_by_row(rows, owned_UN.shape[1], options.topk)


def item_cf(owned_UN: sp.csr_matrix, topk: int) -> sp.csr_matrix:
    """Cosine of the items' sets of users, in (0, 1]."""
    users_NU = owned_UN.T.tocsr()
    count_N = np.diff(users_NU.indptr).astype(np.float64)

    def rows(first: int, last: int) -> sp.csr_matrix:
        common_RN = (users_NU[first:last] @ owned_UN).tocoo()
        # Divided once and from whole numbers, so that equal cosines come out equal.
        common_RN.data = common_RN.data / np.sqrt(count_N[common_RN.row + first] * count_N[common_RN.col])
        return common_RN.tocsr()

    return _kept_by_row(rows, owned_UN.shape[1], topk)


def transition(fold: Sequences, items: int, topk: int) -> sp.csr_matrix:
    """Share of the events of the row's item that the column's item directly follows, in (0, 1]."""
    followed_NN, _ = pairs(fold, items, 1)
    return strongest(normed(followed_NN, np.bincount(fold.items_M, minlength=items), "count"), topk)


def _kept_by_row(rows: Callable[[int, int], sp.csr_matrix], items: int, topk: int) -> sp.csr_matrix:
    """The strongest of each row but the item itself; `rows(first, last)` makes so many rows at a time."""
    step, kept = max(BLOCK // items, 1), []
    for first in range(0, items, step):
        found_RN = rows(first, min(first + step, items)).tocoo()
        other_P = found_RN.row + first != found_RN.col
        pair_2P = found_RN.row[other_P], found_RN.col[other_P]
        kept.append(strongest(sp.csr_matrix((found_RN.data[other_P], pair_2P), shape=found_RN.shape), topk))
    return sp.vstack(kept, format="csr")


def _pair_sums(owned_UN: sp.csr_matrix, alpha: float) -> _Sums:
    """Swing's sum over user pairs for all item pairs; the diagonal means nothing.

    Each user meets those who have more items. With x_v the 0/1 vector of v over the items of u, u adds the Gram matrix
    of the rows x_v (w_u w_v / (alpha + |x_v|))^1/2: a dense product as wide as the smaller set of each pair, and its
    row sums are the overlaps. Walking from large sets to small ones, few have met whoever has many items.
    """
    owned_UN = owned_UN[np.argsort(-np.diff(owned_UN.indptr), kind="stable")]
    users_NU, size_U = owned_UN.T.tocsr(), np.diff(owned_UN.indptr)
    weight_U, met_N = 1.0 / np.sqrt(np.maximum(size_U, 1)), np.zeros(owned_UN.shape[1], dtype=np.int64)
    sums, scratch_Q = _Sums(owned_UN.shape[1]), np.empty(max(BLOCK, len(met_N)) + len(met_N))
    # Whoever has one item shares no two with anybody.
    for user in range(int((size_U >= 2).sum())):
        items_I = owned_UN.indices[owned_UN.indptr[user] : owned_UN.indptr[user + 1]]
        # The users met so far are the first ones in each item's list.
        count_I = met_N[items_I]
        met_N[items_I] += 1
        entry_P = np.arange(count_I.sum()) + np.repeat(users_NU.indptr[items_I] - np.cumsum(count_I) + count_I, count_I)
        user_P = users_NU.indices[entry_P]
        common_V = np.bincount(user_P, minlength=user)
        chosen_C = np.flatnonzero(common_V >= 2)
        if len(chosen_C):
            root_C = np.sqrt(weight_U[user] * weight_U[chosen_C] / (alpha + common_V[chosen_C]))
            place_V, column_P = np.full(user, len(chosen_C)), np.repeat(np.arange(len(items_I)), count_I)
            place_V[chosen_C] = np.arange(len(chosen_C))
            sums.add(items_I, _gram(place_V[user_P], column_P, root_C, len(items_I), scratch_Q))
    return sums


def _gram(row_P: np.ndarray, column_P: np.ndarray, root_C: np.ndarray, width: int, scratch_Q: np.ndarray) -> np.ndarray:
    """`II`, the product with its transpose of the matrix that has `root_C[row_P[p]]` at each (column, row) p.

    Rows from `len(root_C)` on are left out; the others are taken so many at a time that a slice fits the scratch.
    """
    step, sums_II = max(BLOCK // width, 1), np.zeros((width, width))
    for first in range(0, len(root_C), step):
        root_S = np.append(root_C[first : first + step], 0.0)
        # A row before this slice wraps around to a large number: all others share the last row, which is dropped.
        at_P = np.minimum((row_P - first).view(np.uint64), len(root_S) - 1).view(np.int64)
        # One scratch for all: fresh pages cost more than the product.
        rows_SI = scratch_Q[: len(root_S) * width].reshape(-1, width)
        rows_SI.fill(0.0)
        rows_SI.reshape(-1)[at_P * width + column_P] = root_S[at_P]
        kept_SI = rows_SI[:-1]
        sums_II += kept_SI.T @ kept_SI  # numpy knows a product with its own transpose and does half the work
    return sums_II


class _Sums:
    """Adds up small squares of item pairs: densely where the catalogue allows, else in batches of a sparse table."""

    def __init__(self, items: int):
        self.items, self.count = items, 0
        self.dense_Q = np.zeros(items**2) if items**2 <= DENSE else None
        self.sparse_NN = sp.csr_matrix((items, items))
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, items_I: np.ndarray, sums_II: np.ndarray) -> None:
        key_Q = (items_I.astype(np.int64)[:, None] * self.items + items_I).ravel()
        if self.dense_Q is not None:
            np.add.at(self.dense_Q, key_Q, sums_II.ravel())
            return
        self.waiting.append((key_Q, sums_II.ravel()))
        self.count += len(key_Q)
        if self.count > BLOCK:
            self._merge()

    def _merge(self) -> None:
        key_Q, sum_Q = (np.concatenate(part) for part in zip(*self.waiting, strict=True))
        self.sparse_NN = self.sparse_NN + sp.csr_matrix((sum_Q, divmod(key_Q, self.items)), self.sparse_NN.shape)
        self.waiting, self.count = [], 0

    def rows(self, first: int, last: int) -> sp.csr_matrix:
        if self.dense_Q is not None:
            return sp.csr_matrix(self.dense_Q.reshape(self.items, -1)[first:last])
        if self.waiting:
            self._merge()
        return self.sparse_NN[first:last]
