"""The words every model of the house is spoken to with. Item text arrives neutralised (see `text.py`).

One place for prompts, so that training, rollouts and evaluation cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RECOMMEND_HISTORY = 20
REASONER_HISTORY = 20
PLANNER_HISTORY = 8
# It ends in ": ", which is where the template of models that speak sids alone cuts it off.
RECOMMEND_INSTRUCTION = "The user has bought the following items, oldest first. Next item after: "
# The same for the other chats that teach ids: titles and categories reach the model after an instruction only.
TITLES_INSTRUCTION = "The user has bought the items with these titles, oldest first. Next item after: "
NEXT_TITLE_INSTRUCTION = "The user has bought the following items, oldest first. Title of the next item after: "
TITLE_OF_INSTRUCTION = "Give the title of the item: "
SID_OF_INSTRUCTION = "Give the item with the title: "
CATEGORIES_OF_INSTRUCTION = "Give the categories of the item: "
TITLE_SEPARATOR, CATEGORY_SEPARATOR = "; ", ", "


def user(content: str) -> dict[str, str]:
    """A chat message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A chat message of the assistant."""
    return {"role": "assistant", "content": content}


def recommend_prompt(history_texts: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks a recommender for the next item, given the sid texts of the history, oldest first."""
    return [user(RECOMMEND_INSTRUCTION + "".join(history_texts[-RECOMMEND_HISTORY:]))]


def titles_prompt(history_titles: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks a recommender for the next item, given the titles of the history, oldest first.

    Items without a title are left out by the caller, after the history was cut.
    """
    return [user(TITLES_INSTRUCTION + TITLE_SEPARATOR.join(history_titles[-RECOMMEND_HISTORY:]))]


def next_title_prompt(history_texts: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks for the title of the next item, given the sid texts of the history, oldest first."""
    return [user(NEXT_TITLE_INSTRUCTION + "".join(history_texts[-RECOMMEND_HISTORY:]))]


def title_of_prompt(sid_text: str) -> list[dict[str, str]]:
    """Chat that asks for the title of an item, given its sid text."""
    return [user(TITLE_OF_INSTRUCTION + sid_text)]


def sid_of_prompt(title: str) -> list[dict[str, str]]:
    """Chat that asks for the sid text of an item, given its title."""
    return [user(SID_OF_INSTRUCTION + title)]


def categories_of_prompt(sid_text: str) -> list[dict[str, str]]:
    """Chat that asks for the categories of an item, given its sid text."""
    return [user(CATEGORIES_OF_INSTRUCTION + sid_text)]


def reasoner_prompt(history_texts: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks for the next item, given the sid texts of the last items, oldest first."""
    return [user("History: " + "".join(history_texts[-REASONER_HISTORY:]))]


def pair_prompt(first_text: str, second_text: str) -> list[dict[str, str]]:
    """Chat that asks why people who have one item also take another, given both sid texts."""
    return [user(f"Why is {first_text} taken with {second_text}?")]


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


def letter_prompt(history_texts: Sequence[str], candidate_texts: Sequence[str]) -> list[dict[str, str]]:
    """Chat that asks which candidate is next, given sid texts: the last items, oldest first, then one candidate a line.

    Candidates carry the letters from A on; the answer is one of them.
    """
    lines = "".join(f"\n{chr(ord('A') + place)}: {text}" for place, text in enumerate(candidate_texts))
    return [user(f"History: {''.join(history_texts[-RECOMMEND_HISTORY:])}{lines}\nLetter of the next item?")]
