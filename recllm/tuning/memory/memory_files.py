"""The memory's files, written whole and read with suspicion, since a person may edit them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recllm.provenance import write_json, write_text
from recllm.tuning.memory.cognition import CARRIES, Evidence, Summary, markdown
from recllm.tuning.memory.rules import Line

RULES_FILE = "rules.jsonl"
SUMMARIES = "summaries"
MOST_BYTES = 20_000_000
MOST_WORDS = 300
_LARGEST, _LEAST_SCORE = 1e15, 1e-12
_MOST_SENTENCES = 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LINE_KEYS = ("space", "dimension", "from", "value", "evidence", "off", "note")
_COUNTS = ("supporting", "against", "neutral")
_KNOWN_KEYS = (
    *("study", "space", "data", "default_score", "epsilon", "trials", "best", "gain", "pruned"),
    *("learned", "digest"),
)


@dataclass(frozen=True)
class Known:
    """A study that was learned.

    Args:
        summary: its numbers, without evidence, which is in the rules. learned: its place in the order of learning.
        sentences: what its markdown says carries over. digest: of what was learned.
    """

    summary: Summary
    learned: int
    sentences: tuple[str, ...]
    digest: str


def check_name(study: str) -> str:
    """The study's id, which names its files.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(study, str) or not _NAME.fullmatch(study):
        raise ValueError(f"study {str(study)[:60]!r}: an id has 1 to 100 letters, digits, dots, dashes or underscores")
    return study


def read_lines(path: Path) -> tuple[Line, ...]:
    """The rules of a file; none where there is no file.

    Raises:
        ValueError: a line that is no rule; the message names file and line.
    """
    found: dict[tuple[str, str, str, str], int] = {}
    lines = []
    for number, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = _line(_object(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; mend the line or delete it") from error
        key = (line.space, line.dimension, json.dumps(line.before), json.dumps(line.value))
        if key in found:
            raise ValueError(f"{path}, line {number}: the same change as line {found[key]}; delete one of them")
        found[key] = number
        lines.append(line)
    return tuple(lines)


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write the rules, ordered by space, dimension and values, whole or not at all."""
    rows = []
    for line in lines:
        counts = {
            study: {name: value for name, value in asdict(one).items() if name in (*_COUNTS, "gain")}
            for study, one in sorted(line.evidence.items())
        }
        row = {"space": line.space, "dimension": line.dimension, "from": line.before, "value": line.value}
        row |= {"evidence": counts} | ({"off": True} if line.off else {}) | ({"note": line.note} if line.note else {})
        rows.append(row)
    rows.sort(key=lambda row: (row["space"], row["dimension"], _ordered(row["from"]), _ordered(row["value"])))
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_known(folder: Path) -> tuple[Known, ...]:
    """The studies of a folder in the order of learning.

    Raises:
        ValueError: a summary that cannot be read, or one without its markdown.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_known(path.stem, _object(_text(path)), _sentences(path.with_suffix(".md"))))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; mend it, or delete it and its .md to forget the study") from error
    return tuple(sorted(found, key=lambda known: (known.learned, known.summary.study)))


def write_known(folder: Path, summary: Summary, learned: int) -> None:
    """Write a study's two files, the numbers last."""
    name = check_name(summary.study)
    write_text(folder / f"{name}.md", markdown(summary))
    write_json(folder / f"{name}.json", summary.row() | {"learned": learned, "digest": summary.digest})


def _line(row: Mapping[str, Any]) -> Line:
    _keys(row, _LINE_KEYS, _LINE_KEYS[:5])
    for name in ("space", "dimension"):
        _words(name, row[name], 60)
    evidence = row["evidence"]
    if not isinstance(evidence, dict):
        raise ValueError("evidence is a mapping of study to counts")
    off, note = row.get("off", False), row.get("note", "")
    if not isinstance(off, bool) or not isinstance(note, str):
        raise ValueError("off is true or false, note is text")
    change = (row["dimension"], _scalar("from", row["from"]), _scalar("value", row["value"]))
    seen = {check_name(study): _evidence(study, change, counts) for study, counts in evidence.items()}
    return Line(row["space"], *change, seen, off, note[:MOST_WORDS])


def _evidence(study: str, change: tuple[str, Any, Any], counts: Any) -> Evidence:
    if not isinstance(counts, dict):
        raise ValueError(f"evidence of {study} is a mapping of {', '.join(_COUNTS)} and gain")
    _keys(counts, (*_COUNTS, "gain"), (*_COUNTS, "gain"))
    for name in _COUNTS:
        if type(counts[name]) is not int or not 0 <= counts[name] <= 1_000_000:
            raise ValueError(f"{name} of {study} is a whole number from 0, not {str(counts[name])[:40]}")
    return Evidence(*change, *(counts[name] for name in _COUNTS), _number(f"gain of {study}", counts["gain"], -1.0))


def _known(name: str, row: Mapping[str, Any], sentences: tuple[str, ...]) -> Known:
    _keys(row, _KNOWN_KEYS, _KNOWN_KEYS)
    if row["study"] != check_name(name):
        raise ValueError(f"study is {str(row['study'])[:60]!r}, but the file is named {name!r}")
    _words("space", row["space"], 60)
    if type(row["learned"]) is not int:
        raise ValueError("learned is a whole number: the study's place in the order of learning")
    data = {_words("data", key, 60): _number(f"data {key}", value) for key, value in _mapping("data", row["data"])}
    score = _number("default_score", row["default_score"], 0.0)
    if not row["trials"]:
        raise ValueError("trials is empty: a study has the default's at least")
    if score < _LEAST_SCORE:
        raise ValueError("default_score is as good as 0, and gains are relative to it")
    trials = tuple(_trial(place, trial) for place, trial in enumerate(_list("trials", row["trials"]), 1))
    summary = Summary(
        *(name, row["space"], data, score, _number("epsilon", row["epsilon"], 0.0), trials),
        *(_config("best", row["best"]), _number("gain", row["gain"], -1.0), ()),
        tuple(_pair(pair) for pair in _list("pruned", row["pruned"])),
    )
    return Known(summary, row["learned"], sentences, str(row["digest"]))


def _trial(place: int, trial: Any) -> tuple[dict[str, Any], float | None]:
    if not isinstance(trial, list) or len(trial) != 2:
        raise ValueError(f"trial {place} is a configuration and a score, or null where it failed")
    score = None if trial[1] is None else _number(f"score of trial {place}", trial[1])
    return _config(f"trial {place}", trial[0]), score


def _pair(found: Any) -> tuple[str, Any]:
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError("pruned is a list of pairs of an axis and a value")
    return _words("pruned", found[0], 60), _scalar(f"pruned {found[0]}", found[1])


def _config(name: str, found: Any) -> dict[str, Any]:
    return {_words(name, key, 60): _scalar(f"{name}: {key}", value) for key, value in _mapping(name, found)}


def _sentences(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing beside it")
    lines = _text(path).splitlines()
    if CARRIES not in lines:
        raise ValueError(f"{path.name} has no line {CARRIES!r}, under which the next study is told what carries over")
    told = []
    for line in lines[lines.index(CARRIES) + 1 :]:
        if line.startswith("#"):
            break
        if line.startswith("- "):
            told.append(" ".join(line[2:].split())[:MOST_WORDS])
    return tuple(told[:_MOST_SENTENCES])


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:120]})") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} where an object belongs")
    return found


def _keys(row: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in row]:
        raise ValueError(f"{missing[0]} is missing")
    if more := [name for name in row if name not in known]:
        raise ValueError(f"{str(more[0])[:60]!r} is not known; the keys are {', '.join(known)}")


def _is_number(value: Any) -> bool:
    """Whether a value is a number of a size that a float holds; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _number(name: str, value: Any, low: float = -math.inf) -> float:
    if not _is_number(value) or value < low:
        least = "" if low == -math.inf else f" of at least {low:g}"
        raise ValueError(f"{name} is a number{least}, not {str(value)[:40]}")
    return float(value)


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, str | bool):
        return _words(name, value, 60) if isinstance(value, str) else value
    if _is_number(value):
        return value
    raise ValueError(f"{name} is a number, a text of at most 60 characters, true or false; not {str(value)[:40]}")


def _words(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or not value or len(value) > most or not value.isprintable():
        raise ValueError(f"{name} is a text of 1 to {most} printable characters, not {str(value)[:40]!r}")
    return value


def _mapping(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(found, dict):
        raise ValueError(f"{name} is a mapping, not a {type(found).__name__}")
    yield from found.items()


def _list(name: str, found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{name} is a list, not a {type(found).__name__}")
    return found


def _ordered(value: Any) -> tuple[str, float, str]:
    number = isinstance(value, int | float)
    return ("" if number else "text", float(value) if number else 0.0, str(value))


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES} bytes, which no memory is; move it away")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); mend it or delete it") from error
