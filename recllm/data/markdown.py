"""Untrusted text made harmless in Markdown: one line, no mark that would leave its cell, title or code span."""

from __future__ import annotations

import re
import unicodedata


def plain(value: object, limit: int = 300) -> str:
    """The value as one line without control or invisible characters, cut at `limit` characters."""
    kept = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(value))
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def code(value: object) -> str:
    """The value as inline code, which no Markdown inside it can leave; a table cell stays one cell."""
    return "`" + (plain(value).replace("`", "'").replace("|", "\u00a6") or "-") + "`"


def prose(value: object) -> str:
    """The value as running text with every mark of Markdown and HTML escaped."""
    return re.sub(r"([!#-&(-+./:-@\[-`{-~-])", r"\\\1", plain(value) or "-")
