"""A planner as an evaluator of merges: the reward that training gives, the tokens of every turn."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.evaluation.tunable_depth import planner_evaluator

_FILE = Path(__file__).parents[1] / "planner" / "live_worlds.py"
live_worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="live_worlds"))
WEIGHTS = ("quality", "dense", "cost", "valid", "invalid", "redundant")


@pytest.fixture(scope="module")
def project(tmp_path_factory, one_thread):
    made = live_worlds.write_project(tmp_path_factory.mktemp("planner"))
    made.options = {name: str(made.base / name) for name in ("dataset", "sid_table", "tool_cache")}
    return made


@pytest.fixture
def plans(worlds):
    """Episodes, turn by turn: good ones, thoughtful ones and faulty ones."""
    end, call = worlds.END, worlds.call
    return [
        [worlds.DONE],
        [call("rank") + end, worlds.DONE],
        ["<think>slow</think>" + call("reason") + end, worlds.DONE],
        [call("rank") + call("reason") + end, call("retrieve", '{"k": 3}') + end, worlds.DONE],
        [call("reason", '{"n": 500}') + end, worlds.DONE],
        ["<tool_call>\nnothing\n</tool_call>" + end],
        ["<think></think>" + call("rank") + end, "<think>more" + end],
        [call("rank") + end] * 4 + [worlds.DONE],
        [call("rank") + end, "<tool_call>\nnothing\n</tool_call>" + end],
    ]


@pytest.fixture
def speaking(project, plans, monkeypatch):
    """The project's planner, which plays the plans in turn, example by example; and the evaluator."""
    evaluator = planner_evaluator(project.options)
    rows = {evaluator.bench.prompt(row)[0]["content"]: row for row in range(len(evaluator.bench))}

    def say(prompt, turn):
        row = rows[re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt, re.S).group(1)]
        plan = plans[row % len(plans)]
        return plan[turn] if turn < len(plan) else "Done.<|im_end|>"

    assert len(rows) == len(evaluator.bench) > len(plans)
    monkeypatch.setattr(project.model, "generate", live_worlds.speak(project.tokenizer, say))
    return evaluator


def test_value_is_the_reward_of_training_on_a_scale_of_its_own(project, plans, worlds, speaking):
    samples = speaking(project.model, project.tokenizer)
    assert samples.value_QS.shape == (len(speaking.bench), 1)
    for row, value in enumerate(samples.value_QS[:, 0].tolist()):
        played = worlds.trl_episode(project.tokenizer, speaking.bench, row, plans[row % len(plans)])
        reward = worlds.reward(played.env, played.completion)
        assert value == pytest.approx(max(0.0, (reward + 0.65) / 1.95), abs=1e-6)
    assert len(np.unique(samples.value_QS)) > 5


def test_tokens_and_thoughts_of_all_turns(project, plans, speaking):
    samples = speaking(project.model, project.tokenizer)
    for row in range(len(speaking.bench)):
        turns = plans[row % len(plans)]
        assert samples.tokens_QS[row, 0] == sum(len(project.tokenizer(turn)["input_ids"]) for turn in turns)
        assert samples.thinks_QS[row, 0] == (row % len(plans) in (2, 6))


def test_the_batch_changes_nothing_and_users_are_the_first(project):
    whole = planner_evaluator(project.options)(project.model, project.tokenizer)
    for changes in ({"batch_size": 4}, {"users": 5}):
        part = planner_evaluator(project.options | changes)(project.model, project.tokenizer)
        for name in vars(whole):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[: len(part.value_QS)])
    assert len(part.value_QS) == 5


def test_the_fingerprint_is_of_all_that_may_change_a_result(project):
    mark = planner_evaluator(project.options).fingerprint
    changes = {f"{name}_weight": 0.7 for name in WEIGHTS} | {"users": 3, "role": "test", "turn_tokens": 9}
    marks = [planner_evaluator(project.options | {name: value}).fingerprint for name, value in changes.items()]
    assert len({mark, *marks}) == len(changes) + 1
    assert planner_evaluator(project.options | {"batch_size": 3}).fingerprint == mark


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": 0.1}, "unknown option 'cost'"),
        ({"cost_weight": "much"}, "cost_weight must be of type float"),
        ({"cost_weight": -0.1}, "cost_weight must be a number of at least 0"),
        ({"turn_tokens": 0}, "turn_tokens must be at least 1"),
        ({f"{name}_weight": 0 for name in WEIGHTS}, "every weight of the reward is 0"),
    ],
)
def test_a_wrong_option_is_named(project, changes, message):
    with pytest.raises(ValueError, match=message):
        planner_evaluator(project.options | changes)
