"""recipes/publish.py: a dry run sends nothing, a push arrives, a failed one ends with status 1."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from recllm.provenance import RunRecord

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "publish.py"
sys.path.insert(0, str(ROOT / "tests" / "hub"))
from fake_hub import TOKEN, FakeHub  # noqa: E402


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeHub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def run(tmp_path):
    record = RunRecord.start(tmp_path / "run", recipe="sft", config={"seed": 1})
    (record.folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A card\n")
    record.finish({"loss": 0.5})
    return record.folder


@pytest.fixture(scope="module")
def recipe():
    script = runpy.run_path(str(SCRIPT))
    return lambda **given: script["main"](script["Arguments"](**given))


def test_the_smoke_config_lists_and_sends_nothing(hub, run):
    config = ROOT / "recipes" / "configs" / "publish" / "smoke.yaml"
    command = [sys.executable, str(SCRIPT), "--config", str(config), "--folder", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split("at revision")[1]
    assert all(name in listed for name in ("README.md", "metrics.json", "run.json"))
    assert hub.requests == []


def test_a_folder_is_published(hub, run, recipe, capsys):
    recipe(folder=str(run), hub_model_id="team/mine", revision="v1")
    assert f"published: {hub.url}/team/mine/tree/v1" in capsys.readouterr().out
    assert set(hub.files("models/team/mine", "v1")) == {"README.md", "metrics.json", "run.json"}
    assert hub.repos["models/team/mine"].private


def test_the_revision_is_named_after_the_run(hub, run, recipe):
    from recllm.provenance import fingerprint

    recipe(folder=str(run), hub_model_id="team/mine", private=False)
    assert f"run-{fingerprint(run)[:12]}" in hub.repos["models/team/mine"].branches
    assert not hub.repos["models/team/mine"].private


def test_a_push_that_fails_ends_with_a_reason_and_a_status(hub, run, recipe):
    hub.fail("POST", "repos/create", 403)
    with pytest.raises(SystemExit) as caught:
        recipe(folder=str(run), hub_model_id="team/mine")
    assert "write access" in caught.value.code  # a text: Python prints it and ends with status 1
    assert (run / "run.json").exists()


def test_a_folder_that_is_no_run_is_refused_before_any_request(hub, tmp_path, recipe):
    with pytest.raises(ValueError, match="not finished"):
        recipe(folder=str(tmp_path), hub_model_id="team/mine", dry_run=True)
    assert hub.requests == []
