"""The script on a small folder, on the real sets where they are, and its configs."""

import json
import runpy

import polars as pl
import pytest

from recllm.data.interactions import Sequences
from recllm.provenance import load_run
from recllm.training.arguments import parse


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "amazon.py"))


def test_raw_2018_files_end_as_a_data_set(script, tmp_path):
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    events = [(f"u{u}", f"B{(u + i) % 9}", 1000 - i // 3) for u in range(9) for i in range(6)]
    events += events[:5]  # the published files do repeat reviews
    rows = [{"reviewerID": u, "asin": i, "unixReviewTime": t} for u, i, t in events]
    (folder / "Toy.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    meta = [{"asin": f"B{i}", "title": f"T{i}", "category": ["Root", "Leaf"]} for i in range(8)]
    (folder / "meta_Toy.json").write_text("".join(f"{json.dumps(row)}\n" for row in meta))
    script["main"](script["Arguments"](str(tmp_path / "out"), "toy", data=str(tmp_path / "data")))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["users"], metrics["items"], metrics["events"], metrics["dropped_repeats"]) == (9, 9, 54, 5)
    assert metrics["items_without_metadata"] == 1
    assert load_run(tmp_path / "out")["recipe"] == "amazon"


@pytest.mark.parametrize("name", ["beauty2014", "scientific2018"])
def test_configs_give_the_published_sets(script, repo_root, recllm_data, tmp_path, name):
    config = repo_root / "recipes" / "configs" / "amazon" / f"{name}.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--data", str(recllm_data)]
    script["main"](*parse(script["Arguments"], argv=argv))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    published = {"beauty2014": (22_328, 12_101, 198_185), "scientific2018": (8_317, 4_344, 58_492)}
    assert (metrics["users"], metrics["items"], metrics["events"]) == published[name]
    # Item numbers stay those of the source, so that published SID tables fit.
    catalog = pl.read_parquet(tmp_path / "catalog.parquet")
    assert (catalog["source_id"].cast(pl.Int32) == catalog["item_id"]).all()
    assert len(Sequences.load(tmp_path)) == metrics["users"]


@pytest.mark.parametrize("name", ["beauty2014", "scientific2018"])
def test_configs_parse(script, repo_root, name):
    path = repo_root / "recipes" / "configs" / "amazon" / f"{name}.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(path)])
    assert args.split == "leave_one_out" and args.k_core == 0 and args.keep_unseen
