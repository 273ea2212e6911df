import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from recllm.backbones.batches import example_batches, window_batches, windows
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples


def random_world(seed: int, users: int = 25, items: int = 40, longest: int = 30) -> Sequences:
    """Histories of 0 to `longest` events; an item may come twice."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, size=users)
    return Sequences.from_lists([rng.integers(items, size=length).tolist() for length in lengths])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_len", [1, 2, 5, 50])
def test_every_fitting_event_but_a_users_first_is_a_target_once(seed, max_len):
    sequences = random_world(seed)
    fit_length_U = np.maximum(sequences.lengths_U - 3, 0)
    start_W, length_W = windows(sequences, fit_length_U, max_len, np.random.default_rng(seed))
    assert (length_W >= 2).all() and (length_W <= max_len + 1).all()
    targets = Counter(
        flat for start, length in zip(start_W, length_W, strict=True) for flat in range(start + 1, start + length)
    )
    first_U = sequences.offsets_U1[:-1]
    wanted = [
        flat for first, fold in zip(first_U, fit_length_U, strict=True) for flat in range(first + 1, first + fold)
    ]
    assert targets == Counter(wanted)
    for start, length in zip(start_W, length_W, strict=True):
        user = np.searchsorted(sequences.offsets_U1, start, side="right") - 1
        assert first_U[user] <= start and start + length <= first_U[user] + fit_length_U[user], "inside one user's fold"


def test_windows_begin_elsewhere_in_each_epoch():
    sequences = Sequences.from_lists([list(range(60))])
    rng = np.random.default_rng(0)
    depths = set()
    for _ in range(60):
        start_W, length_W = windows(sequences, sequences.lengths_U, 6, rng)
        (window,) = np.flatnonzero((start_W < 30) & (start_W + length_W > 30))[:1]
        depths.add(30 - int(start_W[window]))
    assert depths == set(range(1, 7)), "event 30 is predicted from each depth of context"


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_the_windows(seed):
    sequences = random_world(seed)
    fit_length_U = np.maximum(sequences.lengths_U - 2, 0)
    max_len, batch_size = 6, 7
    start_W, length_W = windows(sequences, fit_length_U, max_len, np.random.default_rng(seed))
    expected = Counter(
        tuple((sequences.items_M[start : start + length] + 1).tolist())
        for start, length in zip(start_W, length_W, strict=True)
    )
    found, sizes, spreads = Counter(), [], []
    for history_BT, target_BT in window_batches(
        sequences, fit_length_U, max_len, batch_size, np.random.default_rng(seed)
    ):
        assert history_BT.shape == target_BT.shape and history_BT.dtype == torch.int64
        assert history_BT.shape[1] <= max_len and (target_BT[:, 0] > 0).all()
        assert torch.equal(history_BT > 0, target_BT > 0), "left-aligned, one target an item"
        assert torch.equal(history_BT[:, 1:], target_BT[:, :-1] * (target_BT[:, 1:] > 0)), "targets are the next items"
        for history_T, target_T in zip(history_BT.tolist(), target_BT.tolist(), strict=True):
            real = sum(item > 0 for item in target_T)
            assert all(target_T[:real]) and not any(target_T[real:])
            found[(history_T[0], *target_T[:real])] += 1
        sizes.append(len(history_BT))
        lengths = (target_BT > 0).sum(1)
        spreads.append((int(lengths.min()), int(lengths.max())))
    assert found == expected
    assert sum(sizes) == len(start_W) and sorted(sizes)[1:] == [batch_size] * (len(sizes) - 1)
    spreads.sort()
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spreads)), "like lengths together"


def timed_world(seed: int) -> Sequences:
    """A world whose events have times of their own."""
    sequences = random_world(seed)
    times_M = np.random.default_rng(seed).integers(1, 10**9, size=len(sequences.items_M))
    return Sequences(sequences.user_ids_U, sequences.items_M, times_M, sequences.offsets_U1)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_position_alone_is_a_target_and_nothing_else_changes(seed):
    sequences = random_world(seed)
    settings = (sequences, sequences.lengths_U, 6, 7)
    every = window_batches(*settings, np.random.default_rng(seed))
    last = window_batches(*settings, np.random.default_rng(seed), train_targets="last_position")
    for (history_BT, target_BT), (same_BT, one_BT) in zip(every, last, strict=True):
        assert torch.equal(history_BT, same_BT)
        for targets, ones in zip(target_BT.tolist(), one_BT.tolist(), strict=True):
            end = max(place for place, item in enumerate(targets) if item)
            assert ones == [item if place == end else 0 for place, item in enumerate(targets)]


def test_times_lie_under_their_events():
    sequences = timed_world(0)
    time_of = {}
    for item, time in zip(sequences.items_M.tolist(), sequences.timestamps_M.tolist(), strict=True):
        time_of.setdefault(item + 1, set()).add(time)
    seen = []
    for history_BT, target_BT, time_BT in window_batches(
        sequences, sequences.lengths_U, 6, 7, np.random.default_rng(0), with_times=True
    ):
        assert history_BT.shape == target_BT.shape == time_BT.shape and time_BT.dtype == torch.int64
        assert torch.equal(history_BT > 0, time_BT > 0)
        for item, time in zip(history_BT[history_BT > 0].tolist(), time_BT[time_BT > 0].tolist(), strict=True):
            assert time in time_of[item]
            seen.append((item, time))
    events = Counter(zip((sequences.items_M + 1).tolist(), sequences.timestamps_M.tolist(), strict=True))
    assert set(seen) <= set(events) and len(set(seen)) > 200


@pytest.mark.parametrize("max_len", [1, 4, 50])
@pytest.mark.parametrize("seed", range(3))
def test_example_batches_are_the_histories_left_aligned(seed, max_len):
    sequences = timed_world(seed)
    rng = np.random.default_rng(seed)
    user_E = np.flatnonzero(sequences.lengths_U > 0)
    examples = Examples(user_E, rng.integers(0, sequences.lengths_U[user_E]), sequences)
    seen = []
    for rows, (history_BT, time_BT) in example_batches(examples, max_len, 7, with_times=True):
        width = max(max(min(len(examples.history(row)), max_len) for row in rows), 1)
        assert history_BT.shape == time_BT.shape == (len(rows), width), "trimmed to the longest"
        for row, items, times in zip(rows.tolist(), history_BT.tolist(), time_BT.tolist(), strict=True):
            history = (examples.history(row)[-max_len:] + 1).tolist()
            stamps = sequences.timestamps(examples.user_E[row])[: examples.position_E[row]][-max_len:].tolist()
            assert items == history + [0] * (width - len(history))
            assert times == stamps + [0] * (width - len(stamps))
        (alone_BT,) = next(iter(example_batches(examples.subset(rows), max_len, 99)))[1]
        assert torch.equal(alone_BT, history_BT), "without times the histories are the same"
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(examples)))
    assert list(example_batches(examples.subset(np.zeros(0, dtype=int)), max_len, 7)) == []


def test_unknown_targets_are_refused():
    sequences = random_world(0)
    with pytest.raises(ValueError, match="train_targets 'first' is unknown; choose one of all_positions"):
        next(window_batches(sequences, sequences.lengths_U, 6, 7, np.random.default_rng(0), train_targets="first"))
