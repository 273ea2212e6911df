import re
from collections import Counter

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.rationales.categories import rationale_rows, top_categories

ITEMS = 400
SIDS = [f"<a_{item}>" for item in range(ITEMS)]


def world(seed: int = 0, longest: int = 40):
    """Histories without repeats over all users, so that an item tells which event it came from."""
    rng = np.random.default_rng(seed)
    pool, histories = rng.permutation(ITEMS).tolist(), []
    while len(pool) > longest:
        length = int(rng.integers(1, longest))
        histories.append([pool.pop() for _ in range(length)])
    names = ["Drama", "Comedy", "War", "Noir", "Film, Silent"]
    categories = [rng.permutation(names)[: rng.integers(4)].tolist() for _ in range(ITEMS)]
    frame = pl.DataFrame(
        {"item_id": np.arange(ITEMS, dtype=np.int32), "title": [""] * ITEMS, "categories": categories},
        schema_overrides={"categories": pl.List(pl.String)},
    )
    return make_split(Sequences.from_lists(histories), "roles"), Catalog(frame)


def items_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"<a_(\d+)>", text)]


@pytest.mark.parametrize("stride", [1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_only_items_of_the_fitting_fold_appear(seed, stride):
    split, catalog = world(seed)
    rows = rationale_rows(split, catalog, SIDS, stride, seed)
    fold = set(split.fitting.items_M.tolist())
    held_out = set(split.sequences.items_M.tolist()) - fold
    assert len(held_out) > 10
    spoken = {item for chat in rows["messages"] for message in chat for item in items_in(message["content"])}
    assert spoken <= fold and not spoken & held_out
    assert len(spoken) > 50 or stride == 50


def test_held_out_events_change_nothing_and_fitting_events_do():
    split, catalog = world(0)
    sequences = split.sequences
    outside_M = np.ones(len(sequences.items_M), dtype=bool)
    for start, fold in zip(sequences.offsets_U1[:-1], split.fit_length_U, strict=True):
        outside_M[start : start + fold] = False
    before = rationale_rows(split, catalog, SIDS, 2, 0)
    for mask_M, same in [(outside_M, True), (~outside_M, False)]:
        items_M = np.where(mask_M, (sequences.items_M + 1) % ITEMS, sequences.items_M).astype(np.int32)
        changed = Sequences(sequences.user_ids_U, items_M, sequences.timestamps_M, sequences.offsets_U1)
        assert (rationale_rows(make_split(changed, "roles"), catalog, SIDS, 2, 0) == before) is same


@pytest.mark.parametrize("stride", [1, 4])
def test_each_row_by_hand(stride):
    split, catalog = world(1)
    rows = rationale_rows(split, catalog, SIDS, stride, 0)
    row_of = {int(user): row for row, user in enumerate(split.fitting.user_ids_U)}
    assert len(rows["messages"]) == len(rows["user"]) == len(rows["position"]) > 20
    for chat, user, position in zip(rows["messages"], rows["user"], rows["position"], strict=True):
        items = split.fitting.items(row_of[user]).tolist()
        history = items[:position][-20:]
        assert chat[0] == {"role": "user", "content": "History: " + "".join(SIDS[item] for item in history)}
        counts = Counter(name for item in items[position : position + 3] for name in catalog.categories[item])
        best = sorted(counts, key=lambda name: (-counts[name], name))[:3]
        wanted = ", ".join(best) or "anything"
        content = f"<think>The user wants {wanted}.</think>{SIDS[items[position]]}"
        assert chat[1:] == [{"role": "assistant", "content": content}]


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_rows_lie_a_stride_apart_and_reach_the_end_of_the_fold(stride):
    split, catalog = world(2)
    rows = rationale_rows(split, catalog, SIDS, stride, 0)
    positions: dict[int, list[int]] = {}
    for user, position in zip(rows["user"], rows["position"], strict=True):
        positions.setdefault(user, []).append(position)
    for row, user in enumerate(split.fitting.user_ids_U.tolist()):
        length = len(split.fitting.items(row))
        found = sorted(positions.get(user, []))
        if stride == 1:
            assert found == list(range(1, length)), "every event that has a history"
        assert np.diff(found).tolist() == [stride] * (len(found) - 1)
        if length >= 2:
            assert found, "every user with a history and a target has a row"
            assert 1 <= found[0] <= stride and length - stride <= found[-1] <= length - 1


def test_the_seed_moves_the_offset_and_nothing_else():
    split, catalog = world(3)
    one, again, other = (rationale_rows(split, catalog, SIDS, 4, seed) for seed in (0, 0, 1))
    assert one == again and one["position"] != other["position"]


def test_top_categories_by_hand():
    rows = [["War", "Drama"], ["Drama"], [], ["Comedy", "Art"]]
    assert top_categories(rows) == ["Drama", "Art", "Comedy"]
    assert top_categories(rows, named=1) == ["Drama"]
    assert top_categories([[], []]) == []
