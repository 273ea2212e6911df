"""The middle tool: a ranker re-orders the fast tool's first m items."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recllm.backbones.din import DIN
from recllm.backbones.ranker import CandidateFeatures, candidate_set, rerank
from recllm.data.splits import Examples
from recllm.tools.answer import ToolAnswer
from recllm.tools.retrieve import Retrieve


class Rank:
    """DIN over the retriever's list. Cost: the retriever's query and one forward over m candidates."""

    name = "rank"

    def __init__(self, retrieve: Retrieve, model: DIN, features: CandidateFeatures):
        self.retrieve, self.model, self.features = retrieve, model.eval(), features

    @classmethod
    def load(cls, folder: str | Path, retrieve: Retrieve, features: CandidateFeatures) -> Rank:
        return cls(retrieve, DIN.from_pretrained(str(folder)), features)

    def over(self, retrieve: Retrieve) -> Rank:
        """The same ranker over the lists of another retriever."""
        return Rank(retrieve, self.model, self.features)

    def cost(self, history_length: int, m: int) -> int:
        """FLOPs of retrieving and ranking m candidates."""
        return self.retrieve.cost(history_length) + self.model.flops(history_length, m)

    def answer(self, examples: Examples, m: int) -> ToolAnswer:
        """The retriever's first m items of each history in the ranker's order."""
        found = self.retrieve.answer(examples, m)
        candidates = candidate_set(
            examples, found.items_EK, found.scores_EK, self.features, self.model.max_len, inject_target=False
        )
        items_EK, scores_EK = rerank(self.model, candidates)
        cost_E = np.array([self.cost(int(length), m) for length in examples.lengths_E], dtype=np.int64)
        return ToolAnswer(items_EK, scores_EK, cost_E)
