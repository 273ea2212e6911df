"""What a backbone is to the rest of the house: scores over the whole catalogue for a batch of histories."""

from __future__ import annotations

from typing import Protocol

import torch


class Backbone(Protocol):
    """A sequential recommender. Saving and loading come from `PyTorchModelHubMixin`.

    One that was fitted with times has an attribute `uses_time` that is true, and its `forward`, `score` and `loss` take
    them as a second tensor of the histories' shape, `time_BT` (int64 seconds, 0 at padding). Others lack the attribute
    and are called without.
    """

    max_len: int

    def score(self, history_BT: torch.Tensor) -> torch.Tensor:
        """Scores of every item, `scores_BN`, for left-aligned histories of item id + 1 (0 is padding).

        Left-aligned histories need no padding mask under causal attention: a padded position comes after every real
        one and is never looked at.
        """
        ...

    def flops(self, history_length: int) -> int:
        """Floating point operations of scoring one history: 2 x parameters x tokens, plus attention."""
        ...


def uses_time(model: object) -> bool:
    """Whether the model is called with the times of the history."""
    return bool(getattr(model, "uses_time", False))


def last_position(history_BT: torch.Tensor) -> torch.Tensor:
    """Column of the last real item of each left-aligned history, `index_B` (0 where the history is empty)."""
    return ((history_BT > 0).sum(1) - 1).clamp(min=0)


def at_last_position(state_BTD: torch.Tensor, history_BT: torch.Tensor) -> torch.Tensor:
    """The states `BD` at the last real item of each left-aligned history."""
    return state_BTD[torch.arange(len(history_BT), device=history_BT.device), last_position(history_BT)]


def check_length(history_BT: torch.Tensor, max_len: int) -> None:
    """Raise `ValueError` where the histories are wider than the model looks back."""
    if history_BT.shape[1] > max_len:
        raise ValueError(f"history of {history_BT.shape[1]} items is longer than max_len {max_len}")


def matmul_parameters(module: torch.nn.Module) -> int:
    """Parameters that take part in a matrix product for every token (embeddings are looked up, not multiplied)."""
    linears = (layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    return sum(layer.weight.numel() for layer in linears)
