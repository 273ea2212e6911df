"""recipes/merge_sweep.py from its smoke config, on parents of two layers and an evaluator of milliseconds."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from recllm.merging.ledger import LEDGER_FILE, read_sweep
from recllm.provenance import load_run
from recllm.training.arguments import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))
from worlds import model_family

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "merge_sweep.py"
SMOKE = ROOT / "recipes" / "configs" / "merge_sweep" / "smoke.yaml"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    return model_family(tmp_path_factory.mktemp("family"))


def start(parents, folder, *more, options="{}"):
    given = [f"--{role}={path}" for role, path in parents.items()] + [f"--output_dir={folder}"]
    scope = runpy.run_path(str(RECIPE))
    toy = ("--evaluator=toy_evaluator:toy", f"--evaluator_options={options}")
    scope["main"](*parse(scope["Arguments"], argv=["--config", str(SMOKE), *given, *toy, *more]))


def test_the_smoke_sweep_is_recorded_and_a_second_start_does_nothing(parents, tmp_path, capsys):
    start(parents, tmp_path)
    sweep, record = read_sweep(tmp_path), load_run(tmp_path)
    assert sweep.complete and len(sweep.points) == 5
    assert record["inputs"].keys() == {"direct", "thinking", "base"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    best = max(row["accuracy"] for row in sweep.records.values())
    direct, thinking = (sweep.records[sweep.points[place].key] for place in (0, 2))
    assert metrics["points"] == 5 and metrics["best/accuracy"] == best
    assert (metrics["direct/tokens"], metrics["thinking/tokens"]) == (direct["tokens"], thinking["tokens"])
    told = capsys.readouterr().out
    assert told.count("best ") == 1 and sweep.records[metrics["best/key"]]["label"] in told.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    start(parents, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "complete, nothing to do" in capsys.readouterr().out


def test_a_grown_grid_file_goes_on_and_another_evaluator_leaves_the_finished_run_alone(parents, tmp_path):
    folder, grid = tmp_path / "sweep", tmp_path / "grid.yaml"
    grid.write_text("grid: [{method: linear, strength: 0.5}]\n")
    start(parents, folder, "--grid", str(grid))
    first = (folder / LEDGER_FILE).read_bytes()
    grid.write_text("grid: [{method: linear, strength: [0.25, 0.5]}]\n")
    start(parents, folder, "--grid", str(grid))
    assert (folder / LEDGER_FILE).read_bytes().startswith(first)
    assert load_run(folder) and json.loads((folder / "metrics.json").read_text())["points"] == 4
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="its questions or settings differ"):
        start(parents, folder, "--grid", str(grid), options='{"questions": 3}')
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_the_evaluator_needs_is_an_input_of_the_run(parents, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="unknown option 'dataset'"):  # it arrives at the evaluator
        start(parents, tmp_path / "sweep", f"--dataset={tmp_path / 'data'}")
    assert not (tmp_path / "sweep").exists()
