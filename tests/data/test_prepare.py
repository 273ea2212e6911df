"""From raw rows to dataset/: duplicates, k-core, ids, order, text and the quarantine."""

import json
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.prepare import (
    Raw,
    check_bad_fraction,
    drop_repeats,
    k_core,
    prepare,
    quarantine,
    sample_users,
    write_dataset,
)
from recllm.data.splits import load_split

EVENTS = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
ITEMS = {"item": pl.String, "title": pl.String, "categories": pl.List(pl.String)}


@dataclass
class Policies:
    split: str = "roles"
    routing_items: int = 1
    split_seed: int = 0
    k_core: int = 0
    dedup: str = "none"
    keep_unseen: bool = False
    max_bad_fraction: float = 0.01


def _raw(events, items=(), bad=(), rows=None, time="seconds"):
    events = pl.DataFrame(events, schema=EVENTS, orient="row")
    items = pl.DataFrame(list(items), schema=ITEMS, orient="row")
    rows = rows or {"events": events.height + len(bad)}
    return Raw(events, items, quarantine(list(bad)), rows, time)


def _random_events(seed, users=8, items=8, n=60):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, high, n).tolist() for high in (users, items, 6)]
    return [(f"u{u}", f"i{i}", t) for u, i, t in zip(*columns, strict=True)]


def _frame(events):
    return pl.DataFrame(events, schema=EVENTS, orient="row")


def _rows(frame):
    return frame.select("user_id", "item_id", "timestamp").rows()


def test_by_hand():
    events = [("bob", "x", 5), ("ann", "y", 9), ("bob", "z", 5), ("ann", "x", 9), ("bob", "y", 1)]
    items = [("z", "Zed", ["C"]), ("x", "Ex", ["C", "D", "C"]), ("w", "Never seen", [])]
    done = prepare(_raw(events, items), k=0, dedup="none")
    # bob comes first in the input; z and x have rows in the item file, y has none and comes last.
    assert _rows(done.interactions) == [(0, 2, 1), (0, 1, 5), (0, 0, 5), (1, 2, 9), (1, 1, 9)]
    assert done.catalog["source_id"].to_list() == ["z", "x", "y"]
    assert done.catalog["title"].to_list() == ["Zed", "Ex", ""]
    assert done.catalog["categories"].to_list() == [["C"], ["C", "D"], []]
    assert done.counts["items_without_metadata"] == 1
    assert done.counts["items_without_title"] == 1
    assert (done.counts["users"], done.counts["items"], done.counts["events"]) == (2, 3, 5)
    assert done.counts["density"] == pytest.approx(5 / 6) and done.counts["mean_length"] == 2.5
    kept = prepare(_raw(events, items), k=0, dedup="none", keep_unseen=True)
    assert kept.catalog["source_id"].to_list() == ["z", "x", "w", "y"]
    assert kept.counts["unseen_items"] == 1


def test_ties_keep_input_order():
    events = _random_events(1, users=3, items=50, n=400)
    done = prepare(_raw(events), k=0, dedup="none")
    users = list(dict.fromkeys(u for u, _, _ in events))
    items = list(dict.fromkeys(i for _, i, _ in events))
    numbered = [(users.index(u), items.index(i), t) for u, i, t in events]
    assert _rows(done.interactions) == sorted(numbered, key=lambda row: (row[0], row[2]))  # Python's sort is stable


@pytest.mark.parametrize("seed", range(5))
def test_k_core_equals_its_twin(seed):
    events = _random_events(seed)
    kept = events
    while True:
        users, items = [e[0] for e in kept], [e[1] for e in kept]
        smaller = [e for e in kept if users.count(e[0]) >= 6 and items.count(e[1]) >= 6]
        if smaller == kept:
            break
        kept = smaller
    if kept:
        assert k_core(_frame(events), 6).rows() == kept
    else:
        with pytest.raises(ValueError, match="no event is left in the 6-core"):
            k_core(_frame(events), 6)
    assert k_core(_frame(events), 0).rows() == k_core(_frame(events), 1).rows() == events


def test_k_core_is_taken_to_its_end():
    # Dropping u3 takes i3 below two, which takes u2 below two, and so on: one pass is not enough.
    events = [("u1", "i1", 0), ("u1", "i2", 0), ("u4", "i1", 0), ("u4", "i2", 0)]
    chain = [("u2", "i2", 0), ("u2", "i3", 0), ("u3", "i3", 0)]
    assert k_core(_frame(chain + events), 2).rows() == events
    with pytest.raises(ValueError, match="k_core must be 0"):
        k_core(_frame(events), -1)


@pytest.mark.parametrize("dedup", ["first", "last", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_dedup_equals_its_twin(dedup, seed):
    events = _random_events(seed, users=3, items=5)
    kept = set(range(len(events)))
    if dedup != "none":
        for pair in {e[:2] for e in events}:
            same = sorted((i for i, e in enumerate(events) if e[:2] == pair), key=lambda i: (events[i][2], i))
            kept -= set(same) - {same[0 if dedup == "first" else -1]}
    assert drop_repeats(_frame(events), dedup).rows() == [events[i] for i in sorted(kept)]


def test_repeats_go_before_the_k_core():
    # Three repeats of one pair are one event: not a 2-core.
    events = [("a", "x", 1), ("a", "x", 2), ("a", "x", 3)]
    with pytest.raises(ValueError, match="2-core"):
        prepare(_raw(events), k=2, dedup="first")
    assert prepare(_raw(events), k=2, dedup="none").counts["events"] == 3
    with pytest.raises(ValueError, match="unknown dedup"):
        prepare(_raw(events), k=0, dedup="some")


def test_of_duplicate_item_rows_the_first_counts():
    items = [("x", "First", ["A"]), ("x", "Second", ["B"])]
    done = prepare(_raw([("a", "x", 1)], items), k=0, dedup="none")
    assert done.catalog["title"].to_list() == ["First"]
    assert done.counts["duplicate_items"] == 1


def test_item_text_is_made_harmless():
    items = pl.DataFrame(
        {
            "item": ["x"],
            "title": ["&lt;|im_start|&gt;system <a_12> Salt &amp; Pepper"],
            "categories": [["<think>", "<think>", "\x00", "Fine & Good"]],
            "brand": ["[INST]"],
            "year": [1995],
        }
    )
    raw = _raw([("a", "x", 1)])
    done = prepare(Raw(raw.events, items, raw.bad, raw.rows), k=0, dedup="none")
    row = done.catalog.row(0, named=True)
    assert row["title"] == "‹|im_start|›system ‹a_12› Salt & Pepper"
    assert row["categories"] == ["‹think›", "Fine & Good"]
    assert row["brand"] == "(INST)"
    assert row["year"] == 1995


def test_too_many_malformed_rows_stop_with_the_first_reasons():
    bad = [("e.tsv", 7, "torn"), ("e.tsv", 9, "no time")]
    raw = _raw([("a", "x", 1)] * 98, bad=bad, rows={"e.tsv": 100, "i.tsv": 5})
    with pytest.raises(ValueError, match=r"e\.tsv: 2 of 100 rows.*line 7: torn; line 9: no time"):
        check_bad_fraction(raw, 0.01)
    check_bad_fraction(raw, 0.02)
    # Each file on its own: a broken small file does not hide behind a large one.
    with pytest.raises(ValueError, match=r"i\.tsv: 1 of 5"):
        check_bad_fraction(_raw([("a", "x", 1)], bad=[("i.tsv", 2, "torn")], rows={"e": 10_000, "i.tsv": 5}), 0.01)


def test_no_event_is_an_error():
    with pytest.raises(ValueError, match="no usable event in events"):
        prepare(_raw([], [("x", "Ex", [])], rows={"events": 3}), k=0, dedup="none")


def test_written_folder_is_what_the_loaders_expect(tmp_path):
    events = _random_events(2)
    raw = _raw(events, [("i1", "One", ["C"])], bad=[("e.tsv", 3, "torn")], rows={"e.tsv": 1000}, time="order")
    done = prepare(raw, k=0, dedup="none")
    counts = write_dataset(tmp_path, done, raw, Policies(routing_items=2, split_seed=4), {"name": "toy"})
    known = json.loads((tmp_path / "dataset.json").read_text())
    assert known["name"] == "toy" and known["time"] == "order" and "input order" in known["ties"]
    assert (known["split"], known["routing_items"], known["split_seed"]) == ("roles", 2, 4)
    assert (known["dedup"], known["k_core"]) == ("none", 0)
    assert known["counts"] == counts and counts["quarantined"] == 1
    assert Catalog.load(tmp_path).frame.equals(done.catalog)
    sequences = Sequences.load(tmp_path)
    assert len(sequences) == counts["users"] and len(sequences.items_M) == counts["events"] == len(events)
    split = load_split(tmp_path)
    assert counts["test_users"] == len(split.test) and counts["fitting_events"] == split.fit_length_U.sum()
    assert pl.read_parquet(tmp_path / "quarantine.parquet").rows() == [("e.tsv", 3, "torn")]


def test_fingerprint_follows_the_content(tmp_path):
    def mark(events, items, folder):
        raw = _raw(events, items)
        write_dataset(tmp_path / folder, prepare(raw, k=0, dedup="none"), raw, Policies(), {})
        return json.loads((tmp_path / folder / "dataset.json").read_text())["fingerprint"]

    events, items = _random_events(3), [("i1", "One", [])]
    assert mark(events, items, "a") == mark(events, items, "b")
    assert mark(events, items, "a") != mark(events, [("i1", "Two", [])], "c")
    assert mark(events, items, "a") != mark([*events, ("u1", "i1", 99)], items, "d")


def test_a_split_without_test_users_is_refused_before_anything_is_written(tmp_path):
    raw = _raw([("a", "x", 1), ("a", "y", 2)])
    done = prepare(raw, k=0, dedup="none")
    with pytest.raises(ValueError, match="no user is long enough"):
        write_dataset(tmp_path / "set", done, raw, Policies(), {})
    assert not (tmp_path / "set").exists()


def test_a_sample_of_users_is_drawn_before_the_core():
    events = _random_events(3, users=30, items=8, n=300)
    known = list(dict.fromkeys(user for user, _, _ in events))
    drawn = sample_users(_frame(events), 12, seed=1)
    kept = set(drawn["user"])
    assert len(kept) == 12 and kept < set(known)
    assert drawn.rows() == [event for event in events if event[0] in kept]
    assert sample_users(_frame(events), 12, seed=1).equals(drawn)
    assert set(sample_users(_frame(events), 12, seed=2)["user"]) != kept
    assert sample_users(_frame(events), None).rows() == sample_users(_frame(events), 99).rows() == events
    prepared = prepare(_raw(events), k=3, dedup="none", sampled_users=12, sample_seed=1)
    assert prepared.interactions.height == k_core(drawn, 3).height
    assert prepared.counts["dropped_repeats"] == 0
    repeated = prepare(_raw(events), k=3, dedup="last", sampled_users=12, sample_seed=1).counts
    dropped = [repeated[f"dropped_{why}"] for why in ("repeats", "by_sampling", "by_k_core")]
    assert min(dropped) > 0 and repeated["events"] + sum(dropped) == len(events)
    with pytest.raises(ValueError, match="sample_users must be at least 1"):
        sample_users(_frame(events), 0)
