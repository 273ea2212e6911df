"""The words a needs model is asked with: when and where the user is, the last visits, and what to answer.

Short, for models of a million parameters read them. Names and weather are item text: they arrive neutralised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from recllm.data.prompts import user
from recllm.needs.schema import stage_keys

VISITS = 8
# Venues that the user returned to, told beside the last visits.
OFTEN = 4
# Not the calendar module's: those follow the machine's locale.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ASKED = {"need": "Need?", "category": "Need, category?", "service": "Need, category, services?"}
# What is asked where the need is told: the answer repeats it, so that it is read like any other.
_ASKED_OF_NEED = {"category": "Category?", "service": "Category, services?"}


@dataclass(frozen=True)
class Context:
    """Now: `hour` 0 to 24 and `weekday` 0 (Monday) to 6, local, None where unknown; the rest "" where unknown.

    `position` is a hint where the user is, in words or sid tokens: never a coordinate, which no small model reads.
    """

    hour: float | None = None
    weekday: int | None = None
    weather: str = ""
    scene: str = ""
    position: str = ""


class Told(NamedTuple):
    """A visit as a prompt tells it: category, the service's text ("" for none), local hour (None for unknown)."""

    category: str
    service: str
    hour: float | None = None

    def __str__(self) -> str:
        return " ".join(part for part in (self.category, self.service, _clock(self.hour)) if part)


def needs_prompt(
    context: Context,
    visits: Sequence[Told],
    stage: str,
    given: tuple[str, str] | None = None,
    often: Sequence[Told] = (),
) -> list[dict[str, str]]:
    """Chat that asks for a stage's answer, given the last visits, oldest first.

    given: need and need type where another model has said them (the two-model pipeline). often: venues that the user
    returned to, the most visited first. A small model cannot count over a long history, so it is told.

    Raises:
        ValueError: an unknown stage, or a need is given and asked for at once.
    """
    stage_keys(stage)
    if given and stage not in _ASKED_OF_NEED:
        raise ValueError(f"a need is given, and stage {stage!r} asks for it: ask for {', '.join(_ASKED_OF_NEED)}")
    asked = f"Need: {given[0]} ({given[1]}). {_ASKED_OF_NEED[stage]}" if given else _ASKED[stage]
    day = "" if context.weekday is None else _DAYS[context.weekday]
    time = f"{day} {_clock(context.hour)}".strip()
    now = [part for part in (time, context.weather, context.scene, context.position) if part]
    recent = "; ".join(map(str, visits[-VISITS:]))
    usual = f"Often: {'; '.join(map(str, often[:OFTEN]))}. " if often else ""
    return [user(f"Now: {', '.join(now) or 'unknown'}. Recent: {recent or 'none'}. {usual}{asked}")]


def _clock(hour: float | None) -> str:
    # Midnight may be written 24.
    return "" if hour is None else f"{int(hour) % 24}h"
