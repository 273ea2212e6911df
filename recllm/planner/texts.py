"""What the planner writes and what its tools answer, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from recllm.tools.cache import TOOL_NAMES

TOOLS = TOOL_NAMES
DONE = "Done."
# Default arguments of a call; they are written out, so that a planner may learn others.
ARGUMENTS: dict[str, dict[str, int]] = {"retrieve": {"k": 10}, "rank": {"m": 50, "n": 10}, "reason": {"n": 10}}
SHOWN_ITEMS = 3
# The last line of defence for the context window; the text below never comes near it.
MAX_RESULT_CHARACTERS = 400


def call_message(tool: str) -> dict[str, Any]:
    """The assistant message that calls a tool with its default arguments.

    The arguments are JSON text: as a dictionary they would get the keys of every other tool in the same data set
    column, filled with nulls.
    """
    function = {"name": tool, "arguments": json.dumps(ARGUMENTS[tool])}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def result_text(
    sid_texts: Sequence[str], categories: Sequence[str], margin: int, popularity: int, agreement: int | None
) -> str:
    """A tool's answer, bounded: what there is to know about the list as digits, its first items, their main categories.

    `margin` (0..9) places how far the first item stands out among the tenths seen on half A, `popularity` (0..9) tells
    how popular the ten first items are, `agreement` (0..10) counts which of them the call before had among its ten
    first (None where there was none).
    """
    agree = "" if agreement is None else f" Agree {agreement}."
    shown = "".join(sid_texts[:SHOWN_ITEMS])
    text = f"Margin {margin}. Popular {popularity}.{agree} Top {shown} {', '.join(categories)}"
    return text[:MAX_RESULT_CHARACTERS]


def example_calls() -> list[str]:
    """Texts a tokenizer should know: every call as the chat template renders it, and a tool's answer."""
    calls = [f'\n{{"name": "{tool}", "arguments": {json.dumps(ARGUMENTS[tool])}}}\n' for tool in TOOLS]
    return (calls + [result_text([], ["Drama", "Comedy"], digit, digit, digit) for digit in range(10)] + [DONE]) * 50
