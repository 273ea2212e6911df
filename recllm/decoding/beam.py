"""Beam search over the SIDs of a catalogue: the K best items after each prompt, all of them valid.

This form expands the prompt's cache once for the beams of a level. Scores are log-probabilities over the codes that the
trie allows, renormalised at every step, so a beam is never punished for probability that lies on impossible tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def beam_items(
    model: PreTrainedModel, prompt_ids_BT: torch.Tensor, mask_BT: torch.Tensor, trie: SidTrie, beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `beams` best items after each left-padded prompt.

    Returns `items_BK` (int64, -1 where fewer items were reached) and `scores_BK` (log-probability under the trie, -inf
    there), best first.
    """
    batch = len(prompt_ids_BT)
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=prompt_ids_BT, attention_mask=mask_BT, position_ids=position_BT, use_cache=True, logits_to_keep=1
    )
    cache, logit_RV = out.past_key_values, out.logits[:, -1].float()
    next_position_B1 = mask_BT.sum(1, keepdim=True)
    # Rows R are the live beams of all prompts, `width` for each prompt, side by side.
    node_R = torch.full((batch,), ROOT, device=prompt_ids_BT.device)
    score_R = torch.zeros(batch, device=prompt_ids_BT.device)
    mask_RT, width = mask_BT, 1
    for level in range(trie.depth):
        parent_BK, token_BK, score_BK, node_BK = _extend(trie, logit_RV, node_R, score_R, batch, beams)
        if level + 1 == trie.depth:
            break
        row_R = (parent_BK + torch.arange(batch, device=node_R.device)[:, None] * width).flatten()
        width = node_BK.shape[1]
        cache.batch_select_indices(row_R)
        mask_RT = torch.cat([mask_RT[row_R], torch.ones_like(mask_RT[row_R][:, :1])], 1)
        out = model(
            input_ids=token_BK.reshape(-1, 1),
            attention_mask=mask_RT,
            position_ids=(next_position_B1 + level).expand(batch, width).reshape(-1, 1),
            past_key_values=cache,
            use_cache=True,
        )
        logit_RV, node_R, score_R = out.logits[:, -1].float(), node_BK.flatten(), score_BK.flatten()
    items_BK = trie.items_V[node_BK.clamp(min=0)].masked_fill(score_BK == float("-inf"), -1)
    return items_BK, score_BK


def _extend(trie: SidTrie, logit_RV, node_R, score_R, batch: int, beams: int):
    """The best `beams` children of each prompt's rows: parent row in the prompt, token, score and node, all `BK`."""
    width = len(node_R) // batch
    dead_R = score_R == float("-inf")
    children = trie.children_batched(node_R.masked_fill(dead_R, ROOT))
    count_R = children.offsets_B1.diff()
    row_F = torch.repeat_interleave(torch.arange(len(node_R), device=node_R.device), count_R)
    logit_F = logit_RV[row_F, children.tokens_F]
    # Log-softmax over each row's own children.
    top_R = torch.full_like(score_R, float("-inf")).scatter_reduce(0, row_F, logit_F, "amax")
    total_R = torch.zeros_like(score_R).index_add(0, row_F, (logit_F - top_R[row_F]).exp())
    score_F = score_R[row_F] + logit_F - top_R[row_F] - total_R.log()[row_F]
    # Children of a prompt laid out as one padded row, so that one top-k serves the batch.
    prompt_F = row_F // width
    per_prompt_B = torch.bincount(prompt_F, minlength=batch)
    place_F = torch.arange(len(row_F), device=node_R.device) - (per_prompt_B.cumsum(0) - per_prompt_B)[prompt_F]
    room = int(per_prompt_B.max())
    score_BC = torch.full((batch, room), float("-inf"), device=node_R.device)
    score_BC[prompt_F, place_F] = score_F
    edge_BC = torch.zeros((batch, room), dtype=torch.long, device=node_R.device)
    edge_BC[prompt_F, place_F] = torch.arange(len(row_F), device=node_R.device)
    score_BK, column_BK = score_BC.topk(min(beams, room), dim=1)
    edge_BK = edge_BC.gather(1, column_BK)
    return row_F[edge_BK] % width, children.tokens_F[edge_BK], score_BK, children.nodes_F[edge_BK]
