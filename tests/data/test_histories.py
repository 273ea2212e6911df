import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from recllm.data.histories import WINDOW, HistoryBlocks, Prefixes, example_batches, write_histories
from recllm.data.interactions import SCHEMA
from recllm.data.splits import load_split


def write_dataset(folder, lengths, split="leave_one_out", routing_items=1, seed=0, row_group=16, role_share=1.0):
    """A data set folder of users with ids 3, 6, 9, ... whose sequences have these lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    users = np.repeat(3 * np.arange(1, len(lengths) + 1), lengths)
    stamps = np.concatenate([np.arange(length) for length in lengths])
    columns = {"user_id": users, "item_id": rng.integers(0, 50, size=len(users)), "timestamp": stamps}
    frame = pl.DataFrame(columns).cast(SCHEMA)
    frame.write_parquet(folder / "interactions.parquet", row_group_size=row_group)
    known = {"split": split, "routing_items": routing_items, "split_seed": 0, "role_share": role_share}
    (folder / "dataset.json").write_text(json.dumps(known))
    return folder


def stored(path) -> dict[int, list[int]]:
    blocks, found = HistoryBlocks(path), {}
    for index in range(len(blocks)):
        users, items, offsets = blocks.block(index)
        found |= {int(u): items[a:b].tolist() for u, a, b in zip(users, offsets, offsets[1:], strict=False)}
    return found


def test_slices_of_histories_by_hand():
    lists = [[1, 2, 3], [], [7], [4, 5, 6, 8, 9]]
    histories = Prefixes.of_lists([np.array(items) for items in lists])
    assert histories.padded().tolist() == [[2, 3, 4, 0, 0], [0] * 5, [8, 0, 0, 0, 0], [5, 6, 7, 9, 10]]
    assert histories.last(2).padded().tolist() == [[3, 4], [0, 0], [8, 0], [9, 10]]
    items_F, row_F = histories.before_last(2).flat()
    assert (items_F.tolist(), row_F.tolist()) == ([1, 4, 5, 6], [0, 3, 3, 3])
    assert histories.subset(np.array([3, 0])).last(1).padded().tolist() == [[10], [4]]
    assert Prefixes.of_lists([np.zeros(0, int)]).padded().tolist() == [[0]]
    ahead = Prefixes(histories.items_M, histories.start_B[:1], np.array([2]), np.array([0]))
    assert ahead.targets_B.tolist() == [3]


@pytest.mark.parametrize(
    ("split", "routing_items", "role_share"),
    [("leave_one_out", 1, 1.0), ("roles", 1, 1.0), ("roles", 3, 1.0), ("roles", 1, 0.4)],
)
@pytest.mark.parametrize("block_events", [1, 7, 1000])
def test_the_file_holds_the_fitting_fold_and_nothing_else(tmp_path, split, routing_items, role_share, block_events):
    lengths = np.random.default_rng(1).integers(1, 25, size=20)
    folder = write_dataset(tmp_path / "data", lengths, split, routing_items, role_share=role_share)
    blocks = write_histories(folder, tmp_path / "h.arrow", block_events=block_events)
    known = load_split(folder)
    rows = range(len(known.sequences))
    expected = {int(known.sequences.user_ids_U[u]): known.fitting.items(u).tolist() for u in rows}
    assert stored(tmp_path / "h.arrow") == {user: items for user, items in expected.items() if len(items) >= 2}
    assert len(HistoryBlocks(tmp_path / "h.arrow")) == blocks
    assert blocks == 1 if block_events == 1000 else blocks > 5
    chosen = np.array([6, 12, 60])
    write_histories(folder, tmp_path / "some.arrow", chosen, block_events)
    assert stored(tmp_path / "some.arrow") == {u: i for u, i in expected.items() if u in chosen and len(i) >= 2}


def pairs(batches) -> list[tuple[int, int]]:
    found = []
    for batch in batches:
        assert (batch.length_B >= 1).all()
        found += list(zip(batch.user_B.tolist(), batch.length_B.tolist(), strict=True))
        for row in range(len(batch)):
            before = batch.items_M[batch.start_B[row] - 1] if batch.start_B[row] else None
            assert before is None or len(batch.items_M) > batch.start_B[row] + batch.length_B[row]
    return found


def test_an_epoch_asks_for_every_event_once_with_its_own_history(tmp_path):
    lengths = np.random.default_rng(2).integers(1, 30, size=40)
    folder = write_dataset(tmp_path / "data", lengths)
    write_histories(folder, tmp_path / "h.arrow", block_events=20)
    blocks, known = HistoryBlocks(tmp_path / "h.arrow"), stored(tmp_path / "h.arrow")
    assert len(blocks) > WINDOW
    batches = list(example_batches(blocks, 16, np.random.default_rng(0), short=10))
    expected = [(user, place) for user, items in known.items() for place in range(1, len(items))]
    assert sorted(pairs(batches)) == sorted(expected)
    for batch in batches:
        assert len(batch) <= 16
        clipped_B = np.minimum(batch.length_B, 10)
        assert clipped_B.max() - clipped_B.min() <= 6, "batches are of like length"
        for row in range(len(batch)):
            user, place = int(batch.user_B[row]), int(batch.length_B[row])
            history = (batch.padded()[row, :place] - 1).tolist()
            assert history == known[user][:place] and batch.targets_B[row] == known[user][place]
    again = list(example_batches(blocks, 16, np.random.default_rng(0), short=10))
    other = list(example_batches(blocks, 16, np.random.default_rng(1), short=10))
    assert pairs(again) == pairs(batches) != pairs(other)


def test_drawn_targets_hold_the_last_and_no_target_twice(tmp_path):
    folder = write_dataset(tmp_path / "data", np.arange(2, 40))
    write_histories(folder, tmp_path / "h.arrow", block_events=50)
    known = stored(tmp_path / "h.arrow")
    drawn = pairs(example_batches(HistoryBlocks(tmp_path / "h.arrow"), 8, np.random.default_rng(0), targets_per_user=3))
    assert len(set(drawn)) == len(drawn)
    for user, items in known.items():
        places = [place for owner, place in drawn if owner == user]
        assert 1 <= len(places) <= min(3, len(items) - 1)
        assert len(items) - 1 in places and min(places) >= 1


_PEAK = """
import sys
import numpy as np
from recllm.data.histories import HistoryBlocks, example_batches, write_histories

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

folder, events = sys.argv[1], 0
write_histories(folder + "/small", folder + "/warm.arrow", block_events=4096)
list(example_batches(HistoryBlocks(folder + "/warm.arrow"), 1024, np.random.default_rng(0)))
before, peak = anonymous(), 0
write_histories(folder + "/" + sys.argv[2], folder + "/h.arrow", block_events=4096)
for step, batch in enumerate(example_batches(HistoryBlocks(folder + "/h.arrow"), 1024, np.random.default_rng(0))):
    events += len(batch)
    peak = max(peak, anonymous()) if step % 16 == 0 else peak
print(events, peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads anonymous memory from Linux' process status")
def test_draws_reach_every_place_about_equally_and_no_further_back_than_asked(tmp_path):
    write_histories(write_dataset(tmp_path / "data", [12]), tmp_path / "h.arrow")
    blocks, rng = HistoryBlocks(tmp_path / "h.arrow"), np.random.default_rng(0)
    for recent, places in ((0, range(1, 10)), (4, range(6, 10)), (50, range(1, 10))):
        whole = [int(n) for batch in example_batches(blocks, 8, rng, recent=recent) for n in batch.length_B]
        assert sorted(whole) == list(places)
        drawn = [
            int(n) for _ in range(900) for b in example_batches(blocks, 8, rng, 2, recent=recent) for n in b.length_B
        ]
        counts = {place: drawn.count(place) for place in places}
        assert sum(counts.values()) == len(drawn) and counts.pop(9) == 900, "the last one is always there"
        # A draw of the last place itself is no second target.
        expected = 900 / len(places)
        assert all(0.7 * expected < count < 1.3 * expected for count in counts.values()), counts


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    users = {"small": 600, "large": 12_000}
    for name, count in users.items():
        write_dataset(tmp_path / name, np.full(count, 100), row_group=50_000)
    used = {}
    for name, count in users.items():
        arguments = [sys.executable, "-c", _PEAK, str(tmp_path), name]
        events, used[name] = map(int, subprocess.check_output(arguments, text=True).split())
        assert events == 97 * count
    # One int64 array over all events of the larger set is 9 MB; twenty times the events may not cost that much.
    assert used["large"] - used["small"] < 6_000, f"anonymous memory in KiB: {used}"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="write_histories"):
        HistoryBlocks(tmp_path / "none.arrow")
    with pytest.raises(FileNotFoundError, match="data_prep"):
        write_histories(tmp_path, tmp_path / "h.arrow")
