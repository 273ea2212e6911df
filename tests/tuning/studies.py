"""Studies that are made up by rule, for the tests of what stands on a history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recllm.tuning.spaces.axes import Axis, When
from recllm.tuning.spaces.recipe import Argument
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.proposal import Proposal
from recllm.tuning.study.reflection import measured_reflection, single_change
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import Outcome

DATA = {"users": 1500, "items": 2312, "avg_len": 7.43, "density": 0.00312}


def argument(name, kind="float"):
    return Argument(name, kind, (), False, None, f"About {name}.")


def small_space() -> Space:
    """36 configurations, `depth` only where `mode` is b."""
    axes = (
        Axis(argument("width", "int"), 2, (1, 2, 4)),
        Axis(argument("mode", "str"), "a", ("a", "b"), ordered=False),
        Axis(argument("depth", "int"), 3, low=1, high=3, when=(When("mode", ("b",)),), otherwise=0),
        Axis(argument("decay"), 0.0, (0.0, 1e-5, 1e-4)),
    )
    return Space("small", "train_backbone", axes, {"epochs": 1})


def outcome(space, config, score, words=""):
    metrics = {} if words else {"validation/ndcg@10": score}
    return Outcome("nan" if words else "ok", space.key(config), dict(config), 0, metrics, 1000, words=words)


def with_trial(history, config, score, words="", proposal=None, source="model"):
    """The history one trial later, kept and reflected on by rule."""
    parent = history.standing.number if history.standing else None
    trial = Trial(len(history.trials), source, outcome(history.space, config, score, words), proposal, parent)
    trial = replace(trial, kept=history.keeps(trial.outcome))
    if parent is not None:
        trial = replace(trial, reflection=measured_reflection(history, trial))
    return history.with_trial(trial)


def study(space, length, seed=0, hypothesis="more of it may help", scale=1.0):
    """A study of random changes whose scores are random, some of whose trials fail."""
    rng = np.random.default_rng(seed)
    history = with_trial(History(space, epsilon=4e-4 * scale), space.default, 0.04 * scale, source="default")
    while len(history.trials) < length:
        near = list(space.neighbours(history.present))
        config = near[rng.integers(len(near))]
        name, _, value = single_change(space, history.present, config)
        proposal = Proposal(hypothesis, name, value, "up a little", "slower")
        words = "FloatingPointError: loss is nan" if rng.random() < 0.1 else ""
        score = scale * (0.04 + 0.004 * rng.normal())
        history = with_trial(history, config, score, words, proposal)
    return history
