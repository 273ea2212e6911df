"""Foreign text made plain: what a model or a person wrote, before it is kept or shown to another."""

from __future__ import annotations

from typing import Any


def line(text: Any, most: int) -> str:
    """A foreign text as one line of at most `most` characters, without what a terminal or a template would act on.

    Chat templates mark turns with angle brackets and bars, so these go: no rule or reply can open a turn of its own.
    """
    plain = "".join(" " if not char.isprintable() else char for char in str(text)[: 4 * most])
    plain = " ".join(plain.replace("<", "(").replace(">", ")").replace("|", "/").split())
    return plain if len(plain) <= most else plain[: most - 3].rstrip() + "..."
