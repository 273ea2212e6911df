"""The peer's side of backbones.py, run by a Python of its own that has RecTools.

Run:   python benchmarks/backbones_peer.py WORLD.npz OUT_FOLDER SETTINGS_JSON
Reads the fitting events and the users to answer, fits RecTools' SASRec, answers every user with the ten best unseen
items and writes items.npy (-1 pads) and peer.json.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class EpochClock(pl.Callback):
    """Seconds of each training epoch alone, without what a fit does before and after."""

    seconds: ClassVar[list[float]] = []  # RecTools trains with a deep copy of its trainer

    def on_train_epoch_start(self, *_):
        self.began = time.perf_counter()

    def on_train_epoch_end(self, *_):
        self.seconds.append(time.perf_counter() - self.began)


def fit(dataset: Dataset, settings: dict) -> tuple[SASRecModel, list[float]]:
    """RecTools' SASRec of the settings and the seconds of its epochs."""

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=settings["epochs"], accelerator="cpu", callbacks=[EpochClock()], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=settings["num_blocks"], n_heads=settings["num_heads"], n_factors=settings["hidden_dim"],
        session_max_len=settings["max_len"], dropout_rate=settings["dropout"], loss=settings["loss"],
        n_negatives=settings["num_negatives"], batch_size=settings["batch_size"], lr=settings["lr"],
        get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(dataset)
    return model, EpochClock.seconds


def main(world: str, out: str, settings_json: str) -> None:
    settings = json.loads(settings_json)
    torch.set_num_threads(settings["threads"])
    pl.seed_everything(settings["seed"])
    with np.load(world, allow_pickle=False) as stored:
        events = {name: stored[name] for name in ("users", "items", "order", "answered")}
    frame = pd.DataFrame({Columns.User: events["users"], Columns.Item: events["items"]})
    frame[Columns.Weight], frame[Columns.Datetime] = 1.0, pd.to_datetime(events["order"], unit="s")
    dataset = Dataset.construct(frame)
    model, epoch_seconds = fit(dataset, settings)
    laps = []
    for _ in range(settings["eval_repeats"]):
        began = time.perf_counter()
        found = model.recommend(events["answered"], dataset, k=10, filter_viewed=True)
        laps.append(time.perf_counter() - began)
    items_EK = np.full((len(events["answered"]), 10), -1, dtype=np.int64)
    row_of = {user: row for row, user in enumerate(events["answered"].tolist())}
    rows = found[Columns.User].map(row_of).to_numpy()
    items_EK[rows, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    np.save(Path(out) / "items.npy", items_EK, allow_pickle=False)
    versions = {name: version(name) for name in ("rectools", "torch", "pytorch-lightning", "pandas", "numpy")}
    report = {"epoch_seconds": epoch_seconds, "eval_seconds": laps, "versions": versions}
    (Path(out) / "peer.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])
