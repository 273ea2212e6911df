"""The script on the smallest city: what it leaves, and that a second start does nothing."""

import json
import runpy

import pytest

from recllm.data.checkins import Visits
from recllm.needs.patterns import Patterns
from recllm.needs.worlds import WorldOptions, make_world, write_world
from recllm.provenance import load_run
from recllm.training.arguments import parse


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "need_patterns.py"))


@pytest.mark.parametrize("method", ["hdbscan", "kmeans"])
def test_patterns_of_the_smallest_city(script, repo_root, tmp_path, method):
    dataset, out = tmp_path / "world", tmp_path / "patterns"
    write_world(dataset, make_world(WorldOptions(users=60, visits=20, venues=120)))
    (dataset / "metrics.json").write_text(json.dumps({"bayes/fit/recall": 0.5, "bayes/test/recall": 0.9}))
    config = repo_root / "recipes" / "configs" / "need_patterns" / "smoke.yaml"
    argv = ["--config", str(config), "--dataset", str(dataset), "--output_dir", str(out), "--method", method]
    (args,) = parse(script["Arguments"], argv=argv)
    script["main"](args)
    metrics = json.loads((out / "metrics.json").read_text())
    patterns = Patterns.load(out, Visits.load(dataset))
    assert metrics["patterns"] == patterns.frame.height >= 10 and metrics["names_replaced"] == 0
    assert metrics["needs"] == patterns.frame["need"].n_unique() <= 8
    # A fifth of all visits is accidental. Logs of some size are scored in tests/needs/test_find_patterns.py.
    assert metrics["filter/precision"] > 0.25 and 0 < metrics["filter/recall"] <= 1 and 0 < metrics["need_nmi"] <= 1
    assert metrics["bayes/recall"] == 0.5
    assert load_run(out)["recipe"] == "need_patterns"
    stamp = (out / "events.parquet").stat().st_mtime_ns
    script["main"](args)
    assert (out / "events.parquet").stat().st_mtime_ns == stamp
