"""A sweep that is killed again and again, or shared by workers, ends up as the one of a worker left in peace."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recllm.merging.ledger import LEDGER_FILE, read_sweep
from recllm.provenance import load_run

sys.path.insert(0, str(Path(__file__).parent))
from worlds import model_family

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "merge_sweep.py"
OWN = ("merge_seconds", "evaluate_seconds", "worker")
GRIDS = {
    12: [
        {"method": "linear", "strength": {"from": 0, "to": 1, "steps": 4}},
        {"method": "ties", "strength": [0.3, 0.7], "density": [0.2, 0.6]},
        {"method": "dare_ties", "strength": [0.3, 0.7], "density": 0.5, "seed": [1, 2]},
    ],
    40: [
        {"method": "linear", "strength": {"from": 0, "to": 1, "steps": 11}},
        {"method": "ties", "strength": [0.2, 0.5, 0.8], "density": [0.2, 0.5, 0.8]},
        {"method": "dare_ties", "strength": [0.2, 0.8], "density": [0.2, 0.6], "seed": [1, 2, 3]},
        {"method": "slerp", "strength": {"from": 0.1, "to": 0.8, "steps": 8}},
    ],
}


class Forks:
    """Runs of the recipe, each in a process of its own."""

    def __init__(self, model):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        self.environment = environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "sweep_child.py"), str(model)], env=environment, **pipes
        )

    def ask(self, **question):
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, argv, log):
        return self.ask(argv=argv, log=str(log))

    def wait(self, pid):
        return self.ask(wait=pid)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    return model_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def forks(parents):
    found = Forks(parents["direct"])
    yield found
    found.server.stdin.close()
    found.server.wait(timeout=60)


def words(parents, folder, count, pause=0.05):
    given = [f"--{role}={path}" for role, path in parents.items()] + [f"--output_dir={folder}"]
    options = json.dumps({"pause": pause})
    entries = [json.dumps(entry) for entry in GRIDS[count]]
    return [*given, "--evaluator=toy_evaluator:toy", f"--evaluator_options={options}", "--grid", *entries]


def lines(folder):
    path = folder / LEDGER_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def content(folder):
    """All that a finished sweep says, in the order of its grid, but for times and workers."""
    sweep = read_sweep(folder)
    assert sweep.complete and load_run(folder)
    keys = [json.loads(line)["key"] for line in (folder / LEDGER_FILE).read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == len(sweep.points), "a point is missing or was recorded twice"
    assert not list((folder / "claims").glob("*.json")), "a claim was left"
    assert len(list((folder / "points").glob("*.parquet"))) == len(keys)
    samples = {key: sweep.samples(key).value_QS.tolist() for key in sweep.records}
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [{name: value for name, value in row.items() if name not in OWN} for row in sweep.records.values()]
    return rows, samples, {name: value for name, value in metrics.items() if name not in OWN}


def finish(forks, argv, log):
    status = forks.wait(forks.start(argv, log))
    assert status == 0, log.read_text()[-3000:]


@pytest.mark.parametrize(
    ("kills", "count"), [(5, 12), pytest.param(50, 40, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_sweep_survives_kills_at_random_moments(forks, parents, tmp_path, kills, count):
    peaceful, killed, log = tmp_path / "peaceful", tmp_path / "killed", tmp_path / "log"
    finish(forks, words(parents, peaceful, count, pause=0), log)
    rng, kept, argv = np.random.default_rng(kills), 0, words(parents, killed, count)
    for number in range(kills):
        # Evenly over the sweep, however fast the machine is: who lags waits for a point, who leads hits the start.
        pace = (number + 1) * (count - 1) // (kills + 1)
        lags, leads = kept < pace, kept > pace
        fresh = kills > 5 and number % 10 == 9  # now and then the real command, imports and all
        if fresh:
            command = [sys.executable, str(RECIPE), *argv]
            child = subprocess.Popen(command, env=forks.environment, stdout=log.open("a"), stderr=subprocess.STDOUT)
        pid = child.pid if fresh else forks.start(argv, log)
        deadline = time.monotonic() + 300
        while lags and lines(killed) <= kept and time.monotonic() < deadline:
            time.sleep(0.001)
        starting, working = (0.5, 8.0) if fresh else (0.05, 1.0)
        due = time.monotonic() + rng.uniform(0, 0.08 if lags else starting if leads else working)
        while time.monotonic() < due and (lags or lines(killed) <= kept):
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        status = child.wait() if fresh else forks.wait(pid)
        assert status == -signal.SIGKILL, f"kill {number} came too late or the run failed: {log.read_text()[-3000:]}"
        assert lines(killed) >= kept + lags, "a recorded point was lost"
        kept = lines(killed)
    assert kept < count
    finish(forks, argv, log)
    assert content(killed) == content(peaceful)
    finish(forks, argv, log)
    assert "complete, nothing to do" in log.read_text()


def test_workers_that_start_together_do_each_point_once(forks, parents, tmp_path):
    alone, shared, log = tmp_path / "alone", tmp_path / "shared", tmp_path / "log"
    finish(forks, words(parents, alone, 12, pause=0), log)
    argv = words(parents, shared, 12, pause=0.15)
    workers = [forks.start(argv, log) for _ in range(2)]
    assert [forks.wait(pid) for pid in workers] == [0, 0], log.read_text()[-3000:]
    assert content(shared) == content(alone)
    shares = [row["worker"] for row in read_sweep(shared).records.values()]
    assert {int(name.rsplit(":")[-1]) for name in shares} == set(workers), "one worker did everything"
    assert len(re.findall(r"^\d+/12 .*accuracy", log.read_text(), re.M)) == 12 + 12, "a point was done twice"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_ranks_of_a_launch_share_the_points(forks, parents, tmp_path):
    alone, shared, log = tmp_path / "alone", tmp_path / "shared", tmp_path / "log"
    finish(forks, words(parents, alone, 12, pause=0), log)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, str(RECIPE), *words(parents, shared, 12, pause=2)]
    done = subprocess.run(command, env=forks.environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(shared) == content(alone)
    assert len({row["worker"] for row in read_sweep(shared).records.values()}) == 2
    assert done.stdout.count("12 points, 6 questions") == 1, "one rank speaks"
