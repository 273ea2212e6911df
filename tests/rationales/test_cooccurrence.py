import math
import re
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest

from recllm.data.interactions import Sequences
from recllm.data.splits import make_split
from recllm.rationales import cooccurrence
from recllm.rationales.cooccurrence import RELATIONS, Cooccurrence, CooccurrenceOptions

ITEMS = 17


def world(seed: int, users: int = 25, longest: int = 14) -> Sequences:
    """Users without events and with one among them, repeats and direct repeats too."""
    rng = np.random.default_rng(seed)
    lengths = [0, 1, *rng.integers(0, longest, size=users)]
    return Sequences.from_lists([(ITEMS * rng.random(n) ** 1.5).astype(int).tolist() for n in lengths])


def histories(fold: Sequences) -> list[list[int]]:
    return [fold.items(u).tolist() for u in range(len(fold))]


def built(fold: Sequences, items: int = ITEMS, **options) -> Cooccurrence:
    return Cooccurrence.from_fitting_fold(fold, items, CooccurrenceOptions(**options))


def tables(found: Cooccurrence) -> dict[str, np.ndarray]:
    return {relation: getattr(found, f"{relation}_NN").toarray() for relation in RELATIONS}


def assert_close(ours: Cooccurrence, others: Cooccurrence) -> None:
    for relation, table_NN in tables(ours).items():
        np.testing.assert_allclose(table_NN, tables(others)[relation], rtol=1e-6, err_msg=relation)


def brute(lists: list[list[int]], options: CooccurrenceOptions) -> dict[str, np.ndarray]:
    """The formulas of the module, pair of users by pair of users and pair of items by pair of items."""
    sets, found = [set(items) for items in lists], {relation: np.zeros((ITEMS, ITEMS)) for relation in RELATIONS}
    users = {item: {u for u, items in enumerate(sets) if item in items} for item in range(ITEMS)}
    events, follow = defaultdict(int), defaultdict(int)
    for items in lists:
        for place, item in enumerate(items):
            events[item] += 1
            if place + 1 < len(items) and items[place + 1] != item:
                follow[item, items[place + 1]] += 1
    for i in range(ITEMS):
        for j in range(ITEMS):
            common = users[i] & users[j]
            if i == j or not common:
                continue
            if options.swing == "pair":
                for u, v in combinations(sorted(common), 2):
                    weight = 1 / math.sqrt(len(sets[u]) * len(sets[v]))
                    found["swing"][i, j] += weight / (options.alpha + len(sets[u] & sets[v]))
            elif len(common) >= options.min_common_users:
                found["swing"][i, j] = sum(1 / (options.alpha + len(sets[u])) for u in common)
            found["item_cf"][i, j] = len(common) / math.sqrt(len(users[i]) * len(users[j]))
    for (i, j), count in follow.items():
        found["transition"][i, j] = count / events[i]
    for table_NN in found.values() if options.topk else ():
        for row_N in table_NN:
            weakest = sorted(range(ITEMS), key=lambda j, row_N=row_N: (-np.float32(row_N[j]), j))[options.topk :]
            row_N[weakest] = 0.0
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {"topk": 0},
        {"topk": 4, "alpha": 0.0},
        {"topk": 0, "swing": "user"},
        {"topk": 3, "swing": "user", "alpha": 2.5, "min_common_users": 4},
    ],
)
def test_tables_are_the_brute_force_sums(seed, options):
    fold = world(seed)
    found, expected = built(fold, **options), brute(histories(fold), CooccurrenceOptions(**options))
    for relation, table_NN in tables(found).items():
        np.testing.assert_allclose(table_NN, expected[relation], rtol=1e-6, err_msg=relation)
        stored = getattr(found, f"{relation}_NN")
        assert stored.dtype == np.float32 and stored.has_sorted_indices
        assert 20 < stored.nnz == np.count_nonzero(expected[relation]), "no zero is stored, the diagonal is empty"


def test_four_users_and_four_items_by_hand():
    """Sets {0,1,2}, {0,1}, {0,1,3}, {2,3}; the first user has item 0 twice, with a direct repeat of item 1."""
    fold = Sequences.from_lists([[0, 1, 1, 2, 0], [1, 0], [0, 1, 3], [2, 3]])
    found = built(fold, items=4)
    # The three users of {0, 1} share two items with each other; nobody else shares two.
    swing = (2 / math.sqrt(3 * 2) + 1 / 3) / (1 + 2)
    np.testing.assert_allclose(found.swing_NN.toarray(), np.outer([1, 1, 0, 0], [1, 1, 0, 0]) * (1 - np.eye(4)) * swing)
    cosine = np.zeros((4, 4))
    cosine[[0, 0, 0, 1, 1, 2], [1, 2, 3, 2, 3, 3]] = [1, 1 / 6**0.5, 1 / 6**0.5, 1 / 6**0.5, 1 / 6**0.5, 1 / 2]
    np.testing.assert_allclose(found.item_cf_NN.toarray(), cosine + cosine.T)
    follow = [[0, 2 / 4, 0, 0], [1 / 4, 0, 1 / 4, 1 / 4], [1 / 2, 0, 0, 1 / 2], [0, 0, 0, 0]]
    np.testing.assert_allclose(found.transition_NN.toarray(), follow)
    assert found.common_users(0, 1) == 3 and found.common_users(2, 3) == found.common_users(3, 1) == 1
    assert found.common_users(0, 0) == 3
    assert found.links(2, 3) == pytest.approx({"item_cf": 0.5, "transition": 0.5})
    assert found.links(0, 1) == pytest.approx({"swing": swing, "item_cf": 1.0, "transition": 0.5})
    assert found.links(3, 2) == {"item_cf": 0.5} and found.links(1, 1) == {}
    one_form = built(fold, items=4, swing="user", alpha=2.0)
    assert one_form.links(1, 0)["swing"] == pytest.approx(1 / 5 + 1 / 4 + 1 / 5)
    assert one_form.swing_NN.nnz == 2, "all other pairs have one user"


def test_neighbours_come_best_first_and_ties_go_to_the_lower_id():
    """Items 2, 3 and 4 are had by the same users as item 6, item 0 by fewer of them, item 5 by nobody."""
    fold = Sequences.from_lists([[6, 4, 3, 2, 0], [6, 4, 3, 2, 0], [2, 3, 4, 6], [1, 6]])
    for relation in ("swing", "item_cf"):
        for form in ("pair", "user"):
            found = built(fold, items=7, topk=2, swing=form)
            ids, scores = found.neighbours(6, relation)
            assert ids.tolist() == [2, 3] and scores[0] == scores[1] > 0
            assert found.neighbours(6, relation, k=1)[0].tolist() == [2]
            assert found.neighbours(5, relation)[0].tolist() == []
            whole = built(fold, items=7, topk=0, swing=form).neighbours(6, relation, k=9)[0].tolist()
            assert whole == [2, 3, 4, 0, 1][: len(whole)] and len(whole) >= 4
    assert found.neighbours(6, "transition")[0].tolist() == [4]


def test_neither_the_order_of_users_nor_repeats_matter():
    lists = histories(world(4))
    before = built(Sequences.from_lists(lists), topk=0)
    order = np.random.default_rng(0).permutation(len(lists))
    assert_close(before, built(Sequences.from_lists([lists[u] for u in order]), topk=0))
    doubled = [[item for item in items for _ in range(2)] for items in lists]
    again, twice = tables(before), tables(built(Sequences.from_lists(doubled), topk=0))
    for relation in ("swing", "item_cf"):
        np.testing.assert_allclose(again[relation], twice[relation], rtol=1e-6)
    np.testing.assert_allclose(again["transition"], 2 * twice["transition"], rtol=1e-6)
    mirrored_NN = tables(built(Sequences.from_lists([items[::-1] for items in lists]), topk=0))["transition"] > 0
    np.testing.assert_array_equal(mirrored_NN, again["transition"].T > 0)


@pytest.mark.parametrize("form", ["pair", "user"])
@pytest.mark.parametrize(("block", "dense"), [(1, 0), (5, 1 << 20), (40, 0), (1 << 20, 0)])
def test_neither_blocks_nor_how_sums_are_kept_matter(monkeypatch, form, block, dense):
    fold = world(5, users=60)
    before = built(fold, topk=6, swing=form)
    monkeypatch.setattr(cooccurrence, "BLOCK", block)
    monkeypatch.setattr(cooccurrence, "DENSE", dense)
    assert_close(built(fold, topk=6, swing=form), before)


def test_relabelled_items_have_relabelled_tables():
    lists, label_N = histories(world(6)), np.random.default_rng(1).permutation(ITEMS)
    before = tables(built(Sequences.from_lists(lists), topk=0))
    after = tables(built(Sequences.from_lists([label_N[items].tolist() for items in map(list, lists)]), topk=0))
    for relation in RELATIONS:
        np.testing.assert_allclose(after[relation][np.ix_(label_N, label_N)], before[relation], rtol=1e-6)


@pytest.mark.parametrize("kind", ["leave_one_out", "roles", "last_event"])
def test_targets_never_enter(kind):
    """Every event outside the fitting fold becomes another item: nothing changes. Inside, everything does."""
    sequences = world(7, users=40)
    split = make_split(sequences, kind)
    place_M = np.arange(len(sequences.items_M)) - np.repeat(sequences.offsets_U1[:-1], sequences.lengths_U)
    outside_M = place_M >= np.repeat(split.fit_length_U, sequences.lengths_U)
    assert 10 < outside_M.sum() < len(outside_M)

    def after(changed_M: np.ndarray) -> list[np.ndarray]:
        items_M = np.where(changed_M, (sequences.items_M + 5) % ITEMS, sequences.items_M).astype(np.int32)
        other = Sequences(sequences.user_ids_U, items_M, sequences.timestamps_M, sequences.offsets_U1)
        found = built(make_split(other, kind).fitting)
        return [*tables(found).values(), found.users_NU.toarray()]

    same, outside, inside = after(outside_M & False), after(outside_M), after(~outside_M)
    for before_NN, outside_NN, inside_NN in zip(same, outside, inside, strict=True):
        np.testing.assert_array_equal(before_NN, outside_NN)
        assert not np.array_equal(before_NN, inside_NN)


def test_common_users_are_counted_for_every_pair():
    fold = world(8)
    found, sets = built(fold, topk=1), [set(items) for items in histories(fold)]
    for i in range(ITEMS):
        for j in range(ITEMS):
            assert found.common_users(i, j) == sum({i, j} <= items for items in sets)


def test_links_are_the_entries_of_the_tables():
    found = built(world(9), topk=5)
    dense = tables(found)
    for i in range(ITEMS):
        for j in range(ITEMS):
            entries = {relation: float(table_NN[i, j]) for relation, table_NN in dense.items() if table_NN[i, j]}
            assert found.links(i, j) == entries
        for relation in RELATIONS:
            ids, scores = found.neighbours(i, relation, k=ITEMS)
            assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == {
                j: dense[relation][i, j] for j in np.flatnonzero(dense[relation][i])
            }


def test_saved_tables_load_as_the_same(tmp_path):
    found = built(world(10), topk=7, swing="user", alpha=0.5, min_common_users=1)
    found.save(tmp_path)
    again = Cooccurrence.load(tmp_path)
    assert again.options == found.options
    for name in cooccurrence.TABLES:
        before, after = getattr(found, name), getattr(again, name)
        assert before.shape == after.shape and before.dtype == after.dtype
        np.testing.assert_array_equal(before.toarray(), after.toarray())
    assert again.neighbours(1)[0].tolist() == found.neighbours(1)[0].tolist()
    with pytest.raises(FileNotFoundError, match=r"cooccurrence\.safetensors is missing"):
        Cooccurrence.load(tmp_path / "elsewhere")


def test_a_fold_without_pairs_has_empty_tables():
    found = built(Sequences.from_lists([[], [3], [4, 4]]))
    assert [table.sum() for table in tables(found).values()] == [0, 0, 0]
    assert found.common_users(3, 4) == 0 and found.common_users(4, 4) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swing": "triple"}, "swing form 'triple' is unknown; choose one of pair, user"),
        ({"topk": -1}, "topk must be at least 0, got -1"),
        ({"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        ({"alpha": float("nan")}, "alpha must be at least 0, got nan"),
        ({"min_common_users": 0}, "min_common_users must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CooccurrenceOptions(**options)


def test_unknown_items_and_relations_are_refused():
    found = built(world(11))
    for ask in (found.neighbours, lambda item: found.links(0, item), lambda item: found.common_users(item, 0)):
        for item in (-1, ITEMS):
            with pytest.raises(ValueError, match=f"item {item} is not in the catalogue of {ITEMS} items"):
                ask(item)
    with pytest.raises(ValueError, match="relation 'bought' is unknown; choose one of swing, item_cf, transition"):
        found.neighbours(0, "bought")
    with pytest.raises(ValueError, match="the fold has item 9, the catalogue 9 items; pass its own catalogue"):
        built(Sequences.from_lists([[9, 1]]), items=9)
