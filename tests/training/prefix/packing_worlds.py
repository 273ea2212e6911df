"""Tiny models and random groups of rows for the tests of packed and shared prompts."""

import runpy
from pathlib import Path

import numpy as np
import torch

VOCABULARY, PAD = 50, 0
_DECODING = runpy.run_path(str(Path(__file__).parents[2] / "decoding" / "worlds.py"), run_name="worlds")


def make_model(family: str, attention: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """A random model that trains and has a head of its own."""
    changes = {"vocab_size": VOCABULARY, "max_position_embeddings": 2048, "attn_implementation": attention}
    return _DECODING["make_model"](family, seed, tied=False, **changes).train()


def random_rows(seed: int, prompts: int = 3, group: int = 4, longest: int = 9, most: int = 6):
    """Prompts padded on the left, completions on the right, in mixed order; some completions have no token."""
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(1, VOCABULARY, rng.integers(1, longest + 1)).tolist() for _ in range(prompts)]
    chosen[-1] = [chosen[0][0], *chosen[0]]  # begins alike, and is another prompt
    rows = [prompt for prompt in chosen for _ in range(group)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    answers = [rng.integers(1, VOCABULARY, rng.integers(0, most + 1)).tolist() for _ in rows]
    answers[0] = rng.integers(1, VOCABULARY, most).tolist()

    def padded(lists, width, left):
        fill = [[PAD] * (width - len(ids)) for ids in lists]
        ids = torch.tensor([f + x if left else x + f for f, x in zip(fill, lists, strict=True)])
        ones = torch.tensor(
            [
                [0] * len(f) + [1] * len(x) if left else [1] * len(x) + [0] * len(f)
                for f, x in zip(fill, lists, strict=True)
            ]
        )
        return ids, ones

    prompt = padded(rows, max(map(len, rows)), left=True)
    return rows, answers, (*prompt, *padded(answers, most, left=False))
