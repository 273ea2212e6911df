"""Checkpoints pushed while training goes on: the real client, a small Hub that fails for a while, or for good."""

import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from recllm.hub import run as hub_run
from recllm.hub.during import STAGING, CheckpointPusher, copy_checkpoint
from recllm.hub.run import Publishing, deliver_run, start_run
from recllm.provenance import RunRecord, load_run

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import TOKEN, FakeHub, Fault

REPO, HELD = "tester/planner", "models/tester/planner"
FAST = {"base_delay": 0.01, "max_delay": 0.05, "timeout": 5.0, "retries": 1}
LEFT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "optimizer.safetensors", "notes.txt")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with FakeHub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def record(tmp_path):
    return RunRecord.start(tmp_path / "run", recipe="grpo_planner", config={"seed": 3, "learning_rate": 0.5})


def make_pusher(record, strategy="all_checkpoints", revision=None, **options) -> CheckpointPusher:
    return CheckpointPusher(record, REPO, revision, None, True, strategy, **{**FAST, **options})


def checkpoint(record, step: int) -> Path:
    """A checkpoint folder as a trainer leaves it; what goes up of it has the step in its bytes."""
    folder = record.folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(f"{name} {step} ".encode() * 50)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "step": step}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    for name in LEFT:
        (folder / name).write_bytes(b"left behind")
    (folder / "sharded").mkdir()
    return folder


def branches(hub) -> dict[int, str]:
    """Step -> revision, of checkpoints that arrived whole (begun ones have the card alone)."""
    found = [name for name in hub.repos[HELD].branches if "checkpoint-" in name] if HELD in hub.repos else []
    whole = [name for name in found if "model.safetensors" in hub.files(HELD, name)]
    return {int(name.split("checkpoint-")[1].split("-")[0]): name for name in whole}


def until(condition, seconds=20.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it never came to that"
        time.sleep(0.01)


def test_a_checkpoint_arrives_without_what_resumes_it_although_it_is_rotated_away(hub, record):
    pusher = make_pusher(record, revision="seed3")
    folder = checkpoint(record, 10)
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in LEFT}
    pusher.take(folder, 10)
    shutil.rmtree(folder)
    assert pusher.finish() is None
    revision = branches(hub)[10]
    assert revision.startswith("seed3-checkpoint-10-") and hub.repos[HELD].private
    files = hub.files(HELD, revision)
    card = files.pop("README.md").decode()
    wanted["training_log.json"] = wanted.pop("trainer_state.json")
    assert files == wanted
    assert "This is step 10 of a run that was still training" in card and "learning_rate" in card
    assert "grpo_planner" in card and card.startswith("---\n")
    assert hub.files(HELD, "main") == {} and not (record.folder / STAGING).exists()


def test_weights_are_linked_and_small_files_copied(record, tmp_path, monkeypatch):
    folder = checkpoint(record, 1)
    for links in (True, False):
        if not links:
            monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
        target = tmp_path / f"copy-{links}"
        target.mkdir()
        copy_checkpoint(folder, target)
        assert (target / "model.safetensors").samefile(folder / "model.safetensors") is links
        assert (target / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert not (target / "config.json").samefile(folder / "config.json")
        assert {path.name for path in target.iterdir()}.isdisjoint({*LEFT, "trainer_state.json"})


def test_every_checkpoint_goes_up_in_order_one_at_a_time(hub, record):
    pusher = make_pusher(record)
    for step in (1, 2, 3):
        pusher.take(checkpoint(record, step), step)
        pusher.take(record.folder / f"checkpoint-{step}", step)  # saved twice is pushed once
    assert pusher.finish() is None
    assert list(branches(hub)) == [1, 2, 3]
    commits = [path for method, path in hub.requests if method == "POST" and "/commit/" in path]
    assert [path.split("checkpoint-")[1][0] for path in commits] == list("112233")


def test_with_checkpoint_only_the_newest_waits(hub, record):
    hub.fail("POST", "repos/create", Fault(do="stall"))
    pusher = make_pusher(record, "checkpoint", timeout=1.0)
    pusher.take(checkpoint(record, 1), 1)
    until(lambda: hub.count("POST", "repos/create"))  # step 1 is under way
    for step in (2, 3, 4):
        pusher.take(checkpoint(record, step), step)
    assert sorted(path.name for path in (record.folder / STAGING).iterdir()) == ["step-1", "step-4"]
    assert pusher.finish() is None
    assert sorted(branches(hub)) == [1, 4]


@pytest.mark.parametrize("strategy", ["all_checkpoints", "checkpoint"])
def test_what_failed_comes_again_with_the_next_save(hub, record, strategy):
    pusher = make_pusher(record, strategy)
    hub.kill()
    pusher.take(checkpoint(record, 1), 1)
    until(lambda: 1 in pusher._errors and pusher._failed)
    hub.revive()
    pusher.take(checkpoint(record, 2), 2)
    assert pusher.finish() is None
    assert sorted(branches(hub)) == ([1, 2] if strategy == "all_checkpoints" else [2])


@pytest.mark.parametrize("strategy", ["all_checkpoints", "checkpoint"])
def test_what_failed_comes_once_more_at_the_end(hub, record, strategy):
    pusher = make_pusher(record, strategy)
    hub.fail("POST", "/preupload/", 503, 503)
    pusher.take(checkpoint(record, 1), 1)
    until(lambda: pusher._failed)
    assert pusher.finish() is None and list(branches(hub)) == [1]


def test_a_refusal_is_no_end_of_the_thread(hub, record):
    hub.fail("POST", "/preupload/", 403)
    pusher = make_pusher(record)
    pusher.take(checkpoint(record, 1), 1)
    until(lambda: pusher._failed)
    pusher.take(checkpoint(record, 2), 2)
    assert pusher.finish() is None and sorted(branches(hub)) == [1, 2]


def test_a_hub_that_never_comes_back_costs_one_last_try(hub, record, caplog):
    pusher = make_pusher(record)
    hub.kill()
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            pusher.take(checkpoint(record, step), step)
        started = time.monotonic()
        why = pusher.finish()
    assert time.monotonic() - started < 10
    assert why.startswith("checkpoints are not published, of step 1, 2, 3: ") and "checkpoint-1-" in why
    assert "failed 2 times" in why and "not tried after" in why
    assert "recipes/publish.py" not in why, "the copy is gone, so there is nothing to go on with"
    assert "the checkpoint of step 1 is not pushed" in caplog.text and TOKEN not in why + caplog.text
    assert not (record.folder / STAGING).exists()


def test_a_checkpoint_that_is_gone_or_has_no_weights_is_told_at_the_end(hub, record):
    pusher = make_pusher(record)
    pusher.take(record.folder / "checkpoint-7", 7)
    (checkpoint(record, 8) / "model.safetensors").unlink()
    pusher.take(record.folder / "checkpoint-8", 8)
    pusher.take(checkpoint(record, 9), 9)
    why = pusher.finish()
    assert "of step 7, 8: " in why and "holds no weights as model*.safetensors" in why
    assert list(branches(hub)) == [9]


def test_the_same_content_goes_on_where_a_push_broke_off_and_other_content_has_its_own_revision(hub, record):
    hub.fail("POST", "/commit/", Fault(do="pass"), 403, 403)
    folder = checkpoint(record, 1)
    pusher = make_pusher(record)
    pusher.take(folder, 1)
    assert "write access" in pusher.finish() and branches(hub) == {}
    (begun,) = [name for name in hub.repos[HELD].branches if name != "main"]
    for _ in range(2):
        time.sleep(0.002)  # times differ from process to process, and must not make it another content
        pusher = make_pusher(record)
        pusher.take(folder, 1)
        assert pusher.finish() is None and branches(hub) == {1: begun}
    (folder / "model.safetensors").write_bytes(b"another run")
    pusher = make_pusher(record)
    pusher.take(folder, 1)
    assert pusher.finish() is None
    held = {hub.files(HELD, name)["model.safetensors"] for name in hub.repos[HELD].branches if name != "main"}
    assert len(held) == 2 and b"another run" in held


# In a training, and at its end.


@dataclass
class Config:
    """As much of TRL's arguments as a run's start reads."""

    output_dir: str
    push_to_hub: bool = True
    hub_model_id: str = REPO
    hub_token: str | None = None
    hub_private_repo: bool | None = None
    hub_strategy: str = "every_save"
    save_strategy: str = "steps"


def test_a_run_gets_a_pusher_where_its_strategy_asks_for_one(hub, tmp_path, caplog):
    from transformers.trainer_utils import HubStrategy, SaveStrategy

    def started(name, **changes):
        publishing = start_run("sft", (Config(str(tmp_path / name), **changes),), {})[1]
        assert len(publishing.callbacks()) == (publishing.pusher is not None)
        return publishing.pusher

    for strategy in ("every_save", "end", HubStrategy.EVERY_SAVE):
        assert started("a", hub_strategy=strategy) is None
    assert started("b", hub_strategy="checkpoint").every is False
    assert started("c", hub_strategy=HubStrategy.ALL_CHECKPOINTS).every is True
    assert started("d", hub_strategy="checkpoint", push_to_hub=False) is None
    assert caplog.text == ""
    started("e", hub_strategy="checkpoint", save_strategy=SaveStrategy.NO)
    assert "save_strategy: no saves none" in caplog.text
    with pytest.raises(ValueError, match="checkpoint or all_checkpoints; got 'end'"):
        make_pusher(RunRecord.start(tmp_path / "f", "sft", {}), "end")


def finished(record, pusher) -> None:
    deliver_run(record, {"ndcg@10": 0.5}, Publishing(True, REPO, "v1", None, True, pusher))


def test_the_end_of_a_run_pushes_what_is_left_and_then_the_run(hub, record, capsys):
    pusher = make_pusher(record)
    pusher.take(checkpoint(record, 5), 5)
    finished(record, pusher)
    assert list(branches(hub)) == [5] and "run.json" in hub.files(HELD, "v1")
    assert not any("staging" in name or "checkpoint" in name for name in hub.files(HELD, "v1"))
    assert load_run(record.folder)["recipe"] == "grpo_planner"
    assert "NOT PUBLISHED" not in capsys.readouterr().out


def test_a_lost_checkpoint_ends_a_delivered_and_published_run_with_status_1(hub, record, capsys):
    pusher = make_pusher(record)
    hub.fail("POST", "/preupload/checkpoint", 403, forever=True)
    pusher.take(checkpoint(record, 5), 5)
    with pytest.raises(SystemExit) as caught:
        finished(record, pusher)
    assert "of step 5: " in str(caught.value.code) and "write access" in str(caught.value.code)
    assert "run.json" in hub.files(HELD, "v1") and load_run(record.folder) is not None
    assert "NOT PUBLISHED: checkpoints" in capsys.readouterr().out


def test_a_hub_that_is_gone_leaves_the_run_delivered_and_both_reasons(hub, record, monkeypatch):
    whole = hub_run.publish_with_outcome
    monkeypatch.setattr(hub_run, "publish_with_outcome", lambda *a, **options: whole(*a, **options, **FAST))
    pusher = make_pusher(record)
    hub.kill()
    pusher.take(checkpoint(record, 5), 5)
    with pytest.raises(SystemExit) as caught:
        finished(record, pusher)
    message = str(caught.value.code)
    assert "the folder is kept but not published" in message and "checkpoints are not published" in message
    assert load_run(record.folder) is not None and not (record.folder / STAGING).exists()


@pytest.mark.parametrize("there", [True, False])
def test_training_goes_on_whatever_the_hub_does(hub, record, there):
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from recllm.training.tiny_lm import build_model, train_tokenizer

    tokenizer = train_tokenizer(["drama comedy war"], vocab_size=300)
    model = build_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=32, seed=0)
    ids = torch.arange(8)
    args = TrainingArguments(
        output_dir=str(record.folder), max_steps=3, per_device_train_batch_size=1, use_cpu=True, report_to="none",
        save_strategy="steps", save_steps=1, save_total_limit=1, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": ids}] * 4
    trainer = Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    pusher = make_pusher(record, retries=0)
    (record.folder / STAGING / "step-9").mkdir(parents=True)  # of a process that was killed
    trainer.add_callback(pusher.callback())
    if not there:
        hub.kill()
    trainer.train()
    assert trainer.state.global_step == 3
    assert [path.name for path in record.folder.glob("checkpoint-*")] == ["checkpoint-3"], "the others are rotated away"
    why = pusher.finish()
    if not there:
        assert "of step 1, 2, 3: " in why
        return
    assert why is None and sorted(branches(hub)) == [1, 2, 3]
    files = hub.files(HELD, branches(hub)[3])
    assert json.loads(files["training_log.json"])["global_step"] == 3
    got = record.folder / "got"
    got.mkdir()
    for name, data in files.items():
        (got / name).write_bytes(data)
    again = AutoModelForCausalLM.from_pretrained(got).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
