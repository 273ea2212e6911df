"""A small data set in the layout of dataset/, and a warm launcher that the real recipe is run with.

The helpers beside this file can be imported by the tests of the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recllm.tuning.trials.launch import Forked

sys.path.insert(0, str(Path(__file__).parent))
ITEMS = 25


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """40 users whose next item is mostly the last one plus 1."""
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        item = int(rng.integers(ITEMS))
        for step in range(int(rng.integers(4, 15))):
            rows.append((user, item, 1_400_000_000 + 1000 * step + user))
            item = (item + 1) % ITEMS if rng.random() < 0.8 else int(rng.integers(ITEMS))
    folder = tmp_path_factory.mktemp("tuning") / "dataset"
    folder.mkdir()
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    catalog = {"item_id": range(ITEMS), "title": [f"t{i}" for i in range(ITEMS)], "categories": [["c"]] * ITEMS}
    types = {"item_id": pl.Int32, "title": pl.String, "categories": pl.List(pl.String)}
    pl.DataFrame(catalog, schema=types).write_parquet(folder / "catalog.parquet")
    facts = {"name": "made up", "split": "leave_one_out", "routing_items": 1, "split_seed": 0, "time": "seconds"}
    facts |= {"counts": {"users": 40}, "sample_users": None, "sample_seed": 0}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def forked():
    launcher = Forked()
    yield launcher
    launcher.close()
