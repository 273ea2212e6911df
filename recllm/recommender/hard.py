"""Hard samples: what the fast tool misses, which is where thinking may pay (TwiSTAR, stage 4)."""

from __future__ import annotations

import numpy as np

from recllm.data.splits import Examples, RolesSplit
from recllm.metrics.ranking import rank_in_list
from recllm.tools.retrieve import Retrieve


def hard_examples(split: RolesSplit, retrieve: Retrieve, depth: int = 50) -> Examples:
    """Half A's routing targets that are not among the retriever's first `depth` unseen items.

    Half A, because half B labels and rewards the planner.

    Raises:
        ValueError: the split is not `roles`, or the retriever misses nothing.
    """
    if split.kind != "roles":
        raise ValueError(f"hard samples are routing targets of the split roles; this one is {split.kind}")
    examples = split.routing("A")
    rank_E = rank_in_list(retrieve.answer(examples, depth).items_EK, examples.targets_E)
    hard = examples.subset(np.flatnonzero(rank_E >= depth))
    if not len(hard):
        raise ValueError(f"the retriever has all {len(examples)} routing targets among its first {depth}")
    return hard
