"""Reading tool calls out of what a model wrote. Model text is untrusted: parsing never raises."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ParsedTurn:
    """Calls as (tool, arguments) in order, and how many call markers held no readable call."""

    calls: list[tuple[str, dict[str, Any]]]
    malformed: int


def parse_turn(text: str) -> ParsedTurn:
    """The tool calls of one assistant turn.

    A call is `<tool_call>{"name": str, "arguments": object}</tool_call>`. Anything else between markers, and an opening
    marker that is never closed, is malformed. As in TRL's own parser a call inside a thought is not a call, and one
    malformed call spoils the turn: none of its calls is played.
    """
    text = _THOUGHT.sub("", text)
    calls: list[tuple[str, dict[str, Any]]] = []
    bodies = _CALL.findall(text)
    malformed = max(text.count("<tool_call>"), text.count("</tool_call>")) - len(bodies)
    for body in bodies:
        call = _read(body)
        if call is None:
            malformed += 1
        else:
            calls.append(call)
    return ParsedTurn([] if malformed else calls, malformed)


def _read(body: str) -> tuple[str, dict[str, Any]] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # also numbers of more digits than int() takes
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    return (value["name"], arguments) if isinstance(arguments, dict) else None
