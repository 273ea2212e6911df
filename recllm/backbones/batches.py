"""Batches of histories: the fitting fold cut into windows for training, examples by like length for scoring."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from recllm.data.interactions import Sequences
from recllm.data.splits import Examples

TRAIN_TARGETS = ("all_positions", "last_position")


def windows(
    sequences: Sequences, fit_length_U: np.ndarray, max_len: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every user's fitting fold into windows of at most `max_len` + 1 events, each event a target once.

    The cut starts at a random offset, so that over the epochs an event is seen at every depth of context. Returns
    (start_W, length_W): flat positions into `sequences.items_M`; windows of fewer than 2 events are dropped.
    """
    start_U = sequences.offsets_U1[:-1]
    pieces = []
    shift_U = rng.integers(0, max_len, size=len(fit_length_U))
    deepest = int(fit_length_U.max(initial=0)) // max_len + 2
    for step in range(deepest):
        begin_U = np.maximum(step * max_len - shift_U, 0)
        end_U = np.minimum((step + 1) * max_len - shift_U + 1, fit_length_U)
        keep_U = end_U - begin_U >= 2
        pieces.append(np.stack([(start_U + begin_U)[keep_U], (end_U - begin_U)[keep_U]]))
    start_W, length_W = np.concatenate(pieces, axis=1)
    return start_W, length_W


def window_batches(
    sequences: Sequences,
    fit_length_U: np.ndarray,
    max_len: int,
    batch_size: int,
    rng: np.random.Generator,
    train_targets: str = "all_positions",
    with_times: bool = False,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches (`history_BT`, `target_BT`), item id + 1, left-aligned; windows of like length share a batch.

    Args:
        train_targets: every event of a window after its first is a target (`all_positions`), or its last event only
            (`last_position`).
        with_times: a third tensor holds the seconds of the history's events, int64, 0 at padding.

    Raises:
        ValueError: unknown `train_targets`.
    """
    if train_targets not in TRAIN_TARGETS:
        raise ValueError(f"train_targets {train_targets!r} is unknown; choose one of {', '.join(TRAIN_TARGETS)}")
    start_W, length_W = windows(sequences, fit_length_U, max_len, rng)
    order_W = np.argsort(length_W + rng.random(len(length_W)), kind="stable")
    batches = np.split(order_W, np.arange(batch_size, len(order_W), batch_size))
    for index in rng.permutation(len(batches)):
        length_B = length_W[batches[index]]
        row_BT, real_BT = _flat_rows(start_W[batches[index]], length_B, len(sequences.items_M))
        event_BT = np.where(real_BT, sequences.items_M[row_BT].astype(np.int64) + 1, 0)
        target_BT = event_BT[:, 1:]
        history_BT = event_BT[:, :-1] * (target_BT > 0)
        if train_targets == "last_position":
            target_BT = target_BT * (np.arange(target_BT.shape[1]) == length_B[:, None] - 2)
        parts = [history_BT, target_BT]
        if with_times:
            parts.append(np.where(history_BT > 0, sequences.timestamps_M[row_BT[:, :-1]], 0))
        yield tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)


def rows_by_length(examples: Examples, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of the examples in batches of like history length, short ones first; nothing where there are none."""
    order_E = np.argsort(examples.lengths_E, kind="stable")
    for begin in range(0, len(order_E), batch_size):
        yield order_E[begin : begin + batch_size]


def example_batches(
    examples: Examples, max_len: int, batch_size: int, with_times: bool = False
) -> Iterator[tuple[np.ndarray, tuple[torch.Tensor, ...]]]:
    """Yield (rows of `examples`, (`history_BT`,)) in batches of like history length, as the backbones read them.

    Histories hold item id + 1, the last `max_len` items left-aligned and trimmed to the batch's longest; `with_times`
    adds the seconds of their events as a second tensor.
    """
    sequences = examples.sequences
    for rows in rows_by_length(examples, batch_size):
        length_B = np.minimum(examples.position_E[rows], max_len)
        end_B = sequences.offsets_U1[examples.user_E[rows]] + examples.position_E[rows]
        row_BT, real_BT = _flat_rows(end_B - length_B, np.maximum(length_B, 1), len(sequences.items_M))
        real_BT &= length_B[:, None] > 0
        parts = [np.where(real_BT, sequences.items_M[row_BT].astype(np.int64) + 1, 0)]
        if with_times:
            parts.append(np.where(real_BT, sequences.timestamps_M[row_BT], 0))
        yield rows, tuple(torch.from_numpy(part) for part in parts)


def _flat_rows(start_B: np.ndarray, length_B: np.ndarray, events: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions `BT` of runs of events from their starts, and which of them are real."""
    column_T = np.arange(int(length_B.max()))
    row_BT = np.minimum(start_B[:, None] + column_T, events - 1)
    return row_BT, column_T < length_B[:, None]
