"""The script makes a whole data set folder, does nothing the second time, and its configs parse."""

import json
import runpy

import pytest

from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.provenance import load_run
from recllm.training.arguments import parse

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "movielens.py"))


@pytest.fixture
def source(tmp_path):
    """Six users with the same eight films, in another order each; one film more that nobody saw."""
    rows = [f"{u}\t{(i * (u + 2)) % 11 + 1}\t3\t{100 + i // 2}\n" for u in range(1, 7) for i in range(8)]
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "ml-100k.inter").write_text(INTER + "".join(rows))
    (folder / "ml-100k.item").write_text(ITEM + "".join(f"{i}\tFilm <{i}>\t1990\tDrama War\n" for i in range(1, 13)))
    return folder


def test_run_makes_the_folder_once(script, source, tmp_path):
    args = script["Arguments"](str(tmp_path / "out"), data=str(source), routing_items=2, k_core=0)
    script["main"](args)
    out = tmp_path / "out"
    known, metrics = (json.loads((out / name).read_text()) for name in ("dataset.json", "metrics.json"))
    assert known["counts"]["users"] == metrics["users"] == 6
    assert known["counts"]["events"] == 48 and metrics["quarantined"] == 0 and metrics["wall_seconds"] >= 0
    split = load_split(out)
    assert split.routing_items == 2 and len(split.test) == 6
    assert Catalog.load(out).titles[0] == "Film ‹1›"
    assert load_run(out)["inputs"].keys() == {"data"}
    assert str(tmp_path) not in (out / "dataset.json").read_text()
    stamp = (out / "catalog.parquet").stat().st_mtime_ns
    script["main"](args)
    assert (out / "catalog.parquet").stat().st_mtime_ns == stamp
    (source / "ml-100k.inter").write_text((source / "ml-100k.inter").read_text() + "7\t1\t3\t5\n")
    script["main"](args)
    assert json.loads((out / "metrics.json").read_text())["users"] == 7


def test_malformed_rows_are_kept_aside_or_stop_the_run(script, source, tmp_path):
    (source / "ml-100k.inter").write_text((source / "ml-100k.inter").read_text() + "torn\n")
    arguments = script["Arguments"]
    with pytest.raises(ValueError, match=r"ml-100k\.inter: 1 of 49 rows are malformed.*max_bad_fraction"):
        script["main"](arguments(str(tmp_path / "a"), data=str(source), k_core=0))
    assert load_run(tmp_path / "a") is None
    script["main"](arguments(str(tmp_path / "b"), data=str(source), k_core=0, max_bad_fraction=0.05))
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["quarantined"] == 1


@pytest.mark.parametrize("name", ["quickstart", "ml-1m"])
def test_configs_parse(script, repo_root, name):
    path = repo_root / "recipes" / "configs" / "movielens" / f"{name}.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(path)])
    assert args.split == "roles" and args.routing_items == 5 and args.k_core == 5
    assert args.output_dir.startswith("outputs/")
