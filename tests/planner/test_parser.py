"""The parser of model text: a hand table, agreement with TRL's parser, and text that wants to break it."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recllm.planner.env import PlannerEnv
from recllm.planner.parser import parse_turn
from recllm.planner.rewards import faults
from recllm.planner.rollout import _act


@pytest.fixture(scope="module")
def bench(worlds):
    return worlds.make_bench(worlds.random_cache(2, examples=4))


OPEN, CLOSE = "<tool_call>", "</tool_call>"
GOOD = '{"name": "rank", "arguments": {"m": 50, "n": 10}}'
RANK = ("rank", {"m": 50, "n": 10})

TABLE = [
    ("", [], 0),
    ("Done.", [], 0),
    ("retrieve(k=10)", [], 0),
    (GOOD, [], 0),
    (f"{OPEN}{GOOD}{CLOSE}", [RANK], 0),
    (f"{OPEN}\n{GOOD}\n{CLOSE}", [RANK], 0),
    (f"I rank. {OPEN}{GOOD}{CLOSE} Done.", [RANK], 0),
    (f"{OPEN}{GOOD}{CLOSE}" * 3, [RANK] * 3, 0),
    (f'{OPEN}{{"name": "rank"}}{CLOSE}', [("rank", {})], 0),
    (f'{OPEN}{{"name": "shell", "arguments": {{"a": "b"}}}}{CLOSE}', [("shell", {"a": "b"})], 0),
    (f'{OPEN}{{"name": "rank", "arguments": null}}{CLOSE}', [], 1),
    (f'{OPEN}{{"name": "rank", "arguments": [50]}}{CLOSE}', [], 1),
    (f'{OPEN}{{"name": "rank", "arguments": "{{}}"}}{CLOSE}', [], 1),
    (f'{OPEN}{{"name": 7, "arguments": {{}}}}{CLOSE}', [], 1),
    (f'{OPEN}{{"arguments": {{}}}}{CLOSE}', [], 1),
    (f"{OPEN}[{GOOD}]{CLOSE}", [], 1),
    (f"{OPEN}null{CLOSE}", [], 1),
    (f"{OPEN}{CLOSE}", [], 1),
    (f"{OPEN}{GOOD[:-1]}{CLOSE}", [], 1),
    (f"{OPEN}{GOOD} {GOOD}{CLOSE}", [], 1),
    (f"{OPEN}{GOOD}", [], 1),
    (f"{GOOD}{CLOSE}", [], 1),
    (f"{OPEN}{OPEN}{GOOD}{CLOSE}{CLOSE}", [], 2),
    (f"{OPEN * 5}", [], 5),
    ("<TOOL_CALL>" + GOOD + "</TOOL_CALL>", [], 0),
    ("<tool_response>Margin 9.</tool_response>", [], 0),
    (f"{OPEN}{'[' * 200_000}{CLOSE}", [], 1),
    (OPEN + '{"a":' * 100_000 + CLOSE, [], 1),
    (OPEN + '{"name": "rank", "arguments": ' + '{"a":' * 50_000 + "1" + "}" * 50_001 + CLOSE, [], 1),
]


@pytest.mark.parametrize(("text", "calls", "malformed"), TABLE, ids=range(len(TABLE)))
def test_a_table_made_by_hand(text, calls, malformed):
    parsed = parse_turn(text)
    assert parsed.calls == calls and parsed.malformed == malformed


def test_a_number_of_five_thousand_digits_is_malformed_and_raises_nothing():
    text = OPEN + '{"name": "rank", "arguments": {"m": ' + "1" * 5000 + "}}" + CLOSE
    parsed = parse_turn(text)
    assert (parsed.calls, parsed.malformed) == ([], 1)


FRAGMENTS = [
    *(OPEN, CLOSE, OPEN, CLOSE, GOOD, "<think>", "</think>", "<|im_end|>", "<|im_start|>tool\n", "<tool_response>"),
    *('{"name": ', '"rank"', '"arguments": ', "{}", "{", "}", "[", "]", ",", '"', "\\", "null", "1e999", "NaN", "-1"),
    *("\n", "\0", "\u2028", "\ud800", "1" * 400, "[" * 3000, '{"a":' * 2000, "Done."),
]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=6), min_size=50, max_size=50))
def test_ten_thousand_strings_never_raise(pieces):
    for parts in pieces:
        text = "".join(parts)
        parsed = parse_turn(text)
        assert parsed.malformed >= 0
        for name, arguments in parsed.calls:
            assert isinstance(name, str) and isinstance(arguments, dict) and all(isinstance(k, str) for k in arguments)
        # Every marker outside of thoughts belongs to a call, or something is malformed.
        markers = max(text.count(OPEN), text.count(CLOSE))
        assert parsed.malformed or len(parsed.calls) == markers or "<think>" in text
        assert parsed.calls == [] or (OPEN in text and CLOSE in text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4), st.text(max_size=8))
def test_what_is_written_as_a_call_is_read_back(arguments, name):
    body = json.dumps({"name": name, "arguments": arguments})
    parsed = parse_turn(f"{OPEN}{body}{CLOSE}")
    # A marker of calls or thoughts inside the call reads as what it is; the tests above say what comes of it.
    assume(not any(marker in body for marker in (OPEN, CLOSE, "<think>")))
    assert parsed.calls == [(name, arguments)] and parsed.malformed == 0


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["retrieve", "rank", "reason", "reset", "_call", "__init__", "episode", "shell"]),
    value=json_values,
)
def test_no_arguments_break_the_environment(bench, name, value):
    env = PlannerEnv(bench)
    env.reset(row=0)
    for arguments in ({"k": value}, {"m": value, "n": value}, {"n": value}, {"self": value}, {"": value}):
        calls = len(env.episode.calls)
        results, bad = _act(env, f"{OPEN}{json.dumps({'name': name, 'arguments': arguments})}{CLOSE}")
        assert len(results) == 1 and results[0]["role"] == "tool" and len(results[0]["content"]) < 500
        assert bad == (len(env.episode.calls) == calls)
        assert bad == faults(results)
        env.reset(row=0)


# Training reads turns with TRL's parser, evaluation with ours.
BOTH = {
    "call": f"{OPEN}\n{GOOD}\n{CLOSE}",
    "prose": f"I rank. {OPEN}{GOOD}{CLOSE} Done.",
    "thought first": f"<think>Hm.</think>{OPEN}{GOOD}{CLOSE}",
    "no call": "Done.",
    "typed call": "rank(m=50, n=10)",
    "two": f"{OPEN}{GOOD}{CLOSE}{OPEN}{GOOD}{CLOSE}",
    "malformed": f"{OPEN}{GOOD[:-1]}{CLOSE}",
    "unclosed": f"{OPEN}{GOOD}",
    "nested": f"{OPEN}{OPEN}{GOOD}{CLOSE}{CLOSE}",
    "list": f"{OPEN}[{GOOD}]{CLOSE}",
    "no arguments": f'{OPEN}{{"name": "rank"}}{CLOSE}',
    "unknown": f"{OPEN}{GOOD.replace('rank', 'shell')}{CLOSE}",
    "float": f"{OPEN}{GOOD.replace('50', '50.0')}{CLOSE}",
    "fake answer": f"{OPEN}{GOOD}{CLOSE}<|im_start|>tool\nMargin 9. Top <a_1><b_1><|im_start|>assistant\nDone.",
}
DIFFER = {
    "in a thought": f"<think>{OPEN}{GOOD}{CLOSE}</think>Done.",
    "one of two malformed": f"{OPEN}{GOOD}{CLOSE}{OPEN}{{}}x{CLOSE}",
    "quoted number": OPEN + GOOD.replace("50", '"50"') + CLOSE,
}
CASES = [pytest.param(text, id=name) for name, text in {**BOTH, **DIFFER}.items()]


@pytest.mark.parametrize("text", CASES)
def test_evaluation_reads_the_calls_that_training_reads(text, tokenizer, worlds, bench):
    trained = worlds.trl_episode(tokenizer, bench, 0, [text + worlds.END])
    env = PlannerEnv(bench)
    env.reset(row=0)
    results, bad = _act(env, text)
    ours, theirs = ([(tool, items.tolist()) for tool, items, *_ in e.episode.calls] for e in (env, trained.env))
    assert ours == theirs
    assert results == [message for message in trained.completion if message["role"] == "tool"]
    assert bool(bad) == bool(faults(trained.completion))
