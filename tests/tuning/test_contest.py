"""Tuners on made-up surfaces: equal terms, memory of the other data sets only, and the benchmark's figures."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recllm.tuning.reports import contest as contests
from recllm.tuning.reports.contest import Contest, Dice, counted, share_of_model, whole
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.study.choosers import ModelChooser
from recllm.tuning.trials.runner import Outcome
from recllm.tuning.trials.surface import METRICS, Surface, surface_row, write_surface

SPACE = surface_space("sasrec")
LIMITS = {"parameters": None, "cpu_seconds": None, "wall_seconds": None, "memory_gib": None}
DATA = {"users": 1000.0, "items": 800.0, "avg_len": 8.0, "p90_len": 14.0, "items_per_user": 0.8, "density": 0.01}
NAMES = ("one", "two", "three")


def made(path: Path, name: str, shift: int) -> Surface:
    """A surface whose best corner is nearly the same on every data set; two configurations fail."""
    best = SPACE.sample(np.random.default_rng(7)) | {"hidden_dim": (32, 64, 128)[shift]}
    configs = [SPACE.default, *itertools.islice(SPACE.spread(shift), 79), *SPACE.neighbours(SPACE.default)]
    configs = list({SPACE.key(config): config for config in configs}.values())
    rows = []
    for place, config in enumerate(configs):
        score = 0.05 * (1 - SPACE.distance(config, best))
        values = {
            f"{role}/{metric}": score * (0.8 if role == "test" else 1)
            for role in ("validation", "test")
            for metric in METRICS
        }
        failed = place in (11, 12)
        outcome = Outcome("timeout" if failed else "ok", SPACE.key(config), config, 0, {} if failed else values, 10)
        rows.append(surface_row(outcome, "default" if not place else "spread" if place < 80 else "star"))
    noise = {"0": rows[0]["validation/ndcg@10"], "1": rows[0]["validation/ndcg@10"] + 4e-4}
    told = {"backbone": "sasrec", "dataset": name, "limits": LIMITS, "fixed": dict(SPACE.fixed)}
    told |= {"descriptors": DATA | {"avg_len": 8.0 + shift}, "default_by_seed": noise}
    write_surface(path, rows, told)
    return Surface.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surfaces")
    for shift, name in enumerate(NAMES):
        made(folder / f"sasrec-{name}.parquet", name, shift)
    return folder


@pytest.fixture
def contest(folder):
    return Contest({path.stem: Surface.load(path) for path in sorted(folder.glob("*.parquet"))}, seeds=3, budget=12)


def test_a_surface_says_what_its_data_is_like_how_noisy_it_is_and_which_rows_are_best(contest):
    surface = contest.surfaces["sasrec-two"]
    assert surface.data == DATA | {"avg_len": 9.0}
    assert surface.epsilon == pytest.approx(4e-4 / np.sqrt(2))
    scored = surface.frame.filter(surface.frame["status"] == "ok").sort("validation/ndcg@10", descending=True)
    assert [SPACE.key(config) for config in surface.best(5)] == scored["key"].to_list()[:5]


def test_a_whole_surface_is_a_history(contest):
    surface = contest.surfaces["sasrec-one"]
    history = whole(surface)
    assert len(history.trials) == len(surface) == len(history.tried)
    assert history.trials[0].config == SPACE.default and history.trials[0].source == "default"
    assert sum(not trial.outcome.ok for trial in history.trials) == 2
    assert history.best_score == surface.lookup(surface.best(1)[0]).outcome.score


def test_samplers_start_with_the_default_and_a_warm_one_with_what_was_best_elsewhere(contest):
    cold = contest.sampled("sasrec-one", "tpe")
    assert [len(history.trials) for history in cold] == [12] * 3
    assert all(history.trials[0].config == SPACE.default for history in cold)
    assert len({tuple(SPACE.key(trial.config) for trial in history.trials) for history in cold}) == 3
    warm = contest.sampled("sasrec-one", "tpe", "surfaces")
    two, three = (contest.surfaces[name].best(3) for name in ("sasrec-three", "sasrec-two"))
    wanted = list({SPACE.key(c): c for pair in zip(two, three, strict=True) for c in pair}.values())
    for history in warm:
        assert [trial.config for trial in history.trials[1 : 1 + len(wanted)]] == wanted
    known = [contest.sampled(name, "tpe") for name in ("sasrec-three", "sasrec-two")]
    for seed, history in enumerate(contest.sampled("sasrec-one", "tpe", "studies")):
        firsts = [max(studies[seed].trials, key=lambda trial: trial.outcome.score).config for studies in known]
        assert [history.trials[1].config, history.trials[2].config] == firsts


def test_memory_is_of_the_other_data_sets_only_and_reflection_can_be_left_out(contest, monkeypatch):
    learned = []
    keep = contests.summarise
    monkeypatch.setattr(contests, "summarise", lambda name, *rest: learned.append(name) or keep(name, *rest))
    chooser = ModelChooser(Dice())
    cold = contest.proposed("sasrec-two", chooser)
    assert not learned
    for past, times in (("studies", 3), ("surfaces", 1)):
        learned.clear()
        told = contest.proposed("sasrec-two", chooser, past)
        assert learned == ["sasrec-one", "sasrec-three"] * times
        assert any(trial.source == "memory" for history in told for trial in history.trials)
        # what was best elsewhere is nearly best here
        assert np.mean([h.trials[1].outcome.score for h in told]) > np.mean([h.trials[1].outcome.score for h in cold])
    assert all(trial.reflection for history in cold for trial in history.trials[1:])
    silent = contest.proposed("sasrec-two", chooser, reflect=False)
    assert not any(trial.reflection for history in silent for trial in history.trials)


def test_other_backbones_are_not_others(contest):
    surface = contest.surfaces["sasrec-one"]
    hstu = replace(surface, provenance={**surface.provenance, "backbone": "hstu", "dataset": "two"})
    more = Contest({**contest.surfaces, "hstu-two": hstu}, 1, 2)
    assert list(more.others("sasrec-one")) == ["sasrec-three", "sasrec-two"] and not more.others("hstu-two")


def test_what_is_counted(contest):
    surface = contest.surfaces["sasrec-one"]
    rows = counted(surface, contest.proposed("sasrec-one", ModelChooser(Dice())), (0.1, 0.02))
    assert [len(row["scores"]) for row in rows] == [12] * 3
    assert rows[0]["sources"] == ["default"] + ["random"] * 11 and share_of_model(rows) == 0.0
    assert rows[0]["targets"] == [surface.target(0.1), surface.target(0.02)]
    best, default = surface.lookup(surface.best(1)[0]).outcome.score, surface.lookup(SPACE.default).outcome.score
    for row in rows:
        assert row["lacks"] == pytest.approx(1 - max(row["scores"]) / best)
        assert row["test_gain"] == pytest.approx(max(row["scores"]) / default - 1)
    assert share_of_model([{"sources": ["model"] * 7 + ["repaired"] * 2 + ["random"] + ["default"] * 5}]) == 0.9
    assert share_of_model([{"sources": {"default": 1, "sampler": 9}}]) is None


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "tuning", raising=False)
    import tuning

    yield tuning
    sys.modules.pop("tuning", None)


def test_the_benchmark_tells_the_issues_keys(folder, tmp_path, benchmark):
    import typer

    app = typer.Typer()
    app.command()(benchmark.main)
    words = [
        "--json",
        tmp_path / "out.json",
        "--surfaces",
        folder,
        "--seeds",
        2,
        "--budget",
        8,
        "--work",
        tmp_path / "work",
    ]
    words += ["--only", "random,tpe,tpe_warm,dice,dice_memory"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out.json").read_text())
    for name in ("random", "tpe", "tpe_warm", "dice", "dice_memory"):
        assert (
            1
            <= told[f"{name}_median_trials_lo"]
            <= told[f"{name}_median_trials"]
            <= told[f"{name}_median_trials_hi"]
            <= 9
        )
        assert told[f"{name}_best10_trials"] <= told[f"{name}_best5_trials"] <= told[f"{name}_median_trials"]
        mean = np.mean([told["by_surface"][f"sasrec-{data}"][name] for data in NAMES])
        assert told[f"{name}_median_trials"] == pytest.approx(mean)
    assert told["agent_median_trials"] is None and told["model_share"] is None and told["dice_share"] == 0
    assert told["tpe_warm_over_tpe"] == pytest.approx(told["tpe_warm_median_trials"] / told["tpe_median_trials"])
    assert told["dice_memory_over_dice"] == pytest.approx(
        told["dice_memory_median_trials"] / told["dice_median_trials"]
    )


def test_the_benchmark_goes_on_where_it_stopped_and_not_from_other_rows(folder, tmp_path, benchmark):
    contest = Contest({"sasrec-one": Surface.load(folder / "sasrec-one.parquet")}, 2, 4)
    runs = []

    def studies(name):
        runs.append(name)
        return contest.sampled(name, "random")

    first = benchmark.rows_of(contest, "random", studies, tmp_path, {"seeds": 2})
    assert benchmark.rows_of(contest, "random", studies, tmp_path, {"seeds": 2}) == first and len(runs) == 1
    benchmark.rows_of(contest, "random", studies, tmp_path, {"seeds": 3})
    benchmark.rows_of(contest, "random", studies, None, {"seeds": 3})
    assert len(runs) == 3
