"""What the planner writes and what its tools answer, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TOOLS = ("retrieve", "rank", "reason")
DONE = "Done."
# Default arguments of a call; they are written out, so that a planner may learn others.
ARGUMENTS: dict[str, dict[str, int]] = {"retrieve": {"k": 10}, "rank": {"m": 50, "n": 10}, "reason": {"n": 10}}
SHOWN_ITEMS = 3
# The last line of defence for the context window; the text below never comes near it.
MAX_RESULT_CHARACTERS = 400


def call_message(tool: str) -> dict[str, Any]:
    """The assistant message that calls a tool with its default arguments."""
    function = {"name": tool, "arguments": ARGUMENTS[tool]}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def result_text(sid_texts: Sequence[str], categories: Sequence[str], margin_digit: int, agreement: int | None) -> str:
    """A tool's answer, bounded: how far its first item stands out, its first items and their main categories.

    `margin_digit` places the margin among those of half A, 0 the weakest tenth and 9 the strongest; `agreement` counts
    which of the ten first items the call before it had among its ten first (None where there was none).
    """
    agree = "" if agreement is None else f" Agree {agreement}."
    text = f"Margin {margin_digit}.{agree} Top {''.join(sid_texts[:SHOWN_ITEMS])} {', '.join(categories)}"
    return text[:MAX_RESULT_CHARACTERS]


def example_calls() -> list[str]:
    """Texts a tokenizer should know: every call as the chat template renders it, and a tool's answer."""
    calls = [f'\n{{"name": "{tool}", "arguments": {json.dumps(ARGUMENTS[tool])}}}\n' for tool in TOOLS]
    return (calls + [result_text([], ["Drama", "Comedy"], digit, digit) for digit in range(10)] + [DONE]) * 50
