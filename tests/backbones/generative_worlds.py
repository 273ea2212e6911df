"""Small SID tables, models with wide weights so that scores differ clearly, and plain twins of what they compute."""

import numpy as np
import torch

from recllm.backbones.glass import GLASS
from recllm.backbones.tiger import TIGER
from recllm.data.histories import Prefixes
from recllm.sid.table import SidTable

ITEMS, SIZES = 30, (5, 4, 6)
SHAPE = {"hidden_dim": 12, "num_blocks": 2, "num_heads": 2, "head_dim": 6, "ffn_dim": 16}


def make_table(items: int = ITEMS, sizes: tuple[int, ...] = SIZES, shared: bool = False, seed: int = 0) -> SidTable:
    """Random sids; of a shared table every third item has its neighbour's."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.unravel_index(rng.permutation(int(np.prod(sizes)))[:items], sizes), 1)
    if shared:
        every[1::3] = every[::3][: len(every[1::3])]
    return SidTable(every, sizes, shared=shared)


def make_vectors(items: int = ITEMS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, 7)).astype(np.float32)


def widened(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def make_tiger(table: SidTable | None = None, **options) -> TIGER:
    return widened(TIGER.of_table(table or make_table(), **({"max_len": 4} | SHAPE | options)))


def make_glass(table: SidTable | None = None, **options) -> GLASS:
    table = table or make_table()
    defaults = {"short_len": 4, "retrieved": 5, "neighbours": 1, "threshold": 2}
    return widened(GLASS.of_table(table, make_vectors(len(table)), **(defaults | SHAPE | options)))


def random_histories(lengths=(0, 1, 4, 5, 12, 40), seed: int = 3, items: int = ITEMS) -> Prefixes:
    """Histories with a target behind each."""
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, items, size=length + 1) for length in lengths]
    whole = Prefixes.of_lists(lists)
    return Prefixes(whole.items_M, whole.start_B, whole.length_B - 1, whole.user_B + 100)


def item_scores(model: TIGER | GLASS, histories: Prefixes, table: SidTable) -> np.ndarray:
    """Log-probability of every item, one item and one history at a time, teacher-forced, over the codes in use."""
    used = [np.unique(table.codes_NL[:, level]) for level in range(table.levels)]
    scores_BN = np.zeros((len(histories), len(table)))
    for row in range(len(histories)):
        one = histories.subset(np.array([row]))
        for item in range(len(table)):
            history = one.items_M[one.start_B[0] : one.start_B[0] + one.length_B[0]]
            asked = Prefixes(np.append(history, item), np.array([0]), one.length_B, one.user_B)
            with torch.no_grad():
                logits = [part[0, 0].double() for part in model.logits(*model.collate(asked))]
            for level, logits_C in enumerate(logits):
                log_p = (logits_C - logits_C[used[level]].logsumexp(0))[table.codes_NL[item, level]]
                scores_BN[row, item] += float(log_p)
    return scores_BN
