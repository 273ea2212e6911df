"""The script on a log in PIGEON's layout and through the example's column map."""

import json
import runpy

import pytest

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.training.arguments import parse


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "local_life.py"))


def test_pigeons_layout_ends_as_visits(script, tmp_path):
    rows = [f"{u},{8 + i}.5,Mall,{('Tea', 'Cake')[i % 2]},Rest" for i in range(4) for u in range(3)]
    (tmp_path / "log.csv").write_text("\n".join(["userid,hour,loc,order,living_need", *rows]) + "\n")
    script["main"](script["Arguments"](str(tmp_path / "out"), str(tmp_path / "log.csv")))
    known = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (known["time"], known["split"], known["counts"]["test_targets"]) == ("order", "folds", 3)
    assert known["columns"]["scene"] == "loc" and str(tmp_path) not in json.dumps(known)
    frame = Visits.load(tmp_path / "out").frame
    assert frame["fold"].to_list() == 3 * ["fit", "fit", "validation", "test"]
    assert frame["hour"].to_list() == 3 * [8.5, 9.5, 10.5, 11.5] and set(frame["need"]) == {"Rest"}
    assert Catalog.load(tmp_path / "out").titles == ["Tea, Mall", "Cake, Mall"]


def test_the_example_reads_a_log_with_its_columns(script, repo_root, tmp_path):
    path = repo_root / "recipes" / "configs" / "local_life" / "example.yaml"
    log = tmp_path / "log.csv"
    kinds = [("Food", "Noodles"), ("Food", "Office canteen")]
    rows = [f"m,{d:02}/03/2024 12:30,s{d % 2},Shop {d % 2},{','.join(kinds[d % 2])},East" for d in range(1, 31)]
    log.write_text("member,ordered_at,shop,shop_name,kind,cuisine,area\n" + "\n".join(rows) + "\n")
    argv = ["--config", str(path), "--data", str(log), "--output_dir", str(tmp_path / "out")]
    script["main"](*parse(script["Arguments"], argv=argv))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["fit_targets"], metrics["test_targets"], metrics["context_events"]) == (5, 5, 15)
    assert Catalog.load(tmp_path / "out").categories == [["Food", "Office canteen"], ["Food", "Noodles"]]
