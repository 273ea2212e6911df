"""The words a needs model is asked with: when and where the user is, the last visits, and what to answer.

Short, for models of a million parameters read them. Names and weather are item text: they arrive neutralised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recllm.data.prompts import user
from recllm.needs.schema import stage_keys

VISITS = 8
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


def needs_prompt(
    context: Context, visits: Sequence[tuple[str, str]], stage: str, given: tuple[str, str] | None = None
) -> list[dict[str, str]]:
    """Chat that asks for a stage's answer, given the last visits as (category, service text), oldest first.

    given: need and need type where another model has said them (the two-model pipeline).

    Raises:
        ValueError: an unknown stage, or a need is given and asked for at once.
    """
    stage_keys(stage)
    if given and stage not in _ASKED_OF_NEED:
        raise ValueError(f"a need is given, and stage {stage!r} asks for it: ask for {', '.join(_ASKED_OF_NEED)}")
    asked = f"Need: {given[0]} ({given[1]}). {_ASKED_OF_NEED[stage]}" if given else _ASKED[stage]
    day = "" if context.weekday is None else _DAYS[context.weekday]
    # Midnight may be written 24.
    hour = "" if context.hour is None else f"{int(context.hour) % 24}h"
    now = [part for part in (f"{day} {hour}".strip(), context.weather, context.scene, context.position) if part]
    recent = "; ".join(f"{category} {service}".strip() for category, service in visits[-VISITS:])
    return [user(f"Now: {', '.join(now) or 'unknown'}. Recent: {recent or 'none'}. {asked}")]
