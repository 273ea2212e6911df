import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recllm.backbones.batches import window_batches
from recllm.backbones.fit import FitReport, fit
from recllm.backbones.losses import Objective
from recllm.backbones.optimizers import use_sparse_rows
from recllm.backbones.resume import FILE, FOLDER, discard_checkpoint
from recllm.backbones.sasrec import SASRec
from recllm.data.interactions import Sequences

ITEMS = 30


class Stop(Exception):
    """Stands for a kill inside this process."""


def run(
    folder: Path | None, *, stop_at: tuple[int, int] | None = None, sparse: bool = False, metrics=None, **changed
) -> tuple[FitReport, dict[str, torch.Tensor]]:
    """Fit a small SASRec with dropout, drawn negatives and shuffled windows; `stop_at` (epoch, step) breaks it off."""
    rng = np.random.default_rng(5)
    world = np.random.default_rng(0)
    sequences = Sequences.from_lists([world.integers(ITEMS, size=n).tolist() for n in world.integers(2, 20, size=24)])
    torch.manual_seed(3)
    model = SASRec(ITEMS, 6, 8, dropout=0.3, tie_embeddings=not sparse)
    if sparse:
        use_sparse_rows(model)
    objective, validated = Objective(num_negatives=7), []

    def batches(epoch):
        for step, batch in enumerate(window_batches(sequences, sequences.lengths_U, 6, 8, rng)):
            if stop_at == (epoch, step):
                raise Stop
            yield batch

    def validate():
        validated.append(1)
        if metrics is not None:
            return metrics.pop(0)
        with torch.no_grad():
            return -float(objective(model, *next(window_batches(sequences, sequences.lengths_U, 6, 99, rng))))

    settings = {"epochs": 6, "lr": 0.01, "weight_decay": 0.1, "patience": 6, "label": "sasrec"} | changed
    report = fit(
        model, batches, lambda *batch: objective(model, *batch), validate, folder=folder, rngs=[rng], **settings
    )
    return report, model.state_dict() | {"rng": torch.get_rng_state(), "next": torch.tensor(rng.integers(2**62))}


def told(report: FitReport) -> list[tuple[float, float]]:
    return [(epoch["loss"], epoch["metric"]) for epoch in report.history]


def same(one, other) -> None:
    assert (one[0].best_metric, one[0].best_epoch, one[0].epochs) == (
        other[0].best_metric,
        other[0].best_epoch,
        other[0].epochs,
    )
    assert told(one[0]) == told(other[0])
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam"}, {"sparse": True}], ids=str)
@pytest.mark.parametrize("stops", [[(0, 1)], [(3, 0)], [(1, 2), (1, 0), (5, 3)]])
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(stops, options, tmp_path):
    whole = run(None, **options)
    kept = run(tmp_path / "whole", **options)
    same(whole, kept)
    for stop_at in stops:
        with pytest.raises(Stop):
            run(tmp_path / "cut", stop_at=stop_at, **options)
        torch.manual_seed(999)  # another process has another state
    resumed = run(tmp_path / "cut", **options)
    same(whole, resumed)
    assert len({loss for loss, _ in told(resumed[0])}) == 6, "every epoch did something"


def test_more_epochs_may_be_asked_for_later(tmp_path):
    run(tmp_path, epochs=2)
    same(run(None, epochs=5), run(tmp_path, epochs=5))


def test_a_fit_that_had_ended_does_nothing_more(tmp_path):
    metrics = [0.1, 0.5, 0.4, 0.3]
    ended = run(tmp_path, patience=2, metrics=list(metrics))
    assert ended[0].epochs == 4 and ended[0].best_epoch == 1
    again = run(tmp_path, patience=2, metrics=[])  # asking for a metric would fail
    assert told(again[0]) == told(ended[0])
    for name, tensor in ended[1].items():
        assert torch.equal(tensor, again[1][name]) or name in ("rng", "next"), name


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_resume
replace, count = Path.replace, []
def killed(self, target):
    count.append(1)
    if len(count) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killed
test_resume.run(Path(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kill_while_the_state_is_written_leaves_the_epoch_before(tmp_path):
    here = str(Path(__file__).parent)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), here], capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert FILE in names and len(names) == 2, "the whole state, and what was being written"
    same(run(None), run(tmp_path))
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [FILE]


def test_another_fits_state_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    for changed, message in (
        ({"lr": 0.02}, "was left by a fit with lr 0.01, this one has 0.02; remove its folder"),
        ({"label": "hstu"}, "with label 'sasrec', this one has 'hstu'"),
        ({"sparse": True}, "was left by a fit of another model"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(tmp_path, **changed)
    path = tmp_path / FOLDER / FILE
    assert load_file(path), "plain safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read .* remove its folder to start over"):
        run(tmp_path)
    discard_checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())
    discard_checkpoint(tmp_path)
