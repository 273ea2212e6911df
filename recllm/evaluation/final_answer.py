"""The number that a written solution comes to: what it marks as its answer, or else the last number it says.

Completions are untrusted text: whatever is in them, reading them never raises, takes time linear in their length, and
yields an exact fraction or None.
"""

from __future__ import annotations

import re
from fractions import Fraction

from recllm.data.prompts import THINK_CLOSE, THINK_OPEN

# Longer numbers are refused: no question is about them, and making integers of them takes quadratic time.
_DIGITS = 40
_LARGEST_EXPONENT = 30
# So many marks of a kind are looked at, from the end.
_MARKS = 20
# What is written around digits without changing the number.
_NOISE = re.compile(r"\\(?:[,!;: ]|left|right|displaystyle)|\{,\}|\*\*|[`$£€¥₹\u00a0\u2009\u202f]|\\\$|\\(?=%)")
# Parts begin with something else than a blank, so that no two parts of the pattern compete for the same blanks.
_PART = r"\{\s{0,9}([^{}\s][^{}]{0,59}?)\s{0,9}\}"
_FRACTION = re.compile(rf"\\[dtc]?frac\s{{0,9}}{_PART}\s{{0,9}}{_PART}")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s{0,9}([0-9])\s{0,9}([0-9])")
_TEXT = re.compile(r"\\(?:text\w{0,8}|math\w{1,8}|operatorname)\s{0,9}\{([^{}]{0,80})\}")
# A sign keeps to its fraction, which was set apart by blanks.
_SIGNED_FRACTION = re.compile(r"-\s{1,9}(?=[0-9]{1,9}/[0-9])")
_VULGAR = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
        **{"\u2044": "/", "\u2215": "/", "\uff05": "%", "\uff0c": ",", "\uff0e": "."},
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **{sign: f" {plain} " for sign, plain in _VULGAR.items()},
    }
)
_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.^\\])(?P<sign>(?<![0-9)%\]}}])-)?\s?"
    rf"(?P<plain>{_PLAIN})"
    r"(?:(?P<exponent>[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z]))|\s?(?:\\times|\\cdot|×|x)\s?10\s?\^\s?\{?(?P<power>-?[0-9]{1,3})\}?"
    r"|(?:\s(?P<over>[0-9]{1,9}))?\s?/\s?(?P<under>[0-9]{1,9}(?:\.[0-9]+)?)(?![0-9]))?"
)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
# What may stand behind four hashes, a number with its unit. Other lines are headings: "#### 2. The money".
_STATED = re.compile(
    r"(?!\s{0,9}[0-9]{1,3}\.\s+[A-Za-z])[-+\u2212$£€¥₹*\\ \t(]{0,9}[0-9.][0-9.,/\u00a0\u202f]*(?:\s[0-9/]{1,9})?"
    r"(?:[ \t%*)°]{0,5}[A-Za-z]{1,20}){0,4}[ \t%*).°]{0,5}(?:=.*)?"
)
_VERB = r"(?:[ \t]+\w{1,20}){0,6}?[ \t]*(?::|=|[ \t]is\b|[ \t]are\b)"
_SAID = re.compile(
    rf"(?:\b(?:final|correct|the|my|our)[ \t]+answers?{_VERB}|^\W{{0,9}}answers?{_VERB}|\banswers?[ \t]*[:=])"
    r"\**\s*([^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
# Where the statement of an answer ends and its reason begins.
_REASON = re.compile(r"[.;!?]\s|,\s+(?:since|because|as|and|so|for)\b|,\s*[A-Za-z]\w{0,9}\s*=")
# What makes more of a number than a number with its unit.
_OPERATES = re.compile(r"[-+^!*/×·÷√]|\\(?:sqrt|cdot|times|div|pm|pi|log|binom)\b")
_GROUPED = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:[ ~][0-9]{3})+(?![0-9])")
_BOX = re.compile(r"\\f?boxed\s*\{")


def thought_and_answer(text: str, opened: bool = False) -> tuple[str, str]:
    """A completion's thought and the answer after it, either of which may be empty.

    `opened`: the prompt ended within a thought. A thought that was never closed has no answer after it.
    """
    before, closed, answer = text.rpartition(THINK_CLOSE)
    if closed:
        return before.replace(THINK_OPEN, "").replace(THINK_CLOSE, "").strip(), answer
    if opened:
        return text.strip(), ""
    said, was_opened, thought = text.partition(THINK_OPEN)
    return (thought.strip(), "") if was_opened else ("", said)


def final_number(text: str) -> Fraction | None:
    """The number that `text` gives as its answer, or None where it gives none.

    What is marked counts, the last mark of the first kind that holds a number: `\\boxed{12}`, `#### 1,234` (GSM8K),
    `The answer is $5.`; otherwise the last number of the text. Currencies, units and percent signs are dropped, so that
    50% is 50. A box with an expression, `\\boxed{2+3}`, gives none.
    """
    for match in reversed(list(_BOX.finditer(text))[-_MARKS:]):
        piece = _GROUPED.sub(lambda found: re.sub("[ ~]", "", found[0]), _within(text, match.end()))
        if (found := _first(piece)) is not None:
            # Who boxes an expression has not said what it comes to.
            return found if _is_alone(piece) else None
    for mark in (_HASHES, _SAID):
        for match in reversed(list(mark.finditer(text))[-_MARKS:]):
            piece = match[1][:1000]
            if (mark is _SAID or _STATED.fullmatch(piece[:200])) and (found := _first(piece)) is not None:
                return found
    return _last(text)


def same_number(text: str, gold: Fraction) -> bool:
    """Whether the answer of `text` is exactly `gold`."""
    return final_number(text) == gold


def _within(text: str, begin: int) -> str:
    """What stands within a box's braces; where they are not closed, the rest of the line."""
    depth = 1
    # No answer is longer; without a limit many open boxes would make the time quadratic.
    for place in range(begin, min(len(text), begin + 200)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return text[begin : begin + 200].partition("\n")[0]


def _first(piece: str) -> Fraction | None:
    """The first number of what was marked, after an equals sign where that says what something comes to: `x = 5` and
    `3 + 4 = 7`, but not `18 = 2 * 9`. A reason that follows does not count."""
    numbers = _numbers(_said(piece))
    return numbers[0] if numbers else None


def _said(piece: str) -> str:
    """The part of a marked piece that holds its number."""
    piece = _REASON.split(piece[:1000], maxsplit=1)[0]
    left, equals, right = piece.rpartition("=")
    if not equals or not _numbers(right):
        return piece
    first = left.partition("=")[0]
    return first if _numbers(first) and _is_alone(first) else right


def _is_alone(piece: str) -> bool:
    """Whether nothing works on the one number of a piece."""
    plain = _plain(_said(piece) if "=" in piece else piece)
    match = next((match for match in _NUMBER.finditer(plain) if _value(match) is not None), None)
    if match is None:
        return False
    before, after = plain[: match.start()].strip(), plain[match.end() :]
    return not _OPERATES.search(after) and not before.endswith(("+", "*", "/", "^", "×", "·", "sqrt", "sqrt{"))


def _last(text: str) -> Fraction | None:
    # The end of a text is enough to find its last number.
    for end in (text[-2000:], text):
        if numbers := _numbers(end):
            return numbers[-1]
    return None


def _numbers(text: str) -> list[Fraction]:
    return [number for match in _NUMBER.finditer(_plain(text)) if (number := _value(match)) is not None]


def _plain(text: str) -> str:
    """Without currencies, spacing and typesetting; fractions as `1/2`."""
    plain = _TEXT.sub(r" \1 ", _NOISE.sub("", text.translate(_SIGNS)))
    plain = _SHORT_FRACTION.sub(r" \1/\2 ", _FRACTION.sub(r" \1/\2 ", plain))
    return _SIGNED_FRACTION.sub("-", plain)


def _value(match: re.Match[str]) -> Fraction | None:
    digits = match["plain"].replace(",", "")
    if len(digits) > _DIGITS:
        return None
    number = Fraction(digits)
    if match["under"]:
        under = Fraction(match["under"])
        if not under:
            return None
        number = number + Fraction(int(match["over"])) / under if match["over"] else number / under
    before = match.string[max(0, match.start() - 10) : match.start()].rstrip()
    # A minus after an operand takes away, "16 - 3"; one after a word is a sign where it touches its number, "is -3".
    negative = match["sign"] and not before.endswith(tuple("0123456789)]}%"))
    if negative and before[-1:].isalpha() and not match[0].startswith(("-.", *(f"-{digit}" for digit in range(10)))):
        negative = False
    power = int(match["power"] or (match["exponent"] or "e0")[1:])
    if abs(power) > _LARGEST_EXPONENT:
        return None
    return (-1 if negative else 1) * number * Fraction(10) ** power
