"""What a merge may be passed on under: the parents' licences, the one that restricts, and what is to be told.

A licence that restricts rules over permissive ones; of two different ones that restrict none rules over the other.

No legal advice: names are sorted by how much they ask for, and whatever is not known is said to be so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recllm.provenance import load_run

# From nothing asked to use restricted; the first group whose pattern holds counts.
_GROUPS = (
    ("public domain", r"cc0-1\.0|unlicense|0bsd|wtfpl|pddl|public-domain"),
    ("non-commercial or without derivatives", r"cc-by-n[cd].*|.*non-?commercial.*|cc-by-nc.*|fair-noncommercial.*"),
    ("share alike", r"a?gpl-?.*|lgpl-?.*|mpl-.*|epl-.*|eupl-.*|cc-by-sa-.*|odbl"),
    ("terms of use", r"llama.*|gemma.*|.*openrail.*|bigscience.*|deepfloyd.*|.*community.*|qwen.*|tongyi.*"),
    ("permissive", r"apache-2\.0|mit|bsd.*|isc|cc-by-[1-4]\.0|afl-3\.0|artistic-2\.0|bsl-1\.0|ms-pl|zlib|ncsa|odc-by"),
)
_ORDER = ("public domain", "permissive", "share alike", "terms of use", "non-commercial or without derivatives")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """What follows from several licences.

    name: the licence to name, None where none can be: one is not known, or several restrict in different ways.
    notes: sentences for whoever wants to pass the merge on.
    """

    name: str | None
    notes: tuple[str, ...]


def group_of(licence: str) -> str:
    """How much a licence asks for: one of five groups, or `unknown`."""
    for name, pattern in _GROUPS:
        if re.fullmatch(pattern, licence):
            return name
    return UNKNOWN


def combined(licences: Mapping[str, str]) -> Licence:
    """The licence of what is made of all of these.

    Args:
        licences: name of a parent -> its licence in the Hub's spelling, `unknown` where it states none.
    """
    groups = {name: group_of(licence) for name, licence in licences.items()}
    notes = [
        f"The licence of {name} is not known ({licences[name]}): ask whoever made it before you pass this merge on."
        for name, group in groups.items()
        if group == UNKNOWN
    ]
    known = [name for name, group in groups.items() if group != UNKNOWN]
    highest = max((_ORDER.index(groups[name]) for name in known), default=0)
    strict = _ORDER.index("share alike")
    rulers = [name for name in known if _ORDER.index(groups[name]) >= min(highest, strict)]
    ruling = {licences[name] for name in rulers}
    lower = [name for name in known if name not in rulers]
    for name in rulers:
        if lower:
            than = ", ".join(f"{licences[other]} of {other}" for other in lower)
            notes.append(
                f"{name} is under {licences[name]} ({groups[name]}), more restrictive than {than}: it applies."
            )
    if highest >= strict and known:
        notes.append(f"{' and '.join(sorted(ruling))} restricts what may be done with this merge: read it first.")
    if len(ruling) > 1:
        notes.append(f"The parents' licences differ ({', '.join(sorted(ruling))}): the terms of all of them apply.")
    permissive = highest <= _ORDER.index("permissive")
    single = (
        next(iter(ruling)) if len(ruling) == 1 else ("apache-2.0" if permissive and "apache-2.0" in ruling else None)
    )
    return Licence(None if len(known) < len(licences) else single, tuple(dict.fromkeys(notes)))


def licence_of(hub_id: str | None, *folders: str | Path) -> str:
    """The licence that a model states: in its card, else in its run record; `unknown` where it states none.

    Args:
        hub_id: owner/name, or owner/name@revision, whose card is fetched; None of a local model: the Hub is not asked.
        folders: where its files lie, looked at in this order.
    """
    places = _card_folder(hub_id) if hub_id else []
    for place in (*places, *map(Path, folders)):
        for stated in (_from_card(place / "README.md"), _from_record(place)):
            if stated and stated != "other":
                return stated
    return UNKNOWN


def _card_folder(hub_id: str) -> list[Path]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = hub_id.partition("@")
    try:
        return [Path(HfApi().hf_hub_download(name, "README.md", revision=revision or None)).parent]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return []  # no card, or no Hub: not known, which is what is told


def _from_card(path: Path) -> str:
    from huggingface_hub import metadata_load

    if not path.is_file():
        return ""
    try:
        fields = metadata_load(path)
    except (yaml.YAMLError, ValueError, OSError):
        return ""  # a card that states nothing readable: not known, which is what is told
    return _spelled(fields.get("license")) if isinstance(fields, dict) else ""


def _from_record(folder: Path) -> str:
    record = load_run(folder) or {}
    if stated := _spelled(record.get("license") or record.get("licence")):
        return stated
    assets: Any = record.get("assets") or {}
    values = assets.values() if isinstance(assets, Mapping) else assets
    models = [entry for entry in values if isinstance(entry, Mapping) and entry.get("kind") == "model"]
    return _spelled(models[0].get("licence")) if len(models) == 1 else ""


def _spelled(value: Any) -> str:
    """A licence in the Hub's spelling; of a list none, for one of them would be a guess."""
    text = value.strip().lower() if isinstance(value, str) else ""
    return text if re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", text) else ""
