"""Long histories behind a short window: which items of each first code a user had, and how alike they were.

A history is split into the last `short` events and the long part before them (GLASS, arXiv 2602.05663). For the long
part `LongHistory` answers "the latest n items whose sid begins with code c" in O(n), whatever the length, and keeps
the counts of SID-Tier. It is built in one vectorised pass and grows by `append`, amortised O(1) an event; what was
built lies in CSR rows by (user, code), and what was appended hangs on one chain a row, the newest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recllm.data.histories import Prefixes
from recllm.data.interactions import Sequences

# Room for appended events grows by an eighth: at most 9 bytes an event for item and link of 4 bytes each.
_GROWTH = 8
# Additions that are worked out at once, 8 bytes each.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Tiers:
    """The tier of each item's likeness to each first-level code: `tier_NK` uint8 (items, codes), `count` tiers."""

    tier_NK: np.ndarray
    count: int

    def histograms(self, items_F: np.ndarray, row_F: np.ndarray, rows: int) -> np.ndarray:
        """Items of each row counted by code and tier, int32 of shape (rows, codes, tiers)."""
        counts_BKT = np.zeros((rows, self.tier_NK.shape[1], self.count), dtype=np.int32)
        self.add(counts_BKT, items_F, row_F)
        return counts_BKT

    def add(self, counts_BKT: np.ndarray, items_F: np.ndarray, row_F: np.ndarray) -> None:
        """Count items in place, one addition a code and item; fastest where rows rise."""
        codes, cells = self.tier_NK.shape[1], self.tier_NK.shape[1] * self.count
        slot_K = np.arange(codes) * self.count
        step = max(1, _CHUNK // codes)
        for begin in range(0, len(items_F), step):
            row_P = row_F[begin : begin + step]
            first, last = int(row_P.min()), int(row_P.max()) + 1
            place_PK = self.tier_NK[items_F[begin : begin + step]] + ((row_P - first) * cells)[:, None] + slot_K
            found = np.bincount(place_PK.reshape(-1), minlength=(last - first) * cells)
            counts_BKT[first:last] += found.reshape(last - first, codes, self.count).astype(counts_BKT.dtype)


class LongHistory:
    """Histories of U users with their long parts by first code.

    Args:
        histories: the U histories to start from (`Prefixes`; empty ones are fine).
        code_N: first code of each item, integers in 0..codes-1.
        codes: number of first-level codes.
        short: events of the short window.
        tiers: keeps SID-Tier counts where given.

    Raises:
        ValueError: a code outside 0..codes-1, or `short` below 1.
    """

    def __init__(
        self, histories: Prefixes, code_N: np.ndarray, codes: int, short: int = 50, tiers: Tiers | None = None
    ):
        if short < 1:
            raise ValueError(f"short must be at least 1, got {short}")
        if len(code_N) and not 0 <= int(np.min(code_N)) <= int(np.max(code_N)) < codes:
            raise ValueError(f"first codes must lie in 0 to {codes - 1}, got {np.min(code_N)} to {np.max(code_N)}")
        self.code_N = np.ascontiguousarray(code_N, dtype=np.int32)
        self.codes, self.short, self.users, self.tiers = codes, short, len(histories), tiers
        recent = histories.last(short)
        self._ring_US = recent.padded().astype(np.int32) - 1
        missing = short - self._ring_US.shape[1]
        self._ring_US = np.pad(self._ring_US[:, :short], ((0, 0), (0, max(missing, 0))), constant_values=-1)
        # The ring's oldest event is at `_first_U` once it is full.
        self._first_U = np.zeros(self.users, dtype=np.int32)
        self._held_U = recent.length_B.astype(np.int32)
        items_F, row_F = histories.before_last(short).flat()
        self._index(items_F, row_F)
        self.counts_UKT = None if tiers is None else tiers.histograms(items_F, row_F, self.users)

    @classmethod
    def of_sequences(cls, sequences: Sequences, code_N: np.ndarray, codes: int, **options) -> LongHistory:
        """From the whole sequences of every user."""
        users_U = sequences.user_ids_U.astype(np.int64)
        whole = Prefixes(sequences.items_M, sequences.offsets_U1[:-1], sequences.lengths_U, users_U)
        return cls(whole, code_N, codes, **options)

    def _index(self, items_F: np.ndarray, row_F: np.ndarray) -> None:
        """CSR rows of the long events, given in order of time within each user, and empty chains."""
        slot_F = row_F * self.codes + self.code_N[items_F]
        # A stable sort by (user, code) keeps time within each row.
        self._items_F = items_F[np.argsort(slot_F, kind="stable")].astype(np.int32)
        ends_S = np.cumsum(np.bincount(slot_F, minlength=self.users * self.codes))
        self._offsets_S1 = np.append(0, ends_S).astype(np.int64)
        self._head_S = np.full(self.users * self.codes, -1, dtype=np.int32)
        self._log_item, self._log_before = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        self._logged = 0

    def append(self, user: int, item: int) -> None:
        """A new event of a user; the event that leaves the short window for it joins the long part.

        Raises:
            IndexError: an unknown user or item.
        """
        if not (0 <= user < self.users and 0 <= item < len(self.code_N)):
            raise IndexError(f"user {user} or item {item} is unknown: {self.users} users, {len(self.code_N)} items")
        if self._held_U[user] < self.short:
            self._ring_US[user, self._held_U[user]] = item
            self._held_U[user] += 1
            return
        place = self._first_U[user]
        leaving = int(self._ring_US[user, place])
        self._ring_US[user, place] = item
        self._first_U[user] = (place + 1) % self.short
        self._lengthen(user, leaving)

    def _lengthen(self, user: int, item: int) -> None:
        if self._logged == len(self._log_item):
            room = self._logged + self._logged // _GROWTH + 16
            self._log_item, self._log_before = (
                np.concatenate([log, np.empty(room - self._logged, dtype=np.int32)])
                for log in (self._log_item, self._log_before)
            )
        slot = user * self.codes + int(self.code_N[item])
        self._log_item[self._logged], self._log_before[self._logged] = item, self._head_S[slot]
        self._head_S[slot] = self._logged
        self._logged += 1
        if self.counts_UKT is not None:
            self.counts_UKT[user, np.arange(self.codes), self.tiers.tier_NK[item]] += 1

    def recent(self, user: int) -> np.ndarray:
        """The short window of a user, oldest first, int32."""
        held, first = int(self._held_U[user]), int(self._first_U[user])
        return np.roll(self._ring_US[user, :held], -first if held == self.short else 0)

    def latest(self, user_Q: np.ndarray, code_Q: np.ndarray, n: int) -> np.ndarray:
        """The latest n long-part items of each (user, first code), newest first: int64 (Q, n), -1 fills.

        O(n) a question: a chain of at most n links, and one slice of a row.
        """
        slot_Q = np.asarray(user_Q, dtype=np.int64) * self.codes + np.asarray(code_Q, dtype=np.int64)
        items_Qn = np.full((len(slot_Q), n), -1, dtype=np.int64)
        link_Q, linked_Q = self._head_S[slot_Q].astype(np.int64), np.zeros(len(slot_Q), dtype=np.int64)
        for place in range(n):
            alive_Q = np.flatnonzero(link_Q >= 0)
            if not len(alive_Q):
                break
            items_Qn[alive_Q, place] = self._log_item[link_Q[alive_Q]]
            linked_Q[alive_Q] += 1
            link_Q[alive_Q] = self._log_before[link_Q[alive_Q]]
        begin_Q, end_Q = self._offsets_S1[slot_Q], self._offsets_S1[slot_Q + 1]
        back_Qn = np.arange(n)[None] - linked_Q[:, None]
        place_Qn = end_Q[:, None] - 1 - back_Qn
        inside_Qn = (back_Qn >= 0) & (place_Qn >= begin_Q[:, None])
        items_Qn[inside_Qn] = self._items_F[place_Qn[inside_Qn]]
        return items_Qn

    @property
    def event_bytes(self) -> int:
        """Bytes that grow with the long part: items, links and the room kept for more of them."""
        return self._items_F.nbytes + self._log_item.nbytes + self._log_before.nbytes

    @property
    def user_bytes(self) -> int:
        """Bytes that users cost whatever their length: windows, row bounds, chain heads, counts."""
        counts = 0 if self.counts_UKT is None else self.counts_UKT.nbytes
        fixed = (self._ring_US, self._first_U, self._held_U, self._offsets_S1, self._head_S)
        return counts + sum(part.nbytes for part in fixed)

    def __len__(self) -> int:
        """Events in all long parts."""
        return len(self._items_F) + self._logged


@dataclass(frozen=True)
class HardSearch:
    """Semantic hard search: the latest `n` long-part items of a first code, filled up from its nearest codes.

    `neighbour_KJ` (codes, k) names the codes nearest to each, the nearest first; where fewer than `threshold` items of
    the code itself are found, the latest of those neighbours follow until there are n. k = 0 or a threshold of 0
    leaves neighbours out. Both ways below give the same items in the same order.

    Raises:
        ValueError: a threshold above n, which would call a full list too short.
    """

    code_N: np.ndarray
    n: int
    neighbour_KJ: np.ndarray
    threshold: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= self.n:
            raise ValueError(f"threshold must lie between 0 and the {self.n} items looked for, got {self.threshold}")

    def ask(self, index: LongHistory, user_Q: np.ndarray, code_Q: np.ndarray) -> np.ndarray:
        """Items (Q, n) of each (user, code) from the index, -1 fills."""
        own_Qn = index.latest(user_Q, code_Q, self.n)
        few_Q = np.flatnonzero((own_Qn >= 0).sum(1) < self.threshold)
        if not len(few_Q) or not self.neighbour_KJ.shape[1]:
            return own_Qn
        near_QJ = self.neighbour_KJ[code_Q[few_Q]]
        asked = index.latest(np.repeat(user_Q[few_Q], near_QJ.shape[1]), near_QJ.reshape(-1), self.n)
        wide_Qm = np.concatenate([own_Qn[few_Q], asked.reshape(len(few_Q), -1)], axis=1)
        order_Qm = np.argsort(wide_Qm < 0, axis=1, kind="stable")[:, : self.n]
        own_Qn[few_Q] = np.take_along_axis(wide_Qm, order_Qm, axis=1)
        return own_Qn

    def scan(self, long: Prefixes, code_B: np.ndarray) -> np.ndarray:
        """Items (B, n) for one code a history, read from the long parts themselves: what a training batch needs."""
        items_F, row_F = long.flat()
        codes = len(self.neighbour_KJ)
        # 0 is the code itself, j its j-th neighbour, and what is further off does not count.
        far = self.neighbour_KJ.shape[1] + 1
        order_KK = np.full((codes, codes), far, dtype=np.int64)
        np.put_along_axis(order_KK, self.neighbour_KJ, np.arange(1, far)[None], axis=1)
        np.fill_diagonal(order_KK, 0)
        near_F = order_KK[code_B[row_F], self.code_N[items_F]]
        own_B = np.minimum(np.bincount(row_F[near_F == 0], minlength=len(long)), self.n)
        kept_F = np.flatnonzero((near_F < far) & ((near_F == 0) | (own_B < self.threshold)[row_F]))
        kept_F = kept_F[np.lexsort((-kept_F, near_F[kept_F], row_F[kept_F]))]
        row_G = row_F[kept_F]
        place_G = np.arange(len(row_G)) - np.searchsorted(row_G, row_G)
        items_Bn = np.full((len(long), self.n), -1, dtype=np.int64)
        inside_G = place_G < self.n
        items_Bn[row_G[inside_G], place_G[inside_G]] = items_F[kept_F[inside_G]]
        return items_Bn
