"""Beam search over the SIDs of a catalogue: the best items after each prompt, all of them valid.

Each prompt is read once and its beams share it (`recllm.decoding.shared`), so the cost is little more than that of
reading the prompt, whatever the size of the vocabulary. What a beam's score is depends on the normalisation:

    trie        log-probabilities over the codes that may follow, so that the catalogue's items share all of it
    level       over all codes of the level that the catalogue uses
    full_vocab  over the whole vocabulary, end of sequence included: what beam search under a prefix constraint finds
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from recllm.decoding.shared import Head, Normalisation, SharedPrompt, best_of_rows, grow, places_in_rows
from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def recommend_by_beam(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    k: int,
    *,
    beams: int | None = None,
    normalisation: Normalisation = "level",
    exclude: Sequence[np.ndarray] | None = None,
    eos_token_id: int | None = None,
    batch_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` best items after each prompt, found by a beam of `beams` (k at least, and by default).

    Prompts are token ids of any lengths; `exclude` names item ids for each of them that may not be answered (the
    seen-item policy): a sid none of whose items is left takes no place in the beam's last level. Several items behind
    one sid stand in the trie's order (see `SidTrie.from_table`), each with the sid's score. `eos_token_id` belongs to
    `full_vocab`: its log-probability after the sid is added, as beam search does where an answer has to end; without
    it the sid alone counts.

    Returns `items_BK` (int64, -1 where fewer items were reached) and `scores_BK` (float32 log-probabilities, -inf
    there), best first, on the model's device. Sids of equal score keep the trie's order as far as top-k does.

    Raises:
        ValueError: an empty prompt, sids of different lengths, k below 1, end of sequence without `full_vocab`, or a
            model that cannot be used this way (see `SharedPrompt`).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not trie.is_even:
        raise ValueError("the trie holds sids of different lengths; a beam needs equal ones")
    if eos_token_id is not None and normalisation != "full_vocab":
        raise ValueError("eos_token_id belongs to normalisation 'full_vocab'")
    trie, beams = trie.to(model.device), max(beams or k, k)
    items_BK = torch.full((len(prompts), k), -1, dtype=torch.long, device=model.device)
    scores_BK = torch.full((len(prompts), k), float("-inf"), device=model.device)
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        banned = (
            None if exclude is None else banned_pairs([exclude[row] for row in rows], len(trie.items_N), model.device)
        )
        node_BK, score_BK = _search(
            model, [prompts[row] for row in rows], trie, beams, normalisation, banned, eos_token_id
        )
        found = items_of_leaves(trie, node_BK, score_BK, k, banned)
        items_BK[rows, : found[0].shape[1]], scores_BK[rows, : found[1].shape[1]] = found
    return items_BK, scores_BK


def _search(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    trie: SidTrie,
    beams: int,
    normalisation: Normalisation,
    banned: torch.Tensor | None,
    eos_token_id: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaf nodes and scores of the best beams, `BK`, best first."""
    batch, head = len(prompts), Head(model)
    shared = SharedPrompt(model, prompts, room=beams * trie.depth)
    hidden_BKD = shared.hidden_B1D
    node_BK = torch.full((batch, 1), ROOT, device=model.device)
    score_BK = torch.zeros(batch, 1, device=model.device)
    for level in range(trie.depth):
        width = node_BK.shape[1]
        grown = grow(trie, level, hidden_BKD.flatten(0, 1), node_BK.flatten(), head, normalisation)
        score_F = score_BK.flatten()[grown.row_F] + grown.logp_F
        prompt_F = grown.row_F // width
        if level + 1 == trie.depth and banned is not None:
            score_F = score_F.masked_fill(all_banned(trie, level, grown.node_F, prompt_F, banned), float("-inf"))
        score_BK, index_BK = best_of_rows(score_F, prompt_F, batch, beams)
        node_BK = grown.node_F[index_BK]
        last = level + 1 == trie.depth
        if not last or eos_token_id is not None:
            hidden_BKD = shared.extend(grown.token_F[index_BK], grown.row_F[index_BK] % width)
    if eos_token_id is None:
        return node_BK, score_BK
    hidden_RD = hidden_BKD.flatten(0, 1)
    end_R = head.logits(hidden_RD, torch.tensor([eos_token_id], device=model.device))[:, 0] - head.log_total(hidden_RD)
    score_BK, order_BK = (score_BK + end_R.view_as(score_BK)).sort(dim=1, descending=True, stable=True)
    return node_BK.gather(1, order_BK), score_BK


def banned_pairs(lists: list[np.ndarray], items: int, device: torch.device) -> torch.Tensor:
    """(prompt, item) pairs as one number each, every pair once."""
    rows = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in lists]) if len(rows) else rows
    return torch.from_numpy(np.unique(rows * items + ids)).to(device)


def all_banned(
    trie: SidTrie, level: int, node_F: torch.Tensor, prompt_F: torch.Tensor, banned: torch.Tensor
) -> torch.Tensor:
    """Whether every item under each node of a level is banned for its prompt; see `banned_pairs`."""
    items, nodes = len(trie.items_N), len(trie.items_V)
    passed_P = trie.path_NL[banned % items, level]
    inside_P = passed_P >= 0
    key_G, count_G = torch.unique((banned // items * nodes + passed_P)[inside_P], return_counts=True)
    if not len(key_G):
        return torch.zeros_like(node_F, dtype=torch.bool)
    key_F = prompt_F * nodes + node_F
    place_F = torch.searchsorted(key_G, key_F).clamp(max=len(key_G) - 1)
    banned_F = torch.where(key_G[place_F] == key_F, count_G[place_F], 0)
    return banned_F == trie.items_under_V[node_F]


def items_of_leaves(
    trie: SidTrie, node_BK: torch.Tensor, score_BK: torch.Tensor, k: int, banned: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first k items behind the nodes of each row, in order, without the banned ones and those of dead beams."""
    batch, width = node_BK.shape
    behind = trie.items_behind(node_BK.flatten())
    beam_M = torch.repeat_interleave(torch.arange(batch * width, device=node_BK.device), behind.offsets_B1.diff())
    score_M, prompt_M, item_M = score_BK.flatten()[beam_M], beam_M // width, behind.items_F
    left_M = ~score_M.isneginf()
    if banned is not None:
        left_M &= ~torch.isin(prompt_M * len(trie.items_N) + item_M, banned)
    score_M, prompt_M, item_M = score_M[left_M], prompt_M[left_M], item_M[left_M]
    place_M = places_in_rows(prompt_M, batch)
    items_BK = torch.full((batch, k), -1, dtype=torch.long, device=node_BK.device)
    scores_BK = torch.full((batch, k), float("-inf"), device=node_BK.device)
    kept_M = place_M < k
    items_BK[prompt_M[kept_M], place_M[kept_M]] = item_M[kept_M]
    scores_BK[prompt_M[kept_M], place_M[kept_M]] = score_M[kept_M]
    return items_BK, scores_BK
