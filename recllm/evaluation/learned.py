"""A router learned from what is known before a tool is chosen: how far do these signals lead at all?

A planner reads most of them in its prompt, in digits and words, and the items besides; here they are numbers for trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recllm.evaluation.routing import Routed, after_retrieval, by_tool, confidence
from recllm.evaluation.routing_groups import features
from recllm.planner.bench import Bench
from recllm.planner.texts import TOOLS

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor


def signals(bench: Bench) -> dict[str, np.ndarray]:
    """What is known before a tool is chosen, float64 `E` each: the retriever's confidence, and `routing_groups`'
    features of the history."""
    return {**{name: confidence(bench.cache, name).astype(float) for name in ("margin", "entropy")}, **features(bench)}


@dataclass(frozen=True)
class LearnedRouter:
    """Boosted trees that foretell each tool's NDCG@10 from `signals`; the best value after its price is called."""

    models: tuple[HistGradientBoostingRegressor, ...]
    cost_weight: float

    @classmethod
    def fit(cls, bench: Bench, cost_weight: float, seed: int = 0) -> LearnedRouter:
        """Trees fitted on a bench's examples, which should be the routing fold's, where planners learn, too.

        Small trees, since nine NDCGs in ten are 0 and there is much noise and little to know.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        x_EF = _matrix(bench)
        settings = {"max_iter": 60, "learning_rate": 0.05, "max_leaf_nodes": 8, "min_samples_leaf": 60}
        models = [
            HistGradientBoostingRegressor(**settings, random_state=seed).fit(x_EF, ndcg_E)
            for ndcg_E in bench.cache.ndcg_PE
        ]
        return cls(tuple(models), cost_weight)

    def foretell(self, bench: Bench) -> np.ndarray:
        """Foretold NDCG@10 of each tool, `PE`."""
        x_EF = _matrix(bench)
        return np.stack([model.predict(x_EF) for model in self.models])

    def route(self, bench: Bench) -> Routed:
        """Every example to the tool with the best foretold NDCG@10 - cost_weight x share of the slow tool's cost."""
        cost_PE, slow_E = after_retrieval(bench.cache), bench.cache.cost_PE[TOOLS.index("reason")]
        value_PE = self.foretell(bench) - self.cost_weight * cost_PE / slow_E
        return by_tool(bench.cache, value_PE.argmax(0)).paying(cost_PE)


def _matrix(bench: Bench) -> np.ndarray:
    return np.stack(list(signals(bench).values()), axis=1)
