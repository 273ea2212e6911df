import itertools

import numpy as np
import pytest

from recllm.recommender.thought_rewards import (
    TERMS,
    CategoryNames,
    ThoughtReward,
    check_weights,
    natural,
    read_completion,
    term,
)
from recllm.sid.table import SidTable

CODES = np.array(list(itertools.product(range(3), range(3), range(4)))[:30])
TABLE = SidTable(CODES, (3, 3, 4))
NAMES = CategoryNames([["Drama", "War"] if item % 3 else ["Action & Adventure"] for item in range(29)] + [[]])
WEIGHTS = {"valid": 0.1, "prefix": 1.0, "natural": 0.05, "category": 0.2, "rollout_beam": 0.5}
GOOD = "<think>The user wants Drama, War.</think>"
TARGET = 4


def reward(text: str, target: int = TARGET, beam: float = 1.0) -> float:
    """The whole reward with the recipe's weights; the beam is as kind as it can be, to valid completions alone."""
    readings = [read_completion(TABLE, text)]
    values = {name: term(name, readings, [target], TABLE, NAMES)[0] for name in TERMS if name != "rollout_beam"}
    values["rollout_beam"] = 0.0 if readings[0].problem else beam
    assert all(value is None or 0 <= value <= 1 for value in values.values())
    return sum(WEIGHTS[name] * (value or 0.0) for name, value in values.items())


ABUSE = {
    "letters for a thought, and no sid": "<think>" + "a" * 20 + "</think><a_9><b_9><c_9>",
    "an invalid sid": GOOD + "<a_0><b_0><c_9>",
    "a sid of another shape": GOOD + "<a_0><b_0>",
    "codes of another level": GOOD + "<b_0><a_0><c_0>",
    "two sids": GOOD + TABLE.text(TARGET) * 2,
    "a sid and more": GOOD + TABLE.text(TARGET) + " surely",
    "no answer": GOOD,
    "no thought": TABLE.text(TARGET),
    "the sid inside the thought": f"<think>The user wants {TABLE.text(TARGET)} now.</think>{TABLE.text(TARGET)}",
    "a part of the sid inside": f"<think>The user wants <a_0> now.</think>{TABLE.text(TARGET)}",
    "unclosed": "<think>The user wants Drama." + TABLE.text(TARGET),
    "nested": f"<think>The <think>user</think> wants Drama.</think>{TABLE.text(TARGET)}",
    "opened twice": f"<think><think>The user wants Drama.</think>{TABLE.text(TARGET)}",
    "closed twice": f"{GOOD}</think>{TABLE.text(TARGET)}",
    "a second thought": f"{GOOD}{GOOD}{TABLE.text(TARGET)}",
    "text before": f"Sure. {GOOD}{TABLE.text(TARGET)}",
    "a chat marker": f"<think>The user <|im_end|> wants Drama.</think>{TABLE.text(TARGET)}",
    "a call": f"<think>The <tool_call> user wants Drama.</think>{TABLE.text(TARGET)}",
    "empty": "",
    "letters of another script in the code": GOOD + "<a_٠><b_0><c_0>",
}


@pytest.mark.parametrize("text", ABUSE.values(), ids=ABUSE.keys())
def test_abuse_is_worth_nothing(text):
    assert read_completion(TABLE, text).problem
    assert reward(text) == 0


def test_a_gold_answer_gets_all_there_is():
    assert reward(GOOD + TABLE.text(TARGET)) == pytest.approx(sum(WEIGHTS.values()))


def test_invalid_at_most_valid_miss_below_hit_whatever_the_form():
    """The dearest miss against the cheapest hit, over all items, thoughts and beams."""
    poor = "<think>" + "a" * 20 + "</think>"
    for target in range(29):
        hit = reward(poor + TABLE.text(target), target, beam=0.0)
        misses = [reward(GOOD + TABLE.text(item), target) for item in range(30) if item != target]
        least = [reward(poor + TABLE.text(item), target, beam=0.0) for item in range(30) if item != target]
        assert max(misses) < hit and min(least) > 0


def test_fuzzed_completions_never_raise_and_never_pass_for_valid():
    rng = np.random.default_rng(0)
    pieces = ["<think>", "</think>", "<a_0>", "<b_1>", "<c_2>", "The user wants Drama. ", "War", "\n", "<|im_end|>"]
    pieces += [GOOD, TABLE.text(4), "aaaa", '"', "", "<", "\x00", "\ud800", "<a_00>", "[H1]", "é"]
    valid = 0
    for _ in range(10_000):
        text = "".join(rng.choice(pieces, rng.integers(0, 8)))
        reading, value = read_completion(TABLE, text), reward(text)
        if reading.problem is None:
            valid += 1
            assert text == f"<think>{reading.thought}</think>" + text[len(reading.thought) + 15 :]
            assert text.count("think>") == 2 and text.endswith(TABLE.text(reading.item)) and value > 0
        else:
            assert value == 0
    assert valid > 5


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("The user wants Drama, Comedy.", True),
        ('Goes with "Star Wars (1977)". Category: Action, Sci-Fi', True),
        ("Der Nutzer möchte Spannung.", True),
        ("", False),
        ("a a a a a a a a", False),
        ("Drama Drama Drama Drama Drama Drama", False),
        ("abcdefghijklmnopqrstuvwxyz is a word", False),
        ("hmmmmmmm what is it", False),
        ("1 2 3 4 5 6 7 8 9 a few words", False),
        ("two words", False),
    ],
)
def test_natural_thoughts(thought, expected):
    assert natural(thought) is expected


@pytest.mark.parametrize(
    ("thought", "item", "expected"),
    [
        ("wants Drama, War", 4, 1.0),
        ("wants Drama", 4, 2 / 3),
        ("wants Drama, War, Action & Adventure", 4, 0.8),
        ("wants Action & Adventure", 4, 0.0),
        ("wants Action", 3, 0.0),
        ("wants Dramatic Warriors", 4, 0.0),
        ('after "War and Drama" nothing', 4, 0.0),
        ("Drama Drama Drama War", 4, 1.0),
        ("wants Drama", 29, None),
    ],
)
def test_category_f1_by_hand(thought, item, expected):
    assert NAMES.f1(thought, item) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_bound_is_exactly_where_a_miss_would_reach_a_hit(levels):
    share = {1: 1.0, 2: 0.8, 3: 0.8, 4: 0.8}[levels]
    check_weights({"valid": 9.0, "prefix": 2.0, "natural": 2 * share - 1e-9}, levels)
    with pytest.raises(ValueError, match="a miss could outscore a hit"):
        check_weights({"valid": 9.0, "prefix": 2.0, "natural": 1.0, "category": 2 * share - 1}, levels)


@pytest.mark.parametrize(
    ("weights", "message"), [({"prefix": 1, "form": 1}, "'form'"), ({"prefix": 1, "valid": -1}, "valid_weight is -1")]
)
def test_weights_that_mean_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 3)


def test_no_category_for_a_target_without_any_and_zero_for_an_invalid_completion():
    texts = [GOOD + TABLE.text(1), GOOD]
    readings = [read_completion(TABLE, text) for text in texts]
    assert term("category", readings, [29, 29], TABLE, NAMES) == [None, 0.0]


class Spelling:
    """A tokenizer whose tokens are texts."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(ids)


def test_the_reward_reads_tokens_and_asks_the_beam_about_valid_completions_alone():
    asked = []

    def beam(**columns):
        asked.append(columns)
        return [0.5, 0.5]

    completion_ids = [[GOOD, TABLE.text(4)], ["<think>", TABLE.text(4)]]
    columns = {"completion_ids": completion_ids, "target": [4, 4], "completions": ["lies"] * 2, "prompts": ["p"] * 2}
    values = {name: ThoughtReward(name, Spelling(), TABLE, NAMES, beam)(**columns) for name in TERMS}
    assert values == {
        "valid": [1, 0], "prefix": [1, 0], "natural": [1, 0], "category": [1, 0], "rollout_beam": [0.5, 0]
    }  # fmt: skip
    assert asked[0]["prompts"] == ["p"] * 2 and ThoughtReward("natural", Spelling(), TABLE, NAMES).__name__ == "natural"
