"""Answers read from solutions as models write them, and from text that no model should have written."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.evaluation.final_answer import final_number, same_number, thought_and_answer

STRINGS = [
    # GSM8K's own mark
    ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", 18),
    ("#### 1,234", 1234),
    ("####42", 42),
    ("#### $70,000.", 70000),
    ("#### -3", -3),
    ("#### 42.00", 42),
    ("#### 12.50 dollars", Fraction(25, 2)),
    ("first 7\n#### 5\nThat is all, in 2 steps.", 5),
    ("#### 1\n#### 2", 2),
    ("####\n17", 17),
    ("#### 1,234,567", 1234567),
    ("#### 3/4", Fraction(3, 4)),
    # boxes
    (r"so it is \boxed{12}", 12),
    (r"\boxed{1{,}234}", 1234),
    (r"\boxed{\$18}", 18),
    (r"\boxed{18 \text{ dollars}}", 18),
    (r"\boxed{\text{18}}", 18),
    (r"\boxed{x = 5}", 5),
    (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
    (r"\boxed{-\dfrac{1}{2}}", Fraction(-1, 2)),
    (r"\boxed{\frac34}", Fraction(3, 4)),
    (r"\boxed{50\%}", 50),
    (r"\boxed{-7}", -7),
    (r"\boxed {42}", 42),
    (r"\boxed{12", 12),
    (r"\boxed{} and 4", 4),
    (r"first \boxed{3}, then corrected: \boxed{4}. I used 2 steps.", 4),
    (r"The answer is 3. \boxed{4}", 4),
    (r"$\boxed{2\,500}$", 2500),
    (r"\boxed{\boxed{6}}", 6),
    (r"\boxed{1.5 \times 10^{3}}", 1500),
    # sentences
    ("The answer is $5.", 5),
    ("The final answer is: **18**", 18),
    ("Answer: 7 apples, after 3 days", 7),
    ("answer = 12", 12),
    ("The answer is -4.", -4),
    ("The answer is \u22124.", -4),
    ("The answer is -$5.", -5),
    ("The answer is $-5.", -5),
    ("The answer is 3 + 4 = 7.", 7),
    ("The answer to the question is 21, since 3 * 7 = 21.", 21),
    ("**Final Answer:** 1,080", 1080),
    ("**Final Answer**: \\(1,080\\)", 1080),
    ("The answer is 2 1/2.", Fraction(5, 2)),
    ("The answer is 2\u00bd.", Fraction(5, 2)),
    ("The answer is \u00bd.", Fraction(1, 2)),
    ("The answer is 25%.", 25),
    ("The answer is \u20ac1\u202f234.50", Fraction(2469, 2)),
    ("The answers are 3", 3),
    ("I will answer in 2 steps: the answer is 9.", 9),
    # headings are no marks
    ("#### Step 1: Eggs\n16-3-4=9\n#### Step 2: Money\n9*2=18\nThe answer is 18.", 18),
    ("#### Solution for 3 friends\nso the final answer is **7**.", 7),
    ("#### 2. The money\nIt makes 9.", 9),
    ("#### 18 = 9*2", 18),
    # a reason is no answer
    ("The answer is 18, since 16-7=9 eggs.", 18),
    ("The final answer is 3. We verified with x = 7.", 3),
    ("The answer is 10. Check: 2*9=18", 10),
    ("Each answer is worth 2 points, so he has 18 points", 18),
    ("He answers 3 questions: 4 points each. Total 12", 12),
    (r"\boxed{18 = 2 \times 9}", 18),
    (r"\boxed{x = 18, y = 2}", 18),
    # signs of fractions
    (r"so x is $-\frac{1}{2}$", Fraction(-1, 2)),
    ("so x is -\u00bd", Fraction(-1, 2)),
    (r"\boxed{- \frac{3}{4}}", Fraction(-3, 4)),
    (r"\boxed{\text{a loss, profit of } -5}", -5),
    (r"16 -\frac{1}{2}", Fraction(1, 2)),
    # expressions are not worked out
    (r"\boxed{2\sqrt{3}}", None),
    (r"\boxed{10^3}", None),
    (r"\boxed{2+3}", None),
    (r"\boxed{3!}", None),
    (r"\boxed{6/2/3}", None),
    # blanks that group digits
    (r"\boxed{1 234}", 1234),
    ("1\u2009234", 1234),
    # nothing marked: the last number
    ("16 - 3 - 4 = 9, and 9 * 2 = 18", 18),
    ("It costs $1,234.56 in total.", Fraction(123456, 100)),
    ("He has 5 apples.", 5),
    ("There are 12 of them; H2O is not a number", 12),
    ("from 10-4", 4),
    ("from 10 - 4", 4),
    ("x - 4", 4),
    ("x = - 4", -4),
    ("it is -4", -4),
    ("It is 5m\u00b2", 5),
    ("0", 0),
    ("-0", 0),
    (".5", Fraction(1, 2)),
    ("5.", 5),
    ("1e3", 1000),
    ("\uff14\uff12", 42),
    ("x=-3", -3),
    ("100,50", 50),
    ("the 21st", 21),
    ("18 dollars (USD)", 18),
    # no number at all, or none that can be one
    ("", None),
    ("I do not know.", None),
    ("####", None),
    (r"\boxed{}", None),
    ("The answer is unknown.", None),
    ("1/0", None),
    ("9" * 5000, None),
    ("1e999", None),
    ("infinity, NaN, -, ., ,, $", None),
    (r"\frac{1}{0}", None),
    ("\u0663", None),  # a digit, but no ASCII one
]


@pytest.mark.parametrize(("text", "number"), STRINGS)
def test_the_number_of_a_solution(text, number):
    found = final_number(text)
    assert found == number and (found is None) == (number is None)


def test_gold_is_compared_exactly():
    assert same_number("#### 0.5", Fraction(1, 2)) and same_number("it is 18.0", Fraction(18))
    assert not same_number("#### 0.333", Fraction(1, 3)) and not same_number("", Fraction(0))


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>3+4=7</think>7", False, "3+4=7", "7"),
        ("3+4=7</think>7", True, "3+4=7", "7"),
        ("3+4=7</think>7", False, "3+4=7", "7"),
        ("7", False, "", "7"),
        ("</think>7", True, "", "7"),
        ("<think>\n\n</think>\n\n7", False, "", "\n\n7"),
        ("<think>3+4=", False, "3+4=", ""),
        ("3+4=", True, "3+4=", ""),
        ("<think>a</think>1<think>b</think>2", False, "a1b", "2"),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_thought_and_answer(text, opened, thought, answer):
    assert thought_and_answer(text, opened) == (thought, answer)


PIECES = st.sampled_from(
    [
        "\\boxed{",
        "\\frac{",
        "}",
        "{",
        "####",
        "answer is ",
        "1",
        "9,",
        "-",
        "/",
        "0",
        ".",
        "e9",
        "$",
        "%",
        "\n",
        " 1/",
        "x",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join)))
def test_no_text_makes_it_raise(text):
    found = final_number(text)
    assert found is None or isinstance(found, Fraction)
    thought, answer = thought_and_answer(text)
    assert len(thought) + len(answer) <= len(text)


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}"]))
def test_every_integer_is_read_from_every_mark(number, style):
    told = style.format(number)
    marks = (f"I said 3.\n#### {told}", f"\\boxed{{{told}}} 4", f"The answer is {told}.", f"It makes {told}")
    assert [final_number(text) for text in marks] == [number] * 4


HOSTILE = ["\\boxed{", "\\frac{1", "\\frac{ ", "\\frac{" + " " * 40, "#### 1 a ", "\\text{", " - ", "answer "]
HOSTILE += ["answer is ", "1,", "1 ", "#", "-", "1/", "<think>", "9", "1.", "{"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_hostile_text_is_read_in_linear_time(piece):
    def seconds(count):
        text = piece * count
        best = []
        for _ in range(3):
            begin = time.process_time()
            final_number(text)
            best.append(time.process_time() - begin)
        return min(best)

    # Eight times as long; quadratic time would take 64 times as long.
    assert seconds(8_000) < 0.02 + 20 * seconds(1_000)
