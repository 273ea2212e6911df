"""Every event has one role or none, and nothing is graded on what it was fitted on."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.data.interactions import Sequences
from recllm.data.splits import LeaveOneOutSplit, RolesSplit, load_split, make_split, user_halves


def _pairs(examples):
    return list(zip(examples.user_E.tolist(), examples.position_E.tolist(), strict=True))


def _fit_pairs(split):
    return [(u, p) for u, n in enumerate(split.fit_length_U.tolist()) for p in range(n)]


def _sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Sequences.from_lists([rng.integers(0, 50, n).tolist() for n in lengths])


def test_roles_by_hand():
    sequences = Sequences.from_lists([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23], [30, 31, 32, 33, 34]])
    split = make_split(sequences, "roles")
    assert isinstance(split, RolesSplit) and split.kind == "roles"
    assert split.fit_length_U.tolist() == [3, 4, 2]  # four events are too few
    assert split.test.targets_E.tolist() == [15, 34]
    assert split.validation.targets_E.tolist() == [14, 33]
    routing = sorted(split.routing("A").targets_E.tolist() + split.routing("B").targets_E.tolist())
    assert routing == [13, 32]
    assert split.test.history(0).tolist() == [10, 11, 12, 13, 14]
    assert split.test.history(1).tolist() == [30, 31, 32, 33]
    assert [split.fitting.items(u).tolist() for u in range(3)] == [[10, 11, 12], [20, 21, 22, 23], [30, 31]]


def test_several_routing_items_by_hand():
    sequences = Sequences.from_lists([list(range(10)), list(range(6)), list(range(7))])
    split = make_split(sequences, "roles", routing_items=3)
    assert split.fit_length_U.tolist() == [5, 6, 2]  # six events would leave one to fit on
    both = _pairs(split.routing("A")) + _pairs(split.routing("B"))
    assert sorted(both) == [(0, 5), (0, 6), (0, 7), (2, 2), (2, 3), (2, 4)]


def test_leave_one_out_by_hand():
    split = make_split(Sequences.from_lists([[1, 2, 3, 4], [5, 6, 7], [8, 9]]), "leave_one_out")
    assert isinstance(split, LeaveOneOutSplit) and split.kind == "leave_one_out"
    assert split.fit_length_U.tolist() == [2, 1, 2]
    assert split.validation.targets_E.tolist() == [3, 6]
    assert split.test.targets_E.tolist() == [4, 7]
    assert split.fitting.items(0).tolist() == [1, 2]


def test_last_event_by_hand():
    """The halves of the ids 0, 1, ... at seed 0 come from `user_halves`, which has a test of its own."""
    sequences = Sequences.from_lists([[1, 2, 3], [5, 6], [8], [7, 9], [4, 4, 6, 2]])
    split = make_split(sequences, "last_event", seed=3)
    assert split.kind == "last_event"
    assert split.fit_length_U.tolist() == [2, 1, 1, 1, 3]  # one event alone has nothing before it
    last = {0: 3, 1: 6, 3: 9, 4: 2}
    half_U = user_halves(sequences.user_ids_U, 3)
    for half, examples in enumerate((split.validation, split.test)):
        assert dict(zip(examples.user_E.tolist(), examples.targets_E.tolist(), strict=True)) == {
            user: item for user, item in last.items() if half_U[user] == half
        }
        assert len(examples)
    assert [split.fitting.items(u).tolist() for u in range(5)] == [[1, 2], [5], [8], [7], [4, 4, 6]]


def _roles_twin(lengths, routing_items):
    roles = {}
    for u, n in enumerate(lengths):
        whole = n < 5 or n < 4 + routing_items
        for p in range(n):
            if whole or p < n - 2 - routing_items:
                roles[u, p] = "fit"
            else:
                roles[u, p] = "test" if p == n - 1 else "validation" if p == n - 2 else "routing"
    return roles


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_roles_equal_their_twin_and_are_disjoint(lengths, routing_items, seed):
    split = make_split(_sequences(lengths), "roles", routing_items, seed)
    groups = {
        "fit": _fit_pairs(split),
        "routing": _pairs(split.routing("A")) + _pairs(split.routing("B")),
        "validation": _pairs(split.validation),
        "test": _pairs(split.test),
    }
    found = Counter(pair for pairs in groups.values() for pair in pairs)
    assert set(found.values()) <= {1}  # one role each, the two halves included
    assert {pair: role for role, pairs in groups.items() for pair in pairs} == _roles_twin(lengths, routing_items)
    halves = [{u for u, _ in _pairs(split.routing(half))} for half in "AB"]
    assert not halves[0] & halves[1]
    assert all(split.half_U[u] == half for half, users in enumerate(halves) for u in users)
    assert split.fitting.lengths_U.tolist() == split.fit_length_U.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sampled_from(["leave_one_out", "last_event"]))
def test_splits_without_routing_are_disjoint_and_complete(lengths, kind):
    split = make_split(_sequences(lengths), kind)
    found = Counter(_fit_pairs(split) + _pairs(split.validation) + _pairs(split.test))
    assert found == Counter((u, p) for u, n in enumerate(lengths) for p in range(n))


@pytest.mark.parametrize("kind", ["roles", "leave_one_out", "last_event"])
@pytest.mark.parametrize("max_len", [1, 4, 30])
def test_histories_equal_their_twin(kind, max_len):
    sequences = _sequences([3, 12, 0, 7, 5, 20, 1], seed=3)
    split = make_split(sequences, kind, routing_items=2)
    parts = [split.validation, split.test]
    parts += [split.routing("A"), split.routing("B")] if kind == "roles" else []
    for examples in parts:
        padded_ET = examples.padded_histories(max_len)
        assert padded_ET.shape == (len(examples), max_len) and padded_ET.dtype == np.int64
        for e, (u, p) in enumerate(_pairs(examples)):
            history = sequences.items(u)[:p].tolist()
            assert examples.history(e).tolist() == history
            assert examples.seen(e) == set(history)
            assert examples.lengths_E[e] == len(history)
            assert examples.targets_E[e] == sequences.items(u)[p]
            shifted = [item + 1 for item in history][-max_len:]
            assert padded_ET[e].tolist() == [0] * (max_len - len(shifted)) + shifted


def test_subset_takes_indices_and_masks():
    test = make_split(_sequences([6, 7, 8, 9]), "roles").test
    assert _pairs(test.subset(np.array([2, 0]))) == [_pairs(test)[2], _pairs(test)[0]]
    assert len(test.subset(np.zeros(len(test), dtype=bool))) == 0
    assert test.subset(np.array([], dtype=np.int64)).padded_histories(3).shape == (0, 3)


def test_halves_are_the_same_on_every_machine():
    ids = np.arange(16, dtype=np.int32)
    assert "".join(map(str, user_halves(ids))) == "1011101001001101"
    assert "".join(map(str, user_halves(ids, seed=1))) == "0100101100101111"
    many = user_halves(np.arange(20_000))
    assert abs(many.mean() - 0.5) < 0.02
    # A user's half hangs on the id alone, not on who else is there.
    assert user_halves(np.array([7, 3])).tolist() == [user_halves(ids)[7], user_halves(ids)[3]]


def test_a_share_of_the_users_has_roles_whatever_block_they_come_in():
    sequences = _sequences([7] * 3000)
    whole, part = make_split(sequences, "roles"), make_split(sequences, "roles", role_share=0.3)
    drawn = np.unique(part.test.user_E)
    assert 0.27 < len(drawn) / 3000 < 0.33
    assert np.array_equal(part.fit_length_U[drawn], whole.fit_length_U[drawn])
    others = np.setdiff1d(np.arange(3000), drawn)
    assert (part.fit_length_U[others] == 7).all()  # all of them is fitted on
    assert np.array_equal(part.half_U, whole.half_U) and 0.4 < part.half_U[drawn].mean() < 0.6
    assert set(drawn) <= set(make_split(sequences, "roles", role_share=0.6).test.user_E)
    other = make_split(sequences, "roles", seed=1, role_share=0.3)
    assert not np.array_equal(other.fit_length_U, part.fit_length_U)


def test_wrong_arguments():
    sequences = _sequences([6])
    for kind, share in (("roles", 0.0), ("roles", 1.1), ("leave_one_out", 0.5)):
        with pytest.raises(ValueError, match="role_share"):
            make_split(sequences, kind, role_share=share)
    with pytest.raises(ValueError, match="unknown split"):
        make_split(sequences, "random")
    with pytest.raises(ValueError, match="routing_items"):
        make_split(sequences, "roles", routing_items=0)
    with pytest.raises(ValueError, match="half"):
        make_split(sequences, "roles").routing("C")
    with pytest.raises(ValueError, match="max_len"):
        make_split(sequences, "roles").test.padded_histories(0)


def test_load_split_follows_dataset_json(tmp_path):
    frame = pl.DataFrame({"user_id": [0] * 9 + [1] * 4, "item_id": [*range(9), *range(4)], "timestamp": [1] * 13})
    frame = frame.cast({"user_id": pl.Int32, "item_id": pl.Int32})
    frame.write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(FileNotFoundError, match="data_prep"):
        load_split(tmp_path)
    known = {"split": "roles", "routing_items": 3, "split_seed": 5}
    (tmp_path / "dataset.json").write_text(json.dumps(known))
    split = load_split(tmp_path)
    assert (split.kind, split.routing_items, split.seed, split.fit_length_U.tolist()) == ("roles", 3, 5, [4, 4])
    (tmp_path / "dataset.json").write_text(json.dumps({**known, "role_share": 1e-9}))
    assert load_split(tmp_path).fit_length_U.tolist() == [9, 4]
    (tmp_path / "dataset.json").write_text(json.dumps({**known, "split": "leave_one_out"}))
    assert load_split(tmp_path).fit_length_U.tolist() == [7, 2]
    for torn in ('{"split": "roles"', '{"split": "roles"}', "[]"):
        (tmp_path / "dataset.json").write_text(torn)
        with pytest.raises(ValueError, match="does not record a split"):
            load_split(tmp_path)
