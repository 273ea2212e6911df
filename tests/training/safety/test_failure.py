"""Runs that fail: non-finite losses and gradients, and rewards that raise or return what is no number.

The trainers are TRL's own on a tiny model; a NaN is put into a loss or a gradient of a chosen step.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from recllm.training.safety import failure
from recllm.training.safety.failure import NonFiniteError, guard_finite
from recllm.training.safety.reward_guard import RewardError, blotted, guard_rewards

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ["drama", "comedy", "action", "horror", "war", "western"]
ASKED = [" ".join([word] * (1 + i)) for i, word in enumerate(WORDS)]  # of different lengths


def length(completions, **columns):
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def tiny():
    """(tokenizer, initial weights) of a one-layer model that speaks a few words."""
    from recllm.training.tiny_lm import build_model, train_tokenizer

    tokenizer = train_tokenizer(WORDS, vocab_size=300)
    return tokenizer, lambda: build_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=64, seed=0)


def grpo(tiny, folder, rewards=(length,), **changes):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer, make = tiny
    on_nonfinite = changes.pop("on_nonfinite", None)
    settings = {
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2, "max_steps": 3},
        **{"max_completion_length": 4, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 0},
        **{"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "learning_rate": 0.01},
        **{"weight_decay": 0.1, "lr_scheduler_type": "constant", **changes},
    }
    args = GRPOConfig(output_dir=str(folder), **settings)
    if on_nonfinite:
        args.on_nonfinite = on_nonfinite
    rows = Dataset.from_list([{"prompt": text, "number": i} for i, text in enumerate(ASKED)])
    return GRPOTrainer(
        model=make(), reward_funcs=list(rewards), args=args, train_dataset=rows, processing_class=tokenizer
    )


def sft(tiny, folder, **changes):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer, make = tiny
    settings = {"per_device_train_batch_size": 2, "max_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
    settings |= {"gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    args = SFTConfig(output_dir=str(folder), **{**settings, **changes})
    rows = Dataset.from_list([{"text": f"{a} {b}"} for a, b in zip(WORDS, WORDS[::-1], strict=True)])
    return SFTTrainer(model=make(), args=args, train_dataset=rows, processing_class=tokenizer)


def spoil_loss(trainer, calls, value=float("nan")):
    """The loss of these micro-batches (counted from 1) becomes `value`; gradients follow it."""
    original, seen = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        seen.append(1)
        loss = original(*args, **kwargs)
        return loss * value if len(seen) in calls else loss

    trainer.compute_loss = compute_loss


def spoil_gradient(trainer, backwards, value=float("inf"), name="model.norm.weight"):
    """One number of one parameter's gradient becomes `value` in these backward passes; the losses stay finite."""
    seen = []

    def hook(grad):
        seen.append(1)
        spoilt = grad.clone()
        spoilt[0] = value
        return spoilt if len(seen) in backwards else grad

    dict(trainer.model.named_parameters())[name].register_hook(hook)


class Watch(TrainerCallback):
    """Weights and Adam's moments after every step, and the micro-batches that TRL held."""

    def __init__(self, trainer):
        self.trainer, self.weights, self.moments, self.batches = trainer, [], [], {}
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.on_train_begin(args, state, control, model)
        held = optimizer.state_dict()["state"]
        self.moments.append({i: {k: v.clone() for k, v in one.items()} for i, one in held.items()})

    def on_substep_end(self, args, state, control, **kwargs):
        if hasattr(self.trainer, "_buffered_inputs"):
            self.batches[state.global_step + 1] = self.trainer._buffered_inputs


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_moments(one, other) -> bool:
    return one.keys() == other.keys() and all(equal(one[i], other[i]) for i in one)


def test_a_loss_that_is_no_number_stops_before_the_step_and_leaves_the_batch(tiny, tmp_path):
    trainer = grpo(tiny, tmp_path)
    spoil_loss(trainer, calls=[4])  # step 2, second micro-batch
    guard_finite(trainer)
    watch = Watch(trainer)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    message, folder = str(caught.value), tmp_path / "nonfinite-step-2"
    assert "step 2" in message and "nan in micro-batch 2 of 2" in message and str(folder) in message
    assert len(watch.weights) == 2
    now = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    assert equal(now, watch.weights[1]) and not equal(now, watch.weights[0])
    saved, held = load_file(folder / "batch.safetensors"), watch.batches[2]
    wanted = {f"{i}.{k}": v for i, one in enumerate(held) for k, v in one.items() if isinstance(v, torch.Tensor)}
    assert equal(saved, {name: value.cpu() for name, value in wanted.items()})
    told = json.loads((folder / "batch.json").read_text())
    assert told["step"] == 2 and told["losses"][1] == "nan" and isinstance(told["losses"][0], float)
    rows = [(row["prompt"], row["completion"], row["advantage"]) for row in told["rows"]]
    tokenizer = trainer.processing_class
    for row, (prompt, completion, advantage) in enumerate(rows):
        batch, i = held[row // 2], row % 2
        assert prompt in ASKED
        kept = batch["completion_ids"][i][: int(batch["completion_mask"][i].sum())]
        assert completion == tokenizer.decode(kept) and advantage == pytest.approx(float(batch["advantages"][i]))
    assert len(rows) == 4 and [row["micro_batch"] for row in told["rows"]] == [0, 0, 1, 1]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_an_infinite_gradient_under_a_finite_loss_stops_and_is_named(tiny, tmp_path, clip):
    trainer = sft(tiny, tmp_path, max_grad_norm=clip)
    spoil_gradient(trainer, backwards=[2])
    guard_finite(trainer)
    watch = Watch(trainer)
    with pytest.raises(NonFiniteError, match=r"step 2: the gradient of model\.norm\.weight is not finite"):
        trainer.train()
    assert equal({n: w.detach() for n, w in trainer.model.named_parameters()}, watch.weights[1])
    saved = load_file(tmp_path / "nonfinite-step-2" / "batch.safetensors")
    told = json.loads((tmp_path / "nonfinite-step-2" / "batch.json").read_text())
    ids = saved["0.input_ids"]
    for row, spoken in zip(told["rows"], ids, strict=True):
        assert row["text"].split()[0] in WORDS and trainer.processing_class.decode(spoken).startswith(row["text"])
    assert all(isinstance(loss, float) for loss in told["losses"])


def test_without_a_bad_number_the_guard_changes_nothing(tiny, tmp_path):
    plain = grpo(tiny, tmp_path / "a")
    plain.train()
    guarded = grpo(tiny, tmp_path / "b")
    guard = guard_finite(guarded)
    guarded.train()
    assert equal(*({n: w.detach() for n, w in t.model.named_parameters()} for t in (plain, guarded)))
    assert guard.state_dict() == {"count": 0, "in_a_row": 0}
    assert not any("nonfinite_steps" in entry for entry in guarded.state.log_history)
    assert guard._batches == [] and list(tmp_path.glob("b/nonfinite*")) == []


def test_skip_leaves_weights_and_moments_as_they_were_and_goes_on(tiny, tmp_path, caplog):
    trainer = grpo(tiny, tmp_path, on_nonfinite="skip", max_steps=4)
    spoil_gradient(trainer, backwards=[3, 5], value=float("nan"))  # steps 2 and 3
    guard = guard_finite(trainer)
    watch = Watch(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    changed = [not equal(watch.weights[i], watch.weights[i + 1]) for i in range(4)]
    assert changed == [True, False, False, True]
    assert same_moments(watch.moments[0], watch.moments[1]) and same_moments(watch.moments[0], watch.moments[2])
    assert not same_moments(watch.moments[2], watch.moments[3])
    assert [entry["nonfinite_steps"] for entry in trainer.state.log_history if "loss" in entry] == [0, 1, 2, 2]
    assert guard.state_dict() == {"count": 2, "in_a_row": 0}
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())
    assert "step 2 is skipped" in caplog.text and "model.norm.weight" in caplog.text
    assert list(tmp_path.glob("nonfinite*")) == []


def test_too_many_skips_in_a_row_stop_and_the_count_outlives_a_resume(tiny, tmp_path, monkeypatch):
    assert failure.MAX_IN_A_ROW == 10
    monkeypatch.setattr(failure, "MAX_IN_A_ROW", 3)
    trainer = sft(tiny, tmp_path, max_steps=9)
    trainer.args.on_nonfinite = "skip"
    spoil_loss(trainer, calls=[1, 2, 4, 5, 6, 7, 8])
    guard = guard_finite(trainer)
    guard.load_state_dict(json.loads(json.dumps({"count": 7, "in_a_row": 1})))
    with pytest.raises(NonFiniteError, match=r"step 7: .*as in the 3 steps before"):
        trainer.train()
    assert [entry["nonfinite_steps"] for entry in trainer.state.log_history if "loss" in entry] == [8, 9, 9, 10, 11, 12]
    assert (tmp_path / "nonfinite-step-7" / "batch.json").is_file()


def test_an_unknown_switch_and_a_scaler(tiny, tmp_path, caplog):
    trainer = sft(tiny, tmp_path)
    trainer.args.on_nonfinite = "ignore"
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip; got 'ignore'"):
        guard_finite(trainer)
    trainer.args.on_nonfinite = "skip"
    trainer.accelerator.scaler = object()
    with caplog.at_level(logging.WARNING):
        guard = guard_finite(trainer)
    assert "left to the gradient scaler" in caplog.text and guard not in trainer.callback_handler.callbacks
    trainer.accelerator.scaler = None
    trainer.accelerator.state.distributed_type, kind = "DistributedType.DEEPSPEED", trainer.accelerator.distributed_type
    with pytest.raises(ValueError, match="DeepSpeed"):
        guard_finite(trainer)
    trainer.accelerator.state.distributed_type = kind


class Line(torch.nn.Module):
    """y = w x with a loss that turns NaN on one process, without a gradient of it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        loss = ((self.weight * x - 3) ** 2).mean()
        bad = self.calls == 2 and os.environ["RANK"] == "1"
        return {"loss": loss + float("nan") if bad else loss}


def play(folder, policy):
    """One of two processes, started by torchrun: what it did goes to a file."""
    args = TrainingArguments(
        output_dir=folder, max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        learning_rate=0.1, save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    args.on_nonfinite = policy
    rows = [{"x": float(i)} for i in range(12)]
    trainer = Trainer(model=Line(), args=args, train_dataset=rows)
    guard, watch, error = guard_finite(trainer), Watch(trainer), None
    try:
        trainer.train()
    except NonFiniteError as caught:
        error = str(caught)
    weights = [float(one.popitem()[1]) for one in watch.weights]
    told = {"weights": weights, "count": guard.count, "error": error}
    (Path(folder) / f"{policy}-{os.environ['RANK']}.json").write_text(json.dumps(told))


def test_two_processes_decide_alike_where_one_alone_sees_the_fault(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc_per_node",
        "2",
    ]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run([*command, __file__, str(tmp_path)], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    skip, stop = (
        [json.loads((tmp_path / f"{p}-{rank}.json").read_text()) for rank in (0, 1)] for p in ("skip", "stop")
    )
    assert skip[0] == skip[1] and skip[0]["count"] == 1
    first, second, third, fourth = skip[0]["weights"]
    assert first != second == third != fourth
    assert [len(one["weights"]) for one in stop] == [2, 2] and stop[0]["weights"] == stop[1]["weights"]
    assert "another process" in stop[0]["error"] and "micro-batch 1 of 1" in stop[1]["error"]
    assert sorted(path.name for path in tmp_path.glob("nonfinite*")) == ["nonfinite-step-2-0", "nonfinite-step-2-1"]


# Rewards.

PROMPTS, DONE = ["a", "a", "b", "b", "c", "c"], ["one", "two", "three", "four", "five", "six"]


def guarded(tmp_path, function, name="tested"):
    """The function as a trainer would call it after `guard_rewards`."""
    trainer = SimpleNamespace(
        reward_funcs=[function], reward_func_names=[name], args=SimpleNamespace(output_dir=str(tmp_path)),
        accelerator=SimpleNamespace(num_processes=1, process_index=0), num_generations=2,
        model=SimpleNamespace(training=True), state=SimpleNamespace(global_step=4),
    )  # fmt: skip
    guard_rewards(trainer)
    return trainer.reward_funcs[0]


COLUMNS = {"number": [0, 1, 2, 3, 4, 5], "target": [[i] for i in range(6)], "environments": [object() for _ in DONE]}


def ask(reward, **columns):
    logged = []
    extra = {"trainer_state": object(), "log_metric": lambda *values: logged.append(values), "log_extra": print}
    try:
        answer = reward(prompts=PROMPTS, completions=DONE, completion_ids=[[i] for i in range(6)], **COLUMNS, **extra)
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    finally:
        assert len(logged) <= 1, "asking again logs nothing"


def failed(tmp_path, reward) -> tuple[str, dict]:
    with pytest.raises(RewardError) as caught:
        ask(reward)
    path = tmp_path / "reward-error-step-5.json"
    assert str(path) in str(caught.value) and "reward tested" in str(caught.value)
    return str(caught.value), json.loads(path.read_text())


def raising(completions, number, log_metric, trainer_state, **columns):
    log_metric("seen", len(completions))
    assert trainer_state is not None and len(number) == len(completions)
    if "four" in completions:
        raise KeyError("no such item")
    return [1.0] * len(completions)


async def raising_async(**columns):
    await asyncio.sleep(0)
    return raising(**columns)


@pytest.mark.parametrize("function", [raising, raising_async])
def test_a_reward_that_raises_is_pinned_to_its_completion(tmp_path, function):
    message, told = failed(tmp_path, guarded(tmp_path, function))
    assert "step 5" in message and "raised KeyError" in message and "on completion 3 of 6: 'four'" in message
    assert told["prompt"] == ["b"] and told["completion"] == ["four"]
    assert told["columns"] == {"completion_ids": [[3]], "number": [3], "target": [[3]]}
    assert told["columns_that_json_cannot_hold"] == ["environments"]
    assert "in raising" in told["traceback"] and "no such item" in told["fault"]


def by_group(completions, prompts, **columns):
    if len(set(prompts)) != len(prompts) and "c" in prompts:
        raise ZeroDivisionError("a group without spread")
    if len(prompts) == 1:
        raise ValueError("a group has two members")  # another fault than the one looked for
    return [0.0] * len(prompts)


def as_a_whole(completions, **columns):
    return [0.0] * (len(completions) - 1) if len(completions) == 6 else [0.0] * len(completions)


def test_a_fault_of_a_group_or_of_the_whole_batch_is_told_as_such(tmp_path):
    message, told = failed(tmp_path, guarded(tmp_path, by_group))
    assert "ZeroDivisionError" in message and "group of completions 4 to 5 of 6, and on none of them alone" in message
    assert told["completion"] == ["five", "six"]
    message, told = failed(tmp_path, guarded(tmp_path, as_a_whole))
    assert "returned 5 values for 6 completions" in message and "on the whole batch of 6" in message
    assert told["completion"] == DONE and told["traceback"] is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("inf"), "not finite"), (float("nan"), "not finite"), (1e39, "not finite in float32"),
        ("0.5", "is no number"), ([1.0], "is no number"), (torch.tensor(float("-inf")), "not finite"),
    ],
)  # fmt: skip
def test_values_that_are_no_finite_numbers_are_named(tmp_path, value, words):
    def reward(completions, **columns):
        return [value if text == "three" else 1.0 for text in completions]

    message, told = failed(tmp_path, guarded(tmp_path, reward))
    assert words in message and "on completion 2 of 6: 'three'" in message and told["completion"] == ["three"]


def test_what_is_no_list_of_values_is_told(tmp_path):
    message, _ = failed(tmp_path, guarded(tmp_path, lambda completions, **columns: None))
    assert "returned NoneType where a list of 6 values was due" in message


@pytest.mark.parametrize("make", [list, np.array, lambda v: torch.tensor(v, dtype=torch.float16), tuple])
def test_good_values_pass_through(tmp_path, make):
    values = [0, 1.5, True, -2, 0.25, 3]
    assert ask(guarded(tmp_path, lambda completions, **columns: make(values))) == [0, 1.5, 1, -2, 0.25, 3]
    kept = ask(guarded(tmp_path, lambda completions, **columns: [None, np.float32(2), *[np.int64(1)] * 4]))
    assert kept == [None, 2, 1, 1, 1, 1] and list(tmp_path.iterdir()) == []


def test_a_reward_model_is_left_alone_and_names_stay(tmp_path):
    model = torch.nn.Linear(1, 1)
    assert guarded(tmp_path, model) is model
    assert guarded(tmp_path, raising).__name__ == "raising"
    assert asyncio.iscoroutinefunction(guarded(tmp_path, raising_async))


class Counting:
    """A reward with a state, as an object and by its method."""

    calls = 0

    def __call__(self, completions, **columns):
        self.calls += 1
        return [0.0] * len(completions)

    def state_dict(self):
        return {"calls": self.calls}


def test_a_reward_with_a_state_is_found_behind_its_guard(tmp_path):
    for reward in (counting := Counting(), counting.__call__):
        wrapped = guarded(tmp_path, reward)
        ask(wrapped)
        assert wrapped.__self__ is counting
    assert counting.state_dict() == {"calls": 2} and not hasattr(guarded(tmp_path, raising), "__self__")


def test_no_secret_of_the_environment_reaches_message_or_file(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "verysecret-123456")
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKlMn")

    def reward(completions, **columns):
        raise ConnectionError(f"judge refused {os.environ['JUDGE_API_KEY']} and hf_AbCdEfGhIjKlMn")

    message, told = failed(tmp_path, guarded(tmp_path, reward))
    for text in (message, json.dumps(told)):
        assert "judge refused ***" in text
        assert "verysecret" not in text and "hf_Ab" not in text
    assert blotted("sk-abcdefghijk and a path") == "*** and a path"


def test_a_run_ends_at_the_reward_that_fails(tiny, tmp_path):
    async def judge(completions, number, **columns):
        return [1 / value if value != 2 else 1 / 0 for value in [n or 1 for n in number]]

    trainer = grpo(tiny, tmp_path, rewards=(length, judge), max_steps=6)
    guard_rewards(trainer)
    with pytest.raises(RewardError, match="reward judge raised ZeroDivisionError: division by zero, on completion"):
        trainer.train()
    (path,) = tmp_path.glob("reward-error-step-*.json")
    told = json.loads(path.read_text())
    assert told["prompt"] == [ASKED[2]] and told["columns"]["number"] == [2]
    assert int(path.stem.rsplit("-", 1)[1]) == trainer.state.global_step + 1


if __name__ == "__main__":
    for asked in ("skip", "stop"):
        play(sys.argv[1], asked)
