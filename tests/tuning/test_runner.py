"""Trials of the real recipe on a small data set, and the one reading of the test targets."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recllm.provenance import write_json
from recllm.sid.embeddings import save_embeddings
from recllm.sid.table import SidTable
from recllm.tuning.spaces.backbones import backbone_space
from recllm.tuning.spaces.recipe import recipe_arguments, recipe_path
from recllm.tuning.spaces.space import Limits, Space
from recllm.tuning.trials.finalize import SEAL_FILE, finalize, is_sealed
from recllm.tuning.trials.launch import Ended
from recllm.tuning.trials.models import count_parameters
from recllm.tuning.trials.runner import TrialRunner

TINY = {"hidden_dim": 16, "batch_size": 16, "lr": 0.01, "num_negatives": 0}
LIMITS = Limits(parameters=100_000, cpu_seconds=60, wall_seconds=600, memory_gib=2)


def tiny_space(name="sasrec", limits=LIMITS, **fixed) -> Space:
    space = backbone_space(name, limits)
    return replace(space, fixed={**space.fixed, "epochs": 2, "max_len": 10, **fixed}).narrowed(
        **({"train_window": (10,)} if name == "hstu" else {})
    )


def start(space: Space, **changed):
    window = {"train_window": 10} if "train_window" in space.by_name else {}
    return space.complete({**{key: value for key, value in TINY.items() if key in space.by_name}, **window, **changed})


@pytest.fixture
def runner(dataset, forked):
    return lambda space: TrialRunner(space, {"dataset": dataset}, launcher=forked)


def test_a_trial_tells_validation_metrics_and_nothing_of_test(runner):
    space = tiny_space()
    outcome = runner(space).run(start(space), seed=3)
    assert outcome.ok and outcome.words == "" and outcome.seed == 3 and outcome.key == space.key(start(space))
    assert outcome.metrics["validation/n"] == 40 and 0 < outcome.score == outcome.metrics["validation/ndcg@10"] < 1
    assert all(name.startswith("validation/") for name in outcome.metrics)
    assert outcome.parameters > 0 and 0 < outcome.cpu_seconds < 60 and 0 < outcome.peak_gib < 2
    again = runner(space).run(start(space), seed=3)
    assert again.metrics == outcome.metrics != runner(space).run(start(space), seed=4).metrics
    assert json.loads(json.dumps(outcome.row())) == outcome.row()


def test_only_the_unsealed_mode_ranks_the_test_targets(runner):
    space = tiny_space()
    sealed, unsealed = runner(space).run(start(space)), runner(space).run_unsealed(start(space))
    assert {k: v for k, v in unsealed.metrics.items() if k.startswith("validation/")} == sealed.metrics
    assert unsealed.metrics["test/n"] == 40


def test_a_recipe_that_ranks_test_targets_unasked_stops_the_study(dataset):
    space, launcher = tiny_space(), Scripted([{"test/ndcg@10": 0.5}])
    with pytest.raises(ValueError, match="ranked test targets although it was not asked to"):
        TrialRunner(space, {"dataset": dataset}, launcher=launcher).run(start(space))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_dim": 16}, "num_blocks is missing"),
        ({"output_dir": "x"}, "'output_dir' is no axis"),
        ("lr=0.1", "a configuration is a mapping"),
        (None, "a configuration is a mapping"),
    ],
)
def test_what_is_not_legal_is_refused(dataset, config, words):
    outcome = TrialRunner(tiny_space(), {"dataset": dataset}, launcher=None).run(config)
    assert (outcome.status, outcome.key, outcome.score) == ("refused", "", -math.inf) and words in outcome.words


def test_what_the_backbone_refuses_is_refused(dataset):
    space = backbone_space("sasrec")
    width = replace(space.by_name["hidden_dim"], values=(18,), default=18)
    space = replace(space, axes=tuple(width if axis.name == "hidden_dim" else axis for axis in space.axes))
    outcome = TrialRunner(space, {"dataset": dataset}, launcher=None).run({**space.default, "num_heads": 4})
    assert outcome.status == "refused" and "hidden_dim 18 does not divide by num_heads 4" in outcome.words
    asked = {**space.default, "num_heads": 4}
    assert (outcome.key, outcome.config) == (space.key(asked), asked)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("{}")])
def test_data_that_cannot_be_read_is_no_refusal(dataset, tmp_path, spoil):
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    space = tiny_space()
    runner = TrialRunner(space, {"dataset": copy}, launcher=Scripted())
    spoil(copy / "dataset.json")
    with pytest.raises(ValueError, match=r"is not what it was .* before a trial"):
        runner.run(start(space))
    with pytest.raises(ValueError, match=r"dataset\.json"):
        TrialRunner(space, {"dataset": copy}, launcher=None)


def test_a_data_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"dataset .*none is missing"):
        TrialRunner(tiny_space(), {"dataset": tmp_path / "none"}, launcher=None)


def test_a_large_model_is_not_started(dataset):
    space = tiny_space(limits=Limits(parameters=1000))
    outcome = TrialRunner(space, {"dataset": dataset}, launcher=None).run(start(space))
    assert outcome.status == "too_large" and outcome.words == f"{outcome.parameters} parameters, 1000 are allowed"


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (Limits(cpu_seconds=0.05), "timeout"),
        (Limits(wall_seconds=0.05), "timeout"),
        (Limits(memory_gib=0.01), "out_of_memory"),
    ],
)
def test_limits_end_a_trial(runner, limits, status):
    space = tiny_space(limits=limits)
    outcome = runner(space).run(start(space))
    assert outcome.status == status and not outcome.metrics and outcome.words.startswith("stopped after")


def test_a_loss_that_is_no_number_is_told(runner):
    space = tiny_space()
    wild = replace(space.by_name["lr"], high=1e14)
    space = replace(space, axes=tuple(wild if axis.name == "lr" else axis for axis in space.axes))
    outcome = runner(space).run(start(space, lr=1e14))
    assert outcome.status == "nan" and "loss is nan at epoch" in outcome.words


def test_a_crash_is_told_in_its_last_words(runner):
    space = tiny_space(metric="precision@10")
    outcome = runner(space).run(start(space))
    assert outcome.status == "crash" and "metric 'precision@10' is unknown" in outcome.words


@pytest.mark.parametrize(
    ("ended", "log", "status", "words"),
    [
        (Ended(1, 1, 1, 1), b"x\nRuntimeError: [enforce fail] can't allocate memory: 99", "out_of_memory", "allocate"),
        (Ended(1, 1, 1, 1), b"MemoryError\n\n", "out_of_memory", "MemoryError"),
        (Ended(2, 1, 1, 1), b"", "crash", "status 2"),
        (Ended(1, 1, 1, 1), b"\xff\xfe" + b"x" * 50_000, "crash", "x" * 400),
        (Ended(-9, 1, 1, 1), b"epoch 1", "crash", "ended with signal SIGKILL"),
    ],
)
def test_last_words(dataset, ended, log, status, words):
    space = tiny_space()
    outcome = TrialRunner(space, {"dataset": dataset}, launcher=Scripted([], ended, log)).run(start(space))
    assert outcome.status == status and words in outcome.words and len(outcome.words) <= 400


def test_a_metric_that_is_no_number_is_nan(dataset):
    space, launcher = tiny_space(), Scripted([{"validation/ndcg@10": math.nan}])
    outcome = TrialRunner(space, {"dataset": dataset}, launcher=launcher).run(start(space))
    assert (outcome.status, outcome.words, dict(outcome.metrics)) == ("nan", "validation/ndcg@10 is nan", {})


def test_a_trial_leaves_nothing_behind(dataset, forked, tmp_path):
    space = tiny_space()
    before = {path: path.stat().st_mtime_ns for path in dataset.iterdir()}
    assert TrialRunner(space, {"dataset": dataset}, tmp_path, forked).run(start(space)).ok
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in dataset.iterdir()} == before


def test_data_that_changed_stops_the_study(dataset, tmp_path):
    copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    # A run record that claims a fingerprint is not believed.
    write_json(copy / "run.json", {"schema": 1, "fingerprint": "x", "config": {}, "inputs": {}, "recipe": "amazon"})
    space = tiny_space()

    def spoil():
        (copy / "interactions.parquet").write_bytes(b"other")

    runner = TrialRunner(space, {"dataset": copy}, launcher=Scripted([{}, {}], during=[lambda: None, spoil]))
    assert runner.run(start(space)).ok
    with pytest.raises(ValueError, match=r"is not what it was .* after a trial"):
        runner.run(start(space))
    with pytest.raises(ValueError, match=r"is not what it was .* before a trial"):
        runner.run(start(space))
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match=r"nothing there before"):
        TrialRunner._check_inputs(runner, "before")


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_parameters_are_counted_without_training(runner, name):
    space, rng = tiny_space(name, replace(LIMITS, parameters=None)), np.random.default_rng(2)
    for config in (start(space), space.change(start(space), "tie_embeddings", name == "sasrec"), space.sample(rng)):
        if config.get("train_window", 0) > 10:
            config = {**config, "train_window": 10}
        outcome = runner(space).run(config)
        assert outcome.ok, outcome.words
        # An outcome of a trial that ran tells the recipe's own count.
        assert outcome.parameters == count_parameters(space.recipe, space.arguments(config), runner(space).inputs)


def test_glass_is_driven_by_its_own_recipe(dataset, forked, tmp_path):
    rng = np.random.default_rng(0)
    codes_NL = np.stack(np.unravel_index(rng.permutation(80)[:25], (4, 4, 5)), 1)
    SidTable(codes_NL, (4, 4, 5)).save(tmp_path / "sids")
    save_embeddings(tmp_path / "sids", rng.normal(size=(25, 7)).astype(np.float32))
    space = backbone_space("glass")
    space = replace(space, fixed={**space.fixed, "epochs": 1, "beams": 10})
    small = {"hidden_dim": 32, "num_blocks": 1, "num_heads": 2, "head_dim": 16, "ffn_dim": 128, "max_len": 10}
    config = space.complete({**small, "neighbours": 1})
    inputs = {"dataset": dataset, "sid_table": tmp_path / "sids"}
    outcome = TrialRunner(space, inputs, launcher=forked).run(config)
    assert outcome.ok, outcome.words
    assert set(outcome.metrics) >= {"validation/ndcg@10"} and not any("test" in name for name in outcome.metrics)
    assert outcome.parameters == count_parameters(space.recipe, space.arguments(config), inputs)


# ---- the one reading


WELL = Ended(0, 1.0, 1.0, 0.1)


class Scripted:
    """Stands at the edge where a process would start: writes the next metrics, or ends as told."""

    def __init__(self, metrics=(), ended=WELL, log=b"", during=()):
        self.metrics, self.ended, self.log, self.during, self.words = list(metrics), ended, log, list(during), []

    def run(self, recipe, words, log, limits):
        self.words.append(dict(word.removeprefix("--").split("=", 1) for word in words))
        assert (
            recipe == recipe_path("train_backbone")
            and self.words[-1].keys() <= recipe_arguments("train_backbone").keys()
        )
        log.write_bytes(self.log)
        if self.during:
            self.during.pop(0)()
        if not self.ended.status:
            usual = {"validation/ndcg@10": 0.1, "parameters": 5}
            write_json(Path(self.words[-1]["output_dir"]) / "metrics.json", usual | self.metrics.pop(0))
        return self.ended

    def close(self):
        pass


def sealed(dataset, metrics, **options):
    space = tiny_space()
    launcher = Scripted(metrics, **options)
    return TrialRunner(space, {"dataset": dataset}, launcher=launcher), start(space), launcher


def test_the_test_is_read_once(dataset, tmp_path):
    runner, config, launcher = sealed(dataset, [{"test/ndcg@10": value} for value in (0.1, 0.2, 0.6)])
    seen = []
    launcher.during = [lambda: seen.append(json.loads((tmp_path / SEAL_FILE).read_text()))] * 3
    assert is_sealed(tmp_path)
    record = finalize(tmp_path, runner, config, [5, 6, 7])
    assert [words["seed"] for words in launcher.words] == ["5", "6", "7"]
    assert all(words["report_test"] == "True" for words in launcher.words)
    # It was written down before the first number existed.
    assert seen[0]["outcomes"] == [] and seen[0]["config"] == config and "finished" not in seen[2]
    assert record["summary"]["test/ndcg@10"] == pytest.approx(0.3)
    assert record["summary"]["test/ndcg@10_std"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert json.loads((tmp_path / SEAL_FILE).read_text()) == json.loads(json.dumps(record)) and not is_sealed(tmp_path)
    for seeds, chosen in (([5, 6, 7], config), ([8], config), ([5], {**config, "lr": 0.02})):
        with pytest.raises(ValueError, match="the test was read on"):
            finalize(tmp_path, runner, chosen, seeds)
    assert len(launcher.words) == 3


def test_an_interrupted_reading_goes_on_and_no_other_begins(dataset, tmp_path):
    runner, config, launcher = sealed(dataset, [{"test/ndcg@10": value} for value in (0.1, 0.2, 0.3)])

    def killed():
        raise KeyboardInterrupt

    launcher.during = [lambda: None, killed]
    with pytest.raises(KeyboardInterrupt):
        finalize(tmp_path, runner, config, [1, 2])
    assert not is_sealed(tmp_path)
    for seeds, chosen in (([1, 3], config), ([1], config), ([1, 2], {**config, "lr": 0.02})):
        with pytest.raises(ValueError, match="only that one may be finished"):
            finalize(tmp_path, runner, chosen, seeds)
    record = finalize(tmp_path, runner, config, [1, 2])
    assert [words["seed"] for words in launcher.words] == ["1", "2", "2"]
    assert [row["metrics"]["test/ndcg@10"] for row in record["outcomes"]] == [0.1, 0.2]


def test_failed_seeds_are_counted_and_not_averaged(dataset, tmp_path):
    runner, config, _ = sealed(dataset, [], ended=Ended(1, 1, 1, 1), log=b"ValueError: no")
    record = finalize(tmp_path, runner, config, [1])
    assert record["summary"] == {"seeds": 1, "ok": 0} and record["outcomes"][0]["words"] == "ValueError: no"


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_differ(dataset, tmp_path, seeds):
    runner, config, _ = sealed(dataset, [])
    with pytest.raises(ValueError, match="seeds must be one or more and differ"):
        finalize(tmp_path, runner, config, seeds)
    with pytest.raises(ValueError, match="is no axis"):
        finalize(tmp_path, runner, {**config, "x": 1}, [1])
    assert is_sealed(tmp_path)


def test_nobody_else_unseals(repo_root):
    allowed = {"recllm/tuning/trials/runner.py", "recllm/tuning/trials/finalize.py", "recllm/tuning/trials/measure.py"}
    code = [*(repo_root / "recllm").rglob("*.py"), *(repo_root / "recipes").glob("*.py")]
    code += [*(repo_root / "benchmarks").glob("*.py"), *(repo_root / "data_prep").glob("*.py")]
    found = {path.relative_to(repo_root).as_posix() for path in code if "run_unsealed" in path.read_text()}
    assert found <= allowed and len(code) > 100
