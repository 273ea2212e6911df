"""The score of every item of the catalogue after each prompt: what a beam of any width approximates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from recllm.decoding.shared import Head, Normalisation, SharedPrompt, grow
from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Nodes that go through the model side by side; the mask grows with its square.
_CHUNK = 512


@torch.no_grad()
def score_items(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    *,
    normalisation: Normalisation = "level",
    batch_size: int = 8,
) -> torch.Tensor:
    """Log-probability of every item after each prompt, float32 `scores_BN` on the model's device.

    Every prefix of the trie goes through the model once, depth first and `_CHUNK` at a time. Items that share a sid
    share its score. Normalisations as in `recllm.decoding.beam` (`full_vocab` without end of sequence).

    Raises:
        ValueError: an empty prompt, sids of different lengths, or a model that cannot be used this way.
    """
    if not trie.is_even:
        raise ValueError("the trie holds sids of different lengths; scoring level by level needs equal ones")
    trie, head = trie.to(model.device), Head(model)
    rows = [prompts[begin : begin + batch_size] for begin in range(0, len(prompts), batch_size)]
    return torch.cat([_score_batch(model, batch, trie, head, normalisation) for batch in rows])


def _score_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], trie: SidTrie, head: Head, normalisation: Normalisation
) -> torch.Tensor:
    batch = len(prompts)
    shared = SharedPrompt(model, prompts, room=_CHUNK * trie.depth)
    scores_BN = torch.full((batch, len(trie.items_N)), float("-inf"), device=model.device)

    def descend(level: int, hidden_BKD: torch.Tensor, node_K: torch.Tensor, score_BK: torch.Tensor) -> None:
        width = len(node_K)
        grown = grow(trie, level, hidden_BKD.flatten(0, 1), node_K.repeat(batch), head, normalisation)
        # Every prompt has the same nodes, so its children stand side by side in equal number.
        score_BF = (score_BK.flatten()[grown.row_F] + grown.logp_F).view(batch, -1)
        count = score_BF.shape[1]
        node_F, token_F, parent_F = grown.node_F[:count], grown.token_F[:count], grown.row_F[:count] % width
        if level + 1 == trie.depth:
            behind = trie.items_behind(node_F)
            leaf_M = torch.repeat_interleave(torch.arange(count, device=node_F.device), behind.offsets_B1.diff())
            scores_BN[:, behind.items_F] = score_BF[:, leaf_M]
            return
        mark = shared.mark()
        for begin in range(0, count, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            hidden = shared.extend(token_F[part].expand(batch, -1), parent_F[part].expand(batch, -1))
            descend(level + 1, hidden, node_F[part], score_BF[:, part])
            shared.rewind(mark)

    root_1 = torch.full((1,), ROOT, device=model.device)
    descend(0, shared.hidden_B1D, root_1, torch.zeros(batch, 1, device=model.device))
    return scores_BN
