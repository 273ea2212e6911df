"""The arithmetic world: what a question means, that steps lead to the answer, and that the folds share nothing."""

import ast
import itertools
import operator
import random
from collections import Counter

import pytest

from recllm.evaluation.arithmetic import ArithmeticWorld, Chain, chat_columns

WORLD = ArithmeticWorld()
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculated(expression: str) -> int:
    """What usual arithmetic makes of an expression, brackets and precedence included."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return node.value
        return _OPERATORS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(expression, mode="eval").body)


@pytest.fixture(scope="module")
def chains():
    return {fold: list(itertools.islice(WORLD.chains(fold, 5), 1500)) for fold in ("train", "test")}


def test_a_chain_by_hand():
    chain = Chain(3, (("+", 4), ("*", 2), ("-", 5)))
    assert chain.question == "(3+4)*2-5=" and chain.values == [3, 7, 14, 9] and chain.answer == "9"
    assert chain.thought == "3+4=7 7*2=14 14-5=9"
    assert [message["role"] for message in chain.chat("direct")] == ["user", "assistant"]
    assert chain.chat("direct")[1]["content"] == "9"
    assert chain.chat("thinking")[1]["content"] == "<think>3+4=7 7*2=14 14-5=9</think>9"
    twice = Chain(8, (("*", 2), ("-", 9), ("*", 3), ("+", 1), ("*", 2)))
    assert twice.question == "((8*2-9)*3+1)*2="


def test_a_question_means_what_a_calculator_says(chains):
    for chain in [*chains["train"], *chains["test"]]:
        assert str(calculated(chain.question.removesuffix("="))) == chain.answer


def test_the_steps_of_a_thought_lead_to_the_answer(chains):
    for chain in chains["train"]:
        value = str(chain.start)
        for step in chain.thought.split(" "):
            left, right = step.split("=")
            assert left.startswith((f"{value}+", f"{value}-", f"{value}*")) and calculated(left) == int(right)
            value = right
        assert value == chain.answer and len(chain.thought.split(" ")) == len(chain.steps)


def test_values_stay_within_bounds_and_kinds_are_balanced(chains):
    drawn = chains["train"]
    assert all(0 <= value <= 9 for chain in drawn for value in chain.values)
    assert all(1 <= number <= 9 for chain in drawn for _, number in chain.steps)
    lengths = Counter(len(chain.steps) for chain in drawn)
    assert sorted(lengths) == [2, 3, 4] and min(lengths.values()) > 400
    signs = Counter(sign for chain in drawn for sign, _ in chain.steps)
    assert min(signs.values()) > 0.1 * sum(signs.values())
    other = ArithmeticWorld(least=1, most=1, operand=3, largest=5)
    small = [chain for fold in ("train", "test") for chain in itertools.islice(other.chains(fold, 0), 300)]
    values = {value for chain in small for value in chain.values}
    assert values == set(range(6))


def test_one_expression_in_another_order_has_the_same_canonical_form():
    def canonical(start, *steps):
        return Chain(start, tuple((step[0], int(step[1:])) for step in steps)).canonical

    assert canonical(3, "+4", "-2", "*5") == canonical(4, "-2", "+3", "*5")
    assert canonical(3, "*4", "+2") == canonical(4, "*3", "+2")
    assert canonical(7, "-1", "*2", "*3") == canonical(7, "-1", "*3", "*2")
    different = [(3, "+4", "*2"), (3, "*2", "+4"), (3, "+4", "*3"), (3, "-2", "*2"), (2, "-3", "*2"), (3, "*4", "*2")]
    assert len({canonical(*chain) for chain in different}) == len(different)


def test_equal_canonical_forms_have_equal_values(chains):
    answers: dict[str, set[str]] = {}
    for chain in [*chains["train"], *chains["test"]]:
        answers.setdefault(chain.canonical, set()).add(chain.answer)
    assert max(map(len, answers.values())) == 1


def test_train_and_test_share_no_canonical_expression(chains):
    train, test = ({chain.canonical for chain in chains[fold]} for fold in ("train", "test"))
    assert not train & test
    questions = {chain.canonical for chain in WORLD.questions(500, seed=0)}
    many = {chain.canonical for chain in itertools.islice(WORLD.chains("train", 0), 5_000)}
    assert not questions & many
    # The draws overlap where folds do not forbid it, so that the two lines above say something.
    again = {chain.canonical for chain in itertools.islice(WORLD.chains("train", 1), 5_000)}
    assert len(again & many) > 500
    drawn = [chain for chain in (WORLD._draw(random.Random(i)) for i in range(3000)) if chain.fold == "test"]
    assert 0.16 < len(drawn) / 3000 < 0.24


def test_questions_are_different_and_the_same_every_time():
    questions = WORLD.questions(400, seed=3)
    assert len({chain.canonical for chain in questions}) == 400 and all(chain.fold == "test" for chain in questions)
    assert questions == WORLD.questions(400, seed=3) and questions != WORLD.questions(400, seed=4)
    assert questions[:50] == WORLD.questions(50, seed=3)


def test_chat_columns_hold_the_share_that_thinks_and_training_questions_only():
    columns = chat_columns(WORLD, thinking=0.25, rows=400, seed=1)
    assert Counter(columns["style"]) == {"thinking": 100, "direct": 300}
    test = {chain.question for chain in WORLD.questions(500, seed=1)}
    for messages, style in zip(columns["messages"], columns["style"], strict=True):
        assert messages[0]["content"] not in test
        thought, _, answer = messages[1]["content"].rpartition("</think>")
        assert bool(thought) == (style == "thinking") and calculated(messages[0]["content"][:-1]) == int(answer)
    assert columns == chat_columns(WORLD, thinking=0.25, rows=400, seed=1)
    blocks = chat_columns(WORLD, thinking=0.25, rows=400, seed=1, block=20)["style"]
    assert {len(set(blocks[begin : begin + 20])) for begin in range(0, 400, 20)} == {1}
    assert Counter(blocks) == Counter(columns["style"]) and blocks != sorted(blocks)
    assert len(chat_columns(WORLD, thinking=0.5, rows=50, seed=1, block=20)["style"]) == 50
    assert columns != chat_columns(WORLD, thinking=0.25, rows=400, seed=2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ArithmeticWorld(least=0), "operations"),
        (lambda: ArithmeticWorld(least=3, most=2), "operations"),
        (lambda: ArithmeticWorld(operand=1), "operand"),
        (lambda: ArithmeticWorld(operand=9, largest=8), "largest"),
        (lambda: ArithmeticWorld(1, 1, 2, 2).questions(100, 0), "hardly more than|no test question"),
        (lambda: next(WORLD.chains("validation", 0)), "fold"),
        (lambda: chat_columns(WORLD, 1.5, 10, 0), "share"),
        (lambda: chat_columns(WORLD, 0.5, 0, 0), "row"),
        (lambda: chat_columns(WORLD, 0.5, 10, 0, block=0), "blocks"),
    ],
)
def test_bad_bounds_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
