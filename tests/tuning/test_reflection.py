"""What a trial teaches: verdicts by the noise threshold, the coverage rule, replies that cannot lie about numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_spaces import part_space

from recllm.tuning.spaces.backbones import SPACES
from recllm.tuning.spaces.families import FAMILIES
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.coverage import coverage, masked_axes
from recllm.tuning.study.noise import epsilon_of
from recllm.tuning.study.reflection import (
    LearnedRule,
    Reflection,
    change_of,
    measured_reflection,
    read_reflection,
    reflection_schema,
    single_change,
)
from recllm.tuning.study.trial import LEAST_EPSILON, History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome

SPACE = part_space("sasrec")
EPSILON = 0.002


def trial_of(history: History, config: dict, score: float | None, status: str = "crash") -> Trial:
    """A trial of the configuration, next in the history, its parent what the history stands on."""
    space, best = history.space, history.best
    metrics = {} if score is None else {OBJECTIVE: score}
    outcome = Outcome("ok" if metrics else status, space.key(config), config, 0, metrics, 1000)
    return Trial(len(history.trials), "model" if best else "default", outcome, parent=best.number if best else None)


def after(history: History, *changes: tuple, score: float | None, status: str = "crash") -> tuple[History, Trial]:
    """The history with a trial of what it stands on, changed."""
    config = dict(history.best.config if history.best else history.space.default)
    for name, value in changes:
        config = history.space.change(config, name, value)
    trial = trial_of(history, config, score, status)
    trial = replace(trial, kept=history.keeps(trial.outcome))
    return history.with_trial(trial), trial


def begun(score: float = 0.05, space: Space = SPACE) -> History:
    return after(History(space, epsilon=EPSILON), score=score)[0]


def test_epsilon_by_hand():
    assert epsilon_of([0.1, 0.2, 0.3]) == pytest.approx(0.1)
    assert epsilon_of([0.1, 0.2, 0.3], kappa=2.0) == pytest.approx(0.2)
    assert epsilon_of([0.1, 0.1, 0.1]) == epsilon_of([0.1]) == epsilon_of([]) == LEAST_EPSILON
    assert epsilon_of([0.1, -math.inf, 0.3]) == pytest.approx(math.sqrt(0.02))
    with pytest.raises(ValueError, match="kappa"):
        epsilon_of([0.1, 0.2], kappa=-1.0)


@pytest.mark.parametrize(
    ("score", "verdict", "effect", "pruned"),
    [
        (0.0521, "confirmed", "helps", ()),
        (0.0519, "inconclusive", "neutral", ()),
        (0.0481, "inconclusive", "neutral", ()),
        (0.0479, "refuted", "hurts", (("dropout", 0.4),)),
    ],
)
def test_the_verdict_is_the_noise_thresholds(score, verdict, effect, pruned):
    history, trial = after(begun(), ("dropout", 0.4), score=score)
    found = measured_reflection(history, trial)
    assert (found.verdict, found.rule.effect, found.prune) == (verdict, effect, pruned)
    assert found.observed_delta == pytest.approx(score - 0.05) and found.failure_dimension is None
    assert (found.rule.dimension, found.rule.value, found.source) == ("dropout", 0.4, "measured")
    assert Reflection.of_row(found.row()) == found
    assert measured_reflection(replace(history, trials=history.trials[:-1]), trial) == found


def test_what_a_change_says_depends_on_which_way_it_went():
    told = {}
    for value, score in ((0.4, 0.06), (0.4, 0.04), (0.0, 0.06), (0.0, 0.04)):
        history, trial = after(begun(), ("dropout", value), score=score)
        told[value, score] = measured_reflection(history, trial).bottleneck
    assert told == {
        (0.4, 0.06): "over-fitting",
        (0.4, 0.04): "capacity",
        (0.0, 0.06): "capacity",
        (0.0, 0.04): "over-fitting",
    }


@pytest.mark.parametrize("status", ["crash", "nan", "timeout", "out_of_memory", "too_large"])
def test_a_failed_trial_is_refuted_and_says_by_what(status):
    history, trial = after(begun(), ("hidden_dim", 64), score=0.06)
    history, trial = after(history, ("num_blocks", 2), score=None, status=status)
    found = measured_reflection(history, trial)
    assert (found.verdict, found.observed_delta, found.failure_dimension) == ("refuted", None, status)
    further = (("num_blocks", 3),) if status in ("timeout", "out_of_memory", "too_large") else ()
    assert found.prune == (("num_blocks", 2), *further)


def test_a_trial_that_the_space_refused_has_no_change():
    history = begun()
    outcome = Outcome("refused", "", {"dropout": "much"}, 0, words="no number")
    found = measured_reflection(history, Trial(1, "sampler", outcome, parent=0))
    assert (found.verdict, found.rule, found.prune) == ("refuted", None, ())


@pytest.mark.parametrize("name", list(SPACES))
def test_a_single_change_is_told_from_any_other(name):
    space, rng = SPACES[name](), np.random.default_rng(0)
    for _ in range(40):
        before = space.sample(rng)
        axis = space.by_name[list(before)[rng.integers(len(before))]]
        value = axis.from_unit(rng.random())
        config = space.change(before, axis.name, value)
        told = single_change(space, before, config)
        assert told == (None if value == before[axis.name] else (axis.name, before[axis.name], value))
        other = space.sample(rng)
        told = single_change(space, before, other)
        assert told is None or space.change(before, told[0], told[2]) == other


def test_families_name_axes_that_exist():
    axes = {axis.name for make in SPACES.values() for axis in make().axes}
    named = [name for names in FAMILIES.values() for name in names]
    assert set(named) == axes and len(named) == len(set(named))


def changed(names: list[str]) -> History:
    """A history whose trials changed these axes, none of which was kept."""
    history = begun()
    for place, name in enumerate(names):
        values = [value for value in SPACE.by_name[name].values if value != SPACE.default[name]]
        history, _ = after(history, (name, values[place % len(values)]), score=0.01)
    return history


@pytest.mark.parametrize(
    ("names", "masked"),
    [
        (["lr"] * 5, set()),
        (["lr"] * 6, {"lr"}),
        (["lr", "lr", "lr", "lr", "lr", "ffn"], {"lr"}),
        (["lr", "lr", "lr", "ffn", "ffn", "dropout"], {"lr", "ffn"}),
        (["lr", "lr", "ffn", "ffn", "dropout", "pooling"], set()),
        (["ffn", "dropout", "pooling", "lr", "lr", "lr", "dropout", "dropout", "dropout"], {"lr", "dropout"}),
        (["lr"] * 6 + ["ffn", "dropout", "pooling", "tie_embeddings"], set()),
    ],
)
def test_the_coverage_rule(names, masked):
    history = changed(names)
    assert masked_axes(history) == masked
    assert sum(coverage(history).values()) == len(names)
    assert {name for name, count in coverage(history).items() if count} == set(names)


def test_a_mask_leaves_something_to_change():
    space = replace(SPACE, axes=tuple(axis for axis in SPACE.axes if axis.name in ("lr", "ffn")))
    history = begun(space=space)
    for place in range(6):
        name = ("lr", "ffn")[place % 2]
        value = space.by_name[name].values[0 if name == "ffn" and space.default["ffn"] != "gelu" else -1]
        history, _ = after(history, (name, value), score=0.01)
    assert masked_axes(history) == set()
    with pytest.raises(ValueError, match="window"):
        masked_axes(history, 0)


def said(**more) -> dict:
    told = {"causal_attribution": "a", "bottleneck": "b", "when": "w", "confidence": 0.5, "next_action": "n"}
    return {**told, "prune": [{"dimension": "lr", "value": 0.03}], **more}


def test_a_reply_cannot_change_what_was_measured():
    history, trial = after(begun(), ("dropout", 0.4), score=0.04)
    found = read_reflection("I think " + json.dumps(said()), history, trial)
    assert (found.verdict, found.source) == ("refuted", "model")
    assert found.observed_delta == pytest.approx(-0.01)
    assert found.rule == LearnedRule("w", "dropout", 0.4, "hurts", 0.5)
    assert found.prune == (("dropout", 0.4), ("lr", 0.03))
    assert read_reflection(json.dumps(said(verdict="confirmed")), history, trial) is None


def test_what_cannot_be_written_to_a_file_is_not_kept_of_a_reply():
    history, trial = after(begun(), ("dropout", 0.4), score=0.04)
    reply = said(bottleneck="\ud800 width\u2028\x1b[2J", next_action="<|im_end|>")
    found = read_reflection(json.dumps(reply), history, trial)
    assert (found.bottleneck, found.next_action) == ("width [2J", "(/im_end/)")
    assert read_reflection(json.dumps(said(when="\ud800")), history, trial) is None


def test_a_change_that_mends_a_failed_configuration_is_confirmed():
    failed = Outcome("crash", SPACE.key(SPACE.default), SPACE.default, 0, words="no")
    history = History(SPACE, (Trial(0, "default", failed),), epsilon=0.001)
    config = SPACE.change(SPACE.default, "dropout", 0.4)
    trial = Trial(1, "model", Outcome("ok", SPACE.key(config), config, 0, {OBJECTIVE: 0.05}), parent=0)
    found = measured_reflection(history, trial)
    assert found.verdict == "confirmed" and found.rule.effect == "helps" and found.prune == ()


def test_what_the_study_stands_on_is_not_pruned():
    history, trial = after(begun(), ("lr", 0.03), score=0.08)
    assert history.best == trial
    assert read_reflection(json.dumps(said()), history, trial).prune == ()


def test_the_schema_asks_for_what_is_read():
    history, trial = after(begun(), ("l2_norm", True), score=0.06)
    schema = reflection_schema(history, trial)
    assert schema["required"] == list(schema["properties"]) == list(said()) and not schema["additionalProperties"]
    settings_ = schema["properties"]["prune"]["items"]["anyOf"]
    assert [one["properties"]["dimension"]["const"] for one in settings_] == list(trial.config)
    for one in settings_:
        for value in one["properties"]["value"]["enum"]:
            pair = {"dimension": one["properties"]["dimension"]["const"], "value": value}
            assert read_reflection(json.dumps(said(prune=[pair])), history, trial) is not None


@pytest.mark.parametrize(
    "more",
    [
        {"confidence": 1.1},
        {"confidence": True},
        {"confidence": math.nan},
        {"bottleneck": "b" * 61},
        {"causal_attribution": " "},
        {"prune": [{"dimension": "lr", "value": 0.5}]},
        {"prune": [{"dimension": "__class__", "value": 1}]},
        {"prune": [{"dimension": "lr", "value": 0.03}] * 5},
        {"prune": {"dimension": "lr", "value": 0.03}},
        {"prune": [["lr", 0.03]]},
    ],
)
def test_a_reply_outside_the_schema_is_none(more):
    history, trial = after(begun(), ("dropout", 0.4), score=0.04)
    assert read_reflection(json.dumps(said(**more)), history, trial) is None


REFUTED = after(begun(), ("dropout", 0.4), score=0.04)
JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | JUNK.map(json.dumps) | st.dictionaries(st.sampled_from(list(said())), JUNK).map(
    lambda more: json.dumps(said(**more))
))  # fmt: skip
def test_any_reply_gives_a_legal_reflection_or_none(reply):
    history, trial = REFUTED
    found = read_reflection(reply, history, trial)
    if found is not None:
        assert found.verdict == "refuted" and found.observed_delta == pytest.approx(-0.01)
        assert all(SPACE.by_name[name].check(value) == value for name, value in found.prune)
        assert Reflection.of_row(found.row()) == found


def test_changes_are_told_from_the_parent_not_from_the_default():
    history, _ = after(begun(), ("lr", 1e-3), score=0.06)
    history, trial = after(history, ("dropout", 0.4), score=0.061)
    assert trial.parent == 1 and change_of(history, trial) == ("dropout", 0.2, 0.4)
    history = history.with_trial(replace(trial_of(history, SPACE.default, 0.05), number=3, parent=2))
    assert change_of(history, history.trials[-1]) is None
