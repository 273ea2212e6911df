"""Validation while training: the best weights come back bit for bit, patience stops, a resumed run is the same run."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from recllm.data.splits import load_split
from recllm.evaluation.recommender import Recommender, by_exact
from recllm.evaluation.recommender_metrics import Targets, evaluate_recommender
from recllm.metrics.ranking import ndcg_at_k, recall_at_k
from recllm.training import models, validation
from recllm.training.save import newest_checkpoint, remove_checkpoints
from recllm.training.validation import BEST_FOLDER, NDCG, RECALL, STATE_FILE, ValidationNDCG

_FILE = Path(__file__).parents[1] / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = worlds.make_table()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    worlds.write_dataset(root / "dataset")
    TABLE.save(root / "sid_table")
    return {"dataset": root / "dataset", "sid_table": root / "sid_table"}


pytestmark = pytest.mark.usefixtures("one_thread")


class Kill(TrainerCallback):
    """Ends the process, as it were, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Snapshots(TrainerCallback):
    """Weights after every step, to compare with what comes back."""

    def __init__(self):
        self.of_step = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.of_step[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}


def rows(inputs, tokenizer):
    """The fitting fold as whole sequences of SID tokens."""
    fold = load_split(inputs["dataset"]).fitting
    texts = ["".join(TABLE.text(item) for item in fold.items(user)) for user in range(len(fold))]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, encoded))
    return [
        {
            "input_ids": ids + [0] * (longest - len(ids)),
            "attention_mask": [1] * len(ids) + [0] * (longest - len(ids)),
            "labels": ids + [-100] * (longest - len(ids)),
        }
        for ids in encoded
    ]


def make_trainer(inputs, folder, callbacks, steps=12, lr=3e-3, adapt=None, **options):
    model, tokenizer = worlds.make_model(TABLE, template="stream")
    model = adapt(model) if adapt else model
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=lr, per_device_train_batch_size=8, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_steps=1, lr_scheduler_type="constant", seed=0,
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    return Trainer(
        model=model, args=args, train_dataset=rows(inputs, tokenizer), processing_class=tokenizer, callbacks=callbacks
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checks(history):
    return [(check["step"], check[NDCG]) for check in history]


def test_the_best_weights_come_back_bit_for_bit(inputs, tmp_path, capsys):
    callback, snapshots = ValidationNDCG(**inputs, steps=2), Snapshots()
    # The trainer's own rotation of checkpoints is not to touch the best weights.
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = make_trainer(inputs, tmp_path, [snapshots, callback], steps=13, lr=0.1, **saving)
    trainer.train()
    values = dict(checks(callback.history))
    assert list(values) == [2, 4, 6, 8, 10, 12, 13], "every second step, and the end"
    best = max(values, key=values.get)
    assert len(set(values.values())) > 2 and best < 13, "a rate this high spoils what was learnt"
    assert equal(dict(trainer.model.state_dict()), snapshots.of_step[best])
    assert not equal(dict(trainer.model.state_dict()), snapshots.of_step[13])
    assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight
    assert callback.metrics() == {
        "validation/best_step": best,
        "validation/best_ndcg@10": values[best],
        "validation/best_recall@10": next(c[RECALL] for c in callback.history if c["step"] == best),
        "validation/last_ndcg@10": values[13],
        "validation/checks": 7,
        "validation/n": worlds.USERS,
    }
    # The evaluation recipe measures the same on what is delivered.
    recommender = Recommender(trainer.model.eval(), trainer.processing_class, TABLE)
    again = evaluate_recommender(recommender, Targets.load(inputs["dataset"], "validation"), beams=20)
    assert again["beam/ndcg@10"] == pytest.approx(values[best])
    logged = [entry for entry in trainer.state.log_history if NDCG in entry]
    assert checks(logged) == checks(callback.history) and all("epoch" in entry for entry in logged)
    out = capsys.readouterr().out
    assert out.count("validation at step") == 7 and f"the weights of step {best} are the best" in out
    assert sorted(p.name for p in (tmp_path / BEST_FOLDER).iterdir()) == [STATE_FILE, f"weights-{best}.safetensors"]


def test_training_that_only_harms_gives_back_what_it_started_from(inputs, tmp_path, monkeypatch):
    started = dict(worlds.make_model(TABLE, template="stream")[0].state_dict())
    watch = ValidationNDCG(**inputs, steps=2, at_start=True)
    values = iter([0.5, 0.2, 0.1, 0.3])
    monkeypatch.setattr(validation, "ndcg_at_k", lambda rank_E, k: np.full(len(rank_E), next(values)))
    trainer = make_trainer(inputs, tmp_path, [watch], steps=6)
    trainer.train()
    assert [check["step"] for check in watch.history] == [0, 2, 4, 6]
    assert watch.metrics()["validation/best_step"] == 0 and equal(dict(trainer.model.state_dict()), started)


def test_the_value_is_that_of_exact_scoring(inputs, tmp_path):
    callback = ValidationNDCG(**inputs, steps=5, beams=60)  # as wide as all of the trie
    trainer = make_trainer(inputs, tmp_path, [callback], steps=5)
    trainer.train()
    recommender = Recommender(trainer.model.eval(), trainer.processing_class, TABLE)
    answers = by_exact(recommender, load_split(inputs["dataset"]).validation, exclude_seen=True, label=None)
    assert callback.history[-1][NDCG] == pytest.approx(ndcg_at_k(answers.rank_E, 10).mean())
    assert callback.history[-1][RECALL] == pytest.approx(recall_at_k(answers.rank_E, 10).mean())


def test_checks_leave_training_as_it_is(inputs, tmp_path):
    def adapt(model):  # dropout draws from the global generator; a part stays in evaluation mode
        model.config.attention_dropout = 0.3
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        return model

    class HalfAsleep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.model.layers[1].eval()

    modes = []

    class Modes(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            modes.append((model.training, model.model.layers[0].training, model.model.layers[1].training))

    losses = []
    for checked in (True, False):
        extra = [ValidationNDCG(**inputs, steps=1), Modes()] if checked else []
        trainer = make_trainer(inputs, tmp_path / str(checked), [HalfAsleep(), *extra], steps=4, adapt=adapt)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert modes == [(True, True, False)] * 4


def planted(values, monkeypatch=None):
    """Validation values that come in a given order, whatever the model says."""
    order = iter(values)

    def answers(*args, **kwargs):
        value = next(order)
        return SimpleNamespace(rank_E=np.array([0.0] * value + [np.inf] * (10 - value)), seconds=0.0)

    (monkeypatch or pytest.MonkeyPatch()).setattr(validation, "by_beam", answers)


@pytest.mark.parametrize(
    ("values", "patience", "stops", "best"),
    [
        ([3, 5, 4, 5, 2, 9], 2, 4, 2),  # an equal value is no better one
        ([3, 2, 4, 3, 5, 1, 0, 9], 2, 7, 5),  # a better one starts the count anew
        ([3, 2, 1, 1, 1, 6], 0, 6, 6),  # without patience the end is the end
        ([3, 2, 9], 1, 2, 1),
    ],
)
def test_patience_stops_and_the_best_is_kept(inputs, tmp_path, monkeypatch, values, patience, stops, best):
    planted(values, monkeypatch)
    callback, snapshots = ValidationNDCG(**inputs, steps=1, patience=patience), Snapshots()
    trainer = make_trainer(inputs, tmp_path, [snapshots, callback], steps=len(values))
    trainer.train()
    assert trainer.state.global_step == stops == callback.metrics()["validation/checks"]
    assert callback.metrics()["validation/best_step"] == best
    assert equal(dict(trainer.model.state_dict()), snapshots.of_step[best])


def test_a_resumed_run_is_the_uninterrupted_one(inputs, tmp_path):
    def run(folder, *extra, resume=None):
        callback = ValidationNDCG(**inputs, steps=2)
        options = {"save_strategy": "steps", "save_steps": 4}
        trainer = make_trainer(inputs, folder, [callback, *extra], steps=12, lr=0.1, **options)
        trainer.train(resume_from_checkpoint=resume)
        return callback, dict(trainer.model.state_dict())

    whole, weights = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Kill(7))
    newest = newest_checkpoint(tmp_path / "cut")
    assert newest == str(tmp_path / "cut" / "checkpoint-4"), "the best weights are no checkpoint to resume from"
    again, resumed = run(tmp_path / "cut", resume=newest)
    assert again.history == whole.history and again.metrics() == whole.metrics()
    assert equal(resumed, weights)
    remove_checkpoints(tmp_path / "cut")
    assert not (tmp_path / "cut" / BEST_FOLDER).exists()


def test_the_best_from_before_the_cut_is_not_forgotten(inputs, tmp_path, monkeypatch):
    planted([2, 8, 3, 9, 1, 1, 4, 5, 6], monkeypatch)  # steps 1 to 5, then 3 to 6
    options = {"save_strategy": "steps", "save_steps": 2}
    snapshots = Snapshots()
    callback = ValidationNDCG(**inputs, steps=1)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(inputs, tmp_path, [snapshots, callback, Kill(5)], steps=6, **options).train()
    (tmp_path / BEST_FOLDER / "weights-5.part").write_bytes(b"torn")
    later = ValidationNDCG(**inputs, steps=1)
    trainer = make_trainer(inputs, tmp_path, [later], steps=6, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step for step, _ in checks(later.history)] == [1, 2, 3, 4, 5, 6], "each step once"
    assert later.metrics()["validation/best_step"] == 4 and later.metrics()["validation/last_ndcg@10"] < 0.9
    assert equal(dict(trainer.model.state_dict()), snapshots.of_step[4])
    assert sorted(p.name for p in (tmp_path / BEST_FOLDER).iterdir()) == [STATE_FILE, "weights-4.safetensors"]


def test_a_run_that_had_stopped_does_not_go_on(inputs, tmp_path, monkeypatch):
    planted([5, 1, 1], monkeypatch)
    options = {"save_strategy": "steps", "save_steps": 3}
    snapshots = Snapshots()
    first = ValidationNDCG(**inputs, steps=1, patience=2)
    make_trainer(inputs, tmp_path, [snapshots, first], steps=9, **options).train()
    again = ValidationNDCG(**inputs, steps=1, patience=2)
    trainer = make_trainer(inputs, tmp_path, [again], steps=9, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.metrics() == first.metrics(), "no further check"
    assert equal(dict(trainer.model.state_dict()), snapshots.of_step[1])


def test_a_run_from_the_start_forgets_an_earlier_one(inputs, tmp_path):
    stale = tmp_path / BEST_FOLDER
    stale.mkdir()
    (stale / STATE_FILE).write_text(json.dumps({"best": {"step": 99, NDCG: 1.0, RECALL: 1.0}, "history": []}))
    callback = ValidationNDCG(**inputs, steps=2)
    make_trainer(inputs, tmp_path, [callback], steps=2).train()
    assert callback.metrics()["validation/best_step"] == 2


@pytest.mark.parametrize("tokens", [False, True])
def test_adapters_keep_only_what_they_train(inputs, tmp_path, tokens):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    def adapt(model):
        torch.manual_seed(0)
        rows = {"trainable_token_indices": list(range(280, 300))} if tokens else {}
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **rows))

    callback, snapshots = ValidationNDCG(**inputs, steps=2, beams=60), Snapshots()
    trainer = make_trainer(inputs, tmp_path, [snapshots, callback], steps=9, lr=0.3, adapt=adapt)
    trainer.train()
    best = callback.metrics()["validation/best_step"]
    assert equal(dict(trainer.model.state_dict()), snapshots.of_step[best])
    saved = load_file(tmp_path / BEST_FOLDER / f"weights-{best}.safetensors")
    assert saved and all("lora_" in name or "trainable_tokens" in name for name in saved)
    # What was measured is what merging delivers, the trained rows of the head included.
    plain = trainer.model.merge_and_unload().eval()
    recommender = Recommender(plain, trainer.processing_class, TABLE)
    answers = by_exact(recommender, load_split(inputs["dataset"]).validation, exclude_seen=True, label=None)
    assert callback.metrics()["validation/best_ndcg@10"] == pytest.approx(ndcg_at_k(answers.rank_E, 10).mean())


def test_the_same_users_are_drawn_each_time(inputs):
    first, second = (ValidationNDCG(**inputs, steps=1, users=7, seed=3) for _ in range(2))
    other = ValidationNDCG(**inputs, steps=1, users=7, seed=4)
    assert len(first.examples) == 7
    assert np.array_equal(first.examples.user_E, second.examples.user_E)
    assert not np.array_equal(first.examples.user_E, other.examples.user_E)


def test_what_cannot_work_is_refused_before_training(inputs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        ValidationNDCG(**inputs, steps=0)
    worlds.make_table(items=20).save(tmp_path / "small")
    with pytest.raises(ValueError, match="knows 20 items, the catalogue of"):
        ValidationNDCG(inputs["dataset"], tmp_path / "small", steps=1)
    worlds.make_table(seed=5).save(tmp_path / "other")
    other = ValidationNDCG(inputs["dataset"], tmp_path / "other", steps=1)
    with pytest.raises(ValueError, match="the model speaks SID table"):
        make_trainer(inputs, tmp_path / "run", [other]).train()
    monkeypatch.setattr(models, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP slice"):
        make_trainer(inputs, tmp_path / "run", [ValidationNDCG(**inputs, steps=1)]).train()


def test_other_weights_than_the_models_are_refused(inputs, tmp_path):
    model, _ = worlds.make_model(TABLE)
    validation.save_weights(model, tmp_path / "weights-1.safetensors")
    assert not list(tmp_path.glob("*.part"))
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="other weights than the model trains"):
        validation.load_weights(model, tmp_path / "weights-1.safetensors")


def play_rank(root: Path) -> None:
    """What each of two processes does: train on planted values, of which only the main process hears."""
    main = os.environ["RANK"] == "0"
    planted([3, 5, 4, 2] if main else [])
    inputs = {name: root / name for name in ("dataset", "sid_table")}
    callback, snapshots = ValidationNDCG(**inputs, steps=1, patience=2), Snapshots()
    trainer = make_trainer(inputs, root / "out", [snapshots, callback], steps=8)
    trainer.train()
    weights = dict(trainer.model.state_dict())
    noted = {
        "ranks": trainer.args.world_size,
        "stopped": trainer.state.global_step,
        "restored": equal(weights, snapshots.of_step[2]),
        "metrics": callback.metrics(),
        "sums": [float(weight.double().sum()) for weight in weights.values()],
    }
    (root / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(noted))


@pytest.mark.slow
def test_two_processes_stop_together_with_the_same_weights(inputs, tmp_path):
    for name in ("dataset", "sid_table"):
        (tmp_path / name).symlink_to(inputs[name])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    done = subprocess.run([*command, __file__, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["ranks"] == 2 and first["stopped"] == second["stopped"] == 4
    assert first["restored"] and first["sums"] == second["sums"]
    assert first["metrics"]["validation/best_step"] == 2 and second["metrics"] == {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    play_rank(Path(sys.argv[1]))
