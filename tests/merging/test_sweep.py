"""A sweep's ledger, claims and refusals; that a point hears of no other; failures that stop it without loss."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recllm.evaluation.samples import Samples
from recllm.merging import claims as claims_module
from recllm.merging.checkpoint import Weights
from recllm.merging.claims import Claims
from recllm.merging.engine import MergeEngine
from recllm.merging.evaluators import EVALUATORS, load_evaluator, read_options
from recllm.merging.grid import read_grid
from recllm.merging.ledger import (
    LEDGER_FILE,
    append,
    finish_point,
    locked,
    read_ledger,
    read_sweep,
    samples_file,
    write_sweep,
)
from recllm.merging.progress import SweepProgress
from recllm.merging.space import ENDS, Point, Space
from recllm.merging.sweep import plan_sweep, run_sweep, sweep_metrics

sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import TOKEN, FakeHub
from toy_evaluator import Toy
from worlds import model_family

POINTS = [Point.of("linear", strength=number / 40) for number in range(41)]
SMALL = Space.of([Point.of("linear", strength=0.5), Point.of("ties", strength=0.4, density=0.5)])


@pytest.fixture
def parents(tmp_path):
    return model_family(tmp_path / "family")


def plan(parents, folder, space=SMALL, toy=None, **options):
    addresses = {role: str(path) for role, path in parents.items()}
    return plan_sweep(folder, addresses, space, toy or Toy(options))


def sweep(parents, folder, space=SMALL, toy=None, **options):
    return run_sweep(plan(parents, folder, space, toy, **options))


# The ledger


@pytest.mark.parametrize("cut", [1, 5, 9, 40, 150])
def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_writer(tmp_path, cut):
    write_sweep(tmp_path, {}, {"name": "toy", "fingerprint": "1"}, POINTS)
    for point in POINTS[:3]:
        append(tmp_path, point, {"accuracy": 0.5})
    path = tmp_path / LEDGER_FILE
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(line)] + line[: min(cut, len(line) - 1)])
    assert list(read_sweep(tmp_path).records) == [point.key for point in POINTS[:2]]
    assert append(tmp_path, POINTS[7], {"accuracy": 0.25})
    assert list(read_ledger(tmp_path)) == [POINTS[place].key for place in (0, 1, 7)]
    assert append(tmp_path, POINTS[2], {"accuracy": 0.5})
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert [row["accuracy"] for row in rows] == [0.5, 0.5, 0.25, 0.5]


def test_a_point_gets_no_second_line_and_records_come_in_the_order_of_the_grid(tmp_path):
    write_sweep(tmp_path, {"direct": {"folder": "a"}}, {"name": "toy", "fingerprint": "1"}, POINTS)
    order = np.random.default_rng(0).permutation(len(POINTS))
    assert all(append(tmp_path, POINTS[place], {"accuracy": float(place)}) for place in order)
    assert not append(tmp_path, POINTS[4], {"accuracy": 99.0})
    found = read_sweep(tmp_path)
    assert found.complete and found.points == POINTS and found.parents == {"direct": {"folder": "a"}}
    assert [row["accuracy"] for row in found.records.values()] == list(range(len(POINTS)))
    assert found.records[POINTS[1].key]["strength"] == 1 / 40


def test_a_ledger_that_is_none_is_told_and_left_alone(tmp_path):
    write_sweep(tmp_path, {}, {"name": "toy", "fingerprint": "1"}, POINTS[:2])
    path = tmp_path / LEDGER_FILE
    for content, told in (
        (b'{"key": "a"}\nnonsense\n', "line 2 is no line"),
        (b'{"other": 1}\n', "line 1 is no line"),
        (b"[1]\n", "line 1 is no line"),
        (b"my thesis", "the last line is no line"),
        (b'{"key": "a"}\n{"key": "a"}\n', "line 2 repeats point a"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            append(tmp_path, POINTS[0], {})
        assert path.read_bytes() == content
    path.write_bytes(b'{"key": "a"}\n')
    with pytest.raises(ValueError, match="two sweeps were mixed"):
        read_sweep(tmp_path)


def test_a_damaged_record_of_a_sweep_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"sweep\.json is missing"):
        read_sweep(tmp_path)
    write_sweep(tmp_path, {}, {"name": "toy", "fingerprint": "1"}, POINTS[:2])
    good = json.loads((tmp_path / "sweep.json").read_text())
    entry = good["points"][0]
    for change, told in (
        ({"version": 2}, "has version 2"),
        ({"points": [{**entry, "key": "0" * 16}]}, "is not what its axes say"),
        ({"points": [{**entry, "axes": {"strength": "x"}}]}, "strength"),
        ({"points": [3]}, "no record of a sweep"),
        ({"parents": None}, "no record of a sweep"),
    ):
        (tmp_path / "sweep.json").write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=told):
            read_sweep(tmp_path)


def test_samples_of_a_point(tmp_path):
    write_sweep(tmp_path, {}, {"name": "toy", "fingerprint": "1"}, POINTS[:2])
    samples = Samples(np.full((3, 2), 0.25, np.float32), np.ones((3, 2), np.int32), np.ones((3, 2), bool))
    place = samples_file(tmp_path, POINTS[0].key)
    place.parent.mkdir()
    samples.save(place)
    with pytest.raises(ValueError, match="is not finished"):
        read_sweep(tmp_path).samples(POINTS[0].key)
    append(tmp_path, POINTS[0], samples.summary())
    append(tmp_path, POINTS[1], samples.summary())
    assert read_sweep(tmp_path).samples(POINTS[0].key).summary() == samples.summary()
    with pytest.raises(ValueError, match=r"parquet is missing: take its line out of ledger\.jsonl, remove run\.json"):
        read_sweep(tmp_path).samples(POINTS[1].key)


def test_a_worker_that_comes_late_leaves_the_samples_of_the_line_that_is_there(parents, tmp_path):
    class Overtaken(Toy):
        """Another worker finishes the point while this one asks, as after its claim was taken over."""

        def __call__(self, model, tokenizer):
            mine = super().__call__(model, tokenizer)
            if self.calls == 3:
                claimed = next((folder / "claims").glob("*.json")).stem
                point = next(point for point in there.points if point.key == claimed)
                finished.append(point)
                assert finish_point(folder, point, theirs, theirs.summary())
            return mine

    folder, finished, toy = tmp_path / "sweep", [], Overtaken({})
    theirs = Samples(np.full((6, 2), 0.25, np.float32), np.full((6, 2), 77, np.int32), np.ones((6, 2), bool))
    there = plan(parents, folder, toy=toy)
    found = run_sweep(there)
    key = finished[0].key
    assert found.complete and found.records[key]["tokens"] == 77
    assert found.samples(key).summary() == theirs.summary()
    assert len(list((folder / "points").iterdir())) == len(found.points), "nothing is left beside"


def append_some(folder, start):
    """In a process of its own: every point from `start` on, twice over, in lines longer than a page."""
    for point in [*POINTS[start:], *POINTS[:start]] * 2:
        append(Path(folder), point, {"worker": os.getpid(), "filler": "x" * 9000})


def test_writers_of_several_processes_never_mix_their_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_some, args=(str(tmp_path), start)) for start in (0, 14, 28)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    keys = [json.loads(line)["key"] for line in (tmp_path / LEDGER_FILE).read_bytes().splitlines()]
    assert sorted(keys) == sorted(point.key for point in POINTS)


def test_a_writer_waits_for_whoever_holds_the_lock(tmp_path):
    path = tmp_path / LEDGER_FILE
    writer = threading.Thread(target=append, args=(tmp_path, POINTS[1], {}))
    with locked(path) as stream:
        writer.start()
        stream.write(b'{"key": "half')
        stream.flush()
        writer.join(0.3)
        assert writer.is_alive() and path.read_bytes() == b'{"key": "half'
        stream.write(b' a line"}\n')
    writer.join(30)
    assert list(read_ledger(tmp_path)) == ["half a line", POINTS[1].key]


# Claims


def claim_of(folder, key="a", age=0.0, **fields):
    """A claim that somebody left."""
    path = folder / "claims" / f"{key}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**Claims(folder)._me, **fields}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_point_is_held_by_one_worker_and_given_back(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    with one.held("a") as mine:
        assert mine
        with other.held("a") as second, other.held("b") as elsewhere:
            assert not second and elsewhere
        assert (tmp_path / "claims" / "a.json").exists(), "who holds nothing gives nothing back"
    with pytest.raises(OSError, match="boom"), other.held("a") as mine:
        assert mine
        raise OSError("boom")
    assert not list((tmp_path / "claims").glob("*.json"))


def test_a_claim_is_void_when_its_process_is_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = claims_module.psutil.Process(child.pid).create_time()
    claim_of(tmp_path, pid=child.pid, started=started, age=10_000)
    with Claims(tmp_path).held("a") as mine:
        assert not mine, "a live process of this host keeps its claim however long it is silent"
    claim_of(tmp_path, pid=child.pid, started=started - 3600)
    with Claims(tmp_path).held("a") as mine:
        assert mine, "the number belongs to a later process"
    claim_of(tmp_path, pid=child.pid, started=started)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is over, but not reaped yet
    with Claims(tmp_path).held("a") as mine:
        assert mine
    child.wait()
    claim_of(tmp_path, pid=child.pid, started=started)
    with Claims(tmp_path).held("a") as mine:
        assert mine


@pytest.mark.parametrize(("age", "is_void"), [(0, False), (50, False), (70, True)])
def test_a_claim_of_another_host_is_void_after_a_long_silence(tmp_path, age, is_void):
    path = claim_of(tmp_path, host="elsewhere", age=age)
    with Claims(tmp_path, limit_seconds=60).held("a") as mine:
        assert mine is is_void
    assert path.exists() is not is_void


def test_a_held_claim_gives_signs_of_life(tmp_path):
    claims = Claims(tmp_path, beat_seconds=0.01)
    with claims.held("a"):
        path = tmp_path / "claims" / "a.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert abs(path.stat().st_mtime - time.time()) < 60


def test_machines_of_one_name_are_told_apart_by_their_start(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module.platform, "node", lambda: "localhost")
    hosts = set()
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"{name}\n")
        monkeypatch.setattr(claims_module, "_BOOT", tmp_path / name)
        hosts.add(Claims(tmp_path)._me["host"])
    monkeypatch.setattr(claims_module, "_BOOT", tmp_path / "unreadable")
    hosts.add(Claims(tmp_path)._me["host"])
    assert len(hosts) == 3 and all(host.startswith("localhost") for host in hosts)


def test_a_torn_claim_is_void(tmp_path):
    path = claim_of(tmp_path)
    path.write_text(path.read_text()[:10])
    with Claims(tmp_path).held("a") as mine:
        assert mine


@pytest.mark.parametrize("left", ["stale", "none"])
def test_a_claim_is_taken_by_exactly_one(tmp_path, left):
    for number in range(15):
        if left == "stale":
            claim_of(tmp_path, str(number), host="elsewhere", age=10_000)
        barrier, over, taken = threading.Barrier(6, timeout=20), threading.Barrier(6, timeout=20), []

        def take(number=number, barrier=barrier, over=over, taken=taken):
            claims = Claims(tmp_path)
            barrier.wait()
            with claims.held(str(number)) as mine:
                taken.append(mine)
                over.wait()

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [False] * 5 + [True]


def test_claims_are_made_one_after_the_other(tmp_path):
    one, taken = Claims(tmp_path), []

    def take():
        with one.held("a") as mine:
            taken.append(mine)

    worker = threading.Thread(target=take)
    with Claims(tmp_path).alone():
        worker.start()
        worker.join(0.3)
        assert not taken and not list((tmp_path / "claims").glob("*.json"))
    worker.join(30)
    assert taken == [True]


def test_a_worker_whose_claim_was_taken_over_leaves_it_to_its_successor(tmp_path):
    with Claims(tmp_path).held("a"):
        path = claim_of(tmp_path, host="elsewhere")
    assert json.loads(path.read_text())["host"] == "elsewhere"


# Sweeps


def test_a_point_is_what_a_fresh_model_with_its_tensors_answers(parents, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = sweep(parents, tmp_path / "sweep", global_draws=True)
    engine = MergeEngine({role: Weights(folder) for role, folder in parents.items()})
    assert found.points == [*ENDS.values(), *SMALL.points]
    for point in found.points:
        model = AutoModelForCausalLM.from_pretrained(parents["base"], dtype=torch.bfloat16)
        model.load_state_dict(dict(engine.tensors(point)), strict=False)
        torch.manual_seed(0)
        expected = Toy({"global_draws": True})(model.eval(), AutoTokenizer.from_pretrained(parents["base"]))
        samples = found.samples(point.key)
        assert np.array_equal(samples.value_QS, expected.value_QS)
        assert np.array_equal(samples.tokens_QS, expected.tokens_QS)
        row = found.records[point.key]
        assert {key: row[key] for key in samples.summary()} == samples.summary()
        assert row["label"] == point.label and row["merge_seconds"] >= 0 and row["worker"].endswith(f":{os.getpid()}")


def test_a_grid_that_grew_goes_on_and_only_its_new_points_are_asked(parents, tmp_path):
    first = sweep({k: v for k, v in parents.items() if k != "base"}, tmp_path / "sweep", Space.of(POINTS[10:11]))
    assert len(first.records) == 3
    toy = Toy({})
    grown = sweep(parents, tmp_path / "sweep", Space.of([*SMALL.points, *POINTS[10:12]]), toy=toy)
    assert toy.calls == 3 and len(grown.records) == len(grown.points) == 6 and "base" in grown.parents
    assert {key: grown.records[key] for key in first.records} == first.records
    toy = Toy({"fail_after": 0})
    assert sweep(parents, tmp_path / "sweep", Space.of(grown.points), toy=toy).records == grown.records
    with pytest.raises(ValueError, match=r"has 3 points that the grid lacks, linear strength=0.5 for one"):
        sweep(parents, tmp_path / "sweep", Space.of(POINTS[10:11]))
    del parents["base"]
    with pytest.raises(ValueError, match="was swept with a parent 'base'"):
        sweep(parents, tmp_path / "sweep", Space.of(POINTS[10:11]))


def test_another_parent_or_evaluator_is_refused_and_nothing_changes(parents, tmp_path):
    folder = tmp_path / "sweep"
    late = plan(parents, folder, questions=7)  # both looked at an empty folder
    sweep(parents, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"swept with evaluator toy 6-2, this is toy 7-2: its questions or settings"):
        plan(parents, folder, questions=7)
    weights = parents["thinking"] / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "model.norm.weight": state["model.norm.weight"] * 2}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"family/thinking \(thinking\) is not the parent that .* was swept with"):
        plan(parents, folder)
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="its questions or settings"):
        run_sweep(late)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    moved = parents["thinking"].rename(tmp_path / "moved")
    assert sweep({**parents, "thinking": moved}, folder, fail_after=0).complete, "an address is no identity"


def test_parents_that_do_not_fit_are_refused_before_anything_is_written(parents, tmp_path):
    config = json.loads((parents["thinking"] / "config.json").read_text())
    (parents["thinking"] / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    with pytest.raises(ValueError, match="rms_norm_eps"):
        sweep(parents, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_parent_from_the_hub_is_told_to_be_one(parents, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with FakeHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        files = {path.name: path.read_bytes() for path in Path(parents["thinking"]).iterdir() if path.is_file()}
        hub.add_repo("models/tester/thinking", files=files)
        found = sweep({**parents, "thinking": "tester/thinking"}, tmp_path / "sweep")
    told = {role: entry["hub_id"] for role, entry in found.parents.items()}
    assert told == {**dict.fromkeys(parents), "thinking": "tester/thinking"}


def test_an_adapter_is_a_parent_and_a_retrained_one_is_another(parents, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def train(seed):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(parents["base"], dtype=torch.bfloat16)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        tuned.save_pretrained(tmp_path / "adapter")

    train(0)
    given = {**parents, "thinking": tmp_path / "adapter"}
    found = sweep(given, tmp_path / "sweep")
    ready = Path(found.parents["thinking"]["folder"])
    assert found.complete and ready.is_relative_to(tmp_path / "sweep") and (ready / "model.safetensors").is_file()
    assert found.parents["thinking"]["address"] == str(tmp_path / "adapter")
    assert all(parent["hub_id"] is None for parent in found.parents.values()), "folders are no models of the Hub"
    ends = [found.samples(point.key).value_QS for point in ENDS.values()]
    assert not np.array_equal(*ends)
    train(1)
    with pytest.raises(ValueError, match=r"adapter \(thinking\) is not the parent"):
        plan(given, tmp_path / "sweep")
    for name in ("sweep.json", LEDGER_FILE):  # as if the first start had been killed right after it made parents ready
        (tmp_path / "sweep" / name).unlink()
    again = sweep(given, tmp_path / "sweep").samples(ENDS["thinking"].key).value_QS
    assert not np.array_equal(again, ends[1]), "the earlier adapter was merged"


def test_a_point_that_fails_stops_the_sweep_and_loses_nothing(parents, tmp_path):
    with pytest.raises(RuntimeError, match=r"point .* failed: OSError: the questions are gone. 2 of 4 points are in"):
        sweep(parents, tmp_path / "sweep", fail_after=2)
    assert len(read_sweep(tmp_path / "sweep").records) == 2
    assert not list((tmp_path / "sweep" / "claims").glob("*.json"))
    toy = Toy({})
    assert sweep(parents, tmp_path / "sweep", toy=toy).complete and toy.calls == 2
    with pytest.raises(RuntimeError, match="the evaluator answered with str, it must be Samples"):
        sweep(parents, tmp_path / "other", answer="fine")


class Greedy:
    """Never draws, so that NaN would go unnoticed: the largest of NaN logits is some token."""

    name, fingerprint = "greedy", "1"

    def __call__(self, model, tokenizer):
        tokens = model(torch.ones((2, 3), dtype=torch.long)).logits.argmax(-1)[:, :1]
        return Samples(np.ones((2, 1), np.float32), tokens.int().numpy(), np.zeros((2, 1), bool))


@pytest.mark.parametrize(("value", "healthy"), [(float("nan"), 0), (3e38, 1)], ids=["nan", "overflow"])
@pytest.mark.parametrize("toy", [Greedy(), Toy({})], ids=["greedy", "drawing"])
def test_logits_that_are_not_finite_are_told(parents, tmp_path, toy, value, healthy):
    weights = parents["thinking"] / "model.safetensors"
    state = load_file(weights)
    state["model.norm.weight"][:] = value
    save_file(state, weights, {"format": "pt"})
    space = Space.of(POINTS[20:21])
    with pytest.raises(RuntimeError, match=r"linear strength=.* failed: FloatingPointError: the merged model's logits"):
        sweep(parents, tmp_path / "sweep", space, toy=toy)
    # NaN times a weight of zero is NaN, so then not even the direct parent is healthy.
    assert list(read_sweep(tmp_path / "sweep").records) == [ENDS["direct"].key][:healthy]


def test_metrics_name_the_best_point_and_both_parents(parents, tmp_path):
    found = sweep(parents, tmp_path / "sweep")
    rows = found.records
    for place, (accuracy, tokens) in enumerate([(0.2, 5.0), (0.7, 90.0), (0.8, 60.0), (0.8, 40.0)]):
        rows[found.points[place].key] |= {"accuracy": accuracy, "tokens": tokens}
    metrics = sweep_metrics(found)
    assert metrics["points"] == 4 and metrics["n"] == 6 and metrics["samples"] == 2
    assert (metrics["direct/accuracy"], metrics["thinking/tokens"], metrics["best/tokens"]) == (0.2, 90.0, 40.0)
    assert metrics["best/label"] == SMALL.points[1].label and metrics["best/key"] == SMALL.points[1].key


# What a recipe reads


def test_an_evaluator_goes_by_name_or_import_path():
    found = load_evaluator("toy_evaluator:toy", {"questions": 3})
    assert found.fingerprint == "3-2"
    for name, told in (
        ("arithmetics", "did you mean arithmetic"),
        ("x", "known: arithmetic, gsm8k"),
        ("toy_evaluator:missing", "cannot be imported"),
        ("no_such_module:toy", "cannot be imported.*PYTHONPATH"),
        ("toy_evaluator:no_evaluator", "must answer with a callable that has a name and a fingerprint"),
        ("os;x:y", "is unknown"),
        ("a:b:c", "is unknown"),
    ):
        with pytest.raises(ValueError, match=told):
            load_evaluator(name, {})
    with pytest.raises(ValueError, match="unknown option 'question'"):
        load_evaluator("toy_evaluator:toy", {"question": 3})
    assert all(path.startswith("recllm.evaluation.") for path in EVALUATORS.values())


def test_options_are_a_mapping():
    assert read_options('{"questions": 3}', {"dataset": "d"}) == {"questions": 3, "dataset": "d"}
    assert read_options("{}", {}) == {}
    for text, told in (
        ("3", "must be a mapping"),
        ("{3: 4}", "must be a mapping"),
        ("{", "not valid YAML"),
        ("{dataset: e}", "dataset is given both"),
    ):
        with pytest.raises(ValueError, match=told):
            read_options(text, {"dataset": "d"})


def test_a_grid_is_entries_or_a_file(tmp_path):
    entries = ['{"method": "linear", "strength": [0, 0.5]}', "{method: ties, strength: 0.5, density: 0.5}"]
    found = read_grid(entries)
    assert [point.label for point in found.points] == [
        "linear strength=0.0", "linear strength=0.5", "ties density=0.5 strength=0.5",
    ]  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text("grid:\n" + "".join(f"  - {entry}\n" for entry in entries))
    assert read_grid([str(path)]) == found
    for words, told in (
        ([], "grid has no entries"),
        (['{"method": "linear"}'], "entry 1 of the grid: linear needs strength"),
        ([entries[0], "linear"], "entry 2 of the grid: needs a method"),
        ([entries[0], "{"], "entry 2 is not valid YAML"),
    ):
        with pytest.raises(ValueError, match=told):
            read_grid(words)


def test_the_line_of_a_point_tells_how_long_the_rest_takes(monkeypatch):
    import io

    from rich.console import Console

    clock = iter([0.0, 30.0, 60.0])
    monkeypatch.setattr("recllm.merging.progress.time.monotonic", lambda: next(clock))
    file = io.StringIO()
    record = {"label": "linear strength=0.5", "accuracy": 0.5, "tokens": 12.0}
    with SweepProgress(total=10, done=4, console=Console(file=file)) as progress:
        progress.finished(5, record)  # 30 s for one point, five to go
        progress.finished(10, record)
    assert file.getvalue().splitlines() == [
        "5/10 linear strength=0.5: accuracy 0.5000, 12.0 tokens | 2 min left",
        "10/10 linear strength=0.5: accuracy 0.5000, 12.0 tokens",
    ]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.undo()
    monkeypatch.setenv("RANK", "1")
    with SweepProgress(total=2, done=0, console=Console(file=file)) as progress:
        progress.finished(1, record)
    assert len(file.getvalue().splitlines()) == 2, "other ranks are silent"


def test_warnings_of_the_preflight_are_told(parents, tmp_path, caplog):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (parents["thinking"] / name).unlink()
    with caplog.at_level(logging.WARNING, logger="recllm.merging.sweep"):
        plan(parents, tmp_path / "s")
    assert "has no tokenizer: it was not compared" in caplog.text and not (tmp_path / "s").exists()
