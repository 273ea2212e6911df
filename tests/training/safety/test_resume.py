"""A protected trainer that resumes ends, bit for bit and log by log, where the uninterrupted one does."""

import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from recllm.training.safety.checkpoint import MANIFEST, STAGING, newest_complete
from recllm.training.safety.resume import protect
from recllm.training.safety.run_state import objects, sampler_of
from recllm.training.tiny_lm import build_model, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 18
# Two slices of four completions a generation, used twice: a buffer serves 8 micro-batches. Eight prompts make an epoch
# of 16, so the last steps are of a second epoch.
OPTIONS = {
    **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True},
    **{"log_level": "error", "seed": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2},
    **{"max_steps": STEPS, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1},
}
GRPO = {"num_generations": 2, "steps_per_generation": 4, "num_iterations": 2, "max_completion_length": 6}


@pytest.fixture(autouse=True)
def no_power_is_lost(monkeypatch):
    """Bringing to disk takes longer than these runs, and what it is for is tested in test_checkpoint.py."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words of a data set"], 270)


def variety(completions, **_):
    return [float(len(set(text)) % 7) for text in completions]


def tiny(tokenizer):
    return build_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=64, seed=0)


def grpo(tokenizer, folder, rewards=(variety,), callbacks=(), peft=None, model=None, **options):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer(
        model=model or tiny(tokenizer),
        reward_funcs=list(rewards),
        args=GRPOConfig(output_dir=str(folder), **{**OPTIONS, **GRPO, **options}),
        train_dataset=Dataset.from_list([{"prompt": f"number {row}"} for row in range(8)]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=peft,
    )


def sft(tokenizer, folder, callbacks=(), **options):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"text": f"some words of number {row} " * (1 + row % 3)} for row in range(16)])
    return SFTTrainer(
        model=tiny(tokenizer),
        args=SFTConfig(output_dir=str(folder), max_length=32, **{**OPTIONS, **options}),
        train_dataset=rows,
        eval_dataset=rows.select(range(4)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def history(trainer):
    """Everything that was logged but times, and the summary's mean loss, which is about one call of train."""
    timed = ("time", "per_second", "train_loss")
    return [
        {name: repr(value) for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in trainer.state.log_history
    ]


CASES = {
    "plain": (grpo, {}),
    "accumulated": (grpo, {"gradient_accumulation_steps": 2}),
    "logged every third": (grpo, {"logging_steps": 3}),
    "evaluated": (sft, {"logging_steps": 3, "eval_strategy": "steps", "eval_steps": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_resume_equals_the_uninterrupted_run(tokenizer, tmp_path, case):
    make, options = CASES[case]
    whole = make(tokenizer, tmp_path / "whole", **options)
    assert protect(whole).failed_saves == 0
    whole.train()
    unsaved = make(tokenizer, tmp_path / "unsaved", **{**options, "save_strategy": "no"})
    unsaved.train()
    assert equal(weights(whole), weights(unsaved)), "saving changes nothing"
    assert newest_complete(tmp_path / "whole") == str(tmp_path / "whole" / f"checkpoint-{STEPS}")
    for step in (1, 3, 4, 8, 14, 16, 17) if case == "plain" else (1, 5, 10, 17):
        again = make(tokenizer, tmp_path / "again", **{**options, "save_strategy": "no"})
        protect(again)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert equal(weights(again), weights(whole)), f"resumed at step {step}"
        assert history(again) == history(whole), f"resumed at step {step}"


def test_the_library_alone_does_not(tokenizer, tmp_path):
    """Otherwise the test above would prove nothing."""
    whole = grpo(tokenizer, tmp_path / "whole", max_steps=6)
    whole.train()
    again = grpo(tokenizer, tmp_path / "again", max_steps=6, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert not equal(weights(again), weights(whole))


def test_a_reference_model_that_follows_the_policy_resumes_as_well(tokenizer, tmp_path):
    tiny(tokenizer).save_pretrained(tmp_path / "model")

    def make(folder, **options):
        trainer = grpo(
            tokenizer, folder, max_steps=6, beta=0.5, model=str(tmp_path / "model"),
            sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.5, **options,
        )  # fmt: skip
        protect(trainer)
        return trainer

    whole = make(tmp_path / "whole")
    whole.train()
    again = make(tmp_path / "again", save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert equal(weights(again), weights(whole)) and history(again) == history(whole)
    assert equal(again.ref_model.state_dict(), whole.ref_model.state_dict())
    assert not equal(dict(whole.ref_model.state_dict()), dict(tiny(tokenizer).state_dict())), "it did follow"


def test_adapters_resume_as_well(tokenizer, tmp_path):
    from peft import LoraConfig

    def make(folder, **options):
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
        trainer = grpo(tokenizer, folder, peft=config, max_steps=6, **options)
        protect(trainer)
        return trainer

    whole = make(tmp_path / "whole")
    whole.train()
    again = make(tmp_path / "again", save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert equal(weights(again), weights(whole))


def test_a_finished_run_takes_no_further_step(tokenizer, tmp_path):
    whole = grpo(tokenizer, tmp_path / "whole", max_steps=5)
    protect(whole)
    whole.train()
    again = grpo(tokenizer, tmp_path / "again", max_steps=5, save_strategy="no")
    protect(again)
    outcome = again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert outcome.global_step == 5 and equal(weights(again), weights(whole))
    assert outcome.metrics["train_loss"] == 0, "of no step"
    longer = grpo(tokenizer, tmp_path / "longer", max_steps=7, save_strategy="no")
    protect(longer)
    assert longer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5")).global_step == 7


def test_a_run_killed_before_it_rotated_ends_with_its_checkpoints_alone(tokenizer, tmp_path):
    unrotated = grpo(tokenizer, tmp_path, max_steps=3)
    protect(unrotated)
    unrotated.train()  # without a limit, so that all three are there, as after a kill between save and rotation
    again = grpo(tokenizer, tmp_path, max_steps=3, save_total_limit=2)
    protect(again)
    again.train(resume_from_checkpoint=newest_complete(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["checkpoint-2", "checkpoint-3"]


def test_train_loss_is_about_the_steps_of_one_call(tokenizer, tmp_path):
    whole = sft(tokenizer, tmp_path / "whole", logging_steps=4, max_steps=8, save_steps=2)
    protect(whole)
    whole.train()
    again = sft(tokenizer, tmp_path / "again", logging_steps=4, max_steps=8, save_strategy="no")
    protect(again)
    # This checkpoint has an open window with steps 5 and 6; steps 7 and 8 are left.
    outcome = again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    losses = [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    each = sft(tokenizer, tmp_path / "each", logging_steps=1, max_steps=8, save_strategy="no")
    each.train()
    single = [entry["loss"] for entry in each.state.log_history if "loss" in entry]
    assert losses[1] == pytest.approx(sum(single[4:8]) / 4, rel=1e-6), "the window of four steps"
    assert outcome.metrics["train_loss"] == pytest.approx(sum(single[6:]) / 2, rel=1e-6)


@pytest.mark.parametrize("change", [{"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2}])
def test_another_layout_is_told_and_generated_anew(tokenizer, tmp_path, caplog, change):
    whole = grpo(tokenizer, tmp_path / "whole", max_steps=4)
    protect(whole)
    whole.train()
    again = grpo(tokenizer, tmp_path / "again", max_steps=10, save_strategy="no", **change)
    protect(again)
    drawn, generate = [], again._generate_and_score_completions

    def counting(inputs):
        drawn.append(again._step)
        return generate(inputs)

    again._generate_and_score_completions = counting
    with caplog.at_level(logging.WARNING, logger="recllm"):
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    (name, value), then = next(iter(change.items())), OPTIONS.get(next(iter(change)), 1)
    assert f"{name} was {then} and is {value}" in caplog.text and "generates anew" in caplog.text
    accumulated = change.get("gradient_accumulation_steps", 1)
    # At once, and then where the sampler comes to the next prompts.
    assert drawn == [3 * accumulated, *range(8, 10 * accumulated, 8)] and again._step == 10 * accumulated


def test_a_checkpoint_of_the_library_alone_is_taken_with_a_warning(tokenizer, tmp_path, caplog):
    grpo(tokenizer, tmp_path / "whole", max_steps=3).train()
    again = grpo(tokenizer, tmp_path / "again", max_steps=5, save_strategy="no")
    protect(again)
    with caplog.at_level(logging.WARNING, logger="recllm"):
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert "written without recllm's part" in caplog.text
    assert again.state.global_step == again._step == 5


class Curriculum:
    """A reward that depends on how often it was asked."""

    __name__ = "curriculum"

    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **_):
        self.calls += 1
        return [float((len(set(text)) * self.calls) % 5) for text in completions]

    def state_dict(self):
        return {"calls": self.calls, "levels": [1, 2.5, None]}

    def load_state_dict(self, state):
        assert state["levels"] == [1, 2.5, None]
        self.calls = state["calls"]


class Counter(TrainerCallback):
    def __init__(self, start=0):
        self.steps = start

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Tensors(Counter):
    def state_dict(self):
        return {"table": torch.zeros(2)}


def test_rewards_and_callbacks_get_their_state_back(tokenizer, tmp_path, caplog):
    def make(folder, **options):
        rewards, callbacks = [Curriculum(), Curriculum()], [Counter(), Counter(start=100), Tensors()]
        rewards[1].calls = 3
        trainer = grpo(tokenizer, folder, rewards, callbacks, num_iterations=1, max_steps=12, **options)
        protect(trainer)
        return trainer, rewards, callbacks

    whole, rewards, callbacks = make(tmp_path / "whole")
    with caplog.at_level(logging.WARNING, logger="recllm"):
        whole.train()
    assert caplog.text.count("leave out the state of Tensors") == 1, "once, not at each save"
    again, rewards_again, callbacks_again = make(tmp_path / "again", save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert equal(weights(again), weights(whole))
    assert [reward.calls for reward in rewards_again] == [reward.calls for reward in rewards] == [3, 6]
    assert [callback.steps for callback in callbacks_again] == [12, 112, 6], "the last one starts anew"
    assert [callback.steps for callback in callbacks] == [12, 112, 12]
    assert "no state for Tensors" in caplog.text


def test_models_and_streams_are_no_objects_with_a_state():
    from datasets import Dataset

    counter, method = Counter(), Curriculum()
    trainer = SimpleNamespace(
        rollout_func=method.__call__,
        reward_funcs=[torch.nn.Linear(1, 1), variety, method, Counter],
        callback_handler=SimpleNamespace(callbacks=[counter, TrainerCallback()]),
        train_dataset=Dataset.from_list([{"a": 1}]).to_iterable_dataset(),
    )
    assert objects(trainer) == [method, counter]
    assert sampler_of(trainer) is None


def plant(trainer, values):
    """Evaluations that come in a given order, whatever the model says."""
    order = iter(values)

    def evaluate(**_):
        metrics = {"eval_planted": next(order)}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate


def test_the_best_checkpoint_stays_and_is_never_named_by_its_staging(tokenizer, tmp_path):
    trainer = sft(
        tokenizer, tmp_path, max_steps=5, save_total_limit=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="planted", greater_is_better=False,
    )  # fmt: skip
    protect(trainer)
    plant(trainer, [3.0, 1.0, 2.0, 2.0, 2.0])
    seen = {}

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            folder = Path(newest_complete(tmp_path))
            told = json.loads((folder / "trainer_state.json").read_text())
            assert told["global_step"] == state.global_step
            assert STAGING not in (folder / "trainer_state.json").read_text()
            names = sorted(path.name for path in tmp_path.iterdir())
            seen[state.global_step] = (told["best_model_checkpoint"], told["best_global_step"], names)

    trainer.add_callback(Look())
    trainer.train()
    best = [str(tmp_path / f"checkpoint-{step}") for step in (1, 2, 2, 2, 2)]
    assert [seen[step][0] for step in range(1, 6)] == best
    assert [seen[step][1] for step in range(1, 6)] == [1, 2, 2, 2, 2]
    assert [seen[step][2] for step in (2, 3, 5)] == [
        ["checkpoint-2"], ["checkpoint-2", "checkpoint-3"], ["checkpoint-2", "checkpoint-5"]
    ]  # fmt: skip
    assert trainer.state.best_model_checkpoint == best[-1]


def full(*args, **kwargs):
    raise OSError(28, os.strerror(28))


def test_a_best_checkpoint_that_failed_is_not_the_best(tokenizer, tmp_path, caplog):
    trainer = sft(
        tokenizer, tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="planted", greater_is_better=False,
    )  # fmt: skip
    protection = protect(trainer)
    plant(trainer, [3.0, 1.0, 2.0])
    save = trainer._save_rng_state
    trainer._save_rng_state = lambda folder: (full if trainer.state.global_step == 2 else save)(folder)
    with caplog.at_level(logging.WARNING, logger="recllm"):
        trainer.train()
    assert "NO CHECKPOINT of step 2" in caplog.text and (protection.saves, protection.failed_saves) == (2, 1)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_other_errors_end_the_run_and_leave_no_staging(tokenizer, tmp_path):
    trainer = sft(tokenizer, tmp_path, max_steps=3)
    protection = protect(trainer)
    save = trainer._save_rng_state

    def broken(folder):
        if trainer.state.global_step == 2:
            raise KeyError("something else")
        save(folder)

    trainer._save_rng_state = broken
    with pytest.raises(KeyError, match="something else"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"] and protection.failed_saves == 0
    assert "_get_output_dir" not in vars(trainer) and "create_model_card" not in vars(trainer)


def test_a_push_finds_the_finished_checkpoint_and_no_card_is_left(tokenizer, tmp_path):
    trainer = sft(tokenizer, tmp_path, max_steps=2)
    pushed = []
    trainer._push_from_checkpoint = lambda folder: pushed.append((folder, (Path(folder) / MANIFEST).is_file()))
    protect(trainer)
    trainer.args.push_to_hub = True
    trainer._finish_current_push = lambda: None
    trainer.train()
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), True) for step in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_protecting_twice_is_protecting_once(tokenizer, tmp_path):
    trainer = sft(tokenizer, tmp_path, max_steps=1)
    protection = protect(trainer)
    assert protect(trainer) is protection
    trainer.train()
    assert protection.saves == 1 and [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_later_checkpoints_of_another_run_are_told(tokenizer, tmp_path, caplog):
    sft_options = {"max_steps": 3, "save_total_limit": 2}
    first = sft(tokenizer, tmp_path, **sft_options)
    protect(first)
    first.train()
    second = sft(tokenizer, tmp_path, **{**sft_options, "max_steps": 2})
    protect(second)
    with caplog.at_level(logging.WARNING, logger="recllm"):
        second.train()
    assert caplog.text.count("is of a later step than this run has reached") == 1
    assert "checkpoint-3" in caplog.text
    assert (tmp_path / "checkpoint-2").is_dir(), "what was just saved stays"


def test_what_was_logged_is_kept_for_the_table_of_completions(tokenizer, tmp_path):
    whole = grpo(tokenizer, tmp_path / "whole", max_steps=3)
    protect(whole)
    whole.train()
    again = grpo(tokenizer, tmp_path / "again", max_steps=3, save_strategy="no")
    protect(again)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(whole._logs["prompt"]) == 8
    for name in ("prompt", "completion", "advantages"):
        assert list(again._logs[name]) == list(whole._logs[name])
    kept, wanted = again._logs["rewards"], whole._logs["rewards"]
    assert {name: list(v) for name, v in kept.items()} == {name: list(v) for name, v in wanted.items()}
    assert isinstance(again._metrics["train"], defaultdict)
