"""Questions say what is wrong with them, and a digest tells any two questions apart."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.teachers.protocol import Question, Sampling, digest

USER = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "ends with a message"),
        ([USER, {"role": "assistant", "content": "So."}], "ends with a message"),
        ([{"role": "tool", "content": "x"}], "message 0 needs role"),
        ([USER, {"role": "user"}], "message 1 needs role"),
        ([{"role": "user", "content": None}], "message 0: content is a NoneType"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(messages, told):
    with pytest.raises(ValueError, match=told):
        Question(messages)


def test_each_part_of_a_question_and_the_salt_count():
    variants = [
        (Question([USER]), "a"),
        (Question([USER]), "b"),
        (Question([USER], kind="why"), "a"),
        (Question([USER], {"item": 1}), "a"),
        (Question([USER], {"item": "1"}), "a"),
        (Question([USER, USER]), "a"),
        (Question([{"role": "system", "content": "Why?"}]), "a"),
        (Question([{"role": "user", "content": "Why? "}]), "a"),
    ]
    for one, other in itertools.combinations(variants, 2):
        assert digest(*one) != digest(*other)


def test_the_order_of_keys_does_not_count():
    one = Question([USER], {"a": 1, "b": [{"c": 2, "d": 3}]})
    other = Question([{"content": "Why?", "role": "user"}], {"b": [{"d": 3, "c": 2}], "a": 1})
    assert digest(one, "x") == digest(other, "x")


@pytest.mark.parametrize("facts", [{1: "a"}, {"a": {2: "b"}}, {"a": [{None: 1}]}, {"a": {1, 2}}, {"a": float("nan")}])
def test_facts_that_are_not_json_are_refused(facts):
    with pytest.raises(ValueError, match="facts of a question of kind 'why' are not JSON"):
        digest(Question([USER], facts, "why"), "x")


def test_a_digest_is_the_same_in_every_process():
    code = (
        "from recllm.teachers.protocol import *\n"
        "print(digest(Question([{'role': 'user', 'content': 'Why?'}], {'b': 'é', 'a': [1, 2.5]}, 'k'), 's'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(Question([USER], {"a": [1, 2.5], "b": "é"}, "k"), "s")


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none())))
def test_any_text_has_a_digest(content, kind, facts):
    question = Question([{"role": "user", "content": content}], facts, kind)
    longer = Question([{"role": "user", "content": content + "."}], facts, kind)
    assert digest(question, "x") != digest(longer, "x")


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}])
def test_sampling_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="must hold"):
        Sampling(**wrong)


def test_a_sampling_is_told_by_what_has_a_say():
    assert str(Sampling(seed=1)) == str(Sampling(seed=2, top_p=0.5))
    changes = [{}, {"temperature": 0.5}, {"top_p": 0.5}, {"seed": 1}, {"max_tokens": 7}]
    assert len({str(Sampling(**{"temperature": 1.0, **change})) for change in changes}) == len(changes)
