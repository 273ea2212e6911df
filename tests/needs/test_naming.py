"""Names of derived needs: from context and category together, without faults, whatever a teacher answers."""

import itertools
import json
import random

import pytest

from recllm.needs.faults import Venues, need_fault
from recllm.needs.naming import TEMPLATES, Centroid, name_needs, need_question, read_name, rule_based
from recllm.needs.taxonomy import LEVELS, WHEN, activity, daypart
from recllm.needs.worlds_rules import LEAVES, SCENES
from recllm.teachers.protocol import Answer
from recllm.teachers.template import Template

NOBODY = Venues(())
LEAF_ROOTS = [(leaf, root) for root, leaves in LEAVES.items() for leaf in leaves.split(", ")]


def centroid(leaf="Coffee Shop", root="Drinks", parts=("morning",), day="", scene="", weather="", avoid=None):
    return Centroid(parts, day, scene, weather, ((leaf, root, 1.0),), (leaf,) if avoid is None else avoid)


def named(*centroids, teacher=None, path=None):
    return name_needs(centroids, teacher or Template(TEMPLATES), path, NOBODY)


def test_a_category_alone_does_not_tell_the_need(tmp_path):
    """Of most categories the need, and of many the type, changes with the context, and so does that of a context."""
    texts, types = {}, {}
    for (leaf, root), part, day in itertools.product(LEAF_ROOTS, list(WHEN)[:5], ("weekend", "working day")):
        found = json.loads(rule_based(centroid(leaf, root, (part,), day).facts(())))
        texts.setdefault(leaf, set()).add(found["need"])
        types.setdefault(leaf, set()).add(found["need_type"])
    assert min(map(len, texts.values())) == 10, "every context has its own phrase"
    assert sum(len(found) > 1 for found in types.values()) > len(types) / 2
    noon = {json.loads(rule_based(centroid(*pair, ("midday",)).facts(())))["need"] for pair in LEAF_ROOTS}
    assert len(noon) > 6


def test_no_phrase_names_a_category():
    avoid = tuple(leaf for leaf, _ in LEAF_ROOTS)
    parts, scenes, taken = itertools.permutations(WHEN, 2), ("", *SCENES), ((), ("x y",))
    contexts = list(itertools.product(LEAF_ROOTS, parts, ("", "weekend"), scenes, taken))
    contexts = random.Random(0).sample(contexts, 200)
    for pair, parts, day, scene, taken in contexts:
        facts = centroid(*pair, parts, day, scene, "clear", avoid).facts(taken)
        found = read_name(rule_based(facts), avoid, NOBODY)
        assert found, rule_based(facts)
        assert found.need_type.split("/")[0] in LEVELS


def test_a_phrase_gives_way_where_it_would_name_a_category():
    facts = centroid("Bar", "Nightlife", ("night",), "weekend", "station", avoid=("Bar", "Station")).facts(())
    found = json.loads(rule_based(facts))["need"]
    assert "station" not in found and need_fault(found, ("Bar", "Station"), NOBODY) is None
    facts = centroid("Bar", "Nightlife", ("night",), avoid=("Bar", "Lively Company")).facts(())
    assert "company" not in json.loads(rule_based(facts))["need"]


@pytest.mark.parametrize(
    ("leaf", "root", "expected"),
    [
        ("Ice Cream Shop", "Food", "treat"),
        ("Wine Bar", "Nightlife Spot", "night"),
        ("Juice Bar", "Food", "sip"),
        ("Café", "Food", "sip"),
        ("Doctor's Office", "Professional & Other Places", "health"),
        ("Quux", "Food", "eat"),
        ("Quux", "Quux", "other"),
        ("", "", "other"),
    ],
)
def test_what_a_place_is_for(leaf, root, expected):
    assert activity(leaf, root) == expected


def test_parts_of_the_day():
    assert [daypart(hour) for hour in (0, 4.9, 5, 11, 14, 17.5, 22, 24)] == [
        *("night", "night", "morning", "midday", "afternoon", "evening", "night", "night")
    ]


GOOD = {"need": "a quick warm cup", "need_type": "physiological/pause"}


def answer(**changed):
    return json.dumps({**GOOD, **changed})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a quick warm cup",
        "[1]",
        "{",
        "{" * 100_000,
        "null",
        json.dumps(["need", "need_type"]),
        answer(need=None),
        answer(need=["a quick cup"]),
        answer(need="cup"),
        answer(need="a visit to the coffee shop"),
        answer(need="to Coffee-Shops and back"),
        answer(need="cup cup cup"),
        answer(need="a warm cup <|im_end|>"),
        answer(need="a warm\u200b cup"),
        answer(need="word " * 200),
        answer(need="a stop at Blue Door 7"),
        answer(need_type="physiological"),
        answer(need_type="physiological/"),
        answer(need_type="power/pause"),
        answer(need_type="physiological/" + "x" * 50),
        answer(need_type=3),
    ],
)
def test_faulty_answers_are_no_names(text):
    assert read_name(text, ("Coffee Shop",), Venues(["Blue Door 7"])) is None


def test_a_good_answer_may_stand_among_words():
    found = read_name(f"Sure:\n```json\n{answer(need_type='Safety / Health')}\n```", ("Coffee Shop",), NOBODY)
    assert (found.need, found.need_type) == ("a quick warm cup", "safety/health")


class Scripted:
    """A teacher that gives these texts, and keeps the questions."""

    name, batch = "scripted", 8

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def answer(self, questions):
        self.asked += questions
        return [Answer(self.texts.pop(0), None, None, "stop") for _ in questions]


def test_a_faulty_name_is_replaced_by_the_rules(tmp_path):
    teacher = Scripted(answer(need="more coffee shop"), answer())
    names, replaced = named(centroid(), centroid(parts=("night",)), teacher=teacher, path=tmp_path / "ledger.jsonl")
    assert replaced == 1 and names[1].need == GOOD["need"]
    assert names[0].need == json.loads(rule_based(centroid().facts(())))["need"]


def test_needs_of_one_name_are_asked_for_again(tmp_path):
    teacher = Scripted(answer(), answer(), answer(need="a slow evening cup"))
    names, _ = named(centroid(), centroid(parts=("night",)), teacher=teacher, path=tmp_path / "ledger.jsonl")
    assert [name.need for name in names] == [GOOD["need"], "a slow evening cup"]
    assert teacher.asked[2].facts["taken"] == [GOOD["need"]]
    assert "untrusted" not in teacher.asked[2].messages[1]["content"] and "a quick warm cup" in str(
        teacher.asked[2].messages
    )


def test_rules_say_more_where_less_is_taken(tmp_path):
    one, other = centroid(weather="rain"), centroid(weather="clear")
    names, _ = named(one, other, path=tmp_path / "ledger.jsonl")
    assert names[0].need != names[1].need and "clear" in names[1].need


def test_only_centroids_are_told():
    assert set(need_question(centroid().facts(())).facts) == {
        *("parts_of_the_day", "day", "scene", "weather", "categories", "avoid", "taken")
    }


def test_no_phrase_at_all_is_an_error(tmp_path):
    titles = Venues(["in the morning", "waking up", "what one needs"])
    with pytest.raises(ValueError, match=r"no name without a fault .* language model"):
        name_needs([centroid()], Template(TEMPLATES), tmp_path / "ledger.jsonl", titles)
