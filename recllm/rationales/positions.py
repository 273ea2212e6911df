"""Which events of the fitting fold become rows of a chat data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recllm.data.interactions import Sequences


def fold_positions(fold: Sequences, stride: int, seed: int) -> Iterator[tuple[int, int]]:
    """(row of the user, position of the next item): every `stride` events of each fitting fold, from the last
    position minus a random offset backwards, so that every user keeps the row nearest to what will be asked."""
    rng = np.random.default_rng(seed)
    for user_row in range(len(fold)):
        length = len(fold.items(user_row))
        offset = int(rng.integers(min(stride, max(length - 1, 1))))
        for position in range(length - 1 - offset, 0, -stride):
            yield user_row, position
