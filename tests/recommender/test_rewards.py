"""The recommender's rewards: tables by hand, and completions that try to be paid for nothing."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.recommender.rewards import MONITORS, TERMS, Reward, allowed_mass, prefix_weights, read_item
from recllm.sid.table import SidTable

LEVELS, CODES = 4, 3
# Every sid but those that end in code 2, so that well-formed text without an item exists.
SIDS = [sid for sid in itertools.product(range(CODES), repeat=LEVELS) if sid[-1] < 2]
TABLE = SidTable(np.array(SIDS), (CODES,) * LEVELS)


def item(*codes: int) -> int:
    return SIDS.index(codes)


def text(*codes: int) -> str:
    return "".join(f"<{letter}_{code}>" for letter, code in zip("abcdefgh", codes, strict=False))


def pay(name: str, texts, target: int, group=None, place=None, table=TABLE, **more) -> list[float]:
    """A term as TRL would call it, on completions of one group by default."""
    count = len(texts)
    return Reward(name, {**TERMS, **MONITORS}[name], table)(
        prompts=["?"] * count,
        completions=texts,
        completion_ids=[[1]] * count,
        target=[target] * count,
        group=[0] * count if group is None else group,
        place=list(range(count)) if place is None else place,
        **more,
    )


HIT = text(1, 2, 0, 1)
TARGET = item(1, 2, 0, 1)


def test_exact_by_hand():
    texts = [HIT, text(1, 2, 0, 0), text(1, 2, 0, 2), "", [{"role": "assistant", "content": HIT}]]
    assert pay("exact", texts, TARGET) == [1, 0, 0, 0, 1]


def test_prefix_by_hand():
    # .5 [a] + .5 [ab] + 1 [abc] + 8 [abcd], over 10; later codes count for nothing after a wrong one.
    table = {HIT: 1.0, text(1, 2, 0, 0): 0.2, text(1, 2, 1, 1): 0.1, text(1, 0, 0, 1): 0.05, text(0, 2, 0, 1): 0.0}
    assert pay("prefix", list(table), TARGET) == pytest.approx(list(table.values()), abs=1e-12)
    assert pay("prefix", [HIT], TARGET) == [1.0]
    assert pay("prefix", [text(1, 2, 0), text(1, 2, 0, 2), HIT + "!"], TARGET) == [0, 0, 0]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (1, [1.0]),
        (2, [0.2, 0.8]),
        (3, [0.1, 0.1, 0.8]),
        (4, [0.05, 0.05, 0.1, 0.8]),
        (5, [0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1, 0.8]),
    ],
)
def test_prefix_weights_by_hand(levels, expected):
    found = prefix_weights(levels)
    assert found == pytest.approx(expected)
    assert found.sum() == pytest.approx(1) and (np.diff(found) >= -1e-12).all()


def test_rank_by_hand():
    log = [1 / math.log2(i + 2) for i in range(4)]
    share = [value / sum(log) for value in log]  # .390, .246, .195, .168
    misses = [text(0, 0, 0, 0), text(0, 0, 0, 1), text(2, 0, 0, 0)]
    assert share == pytest.approx([0.39038, 0.24631, 0.19519, 0.16813], abs=1e-5)
    assert pay("rank", [misses[0], HIT, misses[1], misses[2]], TARGET) == pytest.approx(
        [-share[0], 0, -share[2], -share[3]]
    )
    # The place is the model's, not the order of arrival.
    found = pay("rank", [misses[0], HIT, misses[1], misses[2]], TARGET, place=[3, 2, 0, 1])
    assert found == pytest.approx([-share[3], 0, -share[0], -share[1]])
    assert pay("rank", misses, TARGET) == [0, 0, 0]
    # Two groups, side by side and interleaved: only the one with a hit is ranked.
    texts = [misses[0], misses[1], HIT, misses[1]]
    half = 1 / math.log2(3) / (1 + 1 / math.log2(3))
    assert pay("rank", texts, TARGET, group=[7, 7, 9, 9], place=[0, 1, 0, 1]) == pytest.approx([0, 0, 0, -half])
    assert pay("rank", texts, TARGET, group=[7, 9, 9, 7], place=[0, 1, 0, 1]) == pytest.approx([0, -half, 0, 0])


def test_rank_and_exact_add_up_to_the_published_reward():
    texts = [text(0, 0, 0, 0), HIT, text(0, 0, 0, 1)]
    total = np.add(pay("exact", texts, TARGET), pay("rank", texts, TARGET))
    norm = sum(1 / math.log2(i + 2) for i in range(3))
    assert total == pytest.approx([-1 / norm, 1.0, -0.5 / norm])


def test_an_invalid_answer_counts_as_the_most_confident_miss():
    texts = [HIT, text(0, 0, 0, 0), "nothing"]
    found = pay("rank", texts, TARGET)
    assert found[2] == pytest.approx(-1 / sum(1 / math.log2(i + 2) for i in range(3)))
    assert found[2] < found[1] < found[0]


def test_places_must_be_those_of_the_group():
    with pytest.raises(ValueError, match=r"group 0 of 2 has the places \[1, 1\]"):
        pay("rank", [HIT, HIT], TARGET, place=[1, 1])


def test_items_behind_one_sid_share_a_hit():
    shared = SidTable(np.array([[0, 0], [1, 1], [0, 0], [0, 1]]), (2, 2), shared=True)
    for target in (0, 2):
        assert pay("exact", ["<a_0><b_0>", "<a_0><b_1>", "<a_1><b_0>"], target, table=shared) == [0.5, 0, 0]
        assert pay("prefix", ["<a_0><b_0>", "<a_0><b_1>"], target, table=shared) == pytest.approx([1, 0.2])
        assert pay("rank", ["<a_0><b_0>", "<a_0><b_1>"], target, table=shared)[0] == 0
    assert pay("exact", ["<a_1><b_1>"], 1, table=shared) == [1]


ABUSE = {
    "empty": "",
    "letters": "a" * 20,
    "too short": text(1, 2, 0),
    "too long": HIT + "<e_0>",
    "another level first": "<b_1><b_2><c_0><d_1>",
    "levels in another order": "<b_2><a_1><c_0><d_1>",
    "two sids": HIT + HIT,
    "two different sids": HIT + text(0, 0, 0, 0),
    "inside text": f"The answer is {HIT}",
    "text after": f"{HIT} of course",
    "a space before": " " + HIT,
    "a newline after": HIT + "\n",
    "wrong case": HIT.upper(),
    "leading zero": HIT.replace("_1>", "_01>"),
    "signed": HIT.replace("_1>", "_+1>"),
    "other digits": HIT.replace("1", "\u0661"),
    "full width": HIT.replace("<", "\uff1c"),
    "code beyond the level": HIT.replace("_2>", "_99>"),
    "huge code": HIT.replace("_2>", f"_{9**40}>"),
    "no item has it": text(1, 2, 0, 2),
    "end of text spelled": HIT + "<|im_end|>",
    "quoted": f"'{HIT}'",
    "separated": " ".join(f"<{letter}_{code}>" for letter, code in zip("abcd", (1, 2, 0, 1), strict=True)),
    "null": HIT + "\0",
    "thought never closed": "<think>" + HIT,
    "thought closed twice": f"<think>x</think>y</think>{HIT}",
    "thought not at the start": f"x<think>y</think>{HIT}",
    "closing marker alone": f"</think>{HIT}",
    "sid in the thought": f"<think>{HIT}</think>",
    "none": None,
    "a number": 7,
    "no message": [],
    "two messages": [{"role": "assistant", "content": HIT}, {"role": "assistant", "content": HIT}],
    "another's message": [{"role": "user", "content": HIT}],
    "no content": [{"role": "assistant"}],
    "content in parts": [{"role": "assistant", "content": [{"type": "text", "text": HIT}]}],
    "a call beside it": [{"role": "assistant", "content": HIT, "tool_calls": [{}]}],
}
assert len(ABUSE) == len({repr(value) for value in ABUSE.values()})


@pytest.mark.parametrize("name", ABUSE)
def test_abuse_is_no_answer(name):
    assert read_item(TABLE, ABUSE[name]) is None


def test_an_answer_after_a_thought_is_read():
    for before in ("<think>x</think>", "<think>\n\n</think>\n", f"<think>{text(0, 0, 0, 0)}</think>\n\n"):
        assert read_item(TABLE, before + HIT) == TARGET
        assert read_item(TABLE, before + "\n" + HIT + " ") is None


def check_order(texts: list, target: int, place: list[int]) -> None:
    """By every term: an invalid answer at most what any valid miss gets, a miss at most what any hit gets."""
    items = [read_item(TABLE, each) for each in texts]
    for name in TERMS:
        found = pay(name, texts, target, place=place)
        assert all(type(value) is float and math.isfinite(value) and -1 <= value <= 1 for value in found)
        kinds = {"invalid": [], "miss": [], "hit": []}
        for value, got in zip(found, items, strict=True):
            kinds["invalid" if got is None else "hit" if got == target else "miss"].append(value)
        for low, high in (("invalid", "miss"), ("miss", "hit"), ("invalid", "hit")):
            if kinds[low] and kinds[high]:
                assert max(kinds[low]) <= min(kinds[high]), (name, low, high, texts)


@pytest.mark.parametrize("with_hit", [True, False])
@pytest.mark.parametrize("name", ABUSE)
def test_no_abuse_outscores_a_valid_miss(name, with_hit):
    misses = [text(*sid) for sid in SIDS if sid != SIDS[TARGET]]
    for place in itertools.permutations(range(4)):
        check_order([ABUSE[name], misses[0], misses[50], HIT if with_hit else misses[9]], TARGET, list(place))


ALPHABET = st.sampled_from(["<a_1>", "<b_2>", "<c_0>", "<d_1>", "<d_2>", "<a_9>", HIT, "<", "_", "1", " ", "a", "\n",
                            "<think>", "</think>", "<|im_end|>", "\0", "\u0661"])  # fmt: skip
ANSWERS = st.one_of(
    st.text(max_size=40),
    st.lists(ALPHABET, max_size=7).map("".join),
    st.sampled_from(SIDS).map(lambda sid: text(*sid)),
    st.just(HIT),
)


@settings(max_examples=600, deadline=None)
@given(texts=st.lists(ANSWERS, min_size=2, max_size=8), seed=st.integers(0, 9))
def test_fuzzed_groups_keep_the_order(texts, seed):
    check_order(texts, TARGET, np.random.default_rng(seed).permutation(len(texts)).tolist())


def test_ten_thousand_fuzzed_strings_hit_only_by_being_the_target():
    rng = np.random.default_rng(0)
    pieces = [*HIT, *"abcdef0123456789<>_ \n", "<a_1>", "<b_2>", "<c_0>", "<d_1>", "<d_0>", HIT]
    texts = ["".join(rng.choice(pieces, size=rng.integers(0, 9))) for _ in range(10_000)]
    texts += [text(1, 2, 0, 1)[:cut] for cut in range(len(HIT) + 1)]
    known = {text(*sid): number for number, sid in enumerate(SIDS)}
    assert [read_item(TABLE, each) for each in texts] == [known.get(each) for each in texts]
    assert pay("exact", texts, TARGET) == [float(each == HIT) for each in texts]


def test_the_numbers_of_groups_by_hand():
    logged = {}
    texts = [HIT, HIT, text(0, 0, 0, 0), text(0, 0, 0, 1)]
    found = pay(
        "allowed_mass",
        texts,
        TARGET,
        group=[3, 3, 5, 5],
        allowed=[[math.log(0.5), math.log(0.5)], [0.0, 0.0], [math.log(0.1), 0.0], [0.0, math.log(0.2)]],
        log_metric=logged.__setitem__,
    )
    assert found == pytest.approx([0.25, 1, 0.1, 0.2])
    assert logged == pytest.approx(
        {"allowed_mass": 1.55 / 4, "group_duplicates": 0.25, "group_hit_rate": 0.5, "groups_without_hit": 0.5}
    )
    nan, logged = math.nan, {}
    part = pay(
        "allowed_mass", texts[:2], TARGET, allowed=[[nan, nan], [0.0, math.log(0.4)]], log_metric=logged.__setitem__
    )
    assert part == [None, pytest.approx(0.4)] and logged["allowed_mass"] == pytest.approx(0.4)
    assert allowed_mass(item=[], target=[], group=[], allowed=[], log_metric=logged.__setitem__) == []


def test_trl_logs_a_reward_under_its_name():
    from trl.trainer.utils import get_callable_name

    assert [get_callable_name(Reward(name, term, TABLE)) for name, term in TERMS.items()] == ["exact", "rank", "prefix"]
