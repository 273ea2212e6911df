"""The vocabulary of a needs model: what a data set's answers are made of, kept beside the weights."""

import json
from types import SimpleNamespace

import polars as pl
import pytest

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.needs.schema import Answer, ServiceNames, render
from recllm.needs.vocabulary import FILE, NeedsVocabulary, candidates
from recllm.needs.worlds import WorldOptions, make_world, write_world
from recllm.training.tiny_lm import train_tokenizer

WORDS = NeedsVocabulary(("b/y", "a/x", "a/x"), ("Pub", "Bar"), tuple(range(12, 0, -1)), "abc")


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    write_world(folder, make_world(WorldOptions(users=30, visits=12, venues=120)))
    return Visits.load(folder), Catalog.load(folder)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    WORDS.save(tmp_path)
    assert NeedsVocabulary.load(tmp_path) == WORDS
    assert WORDS.types == ("a/x", "b/y") and WORDS.categories == ("Bar", "Pub") and WORDS.services[0] == 1


def test_it_is_taken_from_the_catalogue_and_the_patterns(city):
    visits, catalog = city
    found = NeedsVocabulary.of(visits, catalog, SimpleNamespace(need_types=["safety/health", ""]))
    assert found.types == ("safety/health",) and found.services == tuple(range(120))
    assert set(found.categories) == {names[-1] for names in catalog.categories}
    found.check(visits, catalog)
    assert found.places(catalog).candidates == set(range(120))
    other = Catalog(catalog.frame.with_columns(pl.col("title").reverse()))
    with pytest.raises(ValueError, match="is of data set"):
        found.check(visits, other)


def hand_made(rows: list[tuple[int, bool]], categories: list[list[str]]):
    """A catalogue of these categories and (item, target) events."""
    visits = SimpleNamespace(frame=pl.DataFrame(rows, schema={"item_id": pl.Int32, "target": pl.Boolean}, orient="row"))
    frame = pl.DataFrame({"item_id": range(len(categories)), "title": [""] * len(categories), "categories": categories})
    return visits, Catalog(frame)


def test_what_may_not_be_asked_for_is_no_candidate():
    categories = [["Food", "Deli"], ["Home", "Home"], ["Home", "Home"], ["Food", "Deli"], [], ["Food", "Deli"]]
    # 1 was visited as context only, 2 (a home, too) and 3 never, 4 has no category, 5 is an office in one log.
    visits, catalog = hand_made([(0, True), (1, False), (4, True), (5, False)], categories)
    assert candidates(visits, catalog) == [0, 3]


def test_its_grammar_takes_its_answers_and_no_other(city):
    tokenizer = train_tokenizer(['{"need": "a b", "need_type": "a/x", "category": "Bar", "services": [1, 2]}'] * 3, 320)
    grammar = WORDS.grammars(tokenizer, None, 6)["service"]
    answer = Answer("a pint", "b/y", "Pub", tuple(range(1, 11)))
    ids = tokenizer(render(answer, "service", ServiceNames()))["input_ids"]
    assert grammar.walk([*ids, tokenizer.eos_token_id]).part == len(grammar.parts)
    strange = tokenizer(render(Answer("a pint", "b/y", "Zoo"), "category", ServiceNames()))["input_ids"]
    with pytest.raises(KeyError):
        grammar.walk(strange)


@pytest.mark.parametrize(
    ("types", "categories", "services", "told"),
    [
        ([], ["Bar"], range(10), "0 need types"),
        (["a"], [], range(10), "0 categories"),
        (["a"], ["Bar"], range(9), "9 services"),
        (["a"], ["Bar"], range(-1, 10), "11 services"),
        (["a"], ["<|im_end|>"], range(10), "im_end"),
    ],
)
def test_what_no_answer_can_be_made_of_is_refused(types, categories, services, told):
    with pytest.raises(ValueError, match=told):
        NeedsVocabulary(tuple(types), tuple(categories), tuple(services))


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"more": 1}, {"types": "ab"}, {"services": [True] * 10}, {"services": ["1"] * 10}],
    ids=["format", "unknown key", "text for a list", "booleans", "texts"],
)
def test_a_file_of_something_else_is_named(tmp_path, change):
    WORDS.save(tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=FILE):
        NeedsVocabulary.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=FILE):
        NeedsVocabulary.load(tmp_path)
