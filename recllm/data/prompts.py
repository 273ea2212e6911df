"""The words every model of the house is spoken to with. Item text arrives neutralised (see `text.py`).

One place for prompts, so that training, rollouts and evaluation cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
REASONER_HISTORY = 20
PLANNER_HISTORY = 8


def user(content: str) -> dict[str, str]:
    """A chat message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A chat message of the assistant."""
    return {"role": "assistant", "content": content}


def reasoner_prompt(history_texts: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks for the next item, given the sid texts of the last items, oldest first."""
    return [user("History: " + "".join(history_texts[-REASONER_HISTORY:]))]


def category_thought(categories: Sequence[str]) -> str:
    """What the reasoner thinks: the categories that the user wants next, most wanted first."""
    wanted = ", ".join(categories) if categories else "anything"
    return f"{THINK_OPEN}The user wants {wanted}.{THINK_CLOSE}"


def planner_prompt(
    history_texts: Sequence[str], categories: Sequence[str], length: int, span: int | None = None, found: str = ""
) -> list[dict[str, str]]:
    """Chat that asks the planner for a recommendation: the history in digits, its main categories, its last items, and
    what the fast tool already found.

    Length (items) and span (minutes that the last items took, already in bits) are given by their number of bits: a
    small model reads one digit better than a number.
    """
    liked = ", ".join(categories) if categories else "unknown"
    spanned = "" if span is None else f" Span {span}."
    recent = "".join(history_texts[-PLANNER_HISTORY:])
    return [user(f"Length {length.bit_length()}.{spanned} Likes {liked}. Recent {recent} Found: {found}")]
