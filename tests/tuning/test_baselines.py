"""Samplers: legal, begun alike, rebuilt from the history alone, each what it says it is."""

import math
from collections import Counter

import cmaes as library
import numpy as np
import pytest
from part_spaces import part_space

from recllm.tuning.baselines.suggesters import METHODS, alternating, suggester
from recllm.tuning.spaces.backbones import backbone_space, surface_space
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome

SPACES = {"surface": part_space("sasrec"), "sasrec": backbone_space("sasrec"), "glass": backbone_space("glass")}
SMALL = part_space("sasrec").narrowed(
    **{axis.name: (axis.default,) for axis in part_space("sasrec").axes if axis.name not in ("lr", "dropout")},
    lr=(1e-4, 3e-4, 1e-3),
    dropout=(0.0, 0.2, 0.4),
)


def added(history, config, score, status="ok"):
    metrics = {OBJECTIVE: score} if status == "ok" else {}
    outcome = Outcome(status, history.space.key(config), config, 0, metrics, 10)
    return history.with_trial(Trial(len(history.trials), "sampler", outcome, kept=history.keeps(outcome)))


def studied(tuner, space, trials, score):
    history = History(space)
    for _ in range(trials):
        config = tuner.suggest(history)
        history = added(history, config, *score(config))
    return history


def likeness(space, seed=3):
    best = space.sample(np.random.default_rng(seed))
    return lambda config: (1 - space.distance(config, best), "timeout" if config == space.default else "ok")


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", METHODS)
def test_each_begins_alike_and_is_rebuilt_from_the_history_alone(name, kind):
    space = SPACES[kind]
    rng = np.random.default_rng(0)
    start = [space.sample(rng), space.default, space.sample(rng)]
    history = studied(suggester(name, 1, start), space, 18, likeness(space))
    configs = [trial.config for trial in history.trials]
    assert configs[:3] == [space.default, start[0], start[2]]
    assert all(space.check(config) == config for config in configs)
    assert len(history.tried) == 18
    for length in (0, 3, 11, 17):
        early = History(space, history.trials[:length])
        assert suggester(name, 1, start).suggest(early) == configs[length]
    others = [trial.config for trial in studied(suggester(name, 2), space, 6, likeness(space)).trials]
    assert others[0] == space.default and others[1:] != [space.default, *configs[3:]][1:6]


@pytest.mark.parametrize("name", METHODS)
def test_workers_with_other_numbers_get_other_configurations(name):
    space = SPACES["surface"]
    tuner = suggester(name, 0)
    history = studied(tuner, space, 15, likeness(space))
    running = [tuner.suggest(history, number) for number in range(15, 19)]
    assert running[0] == tuner.suggest(history)
    # A sweep goes by what was tried or is being run, which the history says.
    assert len({space.key(config) for config in running}) == (1 if name == "sweep" else 4)
    if name == "sweep":
        seen = History(space, history.trials, running=(space.key(running[0]),))
        assert tuner.suggest(seen, 16) != running[0]


def test_random_search_draws_evenly():
    tuner, drawn = suggester("random", 5), Counter()
    for number in range(1, 901):
        drawn[SMALL.key(tuner.suggest(History(SMALL), number))] += 1
    assert len(drawn) == 9 and all(70 <= count <= 130 for count in drawn.values())


def test_what_is_small_is_used_up_before_anything_comes_twice():
    for name in ("random", "grid", "sweep", "climb", "tpe"):
        history = studied(suggester(name, 4), SMALL, 9, lambda config: (1.0 - abs(config["dropout"] - 0.2), "ok"))
        assert len(history.tried) == 9, name


def test_climb_changes_one_axis_of_the_best():
    space = SPACES["surface"]
    best = space.sample(np.random.default_rng(8))
    history = added(added(History(space), space.default, 0.1), best, 0.2)
    history = added(history, space.sample(np.random.default_rng(9)), 0.05)
    changed = [suggester("climb").suggest(history, number) for number in range(3, 203)]
    near = list(space.neighbours(best))
    assert all(config in near for config in changed)
    assert {space.key(config) for config in near} == {space.key(config) for config in changed}


def test_sweep_goes_along_one_axis_after_the_other_and_follows_the_best():
    history = History(SMALL)
    scores = {(1e-3, 0.2): 0.9, (1e-3, 0.4): 0.95}
    told = lambda config: (scores.get((config["lr"], config["dropout"]), 0.5), "ok")  # noqa: E731
    seeds = {tuple(SMALL.axes[place].name for place in np.random.default_rng(s).permutation(2)): s for s in range(9)}
    history = studied(suggester("sweep", seeds["lr", "dropout"]), SMALL, 7, told)
    seen = [(trial.config["lr"], trial.config["dropout"]) for trial in history.trials]
    default = (SMALL.default["lr"], SMALL.default["dropout"])
    assert default == (3e-4, 0.2)
    # lr around the default; at 1e-3 it is better, so its dropout comes next (its lr is done), then lr at dropout 0.4
    assert seen == [default, (1e-4, 0.2), (1e-3, 0.2), (1e-3, 0.0), (1e-3, 0.4), (1e-4, 0.4), (3e-4, 0.4)]


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_grid_takes_every_cell_of_a_surface_once(backbone):
    space, tuner = surface_space(backbone), suggester("grid", 1)
    cells = [tuner.suggest(History(space), number) for number in range(1, 217)]
    assert len({space.key(config) for config in cells}) == 216 == len(list(space.spread(0)))


def test_grid_has_three_levels_of_six_axes_each_cell_once():
    space, tuner = SPACES["sasrec"], suggester("grid", 2)
    cells = [tuner.suggest(History(space), number) for number in range(1, 730)]
    assert len({space.key(config) for config in cells}) == 729
    names = [name for name in space.default if any(config[name] != space.default[name] for config in cells)]
    assert names == ["hidden_dim", "num_blocks", "num_heads", "dropout", "batch_size", "lr"]
    for name in names:
        assert sorted(Counter(config[name] for config in cells).values()) == [243] * 3
    assert {config["hidden_dim"] for config in cells} == {16, 64, 256}
    assert sorted({config["dropout"] for config in cells}) == [0.133, 0.4, 0.667]
    again = [suggester("grid", 3).suggest(History(space), number) for number in range(1, 201)]
    keys = {space.key(config) for config in cells}
    assert again != cells[:200] and len({space.key(config) for config in again} & keys) == 200


def test_tpe_learns_which_values_are_good_and_that_failures_are_not():
    space = SPACES["surface"]
    places = space.by_name["lr"].values

    def score(config):
        if config["l2_norm"]:
            return math.nan, "timeout"
        return 0.1 + 0.1 * (config["pooling"] == "mean") + 0.04 * places.index(config["lr"]), "ok"

    seen = []
    for seed in range(2):
        history = studied(suggester("tpe", seed), space, 40, score)
        seen += [trial.config for trial in history.trials[25:]]
    assert sum(config["pooling"] == "mean" for config in seen) > 0.75 * len(seen)
    assert np.mean([places.index(config["lr"]) for config in seen]) > 3.5  # at random 2.5
    assert sum(config["l2_norm"] for config in seen) < 0.25 * len(seen)


def test_tpe_is_told_every_trial_as_it_ran():
    optuna = pytest.importorskip("optuna")
    from recllm.tuning.baselines.samplers import _frozen

    for space in SPACES.values():
        rng = np.random.default_rng(1)
        history = History(space)
        for number in range(30):
            history = added(history, space.sample(rng), 0.01 * number, "ok" if number % 5 else "crash")
        for trial in history.trials:
            frozen = _frozen(space, trial)
            assert frozen.state == optuna.trial.TrialState.COMPLETE
            assert frozen.value == (trial.outcome.score if trial.outcome.ok else 0.0)
            assert list(frozen.params) == list(trial.config)
            for name, value in trial.config.items():
                axis = space.by_name[name]
                assert (axis.values[frozen.params[name]] if axis.values else frozen.params[name]) == value


@pytest.mark.parametrize("kind", ["sasrec", "surface"])
def test_cmaes_is_the_librarys_own_run(kind):
    space, seed = SPACES[kind], 6
    score = likeness(space, 5)
    history = studied(suggester("cmaes", seed), space, 40, lambda config: (score(config)[0], "ok"))
    axes = len(space.axes)
    mean_A = np.array(
        [
            0.5
            if axis.name not in space.default or axis.from_unit(0.5) == axis.default
            else (axis.values.index(axis.default) + 0.5) / len(axis.values)
            if axis.values
            else axis.unit(axis.default)
            for axis in space.axes
        ]
    )
    bounds_A2 = np.tile([0.0, 1 - 1e-9], (axes, 1))
    optimizer = library.CMA(mean_A, 1 / 6, bounds=bounds_A2, seed=seed)
    expected, group = [space.default], []
    while len(expected) < 40:
        share_A = optimizer.ask()
        while space.from_units(share_A) in expected:
            share_A = optimizer.ask()
        expected.append(space.from_units(share_A))
        group.append((share_A, -score(expected[-1])[0]))
        if len(group) == optimizer.population_size:
            optimizer.tell(group)
            group = []
    assert [trial.config for trial in history.trials] == expected


def test_cmaes_is_told_what_ran_where_that_is_something_else():
    space = SPACES["surface"]
    rng = np.random.default_rng(2)
    elsewhere = [space.sample(rng) for _ in range(40)]
    histories = [added(History(space), space.default, 0.1) for _ in range(2)]
    good = elsewhere[0]
    for config in elsewhere:
        # only what ran is alike in both; the scores say which way to go
        histories[0] = added(histories[0], config, 1 - space.distance(config, good))
        histories[1] = added(histories[1], config, space.distance(config, good))
    towards, away = (
        np.mean([space.distance(suggester("cmaes", seed).suggest(history), good) for seed in range(20)])
        for history in histories
    )
    assert towards < away - 0.05


def test_a_warm_start_takes_turns():
    assert alternating([[1, 2, 3], [4], [5, 6]]) == [1, 4, 5, 2, 6, 3]
    assert alternating([]) == []


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="there is no tuner 'bayes'; choose one of random, grid"):
        suggester("bayes")
    with pytest.raises(ValueError, match="dropout"):
        suggester("random", start=[{**SMALL.default, "dropout": 7.0}]).suggest(History(SMALL))


def test_cmaes_searches_around_the_best_of_its_plan():
    space, rng = SPACES["sasrec"], np.random.default_rng(4)
    start = [space.sample(rng) for _ in range(3)]
    for best in (1, 2, 3):
        history = History(space)
        for place, config in enumerate([space.default, *start]):
            history = added(history, config, 0.2 if place == best else 0.1)
        asked = [suggester("cmaes", seed, start).suggest(history) for seed in range(20)]
        near = [np.mean([space.distance(config, other) for other in asked]) for config in [space.default, *start]]
        assert int(np.argmin(near)) == best
