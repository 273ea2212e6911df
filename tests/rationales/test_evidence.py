import json

import numpy as np
import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.rationales.cooccurrence import Cooccurrence, CooccurrenceOptions
from recllm.rationales.evidence import CUES, RECENT, SHOWN, EvidenceBook, title_of
from recllm.rationales.positions import fold_positions

NAMES = ["Drama", "Comedy", "War", "Noir"]


def book_of(histories: list[list[int]], items: int = 30) -> EvidenceBook:
    frame = pl.DataFrame(
        {
            "item_id": np.arange(items, dtype=np.int32),
            "title": [f"Title number {item}" for item in range(items)],
            "categories": [[NAMES[item % 4], *(["Old"] if item % 3 == 0 else [])] for item in range(items)],
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    options = CooccurrenceOptions(topk=2)
    return EvidenceBook(Catalog(frame), Cooccurrence.from_fitting_fold(Sequences.from_lists(histories), items, options))


def random_book(seed: int) -> tuple[EvidenceBook, list[list[int]]]:
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 31)
    draws = (rng.choice(30, rng.integers(2, 13), replace=False, p=share / share.sum()) for _ in range(30))
    histories = [draw.tolist() for draw in draws]
    return book_of(histories), histories


@pytest.mark.parametrize("seed", range(4))
def test_next_item_against_a_plain_twin(seed):
    book, histories = random_book(seed)
    swing = book.tables.swing_NN.toarray()
    for items in histories:
        history, target = items[:4], int(np.random.default_rng(seed + items[0]).integers(30))
        facts = book.next_item(np.array(history), target)
        shown = history[-SHOWN:]
        labels = [f"H{place + 1}" for place in range(len(shown))]
        assert [item["label"] for item in facts["history"]] == labels
        assert [item["title"] for item in facts["history"]] == [f"Title number {item}" for item in shown]
        linked = sorted((-swing[item, target], -place) for place, item in enumerate(shown) if swing[item, target] > 0)
        assert [cue["label"] for cue in facts["cues"]] == [f"H{1 - place}" for _, place in linked[:CUES]]
        for cue in facts["cues"]:
            item = shown[int(cue["label"][1:]) - 1]
            assert cue["users"] == sum(item in one and target in one for one in histories) >= 2
        wanted = set(book.catalog.categories[target])
        named = [set(book.catalog.categories[item]) for item in shown]
        assert facts["shared"] == [name for name in book.catalog.categories[target] if name in set().union(*named)]
        assert facts["usage"] == sum(bool(names & wanted) for names in named[-RECENT:])
        best = max((swing[item, via] * swing[via, target] for item in shown for via in range(30)), default=0)
        if facts["cues"] or not best:
            assert facts["path"] is None
        else:
            start = shown[int(facts["path"]["from"][1:]) - 1]
            via = int(facts["path"]["over"]["title"].split()[-1])
            assert swing[start, via] * swing[via, target] == pytest.approx(best, rel=1e-5)
        json.dumps(facts)


def test_a_way_of_two_links_by_hand():
    book = book_of([[0, 1], [1, 0], [1, 2], [2, 1], [5, 2]])
    facts = book.next_item(np.array([7, 0]), 2)
    assert facts["cues"] == []
    assert facts["path"] == {"from": "H2", "over": {"label": "V", "title": "Title number 1", "categories": ["Comedy"]}}
    assert book.next_item(np.array([7, 1]), 2)["path"] is None, "a direct link needs no way"
    assert book.next_item(np.array([7, 5]), 2)["path"] is None, "one user in common is no link of Swing's"


def test_a_pair_by_hand():
    book = book_of([[0, 4, 8], [0, 4], [4, 0, 9]])
    facts = book.pair(0, 4)
    assert [item["label"] for item in facts["items"]] == ["A", "B"]
    assert facts["users"] == 3 and facts["shared"] == ["Drama"]
    assert facts["relations"] == ["item_cf", "swing", "transition"]
    assert book.pair(4, 0)["shared"] == ["Drama"]
    assert book.pair(8, 9)["relations"] == [] and book.pair(8, 9)["users"] == 0


def test_linked_pairs_are_the_strongest_neighbours():
    book, _ = random_book(1)
    pairs = list(book.linked_pairs(2))
    assert pairs == sorted(pairs, key=lambda pair: pair[0]) and len(set(pairs)) == len(pairs) > 10
    swing = book.tables.swing_NN.toarray()
    for item, other in pairs:
        assert np.sum(swing[item] > swing[item, other]) < 2 and swing[item, other] > 0


def test_the_target_itself_is_no_cue():
    book = book_of([[0, 4, 8], [0, 4], [4, 0, 9]])
    assert book.next_item(np.array([4]), 4)["cues"] == []


@pytest.mark.parametrize(
    ("title", "shown"),
    [('A "fine" film', "A 'fine' film"), ("<think>[H1]</think>", "‹think›(H1)‹/think›"), ("x" * 90, "x" * 60)],
)
def test_titles_cannot_spell_labels_quotes_or_markers(title, shown):
    assert title_of(title) == shown


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_positions_lie_a_stride_apart_and_keep_the_last_ones(stride):
    fold = Sequences.from_lists([list(range(n)) for n in (0, 1, 2, 5, 12)])
    found: dict[int, list[int]] = {}
    for row, position in fold_positions(fold, stride, seed=0):
        found.setdefault(row, []).append(position)
    assert set(found) == {2, 3, 4}, "who has a history and a next item"
    for row, positions in found.items():
        length = fold.lengths_U[row]
        assert (np.diff(positions) == -stride).all() and positions[0] > length - 1 - stride and positions[-1] >= 1
        assert positions[-1] <= stride
