"""What every tool answers with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ToolAnswer:
    """A tool's answer for a batch of examples.

    items_EK: ranked item ids, int32, -1 where the tool found fewer. scores_EK: float32, falling. margin_E: how far the
    first item stands out, score of the first minus score of the tenth. cost_E: FLOPs of the whole call, int64.
    """

    items_EK: np.ndarray
    scores_EK: np.ndarray
    cost_E: np.ndarray

    @property
    def margin_E(self) -> np.ndarray:
        tenth = min(9, self.scores_EK.shape[1] - 1)
        scores_EK = np.where(np.isfinite(self.scores_EK), self.scores_EK, self.scores_EK[:, :1] - 20.0)
        first_E, tenth_E = scores_EK[:, 0], scores_EK[:, tenth]
        return np.subtract(first_E, tenth_E, out=np.zeros_like(first_E), where=np.isfinite(first_E)).astype(np.float32)
