"""The script on a small folder in the published layout, and its config."""

import json
import runpy

import numpy as np
import polars as pl
import pytest

from recllm.data.splits import load_split
from recllm.provenance import load_run
from recllm.sid.embeddings import load_embeddings
from recllm.training.arguments import parse


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "taobao_mm.py"))


def test_published_files_end_as_a_data_set_whose_targets_are_clicks(script, tmp_path):
    raw = tmp_path / "data" / "taobao-mm" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    clicks = {"train": [(u, -1 - u % 3) for u in range(20)], "test": [(u, -1 - u % 3) for u in range(20, 26)]}
    for part, rows in clicks.items():
        pl.DataFrame(
            {"label_0": [[0, 1]] * len(rows), "129_1": [u for u, _ in rows], "205": [item for _, item in rows]}
        ).write_parquet(raw / f"{part}_samples.parquet")
        histories = [rng.integers(1, 30, size=60).tolist() for _ in rows]
        pl.DataFrame({"129_1": [u for u, _ in rows], "150_2_180": histories, "151_2_180": histories}).write_parquet(
            raw / f"{part}_user_features.parquet"
        )
    items = [-1, -2, -3, *range(1, 30)]
    pl.DataFrame({"205": items, "206": [abs(item) % 4 for item in items]}).write_parquet(raw / "item_features.parquet")
    vectors = [[item, 127] for item in items]
    pl.DataFrame({"205": items, "205_c": vectors}, schema_overrides={"205_c": pl.List(pl.Int8)}).write_parquet(
        raw / "scl_embedding_int8_p90.parquet"
    )
    script["main"](script["Arguments"](str(tmp_path / "out"), data=str(tmp_path / "data")))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["users"], metrics["events"], metrics["quarantined"]) == (26, 26 * 61, 0)
    known = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert known["time"] == "order" and known["sampling"]["min_history"] == 40 and known["split"] == "last_event"
    catalog = pl.read_parquet(tmp_path / "out" / "catalog.parquet")
    ids = catalog["source_id"].cast(pl.Int64).to_numpy()
    assert (ids[load_split(tmp_path / "out").test.targets_E] < 0).all(), "the last event is the click"
    np.testing.assert_allclose(
        load_embeddings(tmp_path / "out"), np.stack([ids / 127, np.ones(len(ids))], 1), atol=1e-6
    )
    assert load_run(tmp_path / "out")["recipe"] == "taobao_mm"


def test_the_config_parses(script, repo_root):
    path = repo_root / "recipes" / "configs" / "taobao_mm" / "published.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(path)])
    assert (args.items, args.min_item_clicks, args.min_history, args.split) == (10_000, 5, 40, "last_event")
