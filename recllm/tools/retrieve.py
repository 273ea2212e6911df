"""The fast tool: a sequential backbone scores the whole catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recllm.backbones.fit import top_lists
from recllm.backbones.sasrec import SASRec
from recllm.data.splits import Examples
from recllm.tools.answer import ToolAnswer


class Retrieve:
    """Unseen items by the score of a SASRec folder. Cost: one query, product with the item table included."""

    name = "retrieve"

    def __init__(self, model: SASRec):
        self.model = model.eval()

    @classmethod
    def load(cls, folder: str | Path) -> Retrieve:
        return cls(SASRec.from_pretrained(str(folder)))

    def cost(self, history_length: int) -> int:
        """FLOPs of one query."""
        return self.model.flops(history_length)

    def answer(self, examples: Examples, k: int) -> ToolAnswer:
        """The k best unseen items of each history."""
        items_EK, scores_EK = top_lists(self.model, examples, k, exclude_seen=True)
        cost_E = np.array([self.cost(int(length)) for length in examples.lengths_E], dtype=np.int64)
        return ToolAnswer(items_EK, scores_EK, cost_E)
