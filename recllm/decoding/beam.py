"""Beam search over the SIDs of a catalogue: the K best items after each prompt, all of them valid.

The prompt is read once. The K beams of a prompt then go through the model side by side as one sequence: a 4-D mask
lets each beam see the prompt and its own codes, so the cache grows by K a level and is never copied or reordered. The
head is evaluated for sid tokens only. Scores are log-probabilities over the codes that the trie allows, renormalised
at every level, so a beam is never punished for probability that lies on impossible tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from recllm.decoding.trie import ROOT, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Beams(NamedTuple):
    """Live beams of every prompt, best first: `node`, `token`, `score` and `parent` (a column of the level before).

    All `BK`; a beam that ran out of children has score -inf.
    """

    node_BK: torch.Tensor
    token_BK: torch.Tensor
    score_BK: torch.Tensor
    parent_BK: torch.Tensor


@torch.no_grad()
def beam_items(
    model: PreTrainedModel, prompt_ids_BT: torch.Tensor, mask_BT: torch.Tensor, trie: SidTrie, beams: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `beams` best items after each left-padded prompt.

    Returns `items_BK` (int64, -1 where fewer items were reached) and `scores_BK` (log-probability under the trie, -inf
    there), best first.
    """
    batch, device = len(prompt_ids_BT), prompt_ids_BT.device
    decoder, head_AD = model.get_decoder(), model.get_output_embeddings().weight[trie.alphabet_A]
    length_B = mask_BT.sum(1)
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    out = decoder(input_ids=prompt_ids_BT, attention_mask=mask_BT, position_ids=position_BT, use_cache=True)
    hidden_BKD, cache = out.last_hidden_state[:, -1:], out.past_key_values
    root_B1 = torch.full((batch, 1), ROOT, device=device)
    live = Beams(root_B1, root_B1, torch.zeros(batch, 1, device=device), root_B1)
    own_BKX = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
    for level in range(trie.depth):
        live = _extend(trie, (hidden_BKD @ head_AD.T).float(), live, beams)
        if level + 1 == trie.depth:
            break
        width = live.node_BK.shape[1]
        # Each beam sees its ancestors and itself among the columns that the levels appended.
        own_BKX = own_BKX.gather(1, live.parent_BK[:, :, None].expand(-1, -1, own_BKX.shape[2]))
        itself_BKK = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        own_BKX = torch.cat([own_BKX, itself_BKK], 2)
        seen_BKT = torch.cat([mask_BT.bool()[:, None].expand(-1, width, -1), own_BKX], 2)
        blocked = torch.finfo(hidden_BKD.dtype).min
        bias_B1KT = torch.zeros_like(seen_BKT, dtype=hidden_BKD.dtype).masked_fill(~seen_BKT, blocked)[:, None]
        hidden_BKD = decoder(
            input_ids=live.token_BK,
            attention_mask=bias_B1KT,
            position_ids=(length_B + level)[:, None].expand(-1, width),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    dead_BK = live.score_BK == float("-inf")
    items_BK, short = trie.items_V[live.node_BK].masked_fill(dead_BK, -1), beams - dead_BK.shape[1]
    pad = torch.nn.functional.pad
    return pad(items_BK, (0, short), value=-1), pad(live.score_BK, (0, short), value=float("-inf"))


def _extend(trie: SidTrie, logit_BKA: torch.Tensor, live: Beams, beams: int) -> Beams:
    """The best `beams` children of each prompt's live beams."""
    batch, width = live.node_BK.shape
    score_R, node_R = live.score_BK.flatten(), live.node_BK.flatten()
    children = trie.children_batched(node_R)
    row_F = torch.repeat_interleave(torch.arange(len(node_R), device=node_R.device), children.offsets_B1.diff())
    logit_F = logit_BKA.flatten(0, 1)[row_F, torch.searchsorted(trie.alphabet_A, children.tokens_F)]
    # Log-softmax over each beam's own children.
    top_R = torch.full_like(score_R, float("-inf")).scatter_reduce(0, row_F, logit_F, "amax")
    total_R = torch.zeros_like(score_R).index_add(0, row_F, (logit_F - top_R[row_F]).exp())
    score_F = score_R[row_F] + logit_F - top_R[row_F] - total_R.log()[row_F]
    # Children of a prompt laid out as one padded row, so that one top-k serves the batch.
    prompt_F = row_F // width
    count_B = torch.bincount(prompt_F, minlength=batch)
    place_F = torch.arange(len(row_F), device=node_R.device) - (count_B.cumsum(0) - count_B)[prompt_F]
    room = int(count_B.max())
    score_BC = torch.full((batch, room), float("-inf"), device=node_R.device)
    score_BC[prompt_F, place_F] = score_F
    edge_BC = torch.zeros((batch, room), dtype=torch.long, device=node_R.device)
    edge_BC[prompt_F, place_F] = torch.arange(len(row_F), device=node_R.device)
    score_BK, column_BK = score_BC.topk(min(beams, room), dim=1)
    edge_BK = edge_BC.gather(1, column_BK)
    return Beams(children.nodes_F[edge_BK], children.tokens_F[edge_BK], score_BK, row_F[edge_BK] % width)
