"""What a study learns from one trial, by schema (methods 1.3)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from recllm.tuning.spaces.families import story
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.plain import line
from recllm.tuning.study.proposal import MOST_REPLY, MOST_WORDS, first_object

if TYPE_CHECKING:  # a trial holds a reflection
    from recllm.tuning.study.trial import History, Trial

MOST_PRUNED = 4
_MOST_LIMIT = 60  # characters of what limits a study
_TEXTS = {"causal_attribution": MOST_WORDS, "bottleneck": _MOST_LIMIT, "when": MOST_WORDS, "next_action": MOST_WORDS}
_FIELDS = ("causal_attribution", "bottleneck", "when", "confidence", "next_action", "prune")
_GROWN = ("timeout", "out_of_memory", "too_large")
Verdict = Literal["confirmed", "refuted", "inconclusive"]


@dataclass(frozen=True)
class LearnedRule:
    """A generalised rule: on data like this, setting an axis to a value helps or hurts.

    Args:
        when: in words, what data or configuration it was seen on. dimension, value: the setting. effect: helps or
            hurts. confidence: 0 to 1.
    """

    when: str
    dimension: str
    value: Any
    effect: Literal["helps", "hurts", "neutral"]
    confidence: float


@dataclass(frozen=True)
class Reflection:
    """A trial looked back on.

    Args:
        verdict: whether the hypothesis held, by the measured change and the noise threshold.
        causal_attribution: why, in words. bottleneck: what limits the study now. failure_dimension: what a failed
            trial failed by, else None.
        rule: what may hold elsewhere. next_action: in words. prune: (axis, value) pairs not to try again from here.
        source: `model` or `measured`, which is by rules from the numbers alone.
    """

    verdict: Verdict
    observed_delta: float | None
    causal_attribution: str
    bottleneck: str
    failure_dimension: str | None
    rule: LearnedRule | None
    next_action: str
    prune: tuple[tuple[str, Any], ...] = ()
    source: Literal["model", "measured"] = "measured"

    def row(self) -> dict[str, Any]:
        """As plain JSON values, which `of_row` reads."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Reflection:
        """The reflection of a record."""
        rule = LearnedRule(**row["rule"]) if row["rule"] else None
        return cls(**{**row, "rule": rule, "prune": tuple((name, value) for name, value in row["prune"])})


def change_of(history: History, trial: Trial) -> tuple[str, Any, Any] | None:
    """(axis, value before, value after) of a trial that changed one axis of its parent; None for any other.

    An axis that comes to matter, or ceases to, by the change is part of it and not counted.
    """
    parent = next((other for other in history.trials if other.number == trial.parent), None)
    if parent is None or not trial.outcome.key:  # without a key the space refused it
        return None
    return single_change(history.space, parent.config, trial.config)


def single_change(space: Space, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(axis, value before, value after) where one change of an axis leads from one configuration to another."""
    # Conditions look back only, so the first axis that differs is the one that brought the others along.
    name = next((axis.name for axis in space.axes if before.get(axis.name) != after.get(axis.name)), None)
    if name is None or name not in before or name not in after:
        return None
    changed = space.change(before, name, after[name])
    return (name, before[name], after[name]) if changed == dict(after) else None


def measured_verdict(history: History, trial: Trial) -> Verdict:
    """By the noise threshold: better by more than epsilon, worse by more, or neither; a failed trial is refuted, and
    one that mends a failed one confirmed."""
    if not trial.outcome.ok:
        return "refuted"
    delta = history.delta(trial)
    if (parent := history.parent(trial)) is not None and not parent.outcome.ok:
        return "confirmed"
    if delta is None or abs(delta) <= history.epsilon:
        return "inconclusive"
    return "confirmed" if delta > 0 else "refuted"


def measured_reflection(history: History, trial: Trial) -> Reflection:
    """The reflection that follows from the numbers alone, without a model.

    `history` holds the trial's parent; whether it holds the trial makes no difference.
    """
    verdict, delta, change = measured_verdict(history, trial), history.delta(trial), change_of(history, trial)
    failure = None if trial.outcome.ok else trial.outcome.status
    if change is None:
        told = f"failed: {failure}" if failure else "no single change: nothing to attribute"
        return Reflection(verdict, delta, told, "unknown", failure, None, "change one axis of the best", ())
    name, before, after = change
    attribution, bottleneck, following = story(history.space.by_name[name], before, after, verdict, failure)
    return Reflection(
        *(verdict, delta, attribution, bottleneck, failure),
        measured_rule(history, trial, verdict, change),
        following,
        pruned(history.space, change, trial) if verdict == "refuted" else (),
    )


def measured_rule(history: History, trial: Trial, verdict: Verdict, change: tuple[str, Any, Any]) -> LearnedRule:
    """What may hold elsewhere; its confidence is the chance that the change is more than noise.

    The difference of two trials has the standard deviation of `sqrt(2)` times one trial's, for which epsilon stands.
    """
    name, before, after = change
    delta = history.delta(trial)
    effect = {"confirmed": "helps", "refuted": "hurts", "inconclusive": "neutral"}[verdict]
    sure = 0.9 if delta is None else (1 + math.erf(abs(delta) / (2 * history.epsilon))) / 2
    sure = 1.5 - sure if verdict == "inconclusive" else sure  # that it makes no difference: surest where none is seen
    when = f"{history.space.name} from {name} {json.dumps(before)}"
    return LearnedRule(when, name, after, effect, round(min(max(sure, 0.0), 1.0), 2))


def pruned(space: Space, change: tuple[str, Any, Any], trial: Trial) -> tuple[tuple[str, Any], ...]:
    """The settings that a refuted change closes: its own, and those beyond it where a trial grew too large or slow."""
    name, before, after = change
    axis, further = space.by_name[name], ()
    if trial.outcome.status in _GROWN and axis.cost != "none" and axis.values and axis.unit(after) > axis.unit(before):
        further = tuple((name, value) for value in axis.values if axis.unit(value) > axis.unit(after))
    return ((name, after), *further)


def reflection_schema(history: History, trial: Trial) -> dict[str, Any]:
    """JSON Schema of what a model says of a trial; verdict and effect are told by the numbers.

    `when` and `confidence` are of the generalised rule, `prune` holds settings not to try again.
    """
    settings = []
    for axis in history.space.axes:
        if axis.name in trial.config:
            value = {key: told for key, told in axis.schema().items() if key not in ("default", "description")}
            said = {"dimension": {"const": axis.name}, "value": value}
            settings.append(_object(said))
    said = {name: {"type": "string", "minLength": 1, "maxLength": most} for name, most in _TEXTS.items()}
    said["confidence"] = {"type": "number", "minimum": 0, "maximum": 1}
    said["prune"] = {"type": "array", "maxItems": MOST_PRUNED, "items": {"anyOf": settings}}
    told = _object({name: said[name] for name in _FIELDS})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | told


def read_reflection(reply: str, history: History, trial: Trial) -> Reflection | None:
    """The reflection in a model's reply, or None where there is none of the schema.

    Verdict, change of the score, failure and the rule's effect come from the numbers, whatever the reply says. What it
    prunes is added to what the numbers prune; a setting that the study stands on is not pruned.
    """
    found = first_object(reply) if isinstance(reply, str) and len(reply) <= MOST_REPLY else None
    if found is None or set(found) != set(_FIELDS):
        return None
    for name, most in _TEXTS.items():
        if not isinstance(found[name], str) or not found[name].strip() or len(found[name]) > most:
            return None
    sure = found["confidence"]
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        return None
    closed = _settings(found["prune"], history.space)
    if closed is None:
        return None
    measured = measured_reflection(history, trial)
    told = {name: line(found[name], most) for name, most in _TEXTS.items()}
    if not all(told.values()):
        return None
    standing = history.best.config if history.best else {}
    closed = [(name, value) for name, value in closed if standing.get(name) != value]
    rule = measured.rule and replace(measured.rule, when=told["when"], confidence=float(sure))
    return replace(
        measured,
        causal_attribution=told["causal_attribution"],
        bottleneck=told["bottleneck"],
        rule=rule,
        next_action=told["next_action"],
        prune=tuple(dict.fromkeys([*measured.prune, *closed])),
        source="model",
    )


def _settings(found: Any, space: Space) -> list[tuple[str, Any]] | None:
    """(axis, value) pairs of a reply's `prune`; None where one is not legal."""
    if not isinstance(found, list) or len(found) > MOST_PRUNED:
        return None
    settings = []
    for one in found:
        if not isinstance(one, dict) or set(one) != {"dimension", "value"}:
            return None
        axis = space.by_name.get(one["dimension"]) if isinstance(one["dimension"], str) else None
        if axis is None:
            return None
        try:
            settings.append((axis.name, axis.check(one["value"])))
        except ValueError:
            return None
    return settings


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": False}
