"""A template teacher answers from the facts alone, and `load_teacher` finds each teacher by its spec."""

import pytest

from recllm.teachers.build import load_teacher
from recllm.teachers.protocol import Answer, Question, TeacherError
from recllm.teachers.template import Template

TEMPLATES = {"why": lambda facts: f"Since {facts['item']}.", "name": lambda facts: "A name."}


def ask(kind, **facts):
    return Question([{"role": "user", "content": "?"}], facts, kind)


def test_each_kind_answers_from_its_facts_and_counts_no_tokens():
    teacher = Template(TEMPLATES)
    asked = [ask("why", item=3), ask("name"), ask("why", item=4)]
    wanted = [Answer(text, 0, 0, "stop") for text in ("Since 3.", "A name.", "Since 4.")]
    assert teacher.answer(asked) == wanted
    assert teacher.answer(asked[::-1]) == wanted[::-1]


@pytest.mark.parametrize(("wrong", "told"), [(ask("what"), "'what'; there are: name, why"), (ask("why"), "'item'")])
def test_what_no_template_can_answer_is_named_and_the_answers_before_it_are_kept(wrong, told):
    with pytest.raises(TeacherError, match=told) as caught:
        Template(TEMPLATES).answer([ask("name"), wrong, ask("name")])
    assert [answer.text for answer in caught.value.answered] == ["A name."]


def test_another_version_is_another_teacher():
    assert Template(TEMPLATES, 2).name != Template(TEMPLATES).name


def test_a_spec_finds_the_template_and_the_endpoint():
    assert load_teacher("template", templates=TEMPLATES, version=2).answer([ask("name")])[0].text == "A name."
    assert load_teacher("endpoint:a/b:c", base_url="http://localhost:1/v1").name.startswith("endpoint:a/b:c ")


@pytest.mark.parametrize("spec", ["", "gpt", "local:", "endpoint:", "template:x", "Local:x"])
def test_an_unknown_spec_is_refused(spec):
    with pytest.raises(ValueError, match="is unknown; give template, local:"):
        load_teacher(spec)
