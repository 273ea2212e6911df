"""A GRPO run that is killed anywhere, or whose disk is full, ends with the weights of one that nothing befell.

The runs are real processes that die by SIGKILL or meet a real limit; kill_run.py beside this file plays them all from
one warm process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAYER = Path(__file__).with_name("kill_run.py")
KILLS = 5


def play(home: Path, jobs: dict, timeout: int = 280) -> dict:
    home.mkdir(exist_ok=True)
    (home / "jobs.json").write_text(json.dumps(jobs))
    env = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    ended = subprocess.run([sys.executable, PLAYER, home], capture_output=True, text=True, env=env, timeout=timeout)
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-5000:]
    return json.loads((home / "results.json").read_text())


def mount_small_disk(folder: Path) -> str | None:
    """Why no small file system can be mounted on `folder`, or None where it is."""
    if os.geteuid() != 0:
        return "mounting a small tmpfs needs root"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"a tmpfs cannot be mounted here: {done.stderr.strip()}"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What every job told, and why there is no small disk."""
    home = tmp_path_factory.mktemp("kills")
    disk = home / "disk"
    refused = mount_small_disk(disk)
    jobs = {
        "kills": {"kind": "kills", "options": {"count": KILLS, "seed": 0}},
        "raised": {"kind": "raised", "options": {"size": 3000}},
        "limit": {"kind": "full", "options": {"kind": "limit", "disk": None}},
        "ranks": {"kind": "ranks"},
    }
    if refused is None:
        jobs["tmpfs"] = {"kind": "full", "options": {"kind": "tmpfs", "disk": str(disk)}}
    try:
        yield {**play(home / "jobs", jobs), "refused": refused}
    finally:
        if refused is None:
            subprocess.run(["umount", disk], check=True)


def check_kills(told: dict, count: int) -> None:
    wanted = told["wanted"]
    print(f"{told['in_save']} of {count} kills fell into a save; newest checkpoints then: {told['at']}")
    assert wanted["steps"] == 12 and len(told["at"]) == count and len(told["ends"]) > 1
    for end in told["ends"]:
        assert {name: end[name] for name in wanted} == wanted, "every bit of the weights, and all steps"
        assert end["left"] == ["checkpoint-11", "checkpoint-12", "done-0.json"], "no staging, two checkpoints"


def test_a_killed_run_equals_the_uninterrupted_one(played):
    check_kills(played["kills"], KILLS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_lose_nothing(tmp_path):
    told = play(tmp_path / "jobs", {"kills": {"kind": "kills", "options": {"count": 50, "seed": 1}}}, 880)["kills"]
    check_kills(told, 50)
    assert told["in_save"] > 0
    assert len(set(told["at"])) > 5, "kills are spread over the run"


def test_a_save_can_be_killed_at_every_call_of_the_file_system(tmp_path):
    told = play(tmp_path / "jobs", {"calls": {"kind": "calls"}})["calls"]
    assert told["wrong"] == []
    assert told["points"] > 40 and told["kept"] > 5 and told["new"] > 5, "before and after the rename"


def test_what_writers_raise_on_a_full_disk_is_known(played):
    kinds = {"json": "OSError", "safetensors": "SafetensorError", "torch": "RuntimeError", "tokenizer": "Exception"}
    assert {name: (kind, full) for name, (kind, _, full) in played["raised"].items()} == {
        name: (kind, True) for name, kind in kinds.items()
    }


@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_a_full_disk_costs_checkpoints_and_not_the_run(played, kind):
    if kind == "tmpfs" and played["refused"]:
        pytest.skip(played["refused"])
    told, wanted = played[kind], played["kills"]["wanted"]
    assert told["failed"] == len(told["warnings"]) == 3
    assert (told["weights"], told["steps"]) == (wanted["weights"], wanted["steps"])
    kept = [["checkpoint-2", "checkpoint-3"], f"{told['folder']}/checkpoint-3"]
    for step in ("3", "4", "5", "6"):
        assert told["seen"][step] == kept, "the earlier ones stay, nothing is half there, no staging is left"
    assert told["seen"]["7"] == [["checkpoint-3", "checkpoint-7"], f"{told['folder']}/checkpoint-7"]
    for step, warning in zip((4, 5, 6), told["warnings"], strict=True):
        assert f"NO CHECKPOINT of step {step}:" in warning and told["folder"] in warning
        assert "MiB free" in warning and "takes 0.1 MiB" in warning and "save_total_limit" in warning


def test_two_ranks_resume_in_the_middle_of_their_buffers(played):
    told = played["ranks"]
    assert told["left"].endswith(("checkpoint-5", "checkpoint-6")), "killed within a buffer of eight steps"
    assert told["cut"] == told["whole"] and told["whole"][0] == told["whole"][1]
    assert {f"{name}_{rank}.pth" for name in ("rng_state",) for rank in (0, 1)} <= set(told["whole files"])
    assert {f"run_state-{rank}.safetensors" for rank in (0, 1)} <= set(told["whole files"])


def test_ranks_agree_that_a_save_failed_where_one_has_a_full_disk(played):
    told = played["ranks"]
    assert [end["failed"] for end in told["full"]] == [1, 1]
    assert [end["weights"] for end in told["full"]] == [end["weights"] for end in told["whole"]]
