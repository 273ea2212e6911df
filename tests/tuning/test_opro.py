"""The OPRO-like sampler: what the model is shown, and that no reply becomes anything but a legal configuration."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_spaces import part_space

from recllm.tuning.baselines.opro import SHOWN, Opro, opro_ask, opro_schema, read_configuration
from recllm.tuning.study.agent import Agent, StudyRun, run_many
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome

SPACE = part_space("sasrec")


def run(config, seed=0):
    config = SPACE.check(config)
    failed = config["pooling"] == "mean"
    metrics = {} if failed else {OBJECTIVE: 0.1 + SPACE.distance(config, SPACE.default)}
    return Outcome("timeout" if failed else "ok", SPACE.key(config), config, seed, metrics, 9)


def history_of(configs):
    history = History(SPACE)
    for number, config in enumerate(configs):
        outcome = run(config)
        history = history.with_trial(Trial(number, "sampler", outcome, kept=history.keeps(outcome)))
    return history


HISTORY = history_of([SPACE.default, *(SPACE.sample(np.random.default_rng(seed)) for seed in range(70))])


class Saying:
    """A language model that replies what it was given, in turn."""

    name, style = "saying", "full"

    def __init__(self, replies):
        self.replies, self.asked = list(replies), []

    def reply(self, asks):
        self.asked += asks
        return [self.replies.pop(0) for _ in asks]


def test_the_best_trials_are_shown_worst_first_and_failures_are_not():
    text = opro_ask(HISTORY, 0).messages[-1]["content"]
    lines = [line for line in text.partition("Configurations:\n")[2].splitlines() if line]
    ended = sorted((trial for trial in HISTORY.trials if trial.outcome.ok), key=lambda trial: trial.outcome.score)
    assert len(ended) > SHOWN == len(lines)
    assert [json.loads(line.partition(" score ")[0]) for line in lines] == [dict(t.config) for t in ended[-SHOWN:]]
    scores = [float(line.partition(" score ")[2]) for line in lines]
    assert scores == sorted(scores) and scores[-1] == pytest.approx(ended[-1].outcome.score / 0.1 * 100, abs=0.06)
    for axis in SPACE.axes:
        assert f"- {axis.name}: " in text and axis.legal in text


def test_the_schema_asks_for_every_axis_and_silent_ones_are_dropped():
    schema = opro_schema(SPACE)
    assert schema["required"] == [axis.name for axis in SPACE.axes] and "allOf" not in schema
    whole = {axis.name: axis.default for axis in SPACE.axes} | {"l2_norm": False, "dropout": 0.6}
    found = read_configuration(History(SPACE), json.dumps(whole))
    assert found == SPACE.complete({"l2_norm": False, "dropout": 0.6}) and "temperature" not in found
    assert read_configuration(History(SPACE), "I think: " + json.dumps(whole) + " is good") == found
    assert read_configuration(history_of([found]), json.dumps(whole)) is None


@pytest.mark.parametrize(
    "reply", ["", "{}x", '{"lr": 7}', '{"path": "etc"}', "[1]", '{"lr": "0.001"}', "{" * 9000, None]
)
def test_nonsense_is_no_configuration(reply):
    if reply == "{}x":  # says nothing, so it is the default, which was run
        assert read_configuration(HISTORY, reply) is None and read_configuration(History(SPACE), reply) == SPACE.default
    else:
        assert read_configuration(History(SPACE), reply) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from([axis.name for axis in SPACE.axes])
_LEGAL = st.one_of([st.tuples(st.just(axis.name), st.sampled_from(axis.values)) for axis in SPACE.axes])


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60) | st.dictionaries(_NAMES, _JSON).map(json.dumps) | st.lists(_LEGAL).map(dict).map(json.dumps)
)
def test_any_reply_is_a_legal_untried_configuration_or_none(reply):
    found = read_configuration(HISTORY, reply)
    assert found is None or (SPACE.check(found) == found and SPACE.key(found) not in HISTORY.tried)


def test_a_study_of_it_is_counted_by_who_chose():
    good = json.dumps({axis.name: axis.default for axis in SPACE.axes} | {"dropout": 0.6})
    model = Saying([good, good, "no", good.replace("0.6", "0.4")])
    study = StudyRun(Agent(SPACE, {}, 5, reflect=False, coverage=False), run)
    run_many([study], Opro(model))
    assert [trial.source for trial in study.history.trials] == ["default", "model", "random", "random", "model"]
    assert len(study.history.tried) == 5 and study.history.trials[4].config["dropout"] == 0.4
    assert [ask.seed for ask in model.asked] == [study.agent.seed_of(number) for number in range(1, 5)]
