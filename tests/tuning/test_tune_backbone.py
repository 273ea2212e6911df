"""recipes/tune_backbone.py on a real small data set: killed, resumed, remembered, and the test read once."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from recllm.training.arguments import parse
from recllm.tuning.memory.memory import Memory
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.study.export import COLUMNS
from recllm.tuning.trials.launch import Forked
from recllm.tuning.trials.runner import OBJECTIVE

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tune_backbone.py"
SMOKE = ROOT / "recipes" / "configs" / "tune_backbone" / "smoke.yaml"


def words(dataset, folder, *more):
    return ["--config", str(SMOKE), f"--dataset={dataset}", f"--output_dir={folder}", *more]


@dataclass(frozen=True)
class Kept:
    """The session's launcher, which a study leaves open."""

    launcher: Forked

    def run(self, *asked):
        return self.launcher.run(*asked)

    def close(self):
        pass


@pytest.fixture(scope="module")
def start(dataset, forked):
    """Starts the recipe in this process."""

    def started(folder, *more):
        scope = runpy.run_path(str(RECIPE))
        scope["main"](*parse(scope["Arguments"], argv=words(dataset, folder, *more)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recllm.tuning.trials.launch.Forked", lambda: Kept(forked))
        yield started


def trials(folder):
    """The lines of trials.tsv without what depends on the machine's speed and the commit."""
    lines = [line.split("\t") for line in (folder / "trials.tsv").read_text().splitlines()]
    assert lines[0] == list(COLUMNS) and all(len(line) == len(COLUMNS) for line in lines)
    told = [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]
    return [{name: row[name] for name in COLUMNS if name not in ("cpu_seconds", "commit")} for row in told]


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A study that nothing disturbed, with memory."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder / "study", f"--memory={folder / 'memory'}")
    return folder


def test_a_study_leaves_what_its_recipe_says(whole, start, capsys):
    folder = whole / "study"
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = trials(folder)
    assert [row["run_id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["source"] == "default" and rows[0]["status"] == "keep"
    best = [row for row in rows if row["status"] == "keep"][-1]
    assert metrics[f"best/{OBJECTIVE}"] == pytest.approx(float(best["val_ndcg@10"]), abs=1e-6)
    assert metrics["trials"] == 3 and metrics["noise_runs"] == 1 and metrics["epsilon"] >= 1e-4

    read, plain = (json.loads((folder / name / "test_read.json").read_text()) for name in (".", "default"))
    assert read["config"] == json.loads(best["config"])
    assert metrics["best/test/ndcg@10"] == read["summary"]["test/ndcg@10"]
    gain = read["summary"]["test/ndcg@10"] / plain["summary"]["test/ndcg@10"] - 1
    assert metrics["test_gain"] == pytest.approx(gain)
    journal = (folder / "journal.log").read_text()
    assert "validation/ndcg@10" in journal and "test/" not in journal

    reflections = [json.loads(line) for line in (folder / "reflections.jsonl").read_text().splitlines()]
    assert [row["number"] for row in reflections] == [0, 1, 2]
    (known,) = Memory(whole / "memory").studies()
    assert known.summary.study in (folder / "summary.md").read_text()
    assert Memory(folder / "memory").studies() == ()  # as it was at the start

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    start(whole / "study", f"--memory={whole / 'memory'}")
    assert "complete, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_the_recipe_is_killed_with_a_trial_at_work_and_ends_as_if_it_never_was(whole, start, dataset, tmp_path):
    line = [sys.executable, str(RECIPE), *words(dataset, tmp_path / "study", f"--memory={tmp_path / 'memory'}")]
    worker = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while worker.poll() is None and not list((tmp_path / "study" / "claims").glob("noise-0")):
        time.sleep(0.02)
    time.sleep(0.2)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    before = (tmp_path / "study" / "journal.log").read_bytes()

    start(tmp_path / "study", f"--memory={tmp_path / 'memory'}")
    assert (tmp_path / "study" / "journal.log").read_bytes().startswith(before)
    assert trials(tmp_path / "study") == trials(whole / "study")
    told = [json.loads((folder / "study" / "metrics.json").read_text()) for folder in (tmp_path, whole)]
    assert {**told[0], "cpu_seconds": 0} == {**told[1], "cpu_seconds": 0}
    digests = [[study.digest for study in Memory(folder / "memory").studies()] for folder in (tmp_path, whole)]
    assert digests[0] == digests[1]


def test_a_later_study_begins_where_memory_says(whole, start, tmp_path):
    start(tmp_path / "next", f"--memory={whole / 'memory'}", "--seed=1", "--read_test=False")
    rows, known = trials(tmp_path / "next"), json.loads((tmp_path / "next" / "study.json").read_text())
    begin = Memory(tmp_path / "next" / "memory").prior(surface_space("sasrec"), known["data"]).start
    assert rows[1]["source"] == "memory" and json.loads(rows[1]["config"]) == begin
    assert known["data"]["users"] == 40 and known["remembered"]
    assert not (tmp_path / "next" / "test_read.json").exists()
    assert len(Memory(whole / "memory").studies()) == 2


def test_a_wrong_word_for_a_proposer_is_an_error_that_lists_the_right_ones(start, tmp_path):
    with pytest.raises(ValueError, match="tpe"):
        start(tmp_path, "--proposer=tpee")
