"""Vectors of what items are, fused into the embeddings of what users did with them.

An item's learned row e and its fixed vector c, of text or of another model, become e + W c (`add`) or
g e + (1 - g) W c with g = sigmoid(G [e; W c] + b) (`gate`). An item with few events then stands near its like. This is
our reading of the embedding fusion in VirtualMLE's search space (arXiv 2606.03221), which names it and no more.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

FUSIONS = ("none", "add", "gate")


class ContentFusion(nn.Module):
    """The fusion of one model; its vectors are saved with the weights and never trained.

    Args:
        num_items, content_dim: number and width of the vectors. hidden_dim: width of the embeddings.
        kind: `add` or `gate`.
    """

    def __init__(self, num_items: int, content_dim: int, hidden_dim: int, kind: str):
        super().__init__()
        # Row 0 is padding, as in the embeddings.
        self.register_buffer("content_ND", torch.zeros(num_items + 1, content_dim))
        self.project = nn.Linear(content_dim, hidden_dim, bias=False)
        self.gate = nn.Linear(2 * hidden_dim, hidden_dim) if kind == "gate" else None

    @classmethod
    def of(cls, kind: str, num_items: int, content_dim: int, hidden_dim: int) -> ContentFusion | None:
        """The fusion of that kind, None for `none`.

        Raises:
            ValueError: an unknown kind, or no vectors for one that needs them.
        """
        if kind not in FUSIONS:
            raise ValueError(f"embedding_fusion {kind!r} is unknown; choose one of {', '.join(FUSIONS)}")
        if kind == "none":
            return None
        if content_dim < 1:
            raise ValueError(f"embedding_fusion {kind} needs item vectors: set item_vectors to a SID table's folder")
        return cls(num_items, content_dim, hidden_dim, kind)

    def learn_vectors(self, vectors_ND: np.ndarray) -> None:
        """Take the items' vectors, row i item i's.

        Raises:
            ValueError: another number of items or another width.
        """
        if vectors_ND.shape != (expected := (len(self.content_ND) - 1, self.content_ND.shape[1])):
            raise ValueError(f"item vectors of shape {vectors_ND.shape}, the model takes {expected}")
        self.content_ND[1:] = torch.from_numpy(vectors_ND)

    def forward(self, row: torch.Tensor, place: torch.Tensor | slice) -> torch.Tensor:
        """Fused embeddings of `row` (..., hidden_dim), whose items stand at `place` (item id + 1) of the tables."""
        content = self.project(self.content_ND[place])
        if self.gate is None:
            return row + content
        gate = torch.sigmoid(self.gate(torch.cat([row, content], -1)))
        return gate * row + (1 - gate) * content


def item_states(model: nn.Module, history_BT: torch.Tensor) -> torch.Tensor:
    """A model's embeddings `BTD` of histories of item id + 1, fused where it fuses."""
    row_BTD = model.item_embedding(history_BT)
    return row_BTD if model.fusion is None else model.fusion(row_BTD, history_BT)
