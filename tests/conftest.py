"""For every test: no network but this machine, two threads, quiet libraries; and the optional outside data."""

import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "tests" / "guard"

# Libraries read these at import, so they are set before any test module is collected; child processes inherit them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "2")  # timings and rounding stay alike everywhere
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(GUARD / "sitecustomize.py"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that holds these tests."""
    return ROOT


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run `recllm recommend` with these words, in an empty folder and 150 columns."""
    from typer.testing import CliRunner

    from recllm import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    return lambda *words: CliRunner().invoke(cli.app, ["recommend", *(str(word) for word in words)])


@pytest.fixture(scope="session")
def recllm_data() -> Path:
    """The folder of real data sets that RECLLM_DATA names; without it the test is skipped with the reason."""
    folder = os.environ.get("RECLLM_DATA")
    if not folder:
        pytest.skip("RECLLM_DATA is not set: this test reads data sets that are not part of the project")
    if not Path(folder).is_dir():
        pytest.skip(f"RECLLM_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: matrices of a few rows only lose by being shared, far more so beside other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
