"""Long-term rules: which single changes paid in earlier studies, and which of them apply to the one at hand."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from recllm.tuning.memory.cognition import Evidence, evidence_of
from recllm.tuning.memory.transfer import LEVELS
from recllm.tuning.spaces.axes import Axis
from recllm.tuning.study.reflection import change_of, measured_verdict
from recllm.tuning.study.trial import History

# One study's word counts as so many pairs at most, however often it saw a change.
MOST_A_STUDY = 4
# What a change to the same value from another one, on the same side of it, says of this one.
FROM_ELSEWHERE = 0.3
# What is expected of a change here, by all configurations measured, counts as so many pairs that saw it.
EXPECTED = 4
SUSPENDED_AFTER = 2
PROMOTED_FROM = 2
HERE = "this study"


@dataclass(frozen=True)
class Line:
    """A rule as it is kept: a single change, and what each study saw of it.

    Args:
        dimension, before, value: the change. evidence: study id -> what it saw. off: a person took it out of use.
        note: a person's words.
    """

    space: str
    dimension: str
    before: Any
    value: Any
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    off: bool = False
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """A rule as it applies to a configuration.

    Args:
        dimension, value: the setting. effect: what it does. gain: the expected change of the score, a share of it.
        supporting, against: pairs of trials whose score rose and fell by it, in all studies. studies: those on the
            effect's side, the one at hand as HERE.
        confidence: c = (n+ + 1) / (n+ + n- + 2) over weighted counts (methods 1.3), 0 to 1.
    """

    dimension: str
    value: Any
    effect: Literal["helps", "hurts", "neutral"]
    gain: float
    supporting: int
    against: int
    studies: tuple[str, ...]
    confidence: float

    @property
    def promoted(self) -> bool:
        """Whether several studies bear it out."""
        return len(self.studies) >= PROMOTED_FROM

    @property
    def text(self) -> str:
        held = self.supporting if self.effect == "helps" else self.against
        told = f"{held}/{self.supporting + self.against}, {len(self.studies)} stud{'ies' if self.promoted else 'y'}"
        return f"{self.dimension} {json.dumps(self.value)} {self.effect} {self.gain:+.0%} ({told})"


@dataclass
class Gathered:
    """Weighted evidence of one setting: `rose` and `fell` count pairs, `gain` is their summed gain over `weight`."""

    rose: float = 0.0
    fell: float = 0.0
    gain: float = 0.0
    weight: float = 0.0
    counts: Counter = field(default_factory=Counter)
    leaning: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, study: str, weight: float, one: Evidence) -> None:
        weight *= min(1.0, MOST_A_STUDY / one.seen)
        self.rose += weight * one.supporting
        self.fell += weight * one.against
        self.gain += weight * one.seen * one.gain
        self.weight += weight * one.seen
        self.counts += Counter(supporting=one.supporting, against=one.against)
        self.leaning[study] += one.supporting - one.against

    def rule(self, dimension: str, value: Any, gain: float | None) -> Rule:
        """The rule; `gain` is what the change is expected to do here by all that was measured, None where unknown.

        The pairs saw this very change, though not here: they count by their weight, the expectation as EXPECTED pairs.
        """
        known = 0.0 if gain is None else EXPECTED
        gain = (self.gain + known * (gain or 0.0)) / (self.weight + known)
        confidence = (self.rose + 1) / (self.rose + self.fell + 2)
        # Counts and size must agree: a change that often pays a little and sometimes costs much is not a rule.
        effect = "neutral"
        if confidence > 0.5 and gain > 0:
            effect = "helps"
        elif confidence < 0.5 and gain < 0:
            effect = "hurts"
        sign = 1 if effect == "helps" else -1
        studies = tuple(study for study, leaning in self.leaning.items() if sign * leaning > 0)
        return Rule(
            dimension, value, effect, gain, self.counts["supporting"], self.counts["against"], studies, confidence
        )


def weighed(lines: Sequence[Line], weights: Mapping[str, float], history: History, expect: Any) -> list[Rule]:
    """What is known of every single change of the present configuration, the most promising first.

    A rule speaks of a setting that is legal, not the present one and not tried from here.

    Args:
        weights: of each study's word: likeness and decay in one; a study that is not in it is not heard.
        expect: configurations -> their expected log ratio to the default (`recllm.tuning.memory.transfer`); None: gains
            are the means of the pairs.
    """
    space = history.space
    present = dict(history.present)
    gathered = gather(lines, weights, history, present)
    settings = [setting for setting in gathered if not history.leads_back(present, *setting)]
    gain_R = [None] * len(settings)
    if expect is not None and settings:
        ratio_R1 = expect([present, *(space.change(present, *setting) for setting in settings)])
        gain_R = np.expm1(ratio_R1[1:] - ratio_R1[0]).tolist()
    rules = [gathered[setting].rule(*setting, gain) for setting, gain in zip(settings, gain_R, strict=True)]
    return sorted(rules, key=lambda rule: -rule.gain)


def foremost(rules: Sequence[Rule], history: History, k: int = 8) -> list[Rule]:
    """The `k` of the weighed rules that say most.

    Rules that help are ordered by confidence times expected gain, and stand before those that hurt, of which there are
    at most `k // 4`, the surest first. One that was refuted twice in this study is suspended.
    """
    refuted = Counter(_refuted(history))
    helping = [
        rule for rule in rules if rule.effect == "helps" and refuted[rule.dimension, rule.value] < SUSPENDED_AFTER
    ]
    helping.sort(key=lambda rule: -rule.confidence * rule.gain)
    hurting = [rule for rule in rules if rule.effect == "hurts"]
    hurting.sort(key=lambda rule: (1 - rule.confidence) * rule.gain)
    warned = hurting[: k // 4]
    return [*helping[: k - len(warned)], *warned]


def gather(
    lines: Sequence[Line], weights: Mapping[str, float], history: History, present: Mapping[str, Any]
) -> dict[tuple[str, Any], Gathered]:
    """What is known of every setting other than the present one, by (dimension, value)."""
    found: dict[tuple[str, Any], Gathered] = defaultdict(Gathered)
    for study, weight, one in _words(lines, weights, history):
        axis = history.space.by_name.get(one.dimension)
        if axis is None or axis.name not in present or not _legal(axis, one.before, one.value) or not one.seen:
            continue
        value, here = settled(axis, one.value), settled(axis, present[axis.name])
        nearness = _nearness(axis, settled(axis, one.before), value, here)
        if value != here and nearness:
            found[axis.name, value].add(study, weight * nearness, one)
    return dict(found)


def _words(
    lines: Sequence[Line], weights: Mapping[str, float], history: History
) -> Iterator[tuple[str, float, Evidence]]:
    """Study, weight and evidence: of the earlier studies, then of this one's own trials."""
    for line in lines:
        if line.space == history.space.name and not line.off:
            yield from ((study, weights[study], one) for study, one in line.evidence.items() if study in weights)
    yield from ((HERE, 1.0, one) for one in evidence_of(history))


def _legal(axis: Axis, *values: Any) -> bool:
    try:
        return all(axis.check(value) is not None for value in values)
    except ValueError:
        return False


def settled(axis: Axis, value: Any) -> Any:
    """A legal value, of a range the nearest of nine even levels: what was seen of 0.31 speaks of 0.3."""
    if axis.values:
        return axis.check(value)
    level = round(axis.unit(value) * (LEVELS - 1)) / (LEVELS - 1)
    share = axis.low * (axis.high / axis.low) ** level if axis.log else axis.low + level * (axis.high - axis.low)
    if axis.kind == "int":
        return min(max(round(share), int(axis.low)), int(axis.high))
    return min(max(float(f"{share:.2g}"), axis.low), axis.high)


def _nearness(axis: Axis, before: Any, value: Any, here: Any) -> float:
    """How much a change from `before` says of one from `here`, 0 to 1."""
    if before == here:
        return 1.0
    if axis.ordered and (axis.unit(before) < axis.unit(value)) != (axis.unit(here) < axis.unit(value)):
        return 0.0
    return FROM_ELSEWHERE


def _refuted(history: History) -> Iterator[tuple[str, Any]]:
    """The setting of every single change that this study refuted."""
    for trial in history.trials:
        change = change_of(history, trial)
        if change and measured_verdict(history, trial) == "refuted":
            axis = history.space.by_name[change[0]]
            yield change[0], settled(axis, change[2])
