"""Surfaces: nearest neighbours against brute force, and a measuring that any kill leaves whole."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recllm.provenance import read_json, write_json
from recllm.tuning.memory.descriptors import describe
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.spaces.space import Limits
from recllm.tuning.trials.launch import Ended
from recllm.tuning.trials.measure import (
    ROWS_FILE,
    TABLE_FILE,
    Table,
    append_row,
    claimed,
    measure,
    read_rows,
)
from recllm.tuning.trials.runner import Outcome, TrialRunner
from recllm.tuning.trials.surface import METRICS, SCHEMA, Surface, surface_row, write_surface

SPACE = surface_space("sasrec")
LIMITS = {"parameters": None, "cpu_seconds": None, "wall_seconds": None, "memory_gib": None}
PROVENANCE = {"backbone": "sasrec", "dataset": "made up", "limits": LIMITS, "fixed": dict(SPACE.fixed)}


class Made:
    """Stands where a process would start: metrics are a function of the words, and every start is noted in a file."""

    def __init__(self, starts: Path, seconds: float = 0.0):
        self.starts, self.seconds = starts, seconds

    def run(self, recipe, words, log, limits):
        told = dict(word.removeprefix("--").split("=", 1) for word in words)
        assert told["report_test"] == "True"
        with self.starts.open("a") as stream:
            stream.write(f"{told['lr']} {told['seed']}\n")
        time.sleep(self.seconds)
        value = 1 / (1 + abs(math.log10(float(told["lr"])) + 2) + float(told["dropout"]))
        metrics = {f"{role}/{name}": value for role in ("validation", "test") for name in METRICS}
        write_json(Path(told["output_dir"]) / "metrics.json", metrics | {"parameters": 7})
        return Ended(0, 1.0, 2.0, 0.1)

    def close(self):
        pass


def outcome(config, score=0.1, status="ok"):
    values = {f"{role}/{name}": score + (role == "test") for role in ("validation", "test") for name in METRICS}
    metrics = values if status == "ok" else {}
    return Outcome(status, SPACE.key(config), config, 0, metrics, 10, 1.0, 2.0, 0.5, "" if status == "ok" else "why")


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    others = (config for config in SPACE.spread(1) if config != SPACE.default)
    configs = [SPACE.default, *itertools.islice(others, 79)]
    rows = [surface_row(outcome(config, 0.001 * n), "spread") for n, config in enumerate(configs)]
    rows[0]["origin"] = "default"
    rows[7] = surface_row(outcome(configs[7], status="timeout"), "spread")
    path = tmp_path_factory.mktemp("surface") / "x.parquet"
    write_surface(path, rows, PROVENANCE)
    return Surface.load(path), configs, path


def test_a_measured_configuration_answers_its_own_values(surface):
    surface, configs, _ = surface
    assert len(surface) == 80
    for n, config in enumerate(configs):
        answer = surface.lookup(config)
        assert (answer.exact, answer.distance, answer.outcome.config) == (True, 0.0, config)
        if n == 7:
            assert (answer.outcome.status, answer.outcome.words, answer.outcome.score) == ("timeout", "why", -math.inf)
        else:
            assert answer.outcome == Outcome(
                *("ok", SPACE.key(config), config, 0),
                {f"validation/{name}": 0.001 * n for name in METRICS},
                *(10, 1.0, 2.0, 0.5, ""),
            )


def test_any_other_is_answered_by_the_nearest_as_brute_force_finds_it(surface):
    surface, configs, _ = surface
    rng, inexact = np.random.default_rng(0), 0
    near = list(SPACE.neighbours(configs[5]))
    for config in [*(SPACE.sample(rng) for _ in range(150)), *near]:
        answer = surface.lookup(config)
        distances = {SPACE.key(other): SPACE.distance(config, other) for other in configs}
        nearest = min(distances.values())
        ties = sorted(key for key, distance in distances.items() if distance <= nearest + 1e-12)
        assert answer.distance == pytest.approx(nearest) and answer.outcome.key in ties
        assert answer.outcome.key == ties[0] or not answer.exact
        assert answer.outcome == surface.lookup(answer.outcome.config).outcome
        inexact += not answer.exact
    assert inexact > 90


def test_equally_near_ones_go_to_the_smaller_key(tmp_path):
    low, high = (SPACE.change(SPACE.default, "dropout", 0.5) | {"hidden_dim": value} for value in (32, 128))
    write_surface(tmp_path / "x.parquet", [surface_row(outcome(c), "spread") for c in (high, low)], PROVENANCE)
    answer = Surface.load(tmp_path / "x.parquet").lookup({**low, "hidden_dim": 64})
    assert not answer.exact and answer.outcome.key == min(SPACE.key(low), SPACE.key(high))
    assert answer.distance == pytest.approx(1 / 2 / len(SPACE.axes))


def test_what_is_not_legal_has_no_answer(surface):
    surface, _, _ = surface
    with pytest.raises(ValueError, match="'dataset' is no axis"):
        surface.lookup({**SPACE.default, "dataset": "x"})
    with pytest.raises(ValueError, match=r"dropout: 0\.3 is not legal"):
        surface.lookup({**SPACE.default, "dropout": 0.3})


def test_test_metrics_are_told_only_when_asked_for(surface):
    surface, configs, _ = surface
    assert not any("test" in name for name in surface.lookup(configs[3]).outcome.metrics)
    assert surface.test_metrics(SPACE.key(configs[3]))["test/ndcg@10"] == pytest.approx(1.003)
    for key in (SPACE.key(configs[7]), "0" * 16):
        with pytest.raises(ValueError, match="was not measured or failed"):
            surface.test_metrics(key)


def test_targets_are_quantiles_of_the_evenly_spread(surface):
    surface, _, _ = surface
    # 80 configurations score 0 to 0.079, one failed; the best 2% are the first two.
    assert surface.target(0.02) == pytest.approx(0.078)
    assert surface.target(0.05) == pytest.approx(0.076)
    assert surface.target(1.0) == -math.inf


def test_a_file_that_is_no_surface_is_refused(surface, tmp_path):
    _, configs, path = surface
    with pytest.raises(FileNotFoundError, match="measure_surfaces"):
        Surface.load(tmp_path / "none.parquet")
    pl.read_parquet(path).write_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="is no surface"):
        Surface.load(tmp_path / "bare.parquet")
    row = surface_row(outcome(configs[1]), "spread")
    for changed, complaint in [
        ({"key": "0" * 16}, "row 1 has key 0000"),
        ({"config": json.dumps({**configs[1], "x": 1})}, "row 1 is not legal in the space: 'x' is no axis"),
    ]:
        write_surface(tmp_path / "x.parquet", [row | changed], PROVENANCE)
        with pytest.raises(ValueError, match=complaint):
            Surface.load(tmp_path / "x.parquet")
    write_surface(tmp_path / "x.parquet", [row], PROVENANCE | {"fixed": {**SPACE.fixed, "epochs": 3}})
    with pytest.raises(ValueError, match="other fixed arguments"):
        Surface.load(tmp_path / "x.parquet")


# ---- measuring


def make_table(folder, dataset, spread=24, seconds=0.0, name="sasrec-made", limits=None, seed=0):
    launcher = Made(folder / "starts", seconds)
    runner = TrialRunner(surface_space("sasrec", limits or Limits()), {"dataset": dataset}, launcher=launcher)
    return Table(name, folder / name, runner, "made up", spread, seed)


def marks(table):
    return [(row["key"], row["seed"]) for row in table.rows()]


def test_a_table_is_measured_in_the_order_of_its_plan(dataset, tmp_path):
    table = make_table(tmp_path, dataset)
    done = list(measure([table]))
    rows = table.rows()
    assert [row for _, row in done] == rows and len(rows) == len(set(marks(table)))
    origins = [row["origin"] for row in rows]
    assert origins[:24] == ["default", *["spread"] * 19, "repeat", "repeat", *["spread"] * 2]
    assert [json.loads(row["config"]) for row in rows[:1]] == [SPACE.default]
    even = [json.loads(row["config"]) for row in rows if row["origin"] in ("default", "spread")]
    assert even[1:] == [c for c in itertools.islice(SPACE.spread(0), 25) if c != SPACE.default][: len(even) - 1]
    assert [row["seed"] for row in rows if row["origin"] == "repeat"] == [1, 2]
    measured = {row["key"] for row in rows}
    assert len(measured) == 24 and len(rows) == 26
    assert list(measure([make_table(tmp_path, dataset)])) == []

    surface = Surface.load(table.export(tmp_path / "out"))
    assert surface.frame["key"].n_unique() == len(surface) == len(measured)
    assert set(surface.frame["seed"]) == {0} and dict(surface.frame.schema) == SCHEMA
    assert list(surface.provenance["default_by_seed"]) == ["0", "1", "2"]
    assert surface.provenance["data_fingerprint"] == table.runner.fingerprints["dataset"]


def test_tables_grow_in_turn(dataset, tmp_path):
    tables = [make_table(tmp_path, dataset, spread, name=f"t{spread}") for spread in (20, 21)]
    names = [table.name for table, _ in measure(tables)]
    assert names[:10] == ["t20", "t21"] * 5 and len(names) == 22 + 23


WORKER = """
import runpy, sys
from pathlib import Path
names = runpy.run_path(sys.argv[1])
table = names["make_table"](Path(sys.argv[2]), Path(sys.argv[3]), 20, 0.02)
for _ in names["measure"]([table]):
    pass
"""


def worker(folder, dataset):
    words = [sys.executable, "-c", WORKER, __file__, str(folder), str(dataset)]
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_measuring_goes_on_without_repeating(dataset, tmp_path):
    table = make_table(tmp_path, dataset, 20)
    rows, kills = table.folder / ROWS_FILE, 0
    while True:
        process, before = worker(tmp_path, dataset), len(table.rows())
        while process.poll() is None and len(table.rows()) < before + 9:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        with rows.open("ab") as stream:
            stream.write(b'{"key": "torn')  # as if the kill had come in the middle of a line
    found = marks(table)
    assert process.returncode == 0 and kills >= 1
    assert len(found) == 22 == len(set(found))
    # Only what was running when a kill came was started twice.
    assert 22 <= len((tmp_path / "starts").read_text().splitlines()) <= 22 + kills


def test_two_workers_share_a_table(dataset, tmp_path):
    workers = [worker(tmp_path, dataset) for _ in range(2)]
    assert [process.wait() for process in workers] == [0, 0]
    found = marks(make_table(tmp_path, dataset, 20))
    assert len(found) == 22 == len(set(found)) == len((tmp_path / "starts").read_text().splitlines())


def test_torn_lines_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {"n": 1})
    append_row(path, {"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n'
    for cut in range(9, 18):
        path.write_bytes(b'{"n": 1}\n{"n": 2}\n'[:cut])
        append_row(path, {"n": 3})
        whole = [1, 2, 3] if cut >= 17 else [1, 3]
        assert [row["n"] for row in read_rows(path)] == whole
    path.write_bytes(b'3\n"x"\n\xff\n{"n": 4}\n')
    assert read_rows(path) == [{"n": 4}]


def test_a_claim_is_one_workers(tmp_path):
    with claimed(tmp_path / "a") as mine:
        assert mine
        with claimed(tmp_path / "a") as second, claimed(tmp_path / "b") as other:
            assert (second, other) == (False, True)
    with claimed(tmp_path / "a") as mine:
        assert mine


def test_a_few_spread_ones_are_a_plan_and_none_is_refused(dataset, tmp_path):
    origins = [row["origin"] for _, row in measure([make_table(tmp_path, dataset, 5)])]
    assert origins == ["default", *["spread"] * 4, "repeat", "repeat"]
    with pytest.raises(ValueError, match="spread must be at least 1"):
        make_table(tmp_path, dataset, 0)


@pytest.mark.parametrize("name", ["data_fingerprint", "limits", "seed", "fixed"])
def test_rows_of_something_else_do_not_come_into_a_table(dataset, tmp_path, name):
    began = make_table(tmp_path, dataset)
    began.step(next(began.plan()))
    known = read_json(began.folder / TABLE_FILE)
    assert known["made_with"][0]["versions"]["python"] and known["data"]["name"] == "made up"
    copy = dataset
    if name == "data_fingerprint":
        copy = Path(shutil.copytree(dataset, tmp_path / "other"))
        (copy / "more.txt").write_text("x")
    changed = {"limits": {"limits": Limits(parameters=9)}, "seed": {"seed": 1}}.get(name, {})
    other = make_table(tmp_path, copy, **changed)
    if name == "fixed":
        space = replace(other.runner.space, fixed={**SPACE.fixed, "epochs": 3})
        other = replace(other, runner=TrialRunner(space, {"dataset": dataset}, launcher=other.runner.launcher))
    with pytest.raises(ValueError, match=rf"table\.json: {name} was .* now"):
        other.step(next(other.plan()))
    assert len(began.rows()) == 1 == len(make_table(tmp_path, dataset).rows())


def test_a_table_says_what_code_it_was_measured_with(dataset, tmp_path, monkeypatch):
    for version in ("1", "2", "2"):
        monkeypatch.setattr("recllm.tuning.trials.measure.versions", lambda version=version: {"torch": version})
        table = make_table(tmp_path, dataset)
        next(measure([table]))
    told = Surface.load(table.export(tmp_path / "out")).provenance
    assert [made["versions"]["torch"] for made in told["made_with"]] == ["1", "2"]
    assert told["descriptors"] == describe(dataset) and told["descriptors"]["users"] == 40
    assert told["limits"] == LIMITS and told["fixed"] == SPACE.fixed and told["seed"] == 0


def test_rows_of_nobody_knows_what_are_not_added_to(dataset, tmp_path):
    table = make_table(tmp_path, dataset)
    next(measure([table]))
    (table.folder / TABLE_FILE).unlink()
    with pytest.raises(ValueError, match=r"rows\.jsonl has rows, but .*table\.json is missing"):
        next(measure([make_table(tmp_path, dataset)]))
    with pytest.raises(ValueError, match=r"table\.json is missing"):
        table.export(tmp_path)


def test_who_waits_for_a_claim_gets_it(tmp_path):
    order = []

    def work(number):
        with claimed(tmp_path / "a", wait=True) as mine:
            order.append((number, "in", mine))
            time.sleep(0.05)
            order.append((number, "out", mine))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [(number, what, True) for number, _, _ in order[::2] for what in ("in", "out")] == order


def test_nothing_is_exported_of_nothing(dataset, tmp_path):
    with pytest.raises(ValueError, match="has no measured row yet"):
        make_table(tmp_path, dataset).export(tmp_path)
