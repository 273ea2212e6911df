"""Beam search over a trie whose sequences have different lengths, as the tokens of names have.

What a beam leaves behind can be gone on from: the sequences that were found, each with the columns of the prompt's
cache that it descends from (`recllm.decoding.shared`), are the start of the next search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recllm.decoding.shared import Head, SharedPrompt, best_of_rows, grow
from recllm.decoding.trie import ROOT, SidTrie


@dataclass(frozen=True, eq=False)
class Leaves:
    """The best complete sequences of every prompt, best first.

    `item_BK` (-1 where fewer were found) and their log-probabilities `score_BK` (-inf there), what each begins with
    included; `start_BK` is the start that it continues. `token_BK` is the last token, which the model has not read, and
    `own_BKX` are the columns read before it.
    """

    item_BK: torch.Tensor
    score_BK: torch.Tensor
    start_BK: torch.Tensor
    token_BK: torch.Tensor
    own_BKX: torch.Tensor

    def read(self, shared: SharedPrompt, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the last tokens of the best `count`: the hidden states `BKD` and scores `BK` to go on from."""
        width = min(count, self.item_BK.shape[1])
        shared.own_BKX = _widened(self.own_BKX[:, :width], shared.own_BKX.shape[2])
        parent_BK = torch.arange(width, device=self.token_BK.device).expand(len(self.token_BK), -1)
        return shared.extend(self.token_BK[:, :width], parent_BK), self.score_BK[:, :width]

    def _merged(self, other: Leaves, k: int) -> Leaves:
        own_BKX = _widened(self.own_BKX, other.own_BKX.shape[2])
        score_BK, place_BK = torch.cat([self.score_BK, other.score_BK], 1).sort(dim=1, descending=True, stable=True)
        place_BK = place_BK[:, :k]
        parts = (
            torch.cat([getattr(self, name), getattr(other, name)], 1).gather(1, place_BK)
            for name in ("item_BK", "start_BK", "token_BK")
        )
        item_BK, start_BK, token_BK = parts
        index_BKX = place_BK[:, :, None].expand(-1, -1, own_BKX.shape[2])
        return Leaves(
            item_BK, score_BK[:, :k], start_BK, token_BK, torch.cat([own_BKX, other.own_BKX], 1).gather(1, index_BKX)
        )


@torch.no_grad()
def best_leaves(
    shared: SharedPrompt,
    head: Head,
    trie: SidTrie,
    hidden_BKD: torch.Tensor,
    score_BK: torch.Tensor,
    k: int,
    beams: int,
) -> Leaves:
    """The k best sequences of the trie after each prompt's starts, found by a beam of `beams`.

    `hidden_BKD` are the starts' hidden states, `score_BK` their log-probabilities (-inf for none), and
    `shared.own_BKX` the columns that each descends from. Log-probabilities are over the tokens that may follow, so that
    the trie's sequences share all of it.
    """
    batch, starts = score_BK.shape
    start_BK = torch.arange(starts, device=score_BK.device).expand(batch, -1)
    node_BK = torch.full_like(start_BK, ROOT)
    found = None
    for level in range(trie.depth):
        width = node_BK.shape[1]
        grown = grow(trie, level, hidden_BKD.flatten(0, 1), node_BK.flatten(), head)
        if not len(grown.row_F):
            break
        prompt_F, beam_F = grown.row_F // width, grown.row_F % width
        score_F = score_BK.flatten()[grown.row_F] + grown.logp_F
        ended_F = trie.items_V[grown.node_F] >= 0
        begun_F = start_BK.flatten()[grown.row_F]

        done_BK, index_BK = best_of_rows(score_F.masked_fill(~ended_F, float("-inf")), prompt_F, batch, k)
        own_BKX = _picked(shared.own_BKX, beam_F[index_BK])
        item_BK = trie.items_V[grown.node_F[index_BK]].masked_fill(done_BK.isneginf(), -1)
        new = Leaves(item_BK, done_BK, begun_F[index_BK], grown.token_F[index_BK], own_BKX)
        found = new if found is None else found._merged(new, k)

        score_BK, index_BK = best_of_rows(score_F.masked_fill(ended_F, float("-inf")), prompt_F, batch, beams)
        # A sequence only loses by growing.
        if found.score_BK.shape[1] == k:
            score_BK = score_BK.masked_fill(score_BK < found.score_BK[:, -1:], float("-inf"))
        if bool(score_BK.isneginf().all()):
            break
        node_BK, start_BK = grown.node_F[index_BK], begun_F[index_BK]
        hidden_BKD = shared.extend(grown.token_F[index_BK], beam_F[index_BK])
    return found


def _picked(own_BKX: torch.Tensor, place_BK: torch.Tensor) -> torch.Tensor:
    return own_BKX.gather(1, place_BK[:, :, None].expand(-1, -1, own_BKX.shape[2]))


def _widened(own_BKX: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(own_BKX, (0, columns - own_BKX.shape[2]))
