"""Generation that can only name items of the catalogue: a logits processor on the SID trie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from recllm.decoding.trie import ROOT, SidTrie


class SidLogitsProcessor(LogitsProcessor):
    """Leaves free text free and holds every SID to the trie.

    Outside a SID all tokens are open but those SID tokens that no SID starts with. After a first SID token only
    exact continuations are open until the SID is complete; end of sequence is not among them. Then text is free
    again. The state is read from the tokens each time, so prompts with SIDs, left padding and reordered beams are
    all right. A prompt that breaks off inside a SID is continued; a SID that a prompt spells wrongly counts as text.

    only_sids: outside a SID only SID starts are open, and end of sequence once `min_items` SIDs are complete; after
    `max_items` only end of sequence. SIDs are counted back to the last token that is no SID token, or to
    `prompt_length` tokens from the left, whichever is nearer. max_length: total length of the sequences; a SID that
    would not fit is not begun (without it a SID may be cut off by the length limit).

    Raises:
        ValueError: only_sids without end-of-sequence id, an end-of-sequence id that is a SID token, or item limits
            that make no sense.
    """

    def __init__(
        self,
        trie: SidTrie,
        only_sids: bool = False,
        eos_token_id: int | Sequence[int] | None = None,
        min_items: int = 1,
        max_items: int | None = None,
        prompt_length: int = 0,
        max_length: int | None = None,
    ) -> None:
        ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        if only_sids and not ends:
            raise ValueError("only_sids needs eos_token_id: without it an answer could never end")
        if not 0 <= min_items <= (min_items if max_items is None else max_items):
            raise ValueError(f"0 <= min_items <= max_items must hold, got {min_items} and {max_items}")
        if shared := set(ends) & set(trie.alphabet_A.tolist()):
            raise ValueError(f"token {min(shared)} is both end of sequence and a SID token")
        self.trie = trie
        self.only_sids, self.min_items, self.max_items = only_sids, min_items, max_items
        self.prompt_length, self.max_length = prompt_length, max_length
        self._ends = torch.tensor(ends, dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (batch, vocabulary) with -inf at every token that is not open after `input_ids` (batch, time)."""
        if self.trie.device != scores.device:
            self.trie = self.trie.to(scores.device)
        nodes_B, complete_B = self.states(input_ids)
        vocabulary = scores.shape[-1]
        inside_BV = self.trie.allowed_mask(nodes_B, vocabulary)
        outside_BV = self._open_outside(complete_B, input_ids.shape[1], vocabulary)
        # A complete SID can be the beginning of a longer one: then its node is outside and inside at once.
        ended_B1 = (self.trie.items_V[nodes_B] >= 0)[:, None]
        started_B1 = (nodes_B != ROOT)[:, None]
        open_BV = torch.where(started_B1, inside_BV | (outside_BV & ended_B1), outside_BV)
        return scores.masked_fill(~open_BV, float("-inf"))

    def states(self, input_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each sequence stands: its trie node (the root outside a SID) and its number of complete SIDs.

        A complete SID that no longer one begins with counts as outside. The number is exact up to `max_items` with
        `only_sids`; without, it means nothing.
        """
        trie = self.trie
        tail_BW = input_ids[:, -self._window(input_ids) :]
        nodes_B = tail_BW.new_full((len(tail_BW),), ROOT)
        complete_B = torch.zeros_like(nodes_B)
        in_alphabet_BW = torch.isin(tail_BW, trie.alphabet_A)
        first = input_ids.shape[1] - tail_BW.shape[1]
        for column in range(tail_BW.shape[1]):
            tokens_B = tail_BW[:, column]
            next_B = trie.find(nodes_B, tokens_B)
            # A longer SID replaces the complete one it began as; what continues no SID may begin one, else it is text.
            outgrown_B = (next_B >= 0) & (trie.items_V[nodes_B] >= 0)
            next_B = torch.where(next_B < 0, trie.find(torch.full_like(nodes_B, ROOT), tokens_B), next_B)
            nodes_B = next_B.clamp_min(ROOT)
            change_B = (trie.items_V[nodes_B] >= 0).long() - outgrown_B.long()
            complete_B = complete_B + change_B * (first + column >= self.prompt_length)
            complete_B = torch.where(in_alphabet_BW[:, column], complete_B, 0)
            nodes_B = torch.where(self._has_children(nodes_B), nodes_B, ROOT)
        return nodes_B, complete_B

    def _window(self, input_ids: torch.LongTensor) -> int:
        # How many trailing tokens decide the state. Where first tokens are first tokens only, those of one open SID
        # (and of the SIDs to count); else everything since the last token that cannot belong to a SID.
        if self.trie.starts_are_distinct:
            items = (self.max_items or self.min_items) if self.only_sids else 0
            return max(self.trie.depth * (items + 1) - 1, 1)
        sid_BT = torch.isin(input_ids, self.trie.alphabet_A)
        runs_B = sid_BT.flip(1).int().cumprod(1).sum(1)
        return max(int(runs_B.max()), 1)

    def _has_children(self, nodes_B: torch.Tensor) -> torch.Tensor:
        return self.trie.offsets_V1[nodes_B + 1] > self.trie.offsets_V1[nodes_B]

    def _open_outside(self, complete_B: torch.Tensor, length: int, vocabulary: int) -> torch.Tensor:
        starts_V = self.trie.allowed_mask(complete_B.new_full((1,), ROOT), vocabulary)[0]
        if self.max_length is not None and length + self.trie.depth > self.max_length:
            starts_V = torch.zeros_like(starts_V)
        if not self.only_sids:
            text_V = torch.ones_like(starts_V)
            text_V[self.trie.alphabet_A] = False
            return (starts_V | text_V).expand(len(complete_B), -1)
        full_B = complete_B >= (torch.inf if self.max_items is None else self.max_items)
        starts_BV = starts_V & ~full_B[:, None]
        may_end_B = (complete_B >= self.min_items) | ~starts_BV.any(1)
        starts_BV[:, self._ends.to(starts_BV.device)] = may_end_B[:, None]
        return starts_BV
