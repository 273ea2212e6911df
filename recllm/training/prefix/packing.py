"""A prompt and its completions as one sequence: the prompt once, the completions side by side under a block mask.

A row of GRPO's batch is a prompt and one completion, and rows of a group repeat the prompt. Packed, a group is the
prompt but its last token, then for each completion its own copy of that token followed by the completion but its last
token. So every token that is scored is predicted by the one packed before it, as in the row of its own. A completion
sees the prompt and itself, and its positions go on where the prompt ends. The cost falls from G (P + C) tokens to
P + G C.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from recllm.decoding.shared import places_in_rows

IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """S packed sequences of T tokens that hold R rows of at most C completion tokens.

    `segment_ST` is 0 in the prompt, 1, 2, ... in the completions, -1 in the padding at the end. `label_ST` is the token
    that each place predicts, or -100. `place_RC` tells where in the flattened (S T) places each completion token is
    predicted; it means something only where `scored_RC`.
    """

    ids_ST: torch.Tensor
    position_ST: torch.Tensor
    segment_ST: torch.Tensor
    label_ST: torch.Tensor
    place_RC: torch.Tensor
    scored_RC: torch.Tensor

    def mask_S1TT(self) -> torch.Tensor:
        """Whether a place (third axis) may look at another (fourth): itself, and what came before in sight."""
        segment_ST1, segment_S1T = self.segment_ST[:, :, None], self.segment_ST[:, None]
        in_sight = (segment_S1T == 0) | (segment_S1T == segment_ST1)
        return (in_sight.tril() & (segment_S1T >= 0) & (segment_ST1 >= 0)).logical_or(
            # Padding looks at itself: attention over nothing is NaN.
            torch.eye(self.ids_ST.shape[1], dtype=torch.bool, device=self.ids_ST.device)
        )[:, None]

    def unpack(self, value_ST: torch.Tensor) -> torch.Tensor:
        """Values of the packed places as `RC`, 0 where nothing is scored."""
        return value_ST.flatten()[self.place_RC].masked_fill(~self.scored_RC, 0)


def group_rows(prompt_RP: torch.Tensor, prompt_mask_RP: torch.Tensor) -> torch.Tensor:
    """Number of each row's group, `R`: rows belong together where their prompts have the same tokens."""
    told_RP = torch.where(prompt_mask_RP.bool(), prompt_RP, -1)
    return torch.unique(told_RP, dim=0, return_inverse=True)[1]


def place_in_group(group_R: torch.Tensor) -> torch.Tensor:
    """Place of each row among those of its group, from 0, in the order of rows; groups may lie in any order."""
    order_R = torch.argsort(group_R, stable=True)
    place_R = torch.empty_like(group_R)
    place_R[order_R] = places_in_rows(group_R[order_R], int(group_R.max()) + 1)
    return place_R


def assign(group_R: torch.Tensor, most: int) -> torch.Tensor:
    """Number of each row's packed sequence, `R`: rows of one group, at most `most` of them, shared out evenly."""
    count_N, place_R = torch.bincount(group_R), place_in_group(group_R)
    parts_N = (count_N + most - 1) // most
    return torch.unique(
        torch.stack([group_R, place_R * parts_N[group_R] // count_N[group_R]], 1), dim=0, return_inverse=True
    )[1]


def chunks(sequence_R: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Rows of whole sequences, at most `most` of them unless one sequence has more."""
    order_R = torch.argsort(sequence_R, stable=True)
    chunk: list[torch.Tensor] = []
    for rows in order_R.split(torch.bincount(sequence_R).tolist()):
        if chunk and sum(map(len, chunk)) + len(rows) > most:
            yield torch.cat(chunk)
            chunk = []
        chunk.append(rows)
    yield torch.cat(chunk)


def pack(
    prompt_RP: torch.Tensor,
    prompt_mask_RP: torch.Tensor,
    completion_RC: torch.Tensor,
    completion_mask_RC: torch.Tensor,
    sequence_R: torch.Tensor,
) -> Packed:
    """Pack rows whose `sequence_R` (0, 1, ... without gaps) agree; these must have the same prompt.

    Prompts are padded on the left, completions on the right, and no prompt is empty, as in TRL's batches.
    """
    width, long, device = completion_RC.shape[1], torch.long, prompt_RP.device
    length_R, prompt_R = completion_mask_RC.sum(1).to(long), prompt_mask_RP.sum(1).to(long)
    first_S, before_R = _before(sequence_R, length_R)
    number_R = 1 + place_in_group(sequence_R)
    head_S = prompt_R[first_S] - 1
    sequences, start_R = len(head_S), head_S[sequence_R] + before_R
    # At least one place, also where all there is is masked.
    room = max(1, int((head_S + torch.zeros_like(head_S).index_add(0, sequence_R, length_R)).max()))

    scored_RC = completion_mask_RC.bool()
    step_C = torch.arange(width, device=device)
    place_RC = (sequence_R[:, None] * room + start_R[:, None] + step_C).masked_fill(~scored_RC, 0)
    ids_F, position_F = (torch.zeros(sequences * room, dtype=long, device=device) for _ in range(2))
    segment_F, label_F = (torch.full_like(ids_F, fill) for fill in (-1, IGNORED))
    # The prompt; rows are padded on the left.
    step_T = torch.arange(room, device=device)
    inside_ST = step_T < head_S[:, None]
    last = prompt_RP.shape[1] - 1
    column_ST = (step_T + (last - head_S)[:, None]).clamp_max(last)
    ids_F[inside_ST.flatten()] = prompt_RP[first_S].gather(1, column_ST)[inside_ST]
    position_F[inside_ST.flatten()] = step_T.expand(sequences, -1)[inside_ST]
    segment_F[inside_ST.flatten()] = 0
    # The completions, one place to the right: the prompt's last token predicts the first of them.
    shifted_RC = torch.cat([prompt_RP[:, -1:], completion_RC[:, :-1]], 1)
    at = place_RC[scored_RC]
    ids_F[at], label_F[at] = shifted_RC[scored_RC], completion_RC[scored_RC]
    segment_F[at] = number_R[:, None].expand(-1, width)[scored_RC]
    position_F[at] = ((prompt_R - 1)[:, None] + step_C)[scored_RC]
    packed = (flat.view(sequences, room) for flat in (ids_F, position_F, segment_F, label_F))
    return Packed(*packed, place_RC, scored_RC)


def _before(sequence_R: torch.Tensor, length_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sequence's first row `S`, and how many tokens stand before each row's in its sequence."""
    order_R = torch.argsort(sequence_R, stable=True)
    count_S = torch.bincount(sequence_R)
    begin_S = count_S.cumsum(0) - count_S
    before_R = torch.empty_like(length_R)
    ended_R = length_R[order_R].cumsum(0) - length_R[order_R]
    before_R[order_R] = ended_R - ended_R[begin_S][sequence_R[order_R]]
    return order_R[begin_S], before_R
