"""Beam search of a generative backbone over the catalogue's trie, the history read once.

All beams of a row read the same keys and values of the encoder; their own past is a few steps and is gathered when
beams are regrouped. Probabilities run over the codes of a level that the catalogue uses, so a beam as wide as the
catalogue scores every item exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from recllm.backbones.t5 import Fuse
from recllm.decoding.beam import all_banned, banned_pairs, items_of_leaves
from recllm.decoding.shared import best_of_rows, grow
from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from recllm.backbones.tiger import TIGER, Read

# (how many codes are written, the new tokens BK, the column each one continues BK) -> parts of the decoder layers.
FusesOf = Callable[[int, torch.Tensor, torch.Tensor], Sequence[Fuse] | None]


class Writing:
    """Histories that were read, and the codes written after them so far.

    `hidden_BKD` is the state of the latest step of every beam; it starts with one beam a history, behind BOS.
    """

    def __init__(self, model: TIGER, read: Read, fuses_of: FusesOf | None = None):
        self.model, self.read, self.fuses_of, self.depth, self.past = model, read, fuses_of, 0, None
        start_B1 = torch.full((len(read.bias), 1), model.start_token, device=read.bias.device)
        self.hidden_BKD = self._step(start_B1, None)

    def extend(self, token_BK: torch.Tensor, parent_BK: torch.Tensor) -> torch.Tensor:
        """Write a token on K beams, each of them continuing the column `parent_BK` of before; the new states `BKD`."""
        self.depth += 1
        batch, before = len(token_BK), self.hidden_BKD.shape[1]
        row_M = (torch.arange(batch, device=token_BK.device)[:, None] * before + parent_BK).flatten()
        self.past = [(keys[row_M], values[row_M]) for keys, values in self.past]
        fuses = None if self.fuses_of is None else self.fuses_of(self.depth, token_BK, parent_BK)
        self.hidden_BKD = self._step(token_BK, fuses)
        return self.hidden_BKD

    def _step(self, token_BK: torch.Tensor, fuses: Sequence[Fuse] | None) -> torch.Tensor:
        hidden_BK1D, self.past = self.model.write(token_BK[:, :, None], self.read, self.past, fuses)
        return hidden_BK1D[:, :, 0]


class TiedHead:
    """The head as `recllm.decoding.shared.grow` asks for it: logits of some tokens."""

    def __init__(self, model: TIGER):
        self.weight_VD = model.embedding.weight

    def logits(self, hidden_RD: torch.Tensor, tokens_A: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_RD, self.weight_VD[tokens_A]).float()


def trie_of(token_NL: torch.Tensor, priority_N: np.ndarray | None = None) -> SidTrie:
    """The trie of the items that a model speaks (its `token_NL`, padding row included), on the same device.

    Items may share a sid; `priority_N`, popularity say, orders those that do.
    """
    sequences = list(token_NL[1:].cpu().numpy())
    return SidTrie.from_sequences(sequences, shared=True, priority_N=priority_N).to(token_NL.device)


@torch.no_grad()
def beam_leaves(
    writing: Writing, trie: SidTrie, beams: int, banned: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best leaves of the trie after each history and their log-probabilities, `BK`, best first.

    `banned` holds (row, item) pairs (`banned_pairs`); a prefix with no other item under it takes no place in any level.
    """
    batch, head, device = len(writing.read.bias), TiedHead(writing.model), trie.device
    node_BK = torch.full((batch, 1), ROOT, device=device)
    score_BK = torch.zeros(batch, 1, device=device)
    for level in range(trie.depth):
        width = node_BK.shape[1]
        grown = grow(trie, level, writing.hidden_BKD.flatten(0, 1), node_BK.flatten(), head, "level")
        score_F, row_F = score_BK.flatten()[grown.row_F] + grown.logp_F, grown.row_F // width
        if banned is not None:
            score_F = score_F.masked_fill(all_banned(trie, level, grown.node_F, row_F, banned), float("-inf"))
        score_BK, index_BK = best_of_rows(score_F, row_F, batch, beams)
        node_BK = grown.node_F[index_BK]
        if level + 1 < trie.depth:
            # A row with fewer beams than others is filled with dead ones, which stay in its own columns.
            writing.extend(grown.token_F[index_BK], grown.row_F[index_BK] % width)
    return node_BK, score_BK


@torch.no_grad()
def recommend(
    writing: Writing,
    trie: SidTrie,
    k: int,
    beams: int | None = None,
    exclude: Sequence[np.ndarray] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best items after each history but those in its `exclude`: `items_BK` (-1 pads), `scores_BK` (-inf pads).

    Items behind one sid share its score and stand in the trie's order.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    banned = None if exclude is None else banned_pairs(list(exclude), len(trie.items_N), trie.device)
    leaves = beam_leaves(writing, trie, max(beams or k, 1), banned)
    return items_of_leaves(trie, *leaves, k, banned)


@torch.no_grad()
def score_items(writing: Writing, trie: SidTrie | None = None) -> torch.Tensor:
    """Log-probability of every item after each history, `scores_BN`: a beam that drops nothing."""
    trie = trie_of(writing.model.token_NL) if trie is None else trie
    items_BK, scores_BK = recommend(writing, trie, len(trie.items_N))
    return torch.empty_like(scores_BK).scatter_(1, items_BK, scores_BK)
