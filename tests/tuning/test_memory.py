"""Long-term memory: what is learned from a study, carried to other data, kept in files that a person may edit."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recllm.tuning.cognition import Evidence, evidence_of, markdown, summarise
from recllm.tuning.memory import Memory
from recllm.tuning.memory_files import SUMMARIES
from recllm.tuning.reflection import measured_reflection, single_change
from recllm.tuning.rules import MOST_A_STUDY, Line, applying, settled
from recllm.tuning.runner import OBJECTIVE, Outcome
from recllm.tuning.space import Space
from recllm.tuning.spaces import SPACES, surface_space
from recllm.tuning.trial import History, Trial

SPACE = surface_space("sasrec")
DATA = {"avg_len": 8.0, "p90_len": 19.0, "items_per_user": 1.0, "density": 0.005, "gini": 0.3}
OTHER_DATA = {"avg_len": 4.6, "p90_len": 7.0, "items_per_user": 0.6, "density": 0.0055, "gini": 0.4}
EPSILON = 0.001


def study_of(trials: list[tuple[dict, float | None]], space: Space = SPACE, epsilon: float = EPSILON) -> History:
    """A history of changes from the default (a dict of axis to value) with their scores, None where they failed."""
    history = History(space, epsilon=epsilon)
    for number, (changes, score) in enumerate(trials):
        config = space.default
        for name, value in changes.items():
            config = space.change(config, name, value)
        metrics = {} if score is None else {OBJECTIVE: score}
        outcome = Outcome("ok" if metrics else "timeout", space.key(config), config, 0, metrics, 1000)
        trial = Trial(number, "model" if number else "default", outcome, parent=0 if number else None)
        trial = replace(trial, kept=history.keeps(outcome))
        reflection = measured_reflection(history, trial) if number else None
        history = history.with_trial(replace(trial, reflection=reflection))
    return history


BASIC = [
    ({}, 0.05),
    ({"lr": 1e-3}, 0.06),
    ({"lr": 1e-3, "dropout": 0.4}, 0.066),
    ({"lr": 1e-3, "dropout": 0.6}, 0.0605),
    ({"num_blocks": 3}, None),
    ({"ffn": "swiglu"}, 0.0505),
]


def test_evidence_by_hand():
    seen = {(one.dimension, one.before, one.value): one for one in evidence_of(study_of(BASIC))}
    assert set(seen) == {
        *(("lr", 3e-4, 1e-3), ("lr", 1e-3, 3e-4), ("num_blocks", 1, 3), ("ffn", "gelu", "swiglu")),
        *(("ffn", "swiglu", "gelu"), ("dropout", 0.2, 0.4), ("dropout", 0.4, 0.2), ("dropout", 0.2, 0.6)),
        *(("dropout", 0.6, 0.2), ("dropout", 0.4, 0.6), ("dropout", 0.6, 0.4)),
    }
    assert seen["lr", 3e-4, 1e-3] == Evidence("lr", 3e-4, 1e-3, 1, 0, 0, 0.2)
    assert seen["lr", 1e-3, 3e-4] == Evidence("lr", 1e-3, 3e-4, 0, 1, 0, round(-1 / 6, 4))
    assert seen["ffn", "gelu", "swiglu"] == Evidence("ffn", "gelu", "swiglu", 0, 0, 1, 0.01)
    assert seen["num_blocks", 1, 3] == Evidence("num_blocks", 1, 3, 0, 1, 0, -0.8)


def test_evidence_counts_every_pair_against_brute_force():
    rng = np.random.default_rng(0)
    configs = list({SPACE.key(config): config for config in _walk(rng, 60)}.values())
    trials = [(config, float(score)) for config, score in zip(configs, rng.random(len(configs)) / 10, strict=True)]
    outcomes = [Outcome("ok", SPACE.key(config), config, 0, {OBJECTIVE: score}) for config, score in trials]
    history = History(SPACE, tuple(Trial(n, "sampler", outcome) for n, outcome in enumerate(outcomes)), EPSILON)
    wanted: dict = {}
    for one, score in trials:
        for other, later in trials:
            if change := single_change(SPACE, one, other):
                counts = wanted.setdefault(change, [0, 0, 0])
                counts[0 if later - score > EPSILON else 1 if later - score < -EPSILON else 2] += 1
    found = {(e.dimension, e.before, e.value): [e.supporting, e.against, e.neutral] for e in evidence_of(history)}
    assert found == wanted and len(wanted) > 20


def _walk(rng: np.random.Generator, steps: int):
    config = SPACE.default
    for _ in range(steps):
        yield config
        config = list(SPACE.neighbours(config))[rng.integers(len(list(SPACE.neighbours(config))))]
        config = SPACE.default if rng.random() < 0.2 else config


def test_a_summary_says_what_was_gained_and_what_failed():
    summary = summarise("beauty", study_of(BASIC), DATA)
    assert summary.gain == pytest.approx(0.066 / 0.05 - 1) and summary.default_score == 0.05
    assert {name: summary.best[name] for name in ("lr", "dropout")} == {"lr": 1e-3, "dropout": 0.4}
    assert ("num_blocks", 3) in summary.pruned
    text = markdown(summary)
    assert "best of 6: +32% with dropout 0.4, lr 0.001" in text
    assert "- lr 0.0003 to 0.001: +20% (1 for, 0 against)" in text
    assert "made no difference: ffn" in text and "timeout: num_blocks 3 (1)" in text
    with pytest.raises(ValueError, match="default configuration has no score"):
        summarise("beauty", study_of([({}, None), ({"lr": 1e-3}, 0.06)]), DATA)


def test_learning_twice_changes_nothing(tmp_path):
    memory, summary = Memory(tmp_path), summarise("beauty", study_of(BASIC), DATA)
    assert memory.learn(summary)
    before = _contents(tmp_path)
    assert not memory.learn(summary) and not Memory(tmp_path).learn(summary)
    assert _contents(tmp_path) == before
    longer = summarise("beauty", study_of([*BASIC, ({"lr": 3e-3}, 0.07)]), DATA)
    assert memory.learn(longer)
    fresh = Memory(tmp_path / "fresh")
    fresh.learn(longer)
    assert _contents(tmp_path / "fresh") == {
        name: text for name, text in _contents(tmp_path).items() if not name.startswith("fresh")
    }


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_two_processes_learn_without_losing_a_word(tmp_path):
    script = """
import sys
from recllm.tuning.memory import Memory
sys.path.insert(0, sys.argv[1])
from test_memory import BASIC, DATA, study_of
from recllm.tuning.cognition import summarise
for number in range(3):
    Memory(sys.argv[2]).learn(summarise(f"{sys.argv[3]}-{number}", study_of(BASIC), DATA))
"""
    words = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    workers = [subprocess.Popen([*words, name]) for name in ("a", "b")]
    assert [worker.wait() for worker in workers] == [0, 0]
    memory = Memory(tmp_path)
    assert {study.summary.study for study in memory.studies()} == {f"{n}-{k}" for n in "ab" for k in range(3)}
    assert sorted(study.learned for study in memory.studies()) == list(range(1, 7))
    assert all(len(line.evidence) == 6 for line in memory.lines())


def test_a_kill_between_the_files_is_made_good(tmp_path):
    memory, summary = Memory(tmp_path), summarise("beauty", study_of(BASIC), DATA)
    memory.learn(summarise("toy", study_of(BASIC[:3]), OTHER_DATA))
    memory.learn(summary)
    whole = _contents(tmp_path)
    (tmp_path / SUMMARIES / "beauty.json").unlink()  # the last that is written
    assert Memory(tmp_path).learn(summary) and _contents(tmp_path) == whole


def known(space: Space, data: dict, trials: list, name: str, memory: Memory) -> Memory:
    memory.learn(summarise(name, study_of(trials, space), data))
    return memory


def test_a_rules_confidence_by_hand(tmp_path):
    lines = [
        Line("sasrec", "lr", 3e-4, 1e-3, {"a": Evidence("lr", 3e-4, 1e-3, 3, 1, 0, 0.2)}),
        Line("sasrec", "lr", 3e-4, 3e-3, {"a": Evidence("lr", 3e-4, 3e-3, 0, 2, 0, -0.3)}),
        Line("sasrec", "lr", 1e-4, 1e-3, {"b": Evidence("lr", 1e-4, 1e-3, 2, 0, 0, 0.5)}),
        Line("hstu", "lr", 3e-4, 1e-2, {"a": Evidence("lr", 3e-4, 1e-2, 9, 0, 0, 0.9)}),
    ]
    history = study_of(BASIC[:1])
    found = {rule.value: rule for rule in applying(lines, {"a": 0.5, "b": 1.0}, history, None, 8)}
    assert set(found) == {1e-3, 3e-3}
    # a: half a voice for 3 and 1 pairs; b: from another value on the same side, 0.3 of a voice for 2.
    assert found[1e-3].confidence == pytest.approx((0.5 * 3 + 0.3 * 2 + 1) / (0.5 * 4 + 0.3 * 2 + 2))
    assert (found[1e-3].effect, found[1e-3].supporting, found[1e-3].against) == ("helps", 5, 1)
    assert found[1e-3].studies == ("a", "b") and found[1e-3].promoted
    assert found[1e-3].gain == pytest.approx((0.5 * 4 * 0.2 + 0.3 * 2 * 0.5) / (0.5 * 4 + 0.3 * 2))
    assert found[3e-3].effect == "hurts" and found[3e-3].confidence == pytest.approx(1 / 3)
    assert found[1e-3].text == "lr 0.001 helps +27% (5/6, 2 studies)"
    assert not applying(lines, {}, history, None, 8)
    many = [replace(lines[0], evidence={"a": Evidence("lr", 3e-4, 1e-3, 300, 100, 0, 0.2)})]
    assert applying(many, {"a": 1.0}, history, None, 8)[0].confidence == pytest.approx(
        (0.75 * MOST_A_STUDY + 1) / (MOST_A_STUDY + 2)
    )


def test_a_rule_speaks_of_what_can_be_tried_now(tmp_path):
    def rule(name, before, value, gain=0.2):
        return Line("sasrec", name, before, value, {"a": Evidence(name, before, value, 3, 0, 0, gain)})

    lines = [rule("lr", 3e-4, 1e-3), rule("temperature", 0.1, 0.2), rule("dropout", 0.2, 0.4), rule("ffn", "gelu", "x")]
    weights = {"a": 1.0}

    def told(history):
        return [(found.dimension, found.value) for found in applying(lines, weights, history, None, 8)]

    # Temperature does not matter without unit length, and "x" is no legal value.
    assert told(study_of(BASIC[:1])) == [("lr", 1e-3), ("dropout", 0.4)]
    # The present setting is no change, and what was tried from here is not told again.
    assert told(study_of(BASIC[:2])) == [("dropout", 0.4)]
    assert told(study_of(BASIC[:3])) == []
    off = [replace(lines[0], off=True), *lines[1:]]
    assert [found.dimension for found in applying(off, weights, study_of(BASIC[:1]), None, 8)] == ["dropout"]


def test_a_rule_that_this_study_refuted_twice_is_suspended():
    line = Line("sasrec", "dropout", 0.2, 0.4, {"a": Evidence("dropout", 0.2, 0.4, 300, 0, 0, 0.2)})
    trials, told = [({}, 0.05)], []
    for place, blocks in enumerate([{}, {"hidden_dim": 64}, {"hidden_dim": 64, "batch_size": 128}]):
        here = 0.06 + place / 100
        if blocks:
            trials.append((blocks, here))
        history = study_of(trials)
        told.append(bool(applying([line], {"a": 1.0}, replace(history, trials=_chained(history)), None, 8)))
        trials.append(({**blocks, "dropout": 0.4}, here - 0.02))
    assert told == [True, True, False]


def _chained(history: History) -> tuple[Trial, ...]:
    """The trials, each a child of the one it is one change away from, the latest before it."""
    found: list[Trial] = []
    for trial in history.trials:
        near = [other for other in found if single_change(SPACE, other.config, trial.config)]
        found.append(replace(trial, parent=near[-1].number if near else None))
    return tuple(found)


def test_few_rules_say_what_hurts_and_the_most_promising_stands_first():
    values = {name: axis.values for name, axis in SPACE.by_name.items() if name in SPACE.default}
    lines = []
    for name, options in values.items():
        for value in options:
            if value != SPACE.default[name]:
                gain = 0.01 * (len(lines) + 1) * (-1) ** len(lines)
                counts = (3, 0, 0) if gain > 0 else (0, 3, 0)
                one = Evidence(name, SPACE.default[name], value, *counts, gain)
                lines.append(Line("sasrec", name, SPACE.default[name], value, {"a": one}))
    found = applying(lines, {"a": 1.0}, study_of(BASIC[:1]), None, 8)
    assert [rule.effect for rule in found] == ["helps"] * 6 + ["hurts"] * 2
    assert [rule.gain for rule in found[:6]] == sorted((rule.gain for rule in found[:6]), reverse=True)
    assert found[0].gain == max(one.evidence["a"].gain for one in lines)
    assert found[6].gain == min(one.evidence["a"].gain for one in lines)


def test_ranges_speak_of_the_nearest_level():
    lr = SPACES["sasrec"]().by_name["lr"]
    assert settled(lr, 0.0031) == settled(lr, 0.0029) != settled(lr, 0.001)
    pool = SPACES["sasrec"]().by_name["pool_k"]
    for axis in (lr, pool, SPACES["hstu"]().by_name["temperature"], SPACES["hstu"]().by_name["attn_dropout"]):
        for share in np.linspace(0, 1, 50, endpoint=False):
            value = settled(axis, axis.from_unit(share))
            assert axis.check(value) == value == settled(axis, value)
