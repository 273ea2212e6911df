"""What the card of a merged model says besides: the curve it was taken from, its parents, its recipe, their licences.

It comes from the record's `merge`: point (key, label), why, parents (a list of role, name, licence, fingerprint),
recipe (mergekit YAML), notes (sentences on the licences).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recllm.hub import card_parts as parts

CURVE_FILE = "curve.png"


def context(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template shows of a merge; None for a run that merged nothing."""
    merge = record.get("merge")
    if not isinstance(merge, Mapping):
        return None
    point = merge.get("point") or {}
    return {
        "what": f"Point {parts.code(point.get('label'))} (key {parts.code(point.get('key'))}): "
        f"{parts.prose(merge.get('why'))}.",
        "has_curve": (folder / CURVE_FILE).is_file(),
        "parents": [_parent(entry) for entry in merge.get("parents") or []],
        "notes": [parts.prose(note) for note in merge.get("notes") or []],
        "recipe": block(merge.get("recipe") or ""),
    }


def _parent(entry: Mapping[str, Any]) -> list[str]:
    return [parts.code(entry.get(name)) for name in ("role", "name", "licence", "fingerprint")]


def block(text: str) -> str:
    """Lines for a block of code that none of them can end."""
    kept = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text)
    return kept.replace("`", "'").rstrip()


def fields(record: Mapping[str, Any], tags: list[str]) -> dict[str, Any]:
    """Front matter of a merge: the parents that are at the Hub, and the tags by which merges are found there."""
    merge = record.get("merge")
    if not isinstance(merge, Mapping):
        return {}
    ids = [str(entry["id"]) for entry in merge.get("parents") or [] if entry.get("id")]
    found: dict[str, Any] = {"tags": [*tags, "merge", "mergekit"]}
    return found | ({"base_model": ids, "base_model_relation": "merge"} if ids else {})
