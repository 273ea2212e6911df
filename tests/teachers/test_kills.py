"""A ledger whose writer is killed again and again ends up as the one of a writer that was left in peace."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


def start(path, count):
    child = Path(__file__).with_name("kill_child.py")
    return subprocess.Popen([sys.executable, str(child), str(path), str(count)], stderr=subprocess.PIPE, text=True)


def recorded(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_ledger_survives_kills_at_random_points(tmp_path, kills):
    path, rng, count = tmp_path / "killed.jsonl", np.random.default_rng(kills), 20 * kills
    kept = 0
    for number in range(kills):
        child, wanted = start(path, count), kept + int(rng.integers(1, 8))
        while recorded(path) < wanted and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))  # into a write, a sync or the teacher's work
        child.kill()
        _, told = child.communicate()
        assert child.returncode == -9, f"kill {number} came too late or the child failed: {told}"
        assert recorded(path) >= max(kept, wanted), "a recorded answer was lost"
        kept = recorded(path)
    assert kept < count
    peaceful = tmp_path / "peaceful.jsonl"
    for ledger in (path, peaceful):
        child = start(ledger, count)
        _, told = child.communicate(timeout=60)
        assert child.returncode == 0, told
    assert path.read_bytes() == peaceful.read_bytes()
    keys = [json.loads(line)["key"] for line in path.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == count
