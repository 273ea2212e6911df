"""The answer of a needs model: JSON text with the need, its type, the category and ten services, in this order.

    {"need": "a quick lunch", "need_type": "safety/health", "category": "Deli", "services": [4, 17, ...]}

The curriculum (methods: need -> category -> service) teaches it from the front: an answer of stage `need` ends after
`need_type`, one of stage `category` after `category`. Services are written as `ServiceNames` says. Model text is
untrusted: reading it never raises, and says why it is no answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recllm.sid.table import SidTable

KEYS = ("need", "need_type", "category", "services")
# Stage -> how many of the keys its answers have.
STAGES = {"need": 2, "category": 3, "service": 4}
SERVICES = 10
# A service that is well written and is no service of the catalogue.
UNKNOWN = -1
# Why a text is no answer, in the order in which it is looked at.
REASONS = (
    "no_object", "not_json", "trailing", "repeated_key", "keys", "need", "need_type", "category", "services", "count",
    "service", "repeated_service",
)  # fmt: skip
_SPACE = " \t\r\n"
# NaN and huge numbers come out as numbers, which are no part of an answer; pairs keep order and repeated keys.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple)


@dataclass(frozen=True)
class Answer:
    """What a model answered; `category` is None and `services` (item ids, best first) empty before their stage."""

    need: str
    need_type: str
    category: str | None = None
    services: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A text as it was read: the answer, or which of `REASONS` it fails by."""

    answer: Answer | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ServiceNames:
    """How services are written: as item numbers, or with a table as sid texts.

    Raises:
        ValueError: items of the table share a sid, which then names no single service.
    """

    table: SidTable | None = None

    def __post_init__(self) -> None:
        if self.table is not None and self.table.shared:
            raise ValueError("items of this SID table share sids: services need a table in which each has its own")

    def write(self, item: int) -> int | str:
        """The JSON value of an item; IndexError for a number that the table does not hold."""
        return int(item) if self.table is None else self.table.text(item)

    def read(self, value: Any) -> int | None:
        """The item of a JSON value, `UNKNOWN` for a sid that no item has, None where it is not written like an item.

        Without a table any number from 0 on is taken: which of them are services the catalogue knows.
        """
        if self.table is None:
            return value if type(value) is int and value >= 0 else None
        sid = self.table.parse(value)
        item = self.table.item(sid)
        return UNKNOWN if item is None and sid is not None else item


def read_answer(text: str, stage: str, names: ServiceNames) -> Reading:
    """Read the whole text that a model wrote for a stage. Never raises on any text; white space around it is free.

    Raises:
        ValueError: an unknown stage.
    """
    keys = stage_keys(stage)
    text = text.strip(_SPACE) if isinstance(text, str) else ""
    if not text.startswith("{"):
        return Reading(problem="no_object")
    try:
        pairs, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):  # also numbers of more digits than int() takes
        return Reading(problem="not_json")
    found = [key for key, _ in pairs]
    if end < len(text):
        return Reading(problem="trailing")
    if len(set(found)) < len(found):
        return Reading(problem="repeated_key")
    if tuple(found) != keys:
        return Reading(problem="keys")
    values = dict(pairs)
    for key in keys[:3]:
        if not plain(values[key]):
            return Reading(problem=key)
    services, problem = _services(values["services"], names) if "services" in keys else ((), None)
    if problem:
        return Reading(problem=problem)
    return Reading(Answer(values["need"], values["need_type"], values.get("category"), services))


def _services(value: Any, names: ServiceNames) -> tuple[tuple[int, ...], str | None]:
    if type(value) is not list:
        return (), "services"
    if len(value) != SERVICES:
        return (), "count"
    items = tuple(names.read(each) for each in value)
    if None in items:
        return (), "service"
    # By how they are written: two different unknown sids are two services.
    return items, None if len(set(value)) == len(value) else "repeated_service"


def plain(value: Any) -> bool:
    """Whether a value is a line of text that no chat marker, sid or control character can stand in."""
    # Not printable are control and invisible format characters, line separators and lone surrogates.
    if not isinstance(value, str) or not value.isprintable():
        return False
    return not set("<>") & set(value) and any(map(str.isalnum, value))


def render(answer: Answer, stage: str, names: ServiceNames) -> str:
    """The text of an answer up to what the stage asks for; `read_answer` gives that part of the answer back.

    Raises:
        ValueError: the text could not be read (the message has the reason), or an unknown stage.
    """
    keys = stage_keys(stage)
    services = [names.write(item) for item in answer.services]
    values = dict(zip(KEYS, (answer.need, answer.need_type, answer.category, services), strict=True))
    text = json.dumps({key: values[key] for key in keys}, ensure_ascii=False)
    if problem := read_answer(text, stage, names).problem:
        raise ValueError(f"an answer of stage {stage!r} cannot be written, its fault is {problem!r}: {text[:300]!r}")
    return text


def stage_keys(stage: str) -> tuple[str, ...]:
    """The keys of a stage's answers; ValueError for an unknown stage."""
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown; the stages are {', '.join(STAGES)}")
    return KEYS[: STAGES[stage]]


def gold_answer(need: str, need_type: str, category: str, target: int, others: Sequence[int]) -> Answer:
    """The answer that a model is shown: the target first, then the first of `others` that are not it.

    Raises:
        ValueError: fewer than nine others.
    """
    rest = [int(item) for item in dict.fromkeys(others) if item != target][: SERVICES - 1]
    if len(rest) < SERVICES - 1:
        raise ValueError(f"an answer has {SERVICES} services, and there are {len(rest)} beside the target {target}")
    return Answer(need, need_type, category, (int(target), *rest))
