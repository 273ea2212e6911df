"""run.json: last, whole or absent, and equal exactly where config and inputs are."""

import json
from dataclasses import dataclass

import pytest

from recllm import provenance
from recllm.provenance import RunRecord, fingerprint, load_run, plain_config, read_json, sha256_file, write_json


@dataclass
class Config:
    output_dir: str = "out"
    dataset: str = "data"
    seed: int = 0
    rate: float = 0.1
    hub_token: str | None = None


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha")
    return folder


def finished(out, data, **config):
    record = RunRecord.start(out, recipe="toy", config=Config(**config), inputs={"dataset": data})
    (out / "model.bin").write_text(f"weights {config}")
    return record, record.finish({"ndcg@10": 0.5})


def test_a_finished_run_is_complete_and_tells_what_it_was(tmp_path, data):
    record, written = finished(tmp_path / "out", data, seed=3)
    assert not record.complete
    known = load_run(tmp_path / "out")
    assert known == written == read_json(tmp_path / "out/run.json")
    assert known["recipe"] == "toy" and known["seed"] == 3 and known["config"]["rate"] == 0.1
    assert known["inputs"] == {"dataset": fingerprint(data)}
    assert known["versions"]["python"] and known["peak_memory_gib"] > 0 and known["wall_seconds"] >= 0
    assert read_json(tmp_path / "out/metrics.json") == {"ndcg@10": 0.5}


def test_the_same_start_is_complete_and_says_so(tmp_path, data, capsys):
    finished(tmp_path / "out", data)
    again = RunRecord.start(tmp_path / "out", "toy", Config(), {"dataset": data})
    assert again.complete and "nothing to do" in capsys.readouterr().out
    assert load_run(tmp_path / "out") is not None


def test_where_data_and_output_lie_does_not_matter(tmp_path, data):
    finished(tmp_path / "out", data)
    moved = data.rename(tmp_path / "moved")
    (tmp_path / "out").rename(tmp_path / "there")
    config = Config(output_dir="there", dataset="moved", hub_token="secret")
    assert RunRecord.start(tmp_path / "there", "toy", config, {"dataset": moved}).complete


@pytest.mark.parametrize(
    ("recipe", "key", "same"),
    [
        *(("merge_deliver", key, True) for key in ("direct", "thinking", "base", "retries", "keep")),
        *(("merge_sweep", key, False) for key in ("direct", "thinking", "base", "retries", "keep")),
        ("merge_deliver", "budget", False),
    ],
)
def test_where_moved_parents_are_and_how_a_push_goes_is_no_part_of_a_merge_and_of_other_recipes_it_is(
    tmp_path, recipe, key, same
):
    RunRecord.start(tmp_path, recipe, {key: "one"}).finish({})
    assert RunRecord.start(tmp_path, recipe, {key: "other"}).complete is same


@pytest.mark.parametrize("change", ["config", "input", "recipe", "another input"])
def test_any_other_start_is_not_complete_and_takes_the_record_away(change, tmp_path, data):
    out = tmp_path / "out"
    finished(out, data)
    inputs = {"dataset": data}
    if change == "input":
        (data / "a.txt").write_text("beta")
    if change == "another input":
        inputs["table"] = data
    config = Config(seed=1) if change == "config" else Config()
    record = RunRecord.start(out, "other" if change == "recipe" else "toy", config, inputs)
    assert not record.complete
    assert load_run(out) is None, "a rebuild that is killed must not leave the old record standing"


@pytest.mark.parametrize("text", ["", '{"schema": 1, "rec', "[]", '{"schema": 99}'])
def test_a_torn_or_foreign_record_counts_as_none(text, tmp_path, data):
    finished(tmp_path / "out", data)
    (tmp_path / "out/run.json").write_text(text)
    assert load_run(tmp_path / "out") is None
    assert not RunRecord.start(tmp_path / "out", "toy", Config(), {"dataset": data}).complete


def test_a_missing_input_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; run the stage"):
        RunRecord.start(tmp_path / "out", "toy", Config(), {"dataset": tmp_path / "nowhere"})


def test_secrets_are_never_recorded(tmp_path, data):
    finished(tmp_path / "out", data, hub_token="hf_secret")
    for path in (tmp_path / "out").rglob("*.json"):
        assert "hf_secret" not in path.read_text()
    assert plain_config({"max_new_tokens": 5, "hub_token": "x"}) == {"max_new_tokens": 5}


def test_a_fingerprint_is_names_and_contents_alone(tmp_path, data):
    before = fingerprint(data)
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "a.txt").write_text("alpha")
    assert fingerprint(twin) == before
    (twin / "a.txt").rename(twin / "b.txt")
    assert fingerprint(twin) != before
    (twin / "b.txt").rename(twin / "a.txt")
    (twin / "a.txt").write_text("alphA")
    assert fingerprint(twin) != before
    assert fingerprint(data / "a.txt") == sha256_file(data / "a.txt")


def test_what_is_not_delivered_does_not_count(tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-5").mkdir(parents=True)
    (out / "model.bin").write_text("w")
    before = fingerprint(out)
    (out / "checkpoint-5/state.bin").write_text("s")
    (out / "metrics.json").write_text("{}")
    assert fingerprint(out) == before
    (out / "sub").mkdir()
    (out / "sub/more.bin").write_text("w")
    assert fingerprint(out) != before


def test_a_complete_folder_answers_from_its_record(tmp_path, data):
    _, written = finished(tmp_path / "out", data)
    assert fingerprint(tmp_path / "out") == written["fingerprint"]
    (tmp_path / "out/run.json").unlink()
    assert fingerprint(tmp_path / "out") == written["fingerprint"], "hashing agrees with the record"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(provenance.os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_reading_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json is missing"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ValueError, match=r"torn\.json is not valid JSON"):
        read_json(tmp_path / "torn.json")


def test_the_cache_of_a_mapped_data_set_does_not_change_its_fingerprint(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"rows")
    before = fingerprint(tmp_path)
    (tmp_path / "cache-0123abcd.arrow").write_bytes(b"tokenized rows")
    assert fingerprint(tmp_path) == before
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"other rows")
    assert fingerprint(tmp_path) != before


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    import numpy as np

    values = {"count": np.int64(3), "mean": np.float32(0.5), "found": np.bool_(True), "where": tmp_path}
    write_json(tmp_path / "metrics.json", values)
    assert read_json(tmp_path / "metrics.json") == {"count": 3, "mean": 0.5, "found": True, "where": str(tmp_path)}


def test_inputs_of_different_sid_tables_do_not_meet(tmp_path, data):
    """A table's hash is handed down, and a run on two tables neither starts nor harms what is there."""
    folders = {}
    for name, table in (("chats", "a" * 64), ("model", "b" * 64), ("same", "a" * 64)):
        made = RunRecord.start(tmp_path / name, recipe="make", config=Config(), inputs={"dataset": data})
        made.extra["sid_table_hash"] = table
        made.finish({})
        folders[name] = tmp_path / name
    (folders["chats"] / "traces").mkdir()
    inputs = {"chats": folders["chats"] / "traces", "model": folders["same"], "dataset": data}
    tuned = RunRecord.start(tmp_path / "out", recipe="sft", config=Config(), inputs=inputs)
    tuned.finish({})
    assert load_run(tmp_path / "out")["sid_table_hash"] == "a" * 64, "handed down"
    with pytest.raises(ValueError, match=r"chats.* speaks SID table aaaaaaaaaaaa and .*model.* bbbbbbbbbbbb"):
        RunRecord.start(tmp_path / "out", recipe="sft", config=Config(), inputs={**inputs, "model": folders["model"]})
    assert load_run(tmp_path / "out"), "the finished run is still there"
