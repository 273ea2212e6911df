"""The script that measures surfaces: workers that start at once, and words that it does not take."""

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import typer
from typer.testing import CliRunner


@pytest.fixture
def script(repo_root):
    spec = importlib.util.spec_from_file_location("measure_surfaces", repo_root / "benchmarks" / "measure_surfaces.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_workers_that_start_at_once_make_a_data_set_one_after_the_other(script, tmp_path, monkeypatch):
    seen = []

    def prepare(words, check):
        seen.append("in")
        time.sleep(0.1)
        seen.append("out")

    monkeypatch.setattr(script.subprocess, "run", prepare)
    name = next(iter(script.USERS))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: script.make_dataset(name, tmp_path / "data" / name), range(3)))
    assert seen == ["in", "out"] * 3
    assert not (tmp_path / "data" / name).exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--tables", "sasrec-amzon"], "no table's name holds"), (["--spread", "0"], "--spread")],
)
def test_words_that_are_mistyped_are_refused_at_once(script, tmp_path, words, complaint):
    app = typer.Typer()
    app.command()(script.main)
    found = CliRunner().invoke(app, ["--work", str(tmp_path), *words], env={"COLUMNS": "200"})
    assert found.exit_code == 2 and complaint in found.output
    assert list(tmp_path.iterdir()) == []
