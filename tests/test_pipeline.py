"""Pipelines: strict reading, skipping exactly the complete stages, and surviving being killed."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from recllm.pipeline import (
    StageError,
    clean_environment,
    ensure_inputs,
    load_pipeline,
    run_pipeline,
    runner,
)
from recllm.pipeline.state import same_value
from recllm.provenance import load_run

STAGE = """
import os, sys, time
from pathlib import Path

import yaml

from recllm.provenance import RunRecord

words, values, key = sys.argv[1:], {"seed": 0, "slow": 0.0, "fail": False}, None
for word in words:
    if word.startswith("--"):
        key = word[2:]
        values[key] = []
    else:
        values[key].append(yaml.safe_load(word))
values = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in values.items()}
if config := values.pop("config", None):
    values = {**yaml.safe_load(Path(config).read_text()), **values}
inputs = {k: values[k] for k in ("dataset", "table") if k in values}
out = Path(values["output_dir"])
record = RunRecord.start(out, Path(__file__).stem, values, inputs)
if record.complete:
    sys.exit()
Path("pid").write_text(str(os.getpid()))
assert not {"RANK", "WORLD_SIZE"} & set(os.environ), "a stage takes itself for a rank"
if values["fail"]:
    sys.exit(7)
for part in range(3):
    (out / f"part{part}.txt").write_text(f"{out.name} {part} {values['seed']} {record.inputs}")
    time.sleep(values["slow"] / 3)
(out / "sub").mkdir(exist_ok=True)
(out / "sub/inner.txt").write_text("inner")
record.finish({"n": 1})
with open("ledger", "a") as ledger:
    ledger.write(out.name + "\\n")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of four toy stages a -> b -> d, a -> c, run from its own folder."""
    (tmp_path / "recipes/pipelines").mkdir(parents=True)
    (tmp_path / "recipes/b.yaml").write_text("rate: 1e-3\nlevels: [32, 16]\n")
    for name in "abcd":
        (tmp_path / f"recipes/{name}.py").write_text(textwrap.dedent(STAGE))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path)
    return tmp_path


def stages(**changes) -> list[dict]:
    listed = [
        {"name": "a", "script": "recipes/a.py", "args": {"seed": 0}},
        {"name": "b", "script": "recipes/b.py", "config": "recipes/b.yaml", "inputs": {"dataset": "a"}},
        {"name": "c", "script": "recipes/c.py", "inputs": {"dataset": "a/sub"}},
        {"name": "d", "script": "recipes/d.py", "args": {"layers": [4, 2]}, "inputs": {"table": "b"}},
    ]
    return [{**stage, **changes.get(stage["name"], {})} for stage in listed]


TOY = Path("recipes/pipelines/toy.yaml")


def write(root: Path, **changes) -> None:
    (root / TOY).write_text(yaml.safe_dump({"name": "toy", "stages": stages(**changes)}, sort_keys=False))


def ledger() -> list[str]:
    path = Path("ledger")
    return path.read_text().split() if path.exists() else []


def built(results) -> list[str]:
    return [result.name for result in results if result.built]


def test_stages_run_in_order_and_then_never_again(project, capfd):
    results = run_pipeline(TOY)
    assert built(results) == ledger() == ["a", "b", "c", "d"]
    assert results[1].folder == Path("outputs/toy/b") and results[1].seconds > 0
    record = load_run("outputs/toy/b")
    assert record["config"]["levels"] == [32, 16] and record["config"]["dataset"] == "outputs/toy/a"
    assert load_run("outputs/toy/d")["config"]["layers"] == [4, 2]
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "[1/4] a: recipes/a.py" and said[1].startswith("[1/4] a: done in ")
    again = run_pipeline(TOY)
    assert built(again) == [] and [result.seconds for result in again] == [0.0] * 4
    assert ledger() == ["a", "b", "c", "d"]
    assert capfd.readouterr().out.splitlines() == [f"[{n}/4] {s}: complete, skipped" for n, s in enumerate("abcd", 1)]


def test_a_changed_argument_runs_its_stage_and_what_its_content_reaches(project, capfd):
    run_pipeline(TOY)
    capfd.readouterr()
    write(project, a={"args": {"seed": 1}})
    # a/sub holds the same as before, so c stays.
    assert built(run_pipeline(TOY)) == ["a", "b", "d"]
    assert "(seed was 0, now 1)" in capfd.readouterr().out


def test_a_key_that_is_taken_out_runs_the_stage(project, capfd):
    run_pipeline(TOY, until="a")
    write(project, a={"args": {}})
    assert built(run_pipeline(TOY, until="a")) == ["a"]
    assert "(seed is no longer set)" in capfd.readouterr().out


def test_a_changed_config_file_runs_the_stage(project):
    run_pipeline(TOY, until="d")
    (project / "recipes/b.yaml").write_text("rate: 0.001\nlevels: [32, 16]\n")
    assert built(run_pipeline(TOY, until="d")) == [], "another spelling is no change"
    (project / "recipes/b.yaml").write_text("rate: 2e-3\nlevels: [32, 16]\n")
    assert built(run_pipeline(TOY, until="d")) == ["b"], "its content came out the same, so d stays"


def test_an_unfinished_stage_runs(project, capfd):
    run_pipeline(TOY, until="c")
    (project / "outputs/toy/c/run.json").unlink()
    assert built(run_pipeline(TOY, until="c")) == ["c"]
    assert "no valid run.json" in capfd.readouterr().out


def test_an_input_may_be_a_list_of_stages(project, capfd):
    write(project, d={"inputs": {"table": ["b", "c"], "dataset": ["a"]}})
    assert built(run_pipeline(TOY)) == ["a", "b", "c", "d"]
    marks = load_run(Path("outputs/toy/d"))["inputs"]
    assert marks["table"] == [load_run(Path(f"outputs/toy/{name}"))["fingerprint"] for name in "bc"]
    assert load_pipeline(TOY).upstream("d") == list(load_pipeline(TOY).stages[:3])
    folders = load_pipeline(TOY).input_folders(load_pipeline(TOY).stage("d"), "outputs")
    assert folders == {"table": [Path("outputs/toy/b"), Path("outputs/toy/c")], "dataset": [Path("outputs/toy/a")]}
    assert built(run_pipeline(TOY)) == []
    write(project, c={"args": {"seed": 9}}, d={"inputs": {"table": ["b", "c"], "dataset": ["a"]}})
    capfd.readouterr()
    assert built(run_pipeline(TOY)) == ["c", "d"]
    assert "its input table has changed" in capfd.readouterr().out
    write(project, c={"args": {"seed": 9}}, d={"inputs": {"table": ["c", "b"], "dataset": ["a"]}})
    assert built(run_pipeline(TOY)) == ["d"]  # another order is another input


def test_only_what_is_needed_is_built(project):
    assert built(run_pipeline(TOY, until="b")) == ["a", "b"]
    assert [result.name for result in run_pipeline(TOY, only_upstream_of="d")] == ["a", "b"]
    assert ensure_inputs(TOY, "d") == {"table": Path("outputs/toy/b")}
    assert ensure_inputs(TOY, "c", outputs_root="else") == {"dataset": Path("else/toy/a/sub")}
    assert ledger() == ["a", "b", "a"]
    with pytest.raises(ValueError, match="not both"):
        run_pipeline(TOY, until="b", only_upstream_of="d")


def test_what_a_stage_needs_reaches_all_the_way_up(project):
    write(project, c={"inputs": {"table": "b"}}, d={"inputs": {"table": "c/sub"}})
    pipeline = load_pipeline(TOY)
    assert [stage.name for stage in pipeline.upstream("d")] == ["a", "b", "c"]
    assert pipeline.upstream("a") == []


def test_complete_inputs_cost_no_lock_and_no_process(project, monkeypatch):
    ensure_inputs(TOY, "d")
    monkeypatch.setattr(runner, "_run", None)
    assert ensure_inputs(TOY, "d")["table"] == Path("outputs/toy/b")


def test_a_failing_stage_names_itself_its_command_and_its_status(project):
    write(project, b={"args": {"fail": True}})
    with pytest.raises(StageError, match=r"stage b ended with status 7: .*recipes/b\.py .*--fail true") as raised:
        run_pipeline(TOY)
    assert sys.executable in str(raised.value)
    write(project)
    assert built(run_pipeline(TOY, until="b")) == ["b"], "what was complete stays complete"


def test_a_stage_that_leaves_no_record_is_an_error(project):
    (project / "recipes/c.py").write_text("print('done nothing')")
    with pytest.raises(StageError, match=r"stage c ended with status 0 but left no valid run\.json"):
        run_pipeline(TOY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"unknown key 'extra'"),
        ({"scrpt": "x"}, r"stage 2 \(b\): unknown key 'scrpt'; did you mean script"),
        ({"name": "a"}, r"stage 2 \(a\): there is another stage"),
        ({"name": "../x"}, r"name must be a word"),
        ({"inputs": {"dataset": "d"}}, r"stage 2 \(b\): input dataset: stage 'd' comes later"),
        ({"inputs": {"dataset": "b"}}, r"comes later"),
        ({"inputs": {"dataset": "zz"}}, r"no stage 'zz'; known: a"),
        ({"inputs": {"dataset": "a/../../x"}}, r"must name an earlier stage"),
        ({"inputs": {"dataset": ["a", "d"]}}, r"stage 2 \(b\): input dataset: stage 'd' comes later"),
        ({"inputs": {"dataset": []}}, r"input dataset is an empty list"),
        ({"inputs": {"dataset": [["a"]]}}, r"must name an earlier stage"),
        ({"inputs": {"dataset": "a"}, "args": {"dataset": 1}}, r"dataset stands in args and in inputs"),
        ({"args": {"output_dir": "x"}}, r"output_dir is set by the pipeline"),
        ({"args": [1]}, r"must be mappings"),
        ({"script": None}, r"script must be the path"),
    ],
)
def test_a_wrong_pipeline_is_refused_by_name(change, message, project):
    write(project, b=change)
    with pytest.raises(ValueError, match=message) as raised:
        load_pipeline(TOY)
    assert str(TOY) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: toy\nstags: []\n", "unknown key 'stags'; did you mean stages"),
        ("name: toy\nstages: []\n", "at least one stage"),
        ("- a\n", "must hold a mapping"),
        ("name: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(text, message, project):
    TOY.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pipeline(TOY)


MORE = Path("recipes/pipelines/more.yaml")


def extend(*added: dict, **keys) -> None:
    MORE.write_text(yaml.safe_dump({"extends": TOY.name, "stages": list(added), **keys}, sort_keys=False))


def test_a_pipeline_that_extends_another_runs_what_is_new_and_replaces_what_it_names(project):
    run_pipeline(TOY)
    e = {"name": "e", "script": "recipes/a.py", "args": {"seed": 3}, "inputs": {"dataset": "c"}}
    d = {"name": "d", "script": "recipes/d.py", "args": {"layers": [1]}, "inputs": {"dataset": "e", "table": "b"}}
    extend(e, d)
    pipeline = load_pipeline(MORE)
    assert (pipeline.name, [stage.name for stage in pipeline.stages]) == ("toy", ["a", "b", "c", "e", "d"])
    assert built(run_pipeline(MORE)) == ["e", "d"], "what the extended pipeline completed is not run again"
    assert load_run("outputs/toy/d")["config"]["layers"] == 1
    assert built(run_pipeline(TOY)) == ["d"], "and each of the two pipelines gets the stage that it asked for"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"extends": "more.yaml"}, "extends .*, which extends this one"),
        ({"extends": "gone.yaml"}, r"gone\.yaml does not exist"),
        ({"extends": "toy.yaml", "name": "other"}, "name stands beside extends"),
    ],
)
def test_a_wrong_extension_is_refused(content, message, project):
    extend({"name": "e", "script": "recipes/a.py"}, **content)
    with pytest.raises(ValueError, match=message):
        load_pipeline(MORE)


def test_a_replaced_stage_comes_after_those_that_read_it_no_more(project):
    extend({"name": "b", "script": "recipes/b.py", "inputs": {"dataset": "a"}})
    with pytest.raises(ValueError, match=r"\(d\): input table: stage 'b' comes later"):
        load_pipeline(MORE)


def test_missing_files_are_found_before_anything_runs(project):
    write(project, d={"script": "recipes/gone.py"})
    with pytest.raises(ValueError, match=r"stage d: recipes/gone\.py does not exist"):
        run_pipeline(TOY)
    with pytest.raises(ValueError, match=r"nothing\.yaml does not exist"):
        load_pipeline("recipes/nothing.yaml")
    with pytest.raises(ValueError, match="no stage 'bb'; did you mean b"):
        run_pipeline(TOY, until="bb")
    assert ledger() == []


def test_scripts_are_found_from_the_pipelines_own_project(project, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    run_pipeline(project / TOY, until="a")
    assert (elsewhere / "outputs/toy/a/run.json").exists() and (elsewhere / "ledger").exists()


def test_the_launchers_variables_are_stripped():
    launcher = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_NAME NODE_RANK MASTER_ADDR "
    launcher += "MASTER_PORT TORCHELASTIC_RUN_ID ACCELERATE_USE_FSDP FSDP_VERSION DEEPSPEED_TIMEOUT"
    given = dict.fromkeys(launcher.split(), "1") | {"PATH": "p", "HF_TOKEN": "t", "RANKING": "r"}
    assert clean_environment(given) == {
        "PATH": "p",
        "HF_TOKEN": "t",
        "RANKING": "r",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [
        ("1e-3", 0.001),
        (32, [32]),
        ([32, "16"], [32, 16]),
        (False, "no"),
        ("true", True),
        (None, []),
        ("none", []),
        (1, 1.0),
        ("tensorboard", ["tensorboard"]),
        ({"a": "1"}, '{"a": 1}'),
    ],
)
def test_values_that_mean_the_same(asked, recorded):
    assert same_value(asked, recorded)


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [(0.1, 0.2), ([32, 16], [16, 32]), (32, [32, 32]), ("x", "y"), (True, False), ("a", None), ({"a": 1}, {"a": 2})],
)
def test_values_that_differ(asked, recorded):
    assert not same_value(asked, recorded)


RUN = """
import sys
from recllm.pipeline import process, run_pipeline
if "alone" in sys.argv:
    process.dies_with = lambda parent: None
run_pipeline(sys.argv[1], until=sys.argv[2])
"""


def start(until: str = "", how: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(TOY), until, how]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=hear_sigint)


def hear_sigint() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_five_random_kills_lose_no_complete_stage(project):
    rng = random.Random(0)
    write(project, **{name: {"args": {"slow": 0.3}} for name in "abcd"})
    complete: dict[str, bytes] = {}
    for _ in range(5):
        running = start()
        try:
            running.wait(rng.uniform(0.2, 1.3))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
        for name in "abcd":
            path = Path("outputs/toy", name, "run.json")
            if name in complete:
                assert path.read_bytes() == complete[name], "a complete stage was done again"
            elif path.exists():
                complete[name] = path.read_bytes()
                json.loads(complete[name])
    assert start().wait() == 0
    for name in "abcd":
        content = Path("outputs/toy", name, "run.json").read_bytes()
        assert complete.get(name, content) == content
        # A kill between run.json and the ledger's line may lose the line, never add one.
        assert ledger().count(name) <= 1
        for part in range(3):
            assert Path("outputs/toy", name, f"part{part}.txt").exists()
    assert built(run_pipeline(TOY)) == []


def test_a_stage_killed_in_its_middle_is_run_again(project):
    write(project, b={"args": {"slow": 60}})
    running = start()
    wait_for(Path("outputs/toy/b/part0.txt").exists)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert load_run("outputs/toy/b") is None and load_run("outputs/toy/a")
    write(project)
    assert built(run_pipeline(TOY, until="b")) == ["b"]
    assert ledger() == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_child_does_not_outlive_its_parent(number, project):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    write(project, a={"args": {"slow": 60}})
    # Where it can end its child itself, it does so without the kernel's help.
    running = start(how="" if number == signal.SIGKILL else "alone")
    wait_for(Path("outputs/toy/a/part0.txt").exists)
    pid = int(Path("pid").read_text())
    running.send_signal(number)
    assert running.wait(15) != 0
    wait_for(lambda: not alive(pid))


def test_two_runners_build_each_stage_once(project):
    write(project, a={"args": {"slow": 0.5}})
    first, second = start("b"), start("b")
    assert first.wait() == second.wait() == 0
    assert ledger() == ["a", "b"]


def test_other_ranks_wait_for_rank_0(project, monkeypatch):
    write(project, b={"args": {"slow": 0.5}})
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = f"from recllm.pipeline import ensure_inputs; ensure_inputs({str(TOY)!r}, 'd')"
    rank0 = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"RANK": "0"})
    inputs = ensure_inputs(TOY, "d", timeout_seconds=60)
    assert load_run(inputs["table"]) and ledger() == ["a", "b"]
    assert rank0.wait() == 0


def test_other_ranks_hear_of_a_failure_but_not_of_an_old_one(project, monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv("RANK", "1")
    failed = Path("outputs/toy/.failed.json")
    failed.parent.mkdir(parents=True)
    failed.write_text(json.dumps({"launcher": -1, "message": "an old failure"}))
    os.utime(failed, (1, 1))
    with pytest.raises(TimeoutError, match="stage a was not complete"):
        ensure_inputs(TOY, "d", timeout_seconds=0.2)
    failed.write_text(json.dumps({"launcher": os.getppid(), "message": "stage a ended with status 7"}))
    with pytest.raises(StageError, match=r"rank 0 failed .* stage a ended with status 7"):
        ensure_inputs(TOY, "d", timeout_seconds=5)
    monkeypatch.setenv("RANK", "0")
    write(project, a={"args": {"fail": True}})
    with pytest.raises(StageError):
        ensure_inputs(TOY, "d")
    assert "status 7" in json.loads(failed.read_text())["message"]
    write(project)
    ensure_inputs(TOY, "d")
    assert not failed.exists()


def wait_for(condition, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has collected yet is dead all the same.
    stat = Path("/proc", str(pid), "stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
