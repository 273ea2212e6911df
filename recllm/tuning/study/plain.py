"""Foreign text made plain: what a model or a person wrote, before it is kept or shown to another."""

from __future__ import annotations

from typing import Any

from recllm.data.markdown import plain

_MARKS = str.maketrans("<>|", "()/")


def line(text: Any, most: int) -> str:
    """A foreign text as one line of at most `most` characters, without what a terminal or a template would act on.

    Chat templates mark turns with angle brackets and bars, so these go: no rule or reply can open a turn of its own.
    """
    clean = plain(str(text)[: 4 * most].translate(_MARKS), 4 * most)
    return clean if len(clean) <= most else clean[: most - 3].rstrip() + "..."
