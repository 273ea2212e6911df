"""Long-term memory over studies: plain files in a folder that a person can read and edit.

    rules.jsonl             a line a single change, with what each study saw of it
    summaries/STUDY.md      what a study taught; the lines under `## Carries over` are what later studies are told
    summaries/STUDY.json    its numbers: configurations and scores, the best, the data's descriptors

A line's `off: true` takes a rule out of use, a deleted line is forgotten, a deleted summary silences its study. What
cannot be read is refused with its file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recllm.disk import claimed
from recllm.tuning.memory.cognition import Summary, default_score, log_ratio, means
from recllm.tuning.memory.descriptors import likeness
from recllm.tuning.memory.memory_files import (
    RULES_FILE,
    SUMMARIES,
    Known,
    check_name,
    read_known,
    read_lines,
    write_known,
    write_lines,
)
from recllm.tuning.memory.rules import Line, Rule, weighed
from recllm.tuning.memory.transfer import Expectation, Landscape, mended
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.trial import History

_LOCK_FILE = ".lock"
# A study on data less alike than this is not heard; of those that are, the most alike so many.
LEAST_LIKENESS = 0.02
MOST_STUDIES = 8
# Of them, so many are told of in words.
MOST_TOLD = 3
# What a study's word loses by each later one of the same space.
DECAY = 0.05
# Of a study's best configurations, so many may become a start; a study's landscape rests on so many trials at most.
CANDIDATES = 10
MOST_STARTS = 4
MOST_TRIALS = 200


@dataclass(frozen=True)
class Prior:
    """What earlier studies say before a study's first proposal.

    Args:
        text: their summaries, the most alike data first. start: the configuration to begin with; None without any.
        studies: that were heard, with the weight of each word.
    """

    text: str
    start: dict[str, Any] | None
    studies: tuple[tuple[str, float], ...]


class Memory:
    """The memory in a folder, which need not be there yet.

    One process learns at a time; readers see a rule file that is whole.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._read: tuple[Any, tuple[Line, ...], tuple[Known, ...]] | None = None
        self._landscapes: dict[Any, Landscape] = {}
        self._priors: dict[Any, Prior] = {}

    def lines(self) -> tuple[Line, ...]:
        """The rules as they are kept.

        Raises:
            ValueError: a line that cannot be read; the message names file and line.
        """
        return self._content()[1]

    def studies(self) -> tuple[Known, ...]:
        """The studies that were learned, the first first.

        Raises:
            ValueError: a summary that cannot be read; the message names the file and what is wrong.
        """
        return self._content()[2]

    def learn(self, summary: Summary) -> bool:
        """Take a finished study in; a study that is known by its id and has nothing new changes nothing.

        One that went on since replaces what it said before. Returns whether anything changed.

        Raises:
            ValueError: the study's name is no file name, or a file of the memory cannot be read.
        """
        check_name(summary.study)
        with claimed(self.folder / _LOCK_FILE, wait=True):
            known = {study.summary.study: study for study in self.studies()}
            earlier = known.get(summary.study)
            if earlier and earlier.digest == summary.digest:
                return False
            write_lines(self.folder / RULES_FILE, merged(self.lines(), summary))
            place = earlier.learned if earlier else max((study.learned for study in known.values()), default=0) + 1
            # Last, so that a study counts as known only when its rules are there.
            write_known(self.folder / SUMMARIES, summary, place)
        return True

    def weighed(self, space: Space, data: Mapping[str, float], history: History | None = None) -> list[Rule]:
        """What is known of every change of what the study stands on now, by data like this, best first."""
        heard, history = self.heard(space, data), history or History(space)
        weights = {study.summary.study: weight for study, weight in heard}
        expect = self.expectation(space, data, history)
        return weighed(self.lines(), weights, history, expect and expect.of)

    def prior(self, space: Space, data: Mapping[str, float]) -> Prior:
        """What to tell a proposer before it starts, and where to start.

        The start begins as the one, among the ten best configurations of each study heard, made legal in `space`, whose
        expected score is the greatest: by each study's landscape, the mean over studies weighted by the likeness of
        their data, so that one that was measured well by luck, or is good on its own data only, falls behind. Single
        changes lead on from it as long as the studies together expect more of them.
        """
        heard, key = self.heard(space, data), (_axes(space), tuple(sorted(data.items())))
        if key not in self._priors:
            self._priors[key] = self._prior(space, data, heard)
        return self._priors[key]

    def _prior(self, space: Space, data: Mapping[str, float], heard: list[tuple[Known, float]]) -> Prior:
        told = tuple((study.summary.study, round(weight, 3)) for study, weight in heard)
        text = "\n".join(
            f"{study.summary.study} (alike {weight:.2f}): {'; '.join(study.sentences)}"
            for study, weight in heard[:MOST_TOLD]
        )
        candidates, expectation = self._candidates(space, data), self.expectation(space, data, History(space))
        start = None
        if candidates and expectation:
            start = expectation.climb(candidates[int(np.argmax(expectation.of(candidates)))])
        return Prior(text, start, told)

    def heard(self, space: Space, data: Mapping[str, float]) -> list[tuple[Known, float]]:
        """The studies of a space of that name with the weight of each one's word, the weightiest first."""
        studies = [study for study in self.studies() if study.summary.space == space.name]
        found = []
        for study in studies:
            later = sum(other.learned > study.learned for other in studies)
            alike = likeness(study.summary.data, data)
            if alike >= LEAST_LIKENESS:
                found.append((study, alike * (1 - DECAY) ** later))
        found.sort(key=lambda pair: (-pair[1], pair[0].summary.study))
        return found[:MOST_STUDIES]

    def expectation(self, space: Space, data: Mapping[str, float], history: History) -> Expectation | None:
        """What the studies heard, and this study's own trials, let expect of a configuration; None without studies."""
        heard = self.heard(space, data)
        if not heard:
            return None
        base, rows = default_score(history), list(means(history).values())
        landscapes = tuple(self._landscape(space, study) for study, _ in heard)
        weights = tuple(weight for _, weight in heard)
        if base is None:
            return Expectation(space, landscapes, weights)
        ratio_C = np.array([log_ratio(score, base) for _, score in rows])
        configs, noise = tuple(config for config, _ in rows), history.epsilon / base
        return Expectation(space, landscapes, weights, configs, ratio_C, noise)

    def _landscape(self, space: Space, study: Known) -> Landscape:
        summary = study.summary
        key = (_axes(space), summary.study)
        if key not in self._landscapes:
            trials = sorted(summary.trials, key=lambda row: -(row[1] or 0.0))
            # The best half of what is allowed, and the rest evenly from what is left.
            if len(trials) > MOST_TRIALS:
                rest = np.linspace(MOST_TRIALS // 2, len(trials) - 1, MOST_TRIALS // 2).astype(int)
                trials = trials[: MOST_TRIALS // 2] + [trials[place] for place in rest]
            ratio_C = np.array([log_ratio(score, summary.default_score) for _, score in trials])
            configs = [mended(space, config) for config, _ in trials]
            noise = summary.epsilon / summary.default_score
            self._landscapes[key] = Landscape.fit(space, configs, ratio_C, noise)
        return self._landscapes[key]

    def next_start(self, space: Space, data: Mapping[str, float], history: History) -> dict[str, Any] | None:
        """The next configuration of earlier studies to try before any proposal; None where none is worth a trial.

        The first is the prior's `start`. Each trial tells how this data set departs from the earlier ones, so what is
        expected of the others changes, and the next is the one of the greatest expectation, as long as that is more
        than what the study stands on has, and at most MOST_STARTS in all.
        """
        begun = sum(trial.source == "memory" for trial in history.trials)
        if not begun:
            start = self.prior(space, data).start
            return None if start is None or space.key(start) in history.tried else start
        base, expectation = default_score(history), self.expectation(space, data, history)
        if begun >= MOST_STARTS or base is None or expectation is None:
            return None
        left = [config for config in self._candidates(space, data) if space.key(config) not in history.tried]
        if not left:
            return None
        ratio_C = expectation.of(left)
        best = int(np.argmax(ratio_C))
        standing = log_ratio(history.best.outcome.score, base) if history.best else -math.inf
        return left[best] if ratio_C[best] > standing else None

    def _candidates(self, space: Space, data: Mapping[str, float]) -> list[dict[str, Any]]:
        """The best configurations of every study heard, made legal, without the default."""
        found: dict[str, dict[str, Any]] = {}
        for study, _ in self.heard(space, data):
            good = sorted((row for row in study.summary.trials if row[1] is not None), key=lambda row: -row[1])
            for config in (study.summary.best, *(config for config, _ in good[:CANDIDATES])):
                legal = mended(space, config)
                found.setdefault(space.key(legal), legal)
        found.pop(space.key(space.default), None)
        return list(found.values())

    def _content(self) -> tuple[Any, tuple[Line, ...], tuple[Known, ...]]:
        """The files' content, read again where one of them changed."""
        files = [self.folder / RULES_FILE, *sorted((self.folder / SUMMARIES).glob("*"))]
        stats = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()]
        if self._read is None or self._read[0] != stats:
            self._landscapes.clear()
            self._priors.clear()
            self._read = (stats, read_lines(self.folder / RULES_FILE), read_known(self.folder / SUMMARIES))
        return self._read


def merged(lines: Sequence[Line], summary: Summary) -> list[Line]:
    """The rules with what a study saw in the place of what it had said before; those without evidence left are gone."""
    found = {}
    for line in lines:
        others = {study: one for study, one in line.evidence.items() if study != summary.study}
        found[_change(line.space, line.dimension, line.before, line.value)] = replace(line, evidence=others)
    for one in summary.evidence:
        change = (summary.space, one.dimension, one.before, one.value)
        line = found.get(_change(*change), Line(*change))
        found[_change(*change)] = replace(line, evidence={**line.evidence, summary.study: one})
    return [line for line in found.values() if line.evidence or line.off or line.note]


def _axes(space: Space) -> tuple[Any, ...]:
    """What makes two spaces alike for what is fitted on them."""
    return tuple((axis.name, axis.values, axis.low, axis.high) for axis in space.axes)


def _change(*change: Any) -> str:
    return json.dumps(change)
