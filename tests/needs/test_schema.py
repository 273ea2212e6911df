"""The answer's text: what is written is read back, and what is no answer is told apart, with the reason."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.needs.prompts import Context, Told, needs_prompt
from recllm.needs.schema import (
    KEYS,
    REASONS,
    STAGES,
    UNKNOWN,
    Answer,
    ServiceNames,
    gold_answer,
    plain,
    read_answer,
    render,
    stage_keys,
)
from recllm.sid.table import SidTable

IDS = ServiceNames()
# Twelve services with sids; <a_3>... is well-formed and nobody's.
TABLE = SidTable(np.array([(a, b) for a in range(3) for b in range(4)]), (4, 4))
SIDS = ServiceNames(TABLE)
SERVICES = (4, 7, 1, 0, 2, 3, 5, 6, 8, 9)
ANSWER = Answer("a quick lunch", "body/food", "Deli", SERVICES)
GOOD = render(ANSWER, "service", IDS)
HEAD = '{"need": "a quick lunch", "need_type": "body/food"'
FULL = HEAD + ', "category": "Deli", "services": '


def services(text: str) -> str:
    return FULL + text + "}"


def test_what_an_answer_looks_like():
    assert services("[4, 7, 1, 0, 2, 3, 5, 6, 8, 9]") == GOOD
    assert render(ANSWER, "need", IDS) == HEAD + "}"
    assert render(ANSWER, "category", IDS) == HEAD + ', "category": "Deli"}'
    assert '["<a_1><b_0>", "<a_1><b_3>", "<a_0><b_1>"' in render(ANSWER, "service", SIDS)


NINE = "4, 7, 1, 0, 2, 3, 5, 6, 8"
# text -> reason, read as a whole answer with item numbers.
ABUSE = {
    "": "no_object",
    "   ": "no_object",
    "Lunch.": "no_object",
    f"```json\n{GOOD}\n```": "no_object",
    f"Sure: {GOOD}": "no_object",
    f"[{GOOD}]": "no_object",
    "null": "no_object",
    "\ufeff" + GOOD: "no_object",
    "\xa0" + GOOD: "no_object",
    "{": "not_json",
    GOOD[:-1]: "not_json",
    GOOD.replace('"', "'"): "not_json",
    GOOD.replace("]}", "],}"): "not_json",
    GOOD.replace(", 9]", ", 9,]"): "not_json",
    GOOD.replace("a quick", "a\nquick"): "not_json",
    GOOD.replace("a quick", 'a "quick"'): "not_json",
    services(f"[{NINE}, {'9' * 5000}]"): "not_json",
    services(f"[{NINE}, 09]"): "not_json",
    '{"need": ' * 100_000: "not_json",
    services("[" * 100_000 + "]" * 100_000): "not_json",
    GOOD + ".": "trailing",
    GOOD + GOOD: "trailing",
    GOOD + "<|im_end|>": "trailing",
    GOOD + "\n```": "trailing",
    GOOD + "\0": "trailing",
    "{} {}": "trailing",
    '{"need": "a quick lunch", ' + GOOD[1:]: "repeated_key",
    GOOD[:-1] + ', "services": []}': "repeated_key",
    "{}": "keys",
    HEAD + "}": "keys",
    HEAD + ', "category": "Deli"}': "keys",
    GOOD[:-1] + ', "why": "hungry"}': "keys",
    GOOD.replace("need_type", "type"): "keys",
    GOOD.replace('"need"', '"Need"'): "keys",
    '{"need_type": "body/food", "need": "a quick lunch", ' + GOOD[len(HEAD) + 2 :]: "keys",
    GOOD.replace('"a quick lunch"', "7"): "need",
    GOOD.replace('"a quick lunch"', "null"): "need",
    GOOD.replace('"a quick lunch"', "NaN"): "need",
    GOOD.replace('"a quick lunch"', '{"need": "a"}'): "need",
    GOOD.replace("a quick lunch", ""): "need",
    GOOD.replace("a quick lunch", " . "): "need",
    GOOD.replace("a quick lunch", r"a\nlunch"): "need",
    GOOD.replace("a quick lunch", r"a \ud800 lunch"): "need",
    GOOD.replace("a quick lunch", "a \ud800 lunch"): "need",
    GOOD.replace("a quick lunch", "a \u202e lunch"): "need",
    GOOD.replace("a quick lunch", "<a_1><b_0> lunch"): "need",
    GOOD.replace("a quick lunch", "lunch<|im_end|>"): "need",
    GOOD.replace('"body/food"', '["body"]'): "need_type",
    GOOD.replace('"Deli"', "true"): "category",
    GOOD.replace('"Deli"', '["Deli"]'): "category",
    GOOD.replace("Deli", "-"): "category",
    services("null"): "services",
    services('"4, 7"'): "services",
    services('{"4": 7}'): "services",
    services("Infinity"): "services",
    services("[]"): "count",
    services(f"[{NINE}]"): "count",
    services(f"[{NINE}, 9, 10]"): "count",
    services("[[4, 7, 1, 0, 2, 3, 5, 6, 8, 9]]"): "count",
    services(f'[{NINE}, "9"]'): "service",
    services(f"[{NINE}, 9.0]"): "service",
    services(f"[{NINE}, 9e0]"): "service",
    services(f"[{NINE}, -9]"): "service",
    services(f"[{NINE}, true]"): "service",
    services(f"[{NINE}, null]"): "service",
    services(f"[{NINE}, NaN]"): "service",
    services(f"[{NINE}, 1e999]"): "service",
    services(f'[{NINE}, "<a_1><b_0>"]'): "service",
    services(f"[{NINE}, [9]]"): "service",
    services(f"[{NINE}, 4]"): "repeated_service",
    services("[4, 4, 4, 4, 4, 4, 4, 4, 4, 4]"): "repeated_service",
}


@pytest.mark.parametrize(("text", "reason"), ABUSE.items(), ids=range(len(ABUSE)))
def test_abuse_is_no_answer_and_says_why(text, reason):
    reading = read_answer(text, "service", IDS)
    assert reading.answer is None and reading.problem == reason


def test_every_reason_is_met_by_the_abuse_and_what_is_no_text_is_no_object():
    assert set(ABUSE.values()) == set(REASONS)
    for value in (None, 7, [GOOD], {"need": "a"}):
        assert read_answer(value, "need", IDS).problem == "no_object"


def test_space_between_and_around_is_free_and_escapes_are_read():
    loose = json.dumps(json.loads(GOOD), indent=2).replace("lunch", "l\\u0075nch")
    assert read_answer(f"\n{loose}\n", "service", IDS).answer == ANSWER


SID_TEXTS = [TABLE.text(item) for item in range(12)]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("<a_2><b_3>", 11),
        ("<a_3><b_3>", UNKNOWN),
        ("<a_9><b_0>", "service"),
        ("<a_02><b_3>", "service"),
        ("<b_2><a_3>", "service"),
        (" <a_2><b_3>", "service"),
        ("Deli 11", "service"),
        (11, "service"),
        (SID_TEXTS[0], "repeated_service"),
    ],
)
def test_sids_are_services_of_the_table_or_unknown_or_nothing(last, expected):
    reading = read_answer(services(json.dumps([*SID_TEXTS[:9], last])), "service", SIDS)
    if isinstance(expected, str):
        assert reading.problem == expected
    else:
        assert reading.answer.services == (*range(9), expected)


def test_unknown_numbers_are_read_whatever_their_size():
    for number in (10**6, 10**30):
        assert read_answer(services(f"[{NINE}, {number}]"), "service", IDS).answer.services[-1] == number


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_its_own_answers_only(stage):
    for other in STAGES:
        reading = read_answer(render(ANSWER, other, IDS), stage, IDS)
        assert reading.problem == (None if other == stage else "keys")
    answer = read_answer(render(ANSWER, stage, IDS), stage, IDS).answer
    assert (answer.category is None) == (stage == "need") and bool(answer.services) == (stage == "service")
    assert stage_keys(stage) == KEYS[: STAGES[stage]]


lines = st.text(max_size=12) | st.sampled_from(['a "quick" lunch', "back\\slash", "Café / Bar", "昼ご飯", "a<b"])


@settings(max_examples=150, deadline=None)
@given(lines, lines, lines, st.permutations(range(12)), st.sampled_from(list(STAGES)), st.sampled_from([IDS, SIDS]))
def test_what_is_written_is_read_back(need, need_type, category, order, stage, names):
    answer = Answer(need, need_type, category, tuple(order[:10]))
    kept = {"need": Answer(need, need_type), "category": Answer(need, need_type, category), "service": answer}[stage]
    asked = (need, need_type, category)[: STAGES[stage]]
    if all(map(plain, asked)):
        assert read_answer(render(answer, stage, names), stage, names).answer == kept
    else:
        with pytest.raises(ValueError, match="its fault is"):
            render(answer, stage, names)


@pytest.mark.parametrize(
    ("items", "fault"), [((1, 2, 3), "count"), ((1,) * 10, "repeated_service"), ((*range(9), -1), "service")]
)
def test_answers_that_could_not_be_read_are_not_written(items, fault):
    with pytest.raises(ValueError, match=fault):
        render(Answer("a quick lunch", "body/food", "Deli", items), "service", IDS)


FRAGMENTS = [
    *('{"need": ', '"a quick lunch"', ', "need_type": ', '"body/food"', ', "category": ', '"Deli"', ', "services": '),
    *("[4, 7, 1, 0, 2, 3, 5, 6, 8, 9]", "]", "}", "{", "[", ",", ":", '"', "\\", "NaN", "-Infinity", "1e999", "-0"),
    *("null", "true", "\n", "\0", "\ud800", "\u2028", "<|im_end|>", "1" * 5000, "[" * 3000, '{"a":' * 3000, GOOD),
]


def test_ten_thousand_strings_never_raise():
    rng = np.random.default_rng(0)
    read = 0
    for i in range(10_000):
        # Every other one begins well: seven pieces in order are an answer, a number of them are one's beginning.
        drawn = [FRAGMENTS[j] for j in rng.integers(len(FRAGMENTS), size=rng.integers(5))]
        text = "".join([*FRAGMENTS[: rng.integers(9) if i % 2 else 0], *drawn])
        stage = list(STAGES)[i % 3]
        reading = read_answer(text, stage, IDS)
        assert (reading.answer is None) == (reading.problem in REASONS)
        if reading.answer:
            read += 1
            assert read_answer(render(reading.answer, stage, IDS), stage, IDS) == reading
    assert read > 5


def test_a_gold_answer_begins_with_the_target():
    answer = gold_answer("a quick lunch", "body/food", "Deli", 7, [3, 7, 3, *range(12)])
    assert answer.services == (7, 3, 0, 1, 2, 4, 5, 6, 8, 9)
    with pytest.raises(ValueError, match="there are 2 beside the target 7"):
        gold_answer("a quick lunch", "body/food", "Deli", 7, [3, 7, 4])


def test_unknown_stages_and_shared_sids_are_refused():
    with pytest.raises(ValueError, match="stage 'ranking' is unknown; the stages are need, category, service"):
        read_answer(GOOD, "ranking", IDS)
    with pytest.raises(ValueError, match="share sids"):
        ServiceNames(SidTable(np.zeros((2, 1), dtype=int), (1,), shared=True))


def test_the_prompt_says_when_where_and_what_to_answer():
    visits = [Told("Gym", f"<a_{i}>") for i in range(9)] + [Told("Deli", "<a_9>", 24.0)]
    context = Context(hour=24.0, weekday=4, weather="Rain", scene="Midtown", position="north")
    [message] = needs_prompt(context, visits, "category")
    assert message["role"] == "user"
    recent = "; ".join([f"Gym <a_{i}>" for i in range(2, 9)] + ["Deli <a_9> 0h"])
    assert message["content"] == f"Now: Friday 0h, Rain, Midtown, north. Recent: {recent}. Need, category?"
    assert needs_prompt(Context(), [], "need")[0]["content"] == "Now: unknown. Recent: none. Need?"
    assert needs_prompt(Context(hour=7.9), [Told("Gym", "")], "service")[0]["content"].startswith(
        "Now: 7h. Recent: Gym. "
    )
    often = [Told("Gym", f"<a_{i}>") for i in range(5)]
    [message] = needs_prompt(Context(), visits[-1:], "need", often=often)
    usual = "Gym <a_0>; Gym <a_1>; Gym <a_2>; Gym <a_3>"
    assert message["content"] == f"Now: unknown. Recent: Deli <a_9> 0h. Often: {usual}. Need?"
