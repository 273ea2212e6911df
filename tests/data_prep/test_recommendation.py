"""The script on a small data set folder: what it writes, what it counts, and what it refuses."""

import json
import runpy

import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from recllm.data import prompts
from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.provenance import load_run
from recllm.sid.table import SidTable
from recllm.training.arguments import parse
from recllm.training.sft import load_chats

ITEMS = 40


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "recommendation.py"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder of a data set (roles), whose held-out items are never bought before, and of its SID table."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    titles = ["" if i % 10 == 9 else f"Title {i}" for i in range(ITEMS)]
    categories = [[] if i % 8 == 7 else ["Soap", f"Kind {i % 3}"] for i in range(ITEMS)]
    catalog = pl.DataFrame(
        {"item_id": np.arange(ITEMS, dtype=np.int32), "title": titles, "categories": categories},
        schema_overrides={"categories": pl.List(pl.String)},
    )
    # Three held-out events a user (routing, validation, test) on items 30 to 39; what comes before is on 0 to 29.
    rows = [[*rng.integers(0, 30, 4 + 3 * user), *rng.integers(30, ITEMS, 3)] for user in range(12)]
    users = np.repeat(np.arange(12), [len(row) for row in rows]).astype(np.int32)
    items = np.concatenate(rows).astype(np.int32)
    events = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(items), dtype=np.int64)})
    (folder / "dataset").mkdir()
    catalog.write_parquet(folder / "dataset" / "catalog.parquet")
    events.write_parquet(folder / "dataset" / "interactions.parquet")
    described = {"split": "roles", "routing_items": 1, "split_seed": 0}
    (folder / "dataset" / "dataset.json").write_text(json.dumps(described))
    SidTable(np.stack([np.arange(ITEMS) // 8, np.arange(ITEMS) % 8], axis=1), (5, 8)).save(folder / "sid_table")
    return folder


def start(script, world, out, *argv) -> dict:
    folders = [f"--{name}={world / name}" for name in ("dataset", "sid_table")]
    script["main"](*parse(script["Arguments"], argv=[*argv, *folders, f"--output_dir={out}"]))
    return json.loads((out / "metrics.json").read_text())


def test_the_smoke_config_makes_a_data_set_that_training_reads(script, world, tmp_path, repo_root):
    config = repo_root / "recipes" / "configs" / "recommendation" / "smoke.yaml"
    metrics = start(script, world, tmp_path, "--config", str(config))
    rows = load_chats(tmp_path)
    assert metrics["rows"] == len(rows) == sum(metrics[name] for name in metrics if name.startswith("rows/"))
    assert metrics["left_out/sid_to_title"] == 4 and metrics["rows/sid_to_title"] == 36
    assert metrics["left_out/sid_to_categories"] == 5 and metrics["rows/sid_to_categories"] == 18
    assert metrics["users"] == 12
    assert set(rows["task"]) == {name.removeprefix("rows/") for name in metrics if name.startswith("rows/")}
    table, catalog = SidTable.load(world / "sid_table"), Catalog.load(world / "dataset")
    for row in rows:
        if row["task"] == "sid_to_title":
            wanted = [*prompts.title_of_prompt(table.text(row["item"])), prompts.assistant(catalog.titles[row["item"]])]
            assert row["messages"] == wanted and row["user"] is row["position"] is None
    assert load_run(tmp_path)["recipe"] == "recommendation"


def test_no_held_out_item_is_shown_or_asked_for(script, world, tmp_path):
    metrics = start(script, world, tmp_path, "--copies=2", "--drop_items=0.3")
    table, rows = SidTable.load(world / "sid_table"), Dataset.load_from_disk(str(tmp_path))
    fitting = load_split(world / "dataset").fitting
    assert metrics["rows"] == 3 * (fitting.lengths_U - 1).sum() == len(rows)
    held_out = [table.text(item) for item in range(30, ITEMS)]
    assert max(rows["item"]) < 30
    assert not [row for row in rows for text in held_out if text in json.dumps(row["messages"], ensure_ascii=False)]
    assert all(table.item(table.parse(row["messages"][1]["content"])) == row["item"] for row in rows)


def test_a_second_start_does_nothing_and_another_seed_rebuilds(script, world, tmp_path, capsys):
    start(script, world, tmp_path, "--targets=last")
    first = load_run(tmp_path)["fingerprint"]
    start(script, world, tmp_path, "--targets=last")
    assert "nothing to do" in capsys.readouterr().out and load_run(tmp_path)["fingerprint"] == first
    start(script, world, tmp_path, "--targets=last", "--seed=1")
    assert load_run(tmp_path)["fingerprint"] != first
    start(script, world, tmp_path / "again", "--targets=last")
    assert load_run(tmp_path / "again")["fingerprint"] == first, "the same request makes the same bytes"


def test_the_command_line_takes_a_mapping(script, world, tmp_path):
    metrics = start(script, world, tmp_path, "--tasks", '{"title_to_sid": 2, "sid_to_title": 0.5}')
    assert (metrics["rows/title_to_sid"], metrics["rows/sid_to_title"], metrics["users"]) == (72, 18, 0)


@pytest.mark.parametrize("argv", [["--tasks=sequences"], ["--targets=first"], ["--copies=1"], ["--stride=-1"]])
def test_bad_requests_leave_no_run(script, world, tmp_path, argv):
    with pytest.raises(ValueError):
        start(script, world, tmp_path, *argv)
    assert load_run(tmp_path) is None


def test_a_table_of_another_data_set_is_refused(script, world, tmp_path):
    SidTable(np.array([[0, 1], [1, 0]]), (2, 2)).save(tmp_path / "table")
    argv = [f"--dataset={world / 'dataset'}", f"--sid_table={tmp_path / 'table'}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="2 sid texts for 40 items"):
        script["main"](*parse(script["Arguments"], argv=argv))
