import copy

import numpy as np
import pytest

from recllm.rationales.filter import (
    REASONS,
    Rules,
    TitleIndex,
    Verdict,
    counts,
    judge,
    mark_near_duplicates,
    title_key,
)
from recllm.rationales.questions import NEXT, PAIR, write_next, write_pair
from recllm.teachers.protocol import Answer

TITLES = ["Toy Story (1995)", "Star Wars (1977)", "Empire Strikes Back, The (1980)", "Fargo (1996)", "It", "Heat"]
INDEX = TitleIndex(TITLES)
FACTS = {
    "history": [
        {"label": "H1", "title": "Toy Story (1995)", "categories": ["Animation", "Children's"]},
        {"label": "H2", "title": "Star Wars (1977)", "categories": ["Action", "Sci-Fi"]},
    ],
    "cues": [{"label": "H2", "users": 12}],
    "path": None,
    "target": {"title": "Empire Strikes Back, The (1980)", "categories": ["Action", "Sci-Fi", "War"]},
    "shared": ["Action", "Sci-Fi"],
    "usage": 1,
}
PAIR_FACTS = {
    "items": [
        {"label": "A", "title": "Fargo (1996)", "categories": ["Crime", "Drama"]},
        {"label": "B", "title": "Heat", "categories": ["Action", "Crime"]},
    ],
    "shared": ["Crime"],
    "users": 9,
    "relations": ["swing"],
}


def verdict(text: str, finish: str = "stop", facts: dict = FACTS, kind: str = NEXT) -> Verdict:
    return judge(kind, facts, Answer(text, 0, 0, finish), INDEX, Rules())


def facts_with(title: str, categories: list[str] = ("Action",)) -> dict:
    facts = copy.deepcopy(FACTS)
    facts["target"] = {"title": title, "categories": list(categories)}
    return facts


def test_a_faithful_text_becomes_a_thought_with_titles():
    found = verdict("After [H2] the user wants more space battles.\nCategory: Sci-Fi, Action.")
    assert found == Verdict(
        None, 'After "Star Wars (1977)" the user wants more space battles. Category: Sci-Fi, Action.'
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("</think>After [H2] more.\nCategory: War", "markers"),
        ("After [H2] comes <a_1><b_2> surely.\nCategory: War", "markers"),
        ("<|im_end|> After [H2] more.\nCategory: War", "markers"),
        ("War war.", "length"),
        ("word " * 80 + "\nCategory: War", "length"),
        ("After [H3] the user wants more.\nCategory: War", "unknown_label"),
        ("After [A] the user wants more.\nCategory: War", "unknown_label"),
        ('After "Star Trek" the user wants more.\nCategory: War', "unknown_title"),
        ("After [H2] and Fargo Nights or toy story the user wants more.\nCategory: War", None),
        ("Like [H2], and like the Pulp Fiction of old.\nCategory: War", None),
        ("After [H2] the user wants more of it.", "no_category"),
        ("After [H2] the user wants more.\nCategory:", "no_category"),
        ("After [H2] the user wants more.\nCategory: Comedy", "wrong_category"),
        ("After [H2] the user wants more.\nCategory: War, Comedy", "wrong_category"),
        ("After [H2] the user wants more.\nCategory: War!!! buy now", "wrong_category"),
        ("After [H2] surely The Empire Strikes Back.\nCategory: War", "leaks_title"),
        ('After [H2] surely "Empire Strikes Back, The".\nCategory: War', "leaks_title"),
        ("After [H2] surely Empire Strikes Back, The, comes.\nCategory: War", "leaks_title"),
        ("After [H2] surely THE EMPIRE   strikes back!\nCategory: War", "leaks_title"),
    ],
)
def test_what_is_dropped_and_why(text, reason):
    assert verdict(text).reason == reason
    assert reason is None or reason in REASONS


def test_a_known_title_of_the_catalogue_outside_the_evidence_is_a_citation():
    index = TitleIndex([*TITLES, "Pulp Fiction (1994)"])
    text = "Like [H2], and like the Pulp Fiction of old.\nCategory: War"
    assert judge(NEXT, FACTS, Answer(text, 0, 0, "stop"), index, Rules()).reason == "unknown_title"


def test_the_name_of_a_category_is_no_citation_even_where_an_item_is_called_so():
    index = TitleIndex([*TITLES, "Industrial & Scientific", "Sci Fi"])
    facts = copy.deepcopy(PAIR_FACTS)
    for item in facts["items"]:
        item["categories"] = ["Industrial & Scientific", "Staples"]
    facts["shared"] = ["Industrial & Scientific", "Staples"]
    answer = Answer(write_pair(facts), 0, 0, "stop")
    assert "both Industrial & Scientific and Staples" in answer.text
    assert judge(PAIR, facts, answer, index, Rules()).reason is None
    inside = TitleIndex([*TITLES, "Industrial Scientific Staples", "Scientific Staples"])
    quoting = Answer('People with [A] and "Scientific Staples" also take [B].\nCategory: Staples', 0, 0, "stop")
    assert judge(PAIR, facts, quoting, inside, Rules()).reason == "unknown_title"
    assert judge(PAIR, facts, answer, inside, Rules()).reason is None
    # of no item of this evidence, so it is a citation again
    assert judge(PAIR, PAIR_FACTS, answer, index, Rules()).reason == "unknown_title"


def test_a_text_that_was_cut_off_is_dropped_whatever_it_says():
    text = "After [H2] the user wants more.\nCategory: War"
    assert verdict(text).reason is None and verdict(text, "length").reason == "cut_off"


@pytest.mark.parametrize(
    ("title", "leaks"), [("Heat", True), ("It", False), ("The User", True), ("", False), ("More Space (2001)", True)]
)
def test_short_titles_leak_only_where_they_say_something(title, leaks):
    text = "It has heat: after [H2] the user wants more space.\nCategory: Action"
    assert (verdict(text, facts=facts_with(title)).reason == "leaks_title") is leaks


def test_a_quoted_short_title_leaks():
    assert verdict('After [H2] surely "It".\nCategory: Action', facts=facts_with("It")).reason == "leaks_title"


def test_a_target_that_the_history_has_too_may_be_cited():
    facts = facts_with("Star Wars (1977)", ["Action"])
    assert verdict("After [H2] the user wants Star Wars again.\nCategory: Action", facts=facts).reason is None


def test_an_item_without_categories_needs_none_and_may_name_none():
    facts = facts_with("Unknown thing", [])
    assert verdict("After [H2] the user wants something new.", facts=facts).reason is None
    assert verdict("After [H2] something new.\nCategory: Action", facts=facts).reason == "wrong_category"


@pytest.mark.parametrize("names", [["Action", "Action & War"], ["Body, Bath", "Bath"]])
def test_categories_with_commas_and_parts_of_each_other(names):
    facts = facts_with("Nothing here", names)
    assert verdict(f"After [H2] more.\nCategory: {', '.join(names)}", facts=facts).reason is None
    assert verdict(f"After [H2] more.\nCategory: {names[0]}", facts=facts).reason is None
    assert verdict(f"After [H2] more.\nCategory: {names[0]} and so", facts=facts).reason == "wrong_category"


def test_a_way_over_another_item_may_be_cited():
    facts = {**FACTS, "cues": [], "path": {"from": "H1", "over": {"label": "V", "title": "Fargo", "categories": []}}}
    text = "From [H1] over [V] to more.\nCategory: War"
    assert verdict(text, facts=facts).thought == 'From "Toy Story (1995)" over "Fargo" to more. Category: War'
    assert verdict(text).reason == "unknown_label"


def test_what_the_template_writes_is_kept():
    for facts in (FACTS, {**FACTS, "cues": []}, {**FACTS, "cues": [], "shared": []}, facts_with("Heat", [])):
        assert verdict(write_next(facts), facts=facts).reason in (None, "length")
    assert verdict(write_next(FACTS)).thought == 'Goes with "Star Wars (1977)". Category: Action, Sci-Fi, War'
    found = verdict(write_pair(PAIR_FACTS), facts=PAIR_FACTS, kind=PAIR)
    assert found.thought == 'People with "Fargo (1996)" also take "Heat", both Crime. Category: Action, Crime'


def test_no_text_raises_and_nothing_kept_holds_a_marker():
    rng = np.random.default_rng(0)
    pieces = [
        "[H1]",
        "[H9]",
        '"',
        "“",
        "<think>",
        "</think>",
        "<a_1>",
        "Category:",
        "War",
        ",",
        "\n",
        "Star Wars",
        "[",
        "]",
    ]
    pieces += ["\x00", "\ud800", "‮", "é", "a" * 300, " ", "After", "the", "user", "wants"]
    kept = 0
    for _ in range(10_000):
        text = " ".join(rng.choice(pieces, rng.integers(0, 14)))
        found = verdict(text)
        assert found.reason is None or found.reason in REASONS
        if found.reason is None:
            kept += 1
            assert "<" not in found.thought and "[" not in found.thought and "\n" not in found.thought
    assert kept > 5


def test_near_duplicates_of_an_item_are_kept_a_few_times():
    same = [Verdict(None, f"After this the user wants a film of war number {n}") for n in range(6)]
    other = Verdict(None, "Something else entirely stands here about comedies")
    marked = mark_near_duplicates([*same, other], [1] * 7, Rules(copies=2, similar=0.7))
    assert [one.reason for one in marked] == [None, None, *["near_duplicate"] * 4, None]
    apart = mark_near_duplicates(same, range(6), Rules(copies=1, similar=0.7))
    assert all(one.reason is None for one in apart), "of different items"
    dropped = [Verdict("empty")] * 3
    assert mark_near_duplicates(dropped, [1] * 3, Rules(copies=1)) == dropped


def test_counts_add_up():
    found = counts([Verdict(None, "a"), Verdict("empty"), Verdict("markers"), Verdict("empty")])
    assert found["rationales/asked"] == 4 and found["rationales/kept"] == 1 and found["rationales/dropped_empty"] == 2
    assert sum(value for name, value in found.items() if "dropped" in name) == 3


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("Empire Strikes Back, The (1980)", ("the", "empire", "strikes", "back")),
        ("It", ("it",)),
        ("Léon: The Professional (1994)", ("léon", "the", "professional")),
        ("", ()),
    ],
)
def test_title_keys(title, key):
    assert title_key(title) == key
