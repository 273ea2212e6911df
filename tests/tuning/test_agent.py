"""The agent's logic, and the lockstep of many studies: the same as one study at a time, with every switch."""

from dataclasses import replace

import numpy as np
import pytest
from drawing import Chooses
from part_spaces import part_space

from recllm.tuning.baselines.suggesters import suggester
from recllm.tuning.language.proposer import Proposed
from recllm.tuning.memory.cognition import summarise
from recllm.tuning.memory.memory import Memory
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.study.agent import Agent, StudyRun, run_many, step_many
from recllm.tuning.study.choosers import ModelChooser, SamplerChooser, SurfaceTrials
from recllm.tuning.study.study import Study
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome
from recllm.tuning.trials.surface import Surface, surface_row, write_surface

SPACE = part_space("sasrec")
DATA = {"users": 1300.0, "items": 500.0, "avg_len": 6.0, "p90_len": 11.0, "density": 0.01, "gini": 0.5}


def evaluate(config, seed):
    """Dropout, ties and a larger rate help; three blocks fail."""
    score = 0.05 + 0.02 * config["dropout"] + 0.01 * config["tie_embeddings"] + 0.004 * np.log10(config["lr"] / 1e-4)
    if config["num_blocks"] == 3:
        return Outcome("too_large", SPACE.key(config), dict(config), seed, words="too many")
    return Outcome("ok", SPACE.key(config), dict(config), seed, {OBJECTIVE: float(score)}, 1000 * config["hidden_dim"])


def agent(seed=0, budget=12, **switches):
    return Agent(SPACE, DATA, budget, seed, **switches)


def runs(count, **switches):
    return [StudyRun(agent(seed, **switches), evaluate, epsilon=0.001) for seed in range(count)]


def rows(history):
    return [trial.row() for trial in history.trials]


def test_many_studies_in_a_batch_go_as_each_alone():
    together, model = runs(4), Chooses()
    run_many(together, ModelChooser(model))
    assert max(model.batches) == 4 and len(model.batches) <= 2 * 11  # a repair at most after each ask
    for seed, run in enumerate(together):
        alone = StudyRun(agent(seed), evaluate, epsilon=0.001)
        run_many([alone], ModelChooser(Chooses()))
        assert rows(alone.history) == rows(run.history)
    assert rows(together[0].history) != rows(together[1].history)
    assert step_many(together, ModelChooser(model)) == 0


def test_a_study_in_a_folder_goes_as_the_lockstep_does(tmp_path):
    run = StudyRun(agent(5), evaluate, seed=1, epsilon=0.001)
    run_many([run], ModelChooser(Chooses()))
    study = Study(tmp_path, agent(5), ModelChooser(Chooses()), evaluate, seed=1, epsilon=0.001)
    assert rows(study.run()) == rows(run.history)


def test_a_trial_changes_one_axis_of_what_the_study_stands_on():
    (run,) = runs(1, budget=25)
    run_many([run], ModelChooser(Chooses()))
    past = History(SPACE, epsilon=0.001)
    for trial in run.history.trials:
        if trial.source == "default":
            assert trial.config == SPACE.default and trial.kept and trial.parent is None and trial.reflection is None
        else:
            standing = past.standing
            assert trial.parent == standing.number and standing.outcome.score >= past.best_score - 0.001
            both = standing.config.keys() & trial.config.keys()
            (changed,) = {name for name in both if trial.config[name] != standing.config[name]}
            assert trial.config == SPACE.change(standing.config, changed, trial.config[changed])
            assert trial.proposal is None or trial.proposal.changed_dimension == changed
            assert trial.reflection.verdict in ("confirmed", "refuted", "inconclusive")
            better = trial.outcome.ok and trial.outcome.score > past.best.outcome.score + 0.001
            assert trial.kept == better or trial.outcome.parameters < past.best.outcome.parameters
        past = past.with_trial(trial)
    assert run.history.best is [trial for trial in run.history.trials if trial.kept][-1]
    assert len(run.history.tried) == 25
    sources = [trial.source for trial in run.history.trials]
    assert sources.count("model") > sources.count("repaired") > 0


def test_a_default_that_fails_is_changed_all_the_same():
    def broken(config, seed):
        if config == SPACE.default:
            return Outcome("crash", SPACE.key(config), dict(config), seed, words="no")
        return evaluate(config, seed)

    run = StudyRun(agent(), broken, epsilon=0.001)
    run_many([run], ModelChooser(Chooses()))
    first, second = run.history.trials[:2]
    assert not first.kept and first.outcome.status == "crash"
    assert second.parent == 0 and second.kept


def test_the_switches():
    bare, whole = runs(1, reflect=False, coverage=False)[0], runs(1)[0]
    run_many([bare], ModelChooser(Chooses()))
    run_many([whole], ModelChooser(Chooses()))
    assert all(trial.reflection is None for trial in bare.history.trials)
    assert [trial.reflection is None for trial in whole.history.trials] == [True] + [False] * 11

    often = History(SPACE, epsilon=0.001)
    often = whole.agent.absorb(often, whole.agent.opening(often), evaluate(SPACE.default, 0))
    for value in (0.0001, 0.001, 0.003, 0.01, 0.03, 0.0003):
        config = SPACE.change(often.present, "lr", value) if often.present["lr"] != value else None
        if config is not None:
            proposed = Proposed(None, config, "random")
            often = whole.agent.absorb(often, proposed, replace(evaluate(config, 0), metrics={OBJECTIVE: 0.04}))
    for seed, name in enumerate(("dropout", "dropout")):
        config = SPACE.change(often.present, name, (0.0, 0.4)[seed])
        proposed = Proposed(None, config, "random")
        often = whole.agent.absorb(often, proposed, replace(evaluate(config, 0), metrics={OBJECTIVE: 0.04}))
    assert whole.agent.situation(often).masked == {"lr", "dropout"}
    assert bare.agent.situation(often).masked == frozenset()


def test_a_sampler_is_a_chooser(tmp_path):
    (run,) = runs(1)
    run_many([run], SamplerChooser(suggester("random", 3)))
    assert [trial.source for trial in run.history.trials] == ["default"] + ["sampler"] * 11
    assert {trial.parent for trial in run.history.trials} == {None}


def test_memory_tells_where_to_begin_and_what_to_expect(tmp_path):
    (earlier,) = runs(1, budget=30)
    run_many([earlier], ModelChooser(Chooses()))
    memory = Memory(tmp_path)
    memory.learn(summarise("earlier", earlier.history, DATA))
    run = StudyRun(agent(memory=memory, budget=7), evaluate, epsilon=0.001)
    run_many([run], ModelChooser(Chooses()))
    default, start = run.history.trials[:2]
    assert (default.source, start.source) == ("default", "memory")
    assert start.config == memory.prior(SPACE, DATA).start and start.parent is None
    assert start.outcome.score > default.outcome.score
    sources = [trial.source for trial in run.history.trials]
    begun = sources.count("memory")
    assert sources[: begun + 1] == ["default"] + ["memory"] * begun and begun < 7
    assert all(source != "memory" for source in sources[begun + 1 :])
    situation = run.agent.situation(run.history)
    assert situation.prior and situation.rules and situation.left == 0
    values = [gain for _, _, gain in situation.gains]
    assert values == sorted(values, reverse=True) and len(values) >= len(situation.rules)
    assert not any(run.history.leads_back(run.history.present, axis, value) for axis, value, _ in situation.gains)
    assert run.history.trials[begun + 1].parent in range(1, begun + 1)


def test_a_seed_of_a_trial_is_its_own():
    one = agent(0)
    seeds = {one.seed_of(number, part) for number in range(50) for part in ("choice", "reflection")}
    assert len(seeds) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    assert agent(1).seed_of(0) != one.seed_of(0)
    with pytest.raises(ValueError, match="at least 1 trial"):
        agent(budget=0)


def test_a_surface_scores_a_configuration_as_its_nearest_and_tells_it_of_the_one_asked_for(tmp_path):
    space = surface_space("sasrec")
    measured = [space.default, space.change(space.default, "dropout", 0.5)]
    scores = [0.05, 0.06]
    made = [
        Outcome("ok", space.key(config), config, 0, {OBJECTIVE: score})
        for config, score in zip(measured, scores, strict=True)
    ]
    told = [surface_row(one, "spread") for one in made]
    provenance = {"backbone": "sasrec", "limits": {}, "fixed": dict(space.fixed)}
    write_surface(tmp_path / "s.parquet", told, provenance)
    trials = SurfaceTrials(Surface.load(tmp_path / "s.parquet"))
    asked = space.change(measured[1], "hidden_dim", 64)
    outcome = trials(asked, 4)
    assert outcome.config == asked and outcome.key == space.key(asked)
    assert [outcome.score, trials(measured[0], 4).score] == scores[::-1]


def ran(history, config, score, kept=False, parent=None):
    outcome = Outcome("ok", history.space.key(config), dict(config), 0, {OBJECTIVE: score})
    return history.with_trial(Trial(len(history.trials), "model", outcome, parent=parent, kept=kept))


def test_what_noise_cannot_tell_from_the_best_is_changed_in_turn():
    space = surface_space("sasrec")
    best, tie, worse, *others = space.neighbours(space.default)
    history = ran(History(space, epsilon=0.01), space.default, 0.1, kept=True)
    history = ran(history, best, 0.2, kept=True, parent=0)
    history = ran(history, tie, 0.195, parent=0)
    history = ran(history, worse, 0.185, parent=0)
    turns = []
    for config in others:
        turns.append(history.standing.number)
        history = ran(history, config, 0.05, parent=turns[-1])
    assert history.best.number == 1
    assert turns == [1, 2] * (len(others) // 2) + [1] * (len(others) % 2)
    # what becomes the best leaves those behind that it is above by more than noise
    history = ran(history, space.change(best, "lr", 0.01), 0.3, kept=True, parent=1)
    assert history.standing is history.best is history.trials[-1]


def test_where_every_change_of_the_best_was_tried_the_next_best_with_a_change_left_is_changed():
    space = surface_space("sasrec")
    history = History(space, epsilon=0.001)

    assert history.standing is None and history.present == space.default
    history = ran(history, space.default, 0.1, kept=True)
    near = list(space.neighbours(space.default))
    for place, config in enumerate(near[:-1]):
        history = ran(history, config, 0.01 * (place + 1))
        assert history.standing is history.best and history.present == space.default
    history = ran(history, near[-1], 0.05)
    assert history.best.number == 0 and history.standing.config == near[-2] and history.present == near[-2]
    chosen = Proposed(None, space.change(near[-2], "lr", 0.01), "model", (), ())
    assert agent().parent_of(history, chosen) == len(near) - 1
