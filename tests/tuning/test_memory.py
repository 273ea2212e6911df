"""Long-term memory: what is learned from a study, carried to other data, kept in files that a person may edit."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from part_spaces import part_space

from recllm.tuning.memory.cognition import CARRIES, Evidence, evidence_of, markdown, summarise
from recllm.tuning.memory.memory import DECAY, Memory
from recllm.tuning.memory.memory_files import RULES_FILE, SUMMARIES
from recllm.tuning.memory.rules import HERE, MOST_A_STUDY, Line, foremost, settled, weighed
from recllm.tuning.memory.transfer import LEAST_STEP, Expectation, Landscape, Points, mended, places, positions
from recllm.tuning.spaces.backbones import SPACES
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.reflection import measured_reflection, single_change
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome

SPACE = part_space("sasrec")
DATA = {"avg_len": 8.0, "p90_len": 19.0, "items_per_user": 1.0, "density": 0.005, "gini": 0.3}
OTHER_DATA = {"avg_len": 4.6, "p90_len": 7.0, "items_per_user": 0.6, "density": 0.0055, "gini": 0.4}
EPSILON = 0.001


def study_of(
    trials: list[tuple[dict, float | None]], space: Space = SPACE, parents: list[int | None] | None = None
) -> History:
    """A history of changes from the default (a dict of axis to value) with their scores, None where they failed."""
    history = History(space, epsilon=EPSILON)
    for number, (changes, score) in enumerate(trials):
        config = space.default
        for name, value in changes.items():
            config = space.change(config, name, value)
        metrics = {} if score is None else {OBJECTIVE: score}
        outcome = Outcome("ok" if metrics else "timeout", space.key(config), config, 0, metrics, 1000)
        parent = parents[number] if parents else 0 if number else None
        trial = Trial(number, "model" if number else "default", outcome, parent=parent)
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


def applying(lines, weights, history):
    return foremost(weighed(lines, weights, history, None), history)


def rules_for(memory, space, data, history=None):
    return foremost(memory.weighed(space, data, history), history or History(space))


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
from recllm.tuning.memory.memory import Memory
sys.path.insert(0, sys.argv[1])
from test_memory import BASIC, DATA, study_of
from recllm.tuning.memory.cognition import summarise
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


def test_a_rules_confidence_by_hand():
    lines = [
        Line("sasrec", "lr", 3e-4, 1e-3, {"a": Evidence("lr", 3e-4, 1e-3, 3, 1, 0, 0.2)}),
        Line("sasrec", "lr", 3e-4, 3e-3, {"a": Evidence("lr", 3e-4, 3e-3, 0, 2, 0, -0.3)}),
        Line("sasrec", "lr", 1e-4, 1e-3, {"b": Evidence("lr", 1e-4, 1e-3, 2, 0, 0, 0.5)}),
        Line("hstu", "lr", 3e-4, 1e-2, {"a": Evidence("lr", 3e-4, 1e-2, 9, 0, 0, 0.9)}),
    ]
    history = study_of(BASIC[:1])
    found = {rule.value: rule for rule in applying(lines, {"a": 0.5, "b": 1.0}, history)}
    assert set(found) == {1e-3, 3e-3}
    # a: half a voice for 3 and 1 pairs; b: from another value on the same side, 0.3 of a voice for 2.
    assert found[1e-3].confidence == pytest.approx((0.5 * 3 + 0.3 * 2 + 1) / (0.5 * 4 + 0.3 * 2 + 2))
    assert (found[1e-3].effect, found[1e-3].supporting, found[1e-3].against) == ("helps", 5, 1)
    assert found[1e-3].studies == ("a", "b") and found[1e-3].promoted
    assert found[1e-3].gain == pytest.approx((0.5 * 4 * 0.2 + 0.3 * 2 * 0.5) / (0.5 * 4 + 0.3 * 2))
    assert found[3e-3].effect == "hurts" and found[3e-3].confidence == pytest.approx(1 / 3)
    assert found[1e-3].text == "lr 0.001 helps +27% (5/6, 2 studies)"
    assert not applying(lines, {}, history)
    many = [replace(lines[0], evidence={"a": Evidence("lr", 3e-4, 1e-3, 300, 100, 0, 0.2)})]
    assert applying(many, {"a": 1.0}, history)[0].confidence == pytest.approx(
        (0.75 * MOST_A_STUDY + 1) / (MOST_A_STUDY + 2)
    )


def test_a_rule_speaks_of_what_can_be_tried_now():
    def rule(name, before, value, gain=0.2):
        return Line("sasrec", name, before, value, {"a": Evidence(name, before, value, 3, 0, 0, gain)})

    lines = [rule("lr", 3e-4, 1e-3), rule("temperature", 0.1, 0.2), rule("dropout", 0.2, 0.4), rule("ffn", "gelu", "x")]
    weights = {"a": 1.0}

    def told(history):
        rules = applying(lines, weights, history)
        return [(found.dimension, found.value) for found in rules if found.effect == "helps"]

    # Temperature does not matter without unit length, and "x" is no legal value.
    assert told(study_of(BASIC[:1])) == [("lr", 1e-3), ("dropout", 0.4)]
    # The present setting is no change, and what was tried from here is not told again.
    assert told(study_of(BASIC[:2])) == [("dropout", 0.4)]
    assert told(study_of(BASIC[:3])) == []
    off = [replace(lines[0], off=True), *lines[1:]]
    assert [found.dimension for found in applying(off, weights, study_of(BASIC[:1]))] == ["dropout"]


def test_a_rule_that_this_study_refuted_twice_is_suspended():
    line = Line("sasrec", "dropout", 0.2, 0.4, {"a": Evidence("dropout", 0.2, 0.4, 300, 0, 0, 0.2)})
    trials = [
        *(({}, 0.05), ({"dropout": 0.4}, 0.04), ({"hidden_dim": 64}, 0.06)),
        *(({"hidden_dim": 64, "dropout": 0.4}, 0.05), ({"hidden_dim": 32}, 0.07)),
    ]
    history = study_of(trials, parents=[None, 0, 0, 2, 2])
    once = replace(history, trials=history.trials[:3])
    # Once refuted it is less sure, twice it is silent.
    assert [rule.dimension for rule in applying([line], {"a": 1.0}, once)] == ["dropout"]
    assert not [rule for rule in applying([line], {"a": 1.0}, history) if rule.dimension == "dropout"]
    assert HERE not in applying([line], {"a": 1.0}, once)[0].studies


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
    found = applying(lines, {"a": 1.0}, study_of(BASIC[:1]))
    assert [rule.effect for rule in found] == ["helps"] * 6 + ["hurts"] * 2
    assert [rule.gain for rule in found[:6]] == sorted((rule.gain for rule in found[:6]), reverse=True)
    assert found[0].gain == max(one.evidence["a"].gain for one in lines)
    assert found[6].gain == min(one.evidence["a"].gain for one in lines)


def test_every_change_that_memory_knows_is_weighed():
    lines = [
        Line("sasrec", "dropout", 0.2, 0.4, {"a": Evidence("dropout", 0.2, 0.4, 3, 0, 0, 0.2)}),
        Line("sasrec", "hidden_dim", 128, 64, {"a": Evidence("hidden_dim", 128, 64, 1, 1, 0, 0.0)}),
        Line("sasrec", "hidden_dim", 128, 32, {"a": Evidence("hidden_dim", 128, 32, 0, 3, 0, -0.1)}),
    ]
    history = study_of(BASIC[:1])
    present = dict(history.present)
    ratio = {(0.2, 128): 0.0, (0.4, 128): 0.01, (0.2, 64): 0.3, (0.2, 32): -0.5}

    def expect(configs):
        return np.array([ratio[config["dropout"], config["hidden_dim"]] for config in configs])

    assert (present["dropout"], present["hidden_dim"]) == (0.2, 128)
    found = weighed(lines, {"a": 1.0}, history, expect)
    assert [(rule.dimension, rule.value) for rule in found] == [
        ("hidden_dim", 64),
        ("dropout", 0.4),
        ("hidden_dim", 32),
    ]
    # What neither helps nor hurts by its pairs is no rule to tell in words, whatever is expected of it.
    assert found[0].effect == "neutral"
    assert [rule.dimension for rule in foremost(found, history)] == ["dropout", "hidden_dim"]
    # By hand: three pairs of the change itself and the expectation, which counts as four.
    assert found[1].gain == pytest.approx((3 * 0.2 + 4 * np.expm1(0.01)) / 7)


def test_ranges_speak_of_the_nearest_level():
    lr = SPACES["sasrec"]().by_name["lr"]
    assert settled(lr, 0.0031) == settled(lr, 0.0029) != settled(lr, 0.001)
    pool = SPACES["sasrec"]().by_name["pool_k"]
    for axis in (lr, pool, SPACES["hstu"]().by_name["temperature"], SPACES["hstu"]().by_name["attn_dropout"]):
        for share in np.linspace(0, 1, 50, endpoint=False):
            value = settled(axis, axis.from_unit(share))
            assert axis.check(value) == value == settled(axis, value)


def made(seed: int, shift: float) -> dict[str, float]:
    """Worth of (axis, value) pairs, alike over seeds but for `shift`: a world where effects add up."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    pairs = [f"{axis.name}={value}" for axis in SPACE.axes for value in axis.values]
    return {pair: float(common.normal(0, 0.2) + shift * own.normal(0, 0.2)) for pair in pairs}


def worth(world: dict[str, float], config: dict) -> float:
    gap = sum(world[f"{name}={value}"] for name, value in config.items())
    return 0.05 * float(np.exp(gap - sum(world[f"{name}={value}"] for name, value in SPACE.default.items())))


def surface_of(world: dict[str, float], seed: int, count: int = 60) -> list[tuple[dict, float]]:
    rng = np.random.default_rng(seed)
    configs = [SPACE.default, *(SPACE.sample(rng) for _ in range(count))]
    return [(config, worth(world, config) * float(np.exp(0.02 * rng.normal()))) for config in configs]


@pytest.fixture(scope="module")
def remembered(tmp_path_factory) -> tuple[Memory, dict[str, float]]:
    """A memory of two studies, and the world of a third."""
    memory, shift = Memory(tmp_path_factory.mktemp("remembered")), 0.3
    for seed in (1, 2):
        outcomes = [
            Outcome("ok", SPACE.key(config), config, 0, {OBJECTIVE: score})
            for config, score in surface_of(made(seed, shift), seed)
        ]
        trials = tuple(Trial(number, "sampler", outcome, kept=not number) for number, outcome in enumerate(outcomes))
        memory.learn(summarise(f"study-{seed}", History(SPACE, trials, EPSILON), DATA))
    return memory, made(3, shift)


def test_the_start_is_good_on_data_that_no_study_saw(remembered):
    memory, world = remembered
    prior = memory.prior(SPACE, DATA)
    rng = np.random.default_rng(9)
    drawn = np.array([worth(world, SPACE.sample(rng)) for _ in range(300)])
    bests = [worth(world, study.summary.best) for study in memory.studies()]
    found = worth(world, prior.start)
    assert np.mean(drawn > found) < 0.03 and found >= np.mean(bests)
    assert SPACE.check(prior.start) == prior.start
    assert [name for name, _ in prior.studies] == ["study-2", "study-1"]
    assert prior.studies[1][1] == pytest.approx(1 - DECAY) and "study-1 (alike 0.95): best of 61" in prior.text


def test_a_climb_ends_where_no_single_change_promises_more(remembered):
    memory, _ = remembered
    expectation = memory.expectation(SPACE, DATA, History(SPACE))
    start = expectation.climb(SPACE.default)
    here, top = expectation.of([start])[0], expectation.of(list(SPACE.neighbours(start))).max()
    assert top <= here + LEAST_STEP and here > expectation.of(list(SPACE.neighbours(SPACE.default))).max()


def test_the_next_start_heeds_what_the_first_one_showed(remembered, tmp_path):
    memory, _ = remembered
    history = study_of([({}, 0.05)])
    tried = []
    while (start := memory.next_start(SPACE, DATA, history)) is not None:
        tried.append(SPACE.key(start))
        score = 0.02 if len(tried) < 2 else 0.2
        outcome = Outcome("ok", SPACE.key(start), start, 0, {OBJECTIVE: score})
        history = history.with_trial(Trial(len(tried), "memory", outcome, kept=history.keeps(outcome)))
    # The first failed, so another is tried; the second is beyond what any other promises.
    assert tried[0] == SPACE.key(memory.prior(SPACE, DATA).start) and len(tried) == len(set(tried)) == 2
    assert Memory(tmp_path).next_start(SPACE, DATA, study_of([({}, 0.05)])) is None


def test_rules_pay_on_data_that_no_study_saw(tmp_path):
    memory, world = Memory(tmp_path), made(3, 0.4)
    for seed in (1, 2):
        settings = [(axis.name, value) for axis in SPACE.axes if axis.name in SPACE.default for value in axis.values]
        there = made(seed, 0.4)
        trials = [({}, 0.05)]
        for name, value in settings:
            if value != SPACE.default[name]:
                trials.append(({name: value}, worth(there, SPACE.change(SPACE.default, name, value))))
        memory.learn(summarise(f"walk-{seed}", study_of(trials), DATA))
    rules = rules_for(memory, SPACE, DATA, study_of([({}, 0.05)]))
    assert len(rules) == 8
    for rule in rules:
        gain = worth(world, SPACE.change(SPACE.default, rule.dimension, rule.value)) / 0.05 - 1
        assert rule.promoted and (gain > 0) == (rule.effect == "helps"), rule.text
    assert len(rules_for(memory, SPACE, DATA)) == 8  # before a study's first trial


def test_likely_data_is_heard_more(tmp_path):
    memory = Memory(tmp_path)
    places_ = [{}, {"ffn": "swiglu"}, {"pooling": "mean"}, {"num_blocks": 2}, {"dropout": 0.4}, {"batch_size": 64}]
    for name, gain, data in (("here", 1.2, DATA), ("there", 0.8, OTHER_DATA), ("far", 0.8, {**DATA, "avg_len": 4e3})):
        trials = [
            (place | changes, 0.05 * factor)
            for changes, factor in (({}, 1.0), ({"lr": 1e-3}, gain))
            for place in places_
        ]
        memory.learn(summarise(name, study_of(trials), data))
    heard = {study.summary.study: weight for study, weight in memory.heard(SPACE, DATA)}
    assert set(heard) == {"here", "there"} and heard["here"] == pytest.approx((1 - DECAY) ** 2)
    here, there = rules_for(memory, SPACE, DATA), rules_for(memory, SPACE, OTHER_DATA)
    # All else made no difference anywhere.
    assert [(rule.value, rule.effect) for rule in here] == [(1e-3, "helps")]
    assert [(rule.value, rule.effect) for rule in there] == [(1e-3, "hurts")]
    assert memory.heard(part_space("hstu"), DATA) == []
    assert memory.prior(part_space("hstu"), DATA).start is None


@pytest.mark.parametrize("name", ["sasrec", "hstu", "glass"])
def test_a_configuration_of_another_space_is_mended(name):
    rng = np.random.default_rng(0)
    for _ in range(20):
        config = SPACES[name]().sample(rng)
        assert mended(SPACES[name](), config) == config
        for space in (SPACE, part_space("hstu"), SPACES["glass"]()):
            space.check(mended(space, config))
    numbers = mended(SPACE, {"lr": 2.4e-3, "dropout": 0.25, "weight_decay": 1.0, "hidden_dim": 1000, "batch_size": -1})
    assert {key: numbers[key] for key in ("lr", "dropout", "weight_decay", "hidden_dim", "batch_size")} == {
        **{"lr": 3e-3, "dropout": 0.2, "weight_decay": 1e-3, "hidden_dim": 128, "batch_size": 32}
    }
    odd = {"lr": "fast", "ffn": 3, "pooling": None, "temperature": 0.1, "dropout": float("nan"), "nothing": 1}
    assert mended(SPACE, odd) == SPACE.default


def test_a_landscape_goes_through_what_was_measured():
    rng = np.random.default_rng(0)
    configs = [SPACE.sample(rng) for _ in range(60)]
    world = made(1, 0.5)
    ratio_C = np.array([np.log(worth(world, config) / 0.05) for config in configs])
    landscape = Landscape.fit(SPACE, configs, ratio_C, 0.01)
    expected_C = landscape.expect(Points.of(SPACE, configs))
    assert np.corrcoef(expected_C, ratio_C)[0, 1] > 0.98
    others = [SPACE.sample(rng) for _ in range(60)]
    truth = np.array([np.log(worth(world, config) / 0.05) for config in others])
    assert np.corrcoef(landscape.expect(Points.of(SPACE, others)), truth)[0, 1] > 0.6
    # A study's own trials pull the expectation to what they show, there and nearby, and not far away.
    told = Expectation(SPACE, (landscape,), (1.0,), (configs[0],), np.array([ratio_C[0] + 1.0]), 0.01)
    lifted = told.of(configs) - expected_C
    assert 0.7 < lifted[0] < 1.05 and np.argmax(lifted) == 0 and np.median(np.abs(lifted)) < 0.5 * lifted[0]


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_places_and_distances(name):
    space, rng = SPACES[name](), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(12)]
    gap_XCA = Points.of(space, configs).apart(Points.of(space, configs[:5]))
    wanted = [[space.distance(one, other) for other in configs[:5]] for one in configs]
    np.testing.assert_allclose(gap_XCA.mean(-1), wanted, atol=1e-12)
    assert positions(space, configs).min() >= 0 and positions(space, configs).max() <= 1
    for axis in space.axes:
        found_CP = places(axis, configs)
        assert found_CP.sum(1).tolist() == pytest.approx([float(axis.name in config) for config in configs])
        for row, config in zip(found_CP, configs, strict=True):
            if axis.name in config:
                levels = np.arange(len(row)) / (len(row) - 1)
                assert row @ levels == pytest.approx(axis.unit(config[axis.name]))


EDITS = [
    ("{", "not JSON"),
    ("[1]", "a list where an object"),
    ('{"space": "sasrec"}', "dimension is missing"),
    ('{"space": "sasrec", "dimension": "lr", "from": 1, "value": 2, "evidence": {}, "of": 1}', "'of' is not known"),
    ('{"space": "sasrec", "dimension": "lr", "from": [1], "value": 2, "evidence": {}}', "from is a number"),
    ('{"space": "sasrec", "dimension": "lr", "from": NaN, "value": 2, "evidence": {}}', "from is a number"),
    ('{"space": "sasrec", "dimension": "lr", "from": 1, "value": 2, "evidence": {"../x": {}}}', "an id has"),
    ('{"space": "sasrec", "dimension": "lr", "from": 1, "value": 2, "evidence": {"a": {}}}', "supporting is missing"),
    ('{"space": "sasrec", "dimension": "lr", "from": 1, "value": 2, "evidence": {}, "off": 1}', "off is true or false"),
    ('{"space": "sas\\nrec", "dimension": "lr", "from": 1, "value": 2, "evidence": {}}', "printable"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "words"), EDITS)
def test_a_bad_line_is_named(line, words, tmp_path):
    memory = Memory(tmp_path)
    memory.learn(summarise("beauty", study_of(BASIC), DATA))
    path = tmp_path / RULES_FILE
    place = len(path.read_text().splitlines()) + 2
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"{RULES_FILE}, line {place}: .*{words}"):
        rules_for(memory, SPACE, DATA)


def test_the_same_change_twice_is_named(tmp_path):
    memory = Memory(tmp_path)
    memory.learn(summarise("beauty", study_of(BASIC), DATA))
    path = tmp_path / RULES_FILE
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="the same change as line 2"):
        memory.lines()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "toy"}, "study is 'toy', but the file is named 'beauty'"),
        ({"default_score": 0}, "default_score is as good as 0"),
        ({"default_score": 1e-300}, "default_score is as good as 0"),
        ({"default_score": 10**400}, "default_score is a number"),
        ({"trials": []}, "trials is empty"),
        ({"trials": [[{"lr": 10**400}, 0.1]]}, "trial 1: lr is a number"),
        ({"trials": [[{"lr": 1}]]}, "trial 1 is a configuration and a score"),
        ({"trials": [[{"lr": {}}, 0.1]]}, "trial 1: lr is a number"),
        ({"data": {"avg_len": "long"}}, "data avg_len is a number"),
        ({"learned": "first"}, "learned is a whole number"),
        ({"pruned": [["lr"]]}, "pruned is a list of pairs"),
        ({"more": 1}, "'more' is not known"),
    ],
)
def test_a_bad_summary_is_named(change, words, tmp_path):
    memory = Memory(tmp_path)
    memory.learn(summarise("beauty", study_of(BASIC), DATA))
    path = tmp_path / SUMMARIES / "beauty.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"beauty.json: .*{words}"):
        memory.prior(SPACE, DATA)


def test_what_a_person_edits_counts(tmp_path):
    memory = Memory(tmp_path)
    memory.learn(summarise("beauty", study_of(BASIC), DATA))
    assert [rule.dimension for rule in rules_for(memory, SPACE, DATA) if rule.effect == "helps"] == ["lr", "dropout"]
    path, text = tmp_path / SUMMARIES / "beauty.md", (tmp_path / SUMMARIES / "beauty.md").read_text()
    path.write_text(text.replace("- best of 6", "- after a look: best of 6"))
    assert "after a look: best of 6" in memory.prior(SPACE, DATA).text
    lines = (tmp_path / RULES_FILE).read_text().splitlines()
    place = next(place for place, line in enumerate(lines) if json.loads(line)["value"] == 1e-3)
    assert json.loads(lines[place])["dimension"] == "lr"
    off = json.dumps(json.loads(lines[place]) | {"off": True, "note": "not here"})
    (tmp_path / RULES_FILE).write_text("\n".join([*lines[:place], off, *lines[place + 1 :]]) + "\n")
    assert [rule.dimension for rule in rules_for(memory, SPACE, DATA) if rule.effect == "helps"] == ["dropout"]
    # Learning more keeps a person's word.
    memory.learn(summarise("toy", study_of(BASIC), DATA))
    kept = next(line for line in memory.lines() if line.value == 1e-3 and line.dimension == "lr")
    assert kept.off and kept.note == "not here" and set(kept.evidence) == {"beauty", "toy"}
    path.write_text(text.replace(CARRIES, "## Something else"))
    with pytest.raises(ValueError, match=r"beauty\.md has no line"):
        memory.prior(SPACE, DATA)
    shutil.rmtree(tmp_path / SUMMARIES)
    assert memory.prior(SPACE, DATA).start is None and rules_for(memory, SPACE, DATA) == []


def test_a_name_that_is_no_file_name(tmp_path):
    summary = summarise("../beauty", study_of(BASIC), DATA)
    with pytest.raises(ValueError, match="an id has 1 to 100 letters"):
        Memory(tmp_path / "memory").learn(summary)
    assert list(tmp_path.iterdir()) == []
