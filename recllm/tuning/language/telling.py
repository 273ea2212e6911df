"""What a history says, in few words: the changes that were tried, and scores as percent of the default's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from recllm.tuning.study.proposal import listed_values
from recllm.tuning.study.trial import History


def as_json(value: Any) -> str:
    """A value as constrained decoding writes it: numbers without exponent or needless zeros, 0.00001 and 0."""
    if isinstance(value, float):
        return np.format_float_positional(value, trim="-")
    return json.dumps(value, ensure_ascii=False)


def shown(value: Any) -> str:
    """A value as a reply has to write it, names without their quotes."""
    return value if isinstance(value, str) else as_json(value)


def reference(history: History) -> float:
    """The score that counts as 100 percent: the default's, else the best one, else 1; always above 0."""
    default = next((trial for trial in history.trials if trial.source == "default" and trial.outcome.ok), None)
    for score in (default.outcome.score if default else 0.0, history.best_score):
        if score > 0:
            return score
    return 1.0


def taken(history: History) -> dict[str, list[Any]]:
    """Axis -> values, of those that can be listed, that would make of the present configuration one that was tried."""
    now, found = history.present, {}
    for name, value in now.items():
        listed = listed_values(history.space.by_name[name])
        if closed := [other for other in listed if other != value and history.leads_back(now, name, other)]:
            found[name] = closed
    return found


def pruned(history: History) -> list[tuple[str, Any]]:
    """(axis, value) that reflections ruled out and that could be chosen now, oldest first."""
    now, found = history.present, []
    for trial in history.trials:
        for name, value in trial.reflection.prune if trial.reflection else ():
            if name in now and value != now[name] and (name, value) not in found:
                found.append((name, value))
    return found


def grouped(settings: Iterable[tuple[str, Any]]) -> str:
    """Settings by axis: `lr 0.01 0.03, dropout 0.6`."""
    by_name: dict[str, list[str]] = {}
    for name, value in settings:
        by_name.setdefault(name, [name]).append(shown(value))
    return ", ".join(" ".join(words) for words in by_name.values())


def signed(number: float) -> str:
    """A change with its sign, to one decimal below 10; nothing is `+0.0`, from whichever side."""
    digits = 0 if abs(round(number, 1)) >= 10 else 1
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def figures(number: float) -> str:
    """Two significant figures without an exponent: 1500, 7.4, 0.0031."""
    return np.format_float_positional(number, precision=2, fractional=False, trim="-")
