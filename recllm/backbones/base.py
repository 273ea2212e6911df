"""What a backbone is to the rest of the house: scores over the whole catalogue for a batch of histories."""

from __future__ import annotations

from typing import Protocol

import torch


class Backbone(Protocol):
    """A sequential recommender. Saving and loading come from `PyTorchModelHubMixin`."""

    max_len: int

    def score(self, history_BT: torch.Tensor) -> torch.Tensor:
        """Scores of every item, `scores_BN`, for left-aligned histories of item id + 1 (0 is padding)."""
        ...

    def flops(self, history_length: int) -> int:
        """Floating point operations of scoring one history: 2 x parameters x tokens, plus attention."""
        ...


def left_align(history_BT: torch.Tensor) -> torch.Tensor:
    """Move the padding of right-aligned histories to the end and trim the columns nobody uses.

    Left-aligned histories need no padding mask under causal attention: a padded position comes after every
    real one and is never looked at.
    """
    length_B = (history_BT > 0).sum(1)
    width = max(int(length_B.max()), 1)
    column_BT = torch.arange(width, device=history_BT.device)[None] + (history_BT.shape[1] - length_B)[:, None]
    aligned_BT = history_BT.gather(1, column_BT.clamp(max=history_BT.shape[1] - 1))
    return aligned_BT.masked_fill(torch.arange(width, device=history_BT.device)[None] >= length_B[:, None], 0)


def last_position(history_BT: torch.Tensor) -> torch.Tensor:
    """Column of the last real item of each left-aligned history, `index_B` (0 where the history is empty)."""
    return ((history_BT > 0).sum(1) - 1).clamp(min=0)


def matmul_parameters(module: torch.nn.Module) -> int:
    """Parameters that take part in a matrix product for every token (embeddings are looked up, not multiplied)."""
    linears = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    return sum(layer.weight.numel() for layer in linears)
