"""The exact prefix trie of a catalogue's SIDs over token ids, as CSR tensors.

A trie is built from the catalogue, never from targets. Node 0 is the root; nodes are numbered level by level, within
a level by parent and token, so the children of a node lie side by side: edge e leads to node e + 1. A node stands for
one prefix. The same token id may occur at any position; what follows it depends on the whole prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from recllm.sid.table import SidTable
from recllm.sid.vocabulary import sid_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOT = 0


class Children(NamedTuple):
    """Children of B nodes, gathered: those of node b are the slice `offsets_B1[b]:offsets_B1[b + 1]` of the others."""

    tokens_F: torch.Tensor
    nodes_F: torch.Tensor
    offsets_B1: torch.Tensor


class Items(NamedTuple):
    """Items behind B nodes, gathered as `Children` are."""

    items_F: torch.Tensor
    offsets_B1: torch.Tensor


@dataclass(frozen=True, eq=False)
class SidTrie:
    """CSR arrays, all int64 on one device.

    offsets_V1: the edges of node v are `offsets_V1[v]:offsets_V1[v + 1]`. tokens_E: token id of each edge, rising
    within a node; edge e leads to node e + 1. items_V: the item whose sid ends at the node, or -1; of several items
    behind one sid the first. behind_V1, items_N: all of them, `items_N[behind_V1[v]:behind_V1[v + 1]]`. alphabet_A:
    every sid token id, rising, those that no item uses included. depth: tokens of the longest sid.
    """

    offsets_V1: torch.Tensor
    tokens_E: torch.Tensor
    items_V: torch.Tensor
    behind_V1: torch.Tensor
    items_N: torch.Tensor
    alphabet_A: torch.Tensor
    depth: int

    @classmethod
    def from_table(
        cls,
        table: SidTable,
        tokens: PreTrainedTokenizerBase | Sequence[np.ndarray],
        priority_N: np.ndarray | None = None,
    ) -> SidTrie:
        """The trie of all items of a table.

        `tokens` is the tokenizer that was extended with the table, or the token ids of each level's codes. Where the
        table lets items share a sid, those behind one sid stand in the order of falling `priority_N` (their
        popularity, say), equal ones and all without it in the order of their ids.

        Raises:
            ValueError: the tokenizer lacks a sid token, or the ids do not fit the table's levels.
        """
        levels = list(tokens) if isinstance(tokens, (list, tuple)) else sid_token_ids(tokens, table)
        if [len(ids) for ids in levels] != list(table.level_sizes):
            raise ValueError(
                f"token ids of {[len(ids) for ids in levels]} codes for levels of {list(table.level_sizes)}"
            )
        tokens_NL = np.stack([np.asarray(ids)[table.codes_NL[:, level]] for level, ids in enumerate(levels)], axis=1)
        return cls._build(tokens_NL.astype(np.int64), np.concatenate(levels), table.shared, priority_N)

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[np.ndarray], shared: bool = False, priority_N: np.ndarray | None = None
    ) -> SidTrie:
        """The trie of token id sequences, item i the i-th of them. Lengths may differ, one may begin another.

        With `shared` several items may have the same one; see `from_table` for their order.

        Raises:
            ValueError: no sequence, an empty one, a negative id, or, unless shared, two equal sequences (both items
                are named).
        """
        lengths_N = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        if len(lengths_N) == 0 or lengths_N.min() == 0:
            empty = "none" if len(lengths_N) == 0 else f"item {int(lengths_N.argmin())} has an empty one"
            raise ValueError(f"a trie needs token id sequences: {empty}")
        flat_M = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        if flat_M.min() < 0:
            raise ValueError(f"token ids must not be negative, got {int(flat_M.min())}")
        inside_NL = np.arange(lengths_N.max()) < lengths_N[:, None]
        tokens_NL = np.full(inside_NL.shape, -1, dtype=np.int64)
        tokens_NL[inside_NL] = flat_M
        return cls._build(tokens_NL, flat_M, shared, priority_N)

    @classmethod
    def _build(
        cls, tokens_NL: np.ndarray, alphabet: np.ndarray, shared: bool, priority_N: np.ndarray | None
    ) -> SidTrie:
        # One np.unique a level over (parent, token); -1 fills the rows of sids that are already complete.
        alphabet_A = np.unique(np.asarray(alphabet, dtype=np.int64))
        base = int(alphabet_A[-1]) + 1
        node_N = np.zeros(len(tokens_NL), dtype=np.int64)
        nodes = 1
        edges, parents = [], []
        for column_N in tokens_NL.T:
            alive_N = column_N >= 0
            keys, inverse = np.unique(node_N[alive_N] * base + column_N[alive_N], return_inverse=True)
            parents.append(keys // base)
            edges.append(keys % base)
            node_N[alive_N] = nodes + inverse
            nodes += len(keys)
        rank_N = np.zeros(len(node_N)) if priority_N is None else -np.asarray(priority_N, dtype=np.float64)
        items_N = np.lexsort((np.arange(len(node_N)), rank_N, node_N))
        twins = np.flatnonzero(np.diff(node_N[items_N]) == 0)
        if len(twins) and not shared:
            raise ValueError(f"items {items_N[twins[0]]} and {items_N[twins[0] + 1]} have the same token ids")
        behind_V1 = np.concatenate([[0], np.cumsum(np.bincount(node_N, minlength=nodes))])
        items_V = np.full(nodes, -1, dtype=np.int64)
        ended_V = np.diff(behind_V1) > 0
        items_V[ended_V] = items_N[behind_V1[:-1][ended_V]]
        counts_V = np.bincount(np.concatenate(parents), minlength=nodes)
        offsets_V1 = np.concatenate([[0], np.cumsum(counts_V)])
        arrays = offsets_V1, np.concatenate(edges), items_V, behind_V1, items_N, alphabet_A
        return cls(*(torch.from_numpy(array) for array in arrays), depth=tokens_NL.shape[1])

    @cached_property
    def path_NL(self) -> torch.Tensor:
        """The node that each item's sid passes at every level, -1 beyond its end: int64 (items, depth)."""
        nodes_V, at_N = torch.arange(self.nodes, device=self.device), torch.empty_like(self.items_N)
        # Edge e leads to node e + 1.
        parent_V = torch.cat([nodes_V[:1], torch.repeat_interleave(nodes_V, self.offsets_V1.diff())])
        at_N[self.items_N] = torch.repeat_interleave(nodes_V, self.behind_V1.diff())
        path_NL = at_N.new_full((len(at_N), self.depth), -1)
        for level, (first, last) in reversed(list(enumerate(self.level_edges))):
            here_N = (at_N > first) & (at_N <= last)
            path_NL[here_N, level] = at_N[here_N]
            at_N = torch.where(here_N, parent_V[at_N], at_N)
        return path_NL

    @cached_property
    def items_under_V(self) -> torch.Tensor:
        """How many items' sids pass or end at each node but the root."""
        return torch.bincount(self.path_NL.flatten() + 1, minlength=self.nodes + 1)[1:]

    def to(self, device: torch.device | str) -> SidTrie:
        """The same trie with its tensors on `device`; itself, with all that it has worked out, where they are there."""
        if torch.device(device) == self.device:
            return self
        names = ("offsets_V1", "tokens_E", "items_V", "behind_V1", "items_N", "alphabet_A")
        return SidTrie(*(getattr(self, name).to(device) for name in names), depth=self.depth)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tokens_E.device

    @property
    def nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.items_V)

    @cached_property
    def level_edges(self) -> list[tuple[int, int]]:
        """First and one past the last edge of each level: edges are numbered level by level, as nodes are."""
        bounds, begin, end = [], 0, 1  # nodes of a level; the edges that leave them lead to the nodes of the next
        for _ in range(self.depth):
            first, last = self.offsets_V1[[begin, end]].tolist()
            bounds.append((first, last))
            begin, end = first + 1, last + 1
        return bounds

    @cached_property
    def level_tokens(self) -> list[torch.Tensor]:
        """The token ids that occur at each level, rising: all that a model's head is evaluated for there."""
        return [self.tokens_E[first:last].unique() for first, last in self.level_edges]

    @cached_property
    def column_E(self) -> torch.Tensor:
        """Place of each edge's token among the tokens of its level."""
        pairs = zip(self.level_tokens, self.level_edges, strict=True)
        return torch.cat([torch.searchsorted(tokens, self.tokens_E[first:last]) for tokens, (first, last) in pairs])

    @cached_property
    def is_even(self) -> bool:
        """Whether all sids have `depth` tokens, which a search level by level takes for granted."""
        return not bool((self.items_V[: self.level_edges[-1][0] + 1] >= 0).any())

    @cached_property
    def starts_are_distinct(self) -> bool:
        """Whether no first token of a sid occurs at a later position of any sid (true for the tokens of a table)."""
        first = int(self.offsets_V1[1])
        return not bool(torch.isin(self.tokens_E[first:], self.tokens_E[:first]).any())

    def children(self, node: int) -> torch.Tensor:
        """Token ids that continue the node's prefix, rising; empty at a leaf. KeyError for an unknown node."""
        self._check(node)
        return self.tokens_E[self.offsets_V1[node] : self.offsets_V1[node + 1]]

    def step(self, node: int, token: int) -> int:
        """The node behind `token`; KeyError where the node is unknown or no sid goes on that way."""
        low, high = self.offsets_V1[self._check(node) : node + 2].tolist()
        edge = low + int(torch.searchsorted(self.tokens_E[low:high], token))
        if edge == high or int(self.tokens_E[edge]) != token:
            raise KeyError(f"token {token} does not continue the prefix of node {node}")
        return edge + 1

    def walk(self, tokens: Sequence[int], node: int = ROOT) -> int:
        """The node reached from `node` by `tokens`; KeyError where they leave the trie."""
        for token in tokens:
            node = self.step(node, int(token))
        return node

    def item(self, node: int) -> int | None:
        """The item whose sid ends at the node, or None. KeyError for an unknown node."""
        item = int(self.items_V[self._check(node)])
        return None if item < 0 else item

    def items_behind(self, nodes_B: torch.Tensor) -> Items:
        """The items whose sid ends at each node, in their order; KeyError where a node is unknown."""
        self._check_batch(nodes_B)
        places_F, offsets_B1 = _slices(self.behind_V1, nodes_B)
        return Items(self.items_N[places_F], offsets_B1)

    def children_batched(self, nodes_B: torch.Tensor) -> Children:
        """The children of each node; KeyError where a node is unknown."""
        self._check_batch(nodes_B)
        edges_F, offsets_B1 = _slices(self.offsets_V1, nodes_B)
        return Children(self.tokens_E[edges_F], edges_F + 1, offsets_B1)

    def step_batched(self, nodes_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
        """`step` for each pair; KeyError names the first pair that leaves the trie."""
        next_B = self.find(nodes_B, tokens_B)
        if bool((next_B < 0).any()):
            row = int((next_B < 0).nonzero()[0])
            raise KeyError(
                f"row {row}: token {int(tokens_B[row])} does not continue the prefix of node {int(nodes_B[row])}"
            )
        return next_B

    def find(self, nodes_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
        """The node behind each pair, or -1 where no sid goes on that way. KeyError where a node is unknown."""
        self._check_batch(nodes_B)
        # Tokens outside the alphabet would spill into the neighbour's keys.
        known_B = (tokens_B >= 0) & (tokens_B < self._base)
        keys_B = nodes_B * self._base + torch.where(known_B, tokens_B, 0)
        edges_B = torch.searchsorted(self._keys_E, keys_B).clamp_max(len(self._keys_E) - 1)
        return torch.where(known_B & (self._keys_E[edges_B] == keys_B), edges_B + 1, -1)

    def allowed_mask(self, nodes_B: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """bool (batch, vocabulary), true at the tokens that continue each node's prefix. KeyError: unknown node."""
        if vocab_size < self._base:
            raise ValueError(f"a vocabulary of {vocab_size} tokens has no room for sid token {self._base - 1}")
        children = self.children_batched(nodes_B)
        rows_F = torch.repeat_interleave(torch.arange(len(nodes_B), device=self.device), children.offsets_B1.diff())
        mask_BV = torch.zeros(len(nodes_B), vocab_size, dtype=torch.bool, device=self.device)
        mask_BV[rows_F, children.tokens_F] = True
        return mask_BV

    @cached_property
    def _base(self) -> int:
        return int(self.alphabet_A[-1]) + 1

    @cached_property
    def _keys_E(self) -> torch.Tensor:
        # (parent, token) of each edge as one rising number.
        parents_E = torch.repeat_interleave(torch.arange(self.nodes, device=self.device), self.offsets_V1.diff())
        return parents_E * self._base + self.tokens_E

    def _check(self, node: int) -> int:
        if not 0 <= node < self.nodes:
            raise KeyError(f"node {node} is not in the trie, which has nodes 0 to {self.nodes - 1}")
        return node

    def _check_batch(self, nodes_B: torch.Tensor) -> None:
        outside_B = (nodes_B < 0) | (nodes_B >= self.nodes)
        if bool(outside_B.any()):
            self._check(int(nodes_B[outside_B][0]))


def _slices(offsets_V1: torch.Tensor, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # All positions of the CSR slices of some rows, end to end, and where each slice begins among them.
    starts_B = offsets_V1[rows_B]
    counts_B = offsets_V1[rows_B + 1] - starts_B
    offsets_B1 = torch.nn.functional.pad(counts_B.cumsum(0), (1, 0))
    places_F = torch.repeat_interleave(starts_B - offsets_B1[:-1], counts_B)
    return places_F + torch.arange(len(places_F), device=places_F.device), offsets_B1
