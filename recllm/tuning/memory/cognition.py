"""What a whole study taught, as a summary: numbers for the next study's prior, and sentences for who reads it."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recllm.tuning.study.reflection import change_of, single_change
from recllm.tuning.study.trial import History, Trial

CARRIES = "## Carries over"
_MOST_TOLD = 5
# How many times better or worse a trial is beyond this does not matter.
MOST_RATIO = 5.0


@dataclass(frozen=True)
class Evidence:
    """What a study saw of setting an axis to `value` where it was `before`, all others the same.

    Args:
        supporting, against, neutral: pairs of trials whose score rose by more than epsilon, fell by more (or the later
            failed), or did neither. gain: geometric mean of the later score over the earlier one, less 1, a failure as
            a fall to a fifth.
    """

    dimension: str
    before: Any
    value: Any
    supporting: int
    against: int
    neutral: int
    gain: float

    @property
    def seen(self) -> int:
        return self.supporting + self.against + self.neutral


@dataclass(frozen=True)
class Summary:
    """A finished study.

    Args:
        study: its id. space: name. data: descriptors of its data set.
        default_score: of the default configuration. epsilon: the study's noise threshold.
        trials: (configuration, score or None where it failed), one a configuration, in the order of running.
        best: configuration. gain: of its score over the default's, as a share of it.
        evidence: of single changes, the most seen first. pruned: settings that reflections closed.
        sentences: what carries over, for a reader and for the next study's prompt. dead_ends: what did not pay.
    """

    study: str
    space: str
    data: Mapping[str, float]
    default_score: float
    epsilon: float
    trials: tuple[tuple[Mapping[str, Any], float | None], ...]
    best: Mapping[str, Any]
    gain: float
    evidence: tuple[Evidence, ...]
    pruned: tuple[tuple[str, Any], ...] = ()
    sentences: tuple[str, ...] = ()
    dead_ends: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """As plain JSON values, without what the markdown says."""
        row = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in row.items() if key not in ("sentences", "dead_ends", "evidence")}

    @property
    def digest(self) -> str:
        """16 hex digits of what was learned from: the same for the same trials on the same data."""
        told = json.dumps([self.space, dict(self.data), [[dict(config), score] for config, score in self.trials]])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def summarise(study: str, history: History, data: Mapping[str, float]) -> Summary:
    """The summary of a study's history; any history will do, a sampler's or a surface's rows too.

    The default configuration's score is what gains are relative to.

    Raises:
        ValueError: no trial of the default configuration ended well.
    """
    rows, base = means(history), default_score(history)
    if base is None:
        raise ValueError(f"study {study}: the default configuration has no score, so no gain can be told; run it first")
    best, score = _best(history, rows)
    evidence = evidence_of(history)
    closed = (setting for trial in history.trials if trial.reflection for setting in trial.reflection.prune)
    return Summary(
        *(study, history.space.name, {name: float(value) for name, value in data.items()}, base, history.epsilon),
        tuple(rows.values()),
        *(best, score / base - 1, evidence, tuple(dict.fromkeys(closed))),
        _sentences(history, rows, best, score / base - 1, evidence),
        _dead_ends(history, evidence),
    )


def default_score(history: History) -> float | None:
    """Mean score of the default configuration's trials; None where none ended well, or with nothing."""
    _, score = means(history).get(history.space.key(history.space.default), (None, None))
    return score if score and score > 0 else None


def means(history: History) -> dict[str, tuple[dict[str, Any], float | None]]:
    """Key -> configuration and mean score over its trials that ended well, legal configurations only."""
    scores: dict[str, list[float]] = defaultdict(list)
    configs: dict[str, dict[str, Any]] = {}
    for trial in history.trials:
        if trial.outcome.key:
            configs.setdefault(trial.outcome.key, dict(trial.config))
            scores[trial.outcome.key] += [trial.outcome.score] if trial.outcome.ok else []
    return {key: (config, statistics.fmean(scores[key]) if scores[key] else None) for key, config in configs.items()}


def _best(history: History, rows: Mapping[str, tuple[dict[str, Any], float | None]]) -> tuple[dict[str, Any], float]:
    """What the study stands on, unless another configuration is better by more than noise."""
    top = max(((config, score) for config, score in rows.values() if score is not None), key=lambda row: row[1])
    standing = rows.get(history.best.outcome.key) if history.best else None
    known = standing is not None and standing[1] is not None and standing[1] >= top[1] - history.epsilon
    return standing if known else top


def log_ratio(score: float | None, other: float) -> float:
    """Logarithm of a score over another, between those of 1 / MOST_RATIO, which a failed trial has, and MOST_RATIO."""
    return math.log(min(max((score or 0.0) / max(other, 1e-12), 1 / MOST_RATIO), MOST_RATIO))


def evidence_of(history: History) -> tuple[Evidence, ...]:
    """What a study saw of every single change between two of its configurations, either way, the most seen first."""
    seen: dict[tuple[str, Any, Any], list[tuple[int, float]]] = defaultdict(list)
    for (name, before, after), score, later in _pairs(history):
        delta = -math.inf if later is None else later - score
        sign = (delta > history.epsilon) - (delta < -history.epsilon)
        ratio = log_ratio(later, score)
        seen[name, before, after].append((sign, ratio))
        if later is not None:  # coming back from a failure is no gain
            seen[name, after, before].append((-sign, -ratio))
    found = []
    for (name, before, after), pairs in seen.items():
        signs = [sign for sign, _ in pairs]
        gain = math.expm1(statistics.fmean(ratio for _, ratio in pairs))
        found.append(Evidence(name, before, after, signs.count(1), signs.count(-1), signs.count(0), round(gain, 4)))
    return tuple(sorted(found, key=lambda one: (-one.seen, one.dimension, str(one.before), str(one.value))))


def _pairs(history: History) -> Iterator[tuple[tuple[str, Any, Any], float, float | None]]:
    """Every pair of configurations one change apart, the first of which ended well: the change and the two scores."""
    rows = means(history).values()
    ended = [(config, score) for config, score in rows if score is not None]
    failed = [(config, None) for config, score in rows if score is None]
    # The changed axis on both sides, and whatever it brings along: more than that is another configuration.
    most = 2 + sum(bool(axis.when) for axis in history.space.axes)
    for place, (one, score) in enumerate(ended):
        for other, later in ended[place + 1 :] + failed:
            if len(one.items() ^ other.items()) <= most and (change := single_change(history.space, one, other)):
                yield change, score, later


def _sentences(
    history: History, rows: Mapping[str, Any], best: Mapping[str, Any], gain: float, evidence: Sequence[Evidence]
) -> tuple[str, ...]:
    default = history.space.default
    changed = [f"{name} {json.dumps(value)}" for name, value in best.items() if default.get(name) != value]
    told = [f"best of {len(rows)}: {gain:+.0%} with {', '.join(changed) or 'the default'}"]
    paid = {one.dimension: one for one in sorted(evidence, key=lambda one: one.gain) if one.supporting > one.against}
    told += [told_of(one) for one in sorted(paid.values(), key=lambda one: -one.gain)[:_MOST_TOLD]]
    moved = {one.dimension for one in evidence if one.supporting + one.against}
    if idle := sorted({one.dimension for one in evidence} - moved):
        told.append(f"made no difference: {', '.join(idle)}")
    limits = Counter(trial.reflection.bottleneck for trial in history.trials[-10:] if trial.reflection)
    if limits and (limit := limits.most_common(1)[0][0]) not in ("unknown", "elsewhere"):
        told.append(f"limited at the end by {limit}")
    return tuple(told)


def _dead_ends(history: History, evidence: Sequence[Evidence]) -> tuple[str, ...]:
    failed = Counter(_failure(history, trial) for trial in history.trials if not trial.outcome.ok)
    told = [f"{words} ({count})" for words, count in failed.most_common(_MOST_TOLD)]
    default = history.space.default
    lost = [one for one in evidence if one.against > one.supporting and default.get(one.dimension) == one.before]
    return tuple(told + [told_of(one) for one in sorted(lost, key=lambda one: one.gain)[:_MOST_TOLD]])


def _failure(history: History, trial: Trial) -> str:
    change = change_of(history, trial)
    return f"{trial.outcome.status}: {f'{change[0]} {json.dumps(change[2])}' if change else 'several changes at once'}"


def told_of(one: Evidence) -> str:
    """A change and what was seen of it, in words."""
    counts = f"{one.supporting} for, {one.against} against"
    return f"{one.dimension} {json.dumps(one.before)} to {json.dumps(one.value)}: {one.gain:+.0%} ({counts})"


def markdown(summary: Summary) -> str:
    """The summary for a reader; the lines under CARRIES are what the next study is told, edited ones too."""
    data = ", ".join(f"{name} {value:g}" for name, value in summary.data.items())
    head = f"Space {summary.space}; {len(summary.trials)} configurations; {data}."
    best = ", ".join(f"{name} {json.dumps(value)}" for name, value in summary.best.items())
    lines = [f"# {summary.study}", "", head, "", f"Best ({summary.gain:+.1%} over the default): {best}.", ""]
    lines += [CARRIES, "", *(f"- {told}" for told in summary.sentences), ""]
    lines += ["## Dead ends", "", *(f"- {told}" for told in summary.dead_ends or ("none seen",)), ""]
    lines += ["## Single changes", "", "| dimension | from | to | for | against | neither | gain |", "|" + "---|" * 7]
    for one in summary.evidence:
        values = f"{json.dumps(one.before)} | {json.dumps(one.value)}"
        counts = f"{one.supporting} | {one.against} | {one.neutral}"
        lines.append(f"| {one.dimension} | {values} | {counts} | {one.gain:+.1%} |")
    return "\n".join(lines) + "\n"
