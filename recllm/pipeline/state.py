"""Is a stage complete? Its `run.json` against what the pipeline asks for and the inputs as they are now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recllm.pipeline.spec import Stage
from recllm.provenance import fingerprints, load_run, plain_config, read_json, several, write_json

_TRUE, _FALSE, _NONE = {"true", "yes", "on"}, {"false", "no", "off"}, {"", "none", "null", "~"}


def why_incomplete(stage: Stage, folder: Path, inputs: Mapping[str, Path | list[Path]]) -> str | None:
    """Why the stage has to run, in words, or None where it is complete."""
    if not folder.exists():
        return "not built yet"
    record = load_run(folder)
    if record is None:
        return "no valid run.json: it was not finished"
    asked = plain_config(stage.values())
    recorded = record.get("config", {})
    for key, value in asked.items():
        if key not in recorded:
            return f"its record knows no {key}"
        if not same_value(value, recorded[key]):
            return f"{key} was {recorded[key]!r}, now {value!r}"
    if (request := _last_request(folder)) is not None:
        if request["script"] != stage.script.name:
            return f"it was built by {request['script']}"
        if dropped := [key for key in request["asked"] if key not in asked]:
            return f"{dropped[0]} is no longer set"
    for name, path in inputs.items():
        if missing := [each for each in several(path) if not each.exists()]:
            return f"its input {missing[0]} is missing"
        if several(record.get("inputs", {}).get(name)) != several(fingerprints(path)):
            return f"its input {name} has changed"
    return None


def note_request(stage: Stage, folder: Path) -> None:
    """Remember what was asked of a stage that is now complete.

    A record holds every value of a run, defaults included. Only this tells a key that was taken out of the YAML
    from one that was never there. It lies beside the stage's folder, since it is no part of what is delivered.
    """
    write_json(_request_file(folder), {"script": stage.script.name, "asked": sorted(plain_config(stage.values()))})


def _request_file(folder: Path) -> Path:
    return folder.parent / ".stages" / f"{folder.name}.json"


def _last_request(folder: Path) -> dict[str, Any] | None:
    path = _request_file(folder)
    if not path.exists():
        return None  # the script was started by hand
    try:
        request = read_json(path)
        return request if {"script", "asked"} <= set(request) else None
    except (ValueError, TypeError):
        return None


def same_value(asked: Any, recorded: Any) -> bool:
    """Do a value from a YAML or command line and one from a record mean the same?

    `1e-3` is text to YAML and a number in the record, `32` and `[32]` are the same to an argument that takes
    several, and "no", False and "false" are one.
    """
    left, right = _plain(asked), _plain(recorded)
    return left == right or [left] == right or left == [right]


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] or None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return _plain_text(str(value).strip())


def _plain_text(text: str) -> Any:
    word = text.lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if word in _NONE:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    if text[:1] in "{[":
        try:
            return _plain(json.loads(text))
        except json.JSONDecodeError:
            pass
    return text
