"""NDCG on validation while a recommender trains: the best weights are kept, and training stops where none follow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import distributed
from transformers import Trainer, TrainerCallback

from recllm.data.catalog import Catalog
from recllm.data.splits import load_split, sampled
from recllm.decoding.shared import check_model
from recllm.evaluation.recommender import TOP, Recommender, by_beam
from recllm.metrics.ranking import ndcg_at_k, recall_at_k
from recllm.provenance import read_json, write_json
from recllm.sid.table import SidTable
from recllm.training.models import sliced

# Goes when the checkpoints go, and is none itself: the trainer's rotation deletes whatever is called `checkpoint-*`.
BEST_FOLDER = "checkpoints-best"
STATE_FILE = "validation.json"
NDCG, RECALL = f"validation/ndcg@{TOP}", f"validation/recall@{TOP}"


class ValidationNDCG(TrainerCallback):
    """Every `steps` optimizer steps, and at the end: NDCG@10 and Recall@10 over the whole catalogue, by beam.

    Args:
        dataset, sid_table: folders of the data set, whose validation targets are read, and of the SID table.
        steps: optimizer steps between two checks.
        users: validation examples, the same ones at every check (drawn by `seed`); all where there are fewer.
        patience: checks without a better NDCG@10 after which training stops; 0 never stops.
        beams, batch_size: of the beam search. Seen items do not compete.
        at_start: check before the first step, too, so that a run that only harms delivers what it started from.

    The trainable weights of the best check lie in `checkpoints-best/` below the output folder, with the history of the
    checks beside them, so a resumed run goes on where it was. When training ends they are put back into the model.
    Checks neither draw from the global random generators nor leave the model in another mode. With several processes
    the main one checks and the others wait.

    Raises:
        ValueError: the table has another number of items than the data set, or (when training starts) the model
            speaks another table, or its weights are sliced over processes (ZeRO-3, FSDP).
    """

    def __init__(
        self,
        dataset: str | Path,
        sid_table: str | Path,
        steps: int,
        users: int = 1000,
        patience: int = 0,
        beams: int = 20,
        batch_size: int = 64,
        seed: int = 0,
        at_start: bool = False,
    ) -> None:
        if steps < 1 or patience < 0:
            raise ValueError(f"steps must be at least 1 and patience at least 0, got {steps} and {patience}")
        self.table, items = SidTable.load(sid_table), len(Catalog.load(dataset))
        if len(self.table) != items:
            raise ValueError(f"{sid_table} knows {len(self.table)} items, the catalogue of {dataset} has {items}")
        self.examples = sampled(load_split(dataset).validation, users, seed)
        if not len(self.examples):
            raise ValueError(f"{dataset} has no validation example")
        self.steps, self.patience, self.beams, self.batch_size = steps, patience, beams, batch_size
        self.at_start = at_start
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self._recommender: Recommender | None = None
        self._trainer: Trainer | None = None  # where checks are logged to; see `report_checks`

    def metrics(self) -> dict[str, float]:
        """Flat numbers: the best check, the last one, how many there were, and over how many users."""
        if self.best is None or not self.history:
            return {}
        return {
            "validation/best_step": self.best["step"],
            f"validation/best_ndcg@{TOP}": self.best[NDCG],
            f"validation/best_recall@{TOP}": self.best[RECALL],
            f"validation/last_ndcg@{TOP}": self.history[-1][NDCG],
            "validation/checks": len(self.history),
            "validation/n": len(self.examples),
        }

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        _refuse_sliced()
        model = extract_model_from_parallel(model)
        check_model(model)
        known = getattr(model.config, "sid_table_hash", None)
        if known != self.table.hash:
            raise ValueError(
                f"the model speaks SID table {str(known)[:12]}, validation was given {self.table.hash[:12]}: use one"
            )
        self.history, self.best = [], None
        if state.is_world_process_zero:
            self._take_up(Path(args.output_dir) / BEST_FOLDER, state.global_step)
        if self.at_start and state.global_step == 0:
            self._check(args, state, model, processing_class)
        # A run that had stopped and was cut off before it was delivered is not to go on.
        control.should_training_stop = _from_main(self._exhausted())

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if state.global_step % self.steps or control.should_training_stop:
            return
        self._check(args, state, extract_model_from_parallel(model), processing_class)
        if _from_main(self._exhausted()):
            control.should_training_stop = True

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        model = extract_model_from_parallel(model)
        done = self._exhausted() or any(check["step"] == state.global_step for check in self.history)
        if not _from_main(done):
            self._check(args, state, model, processing_class)
        if state.is_world_process_zero:
            load_weights(model, Path(args.output_dir) / BEST_FOLDER / _weights_file(self.best["step"]))
            print(f"validation: the weights of step {self.best['step']} are the best and are delivered", flush=True)
        _share_weights(model)

    def _take_up(self, folder: Path, step: int) -> None:
        """Go on from what an earlier process left, where training goes on from a checkpoint of that step."""
        if step == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that never came to a checkpoint
        elif (folder / STATE_FILE).is_file():
            saved = read_json(folder / STATE_FILE)
            # Later checks than the checkpoint are made again; the best weights stay the best.
            self.history = [check for check in saved["history"] if check["step"] <= step]
            self.best = saved["best"]

    def _exhausted(self) -> bool:
        since = sum(check["step"] > self.best["step"] for check in self.history) if self.best else 0
        return bool(self.patience and since >= self.patience)

    def _check(self, args, state, model, tokenizer) -> None:
        """Measure on the main process, note it everywhere it is looked for, and keep the weights if they are better."""
        if not state.is_world_process_zero:
            return
        if self._recommender is None or self._recommender.model is not model:
            self._recommender = Recommender(model, tokenizer, self.table)
        with evaluating(model):
            answers = by_beam(self._recommender, self.examples, True, self.beams, self.batch_size, label=None)
        ndcg, recall = (float(metric(answers.rank_E, TOP).mean()) for metric in (ndcg_at_k, recall_at_k))
        check = {"step": state.global_step, NDCG: ndcg, RECALL: recall}
        self.history.append(check)
        self._note(check, state)
        better = self.best is None or ndcg > self.best[NDCG]
        mark = " (best)" if better else f" (best {self.best[NDCG]:.4f} at step {self.best['step']})"
        print(
            f"validation at step {state.global_step}: NDCG@{TOP} {ndcg:.4f} Recall@{TOP} {recall:.4f}"
            f" in {answers.seconds:.1f} s{mark}",
            flush=True,
        )
        self._keep(Path(args.output_dir) / BEST_FOLDER, model, check, better)

    def _note(self, check: dict[str, float], state: Any) -> None:
        if self._trainer is None:
            state.log_history.append({**check, "epoch": state.epoch})
            return
        control = self._trainer.control
        due = control.should_log
        # The base class's own: GRPOTrainer's would hand out, and forget, what it has gathered for its next log.
        Trainer.log(self._trainer, {name: check[name] for name in (NDCG, RECALL)})
        control.should_log = due  # logging takes the wish to log for granted, and this step's own log is still due

    def _keep(self, folder: Path, model: torch.nn.Module, check: dict[str, float], better: bool) -> None:
        # First the weights under a name of their own, then the record that names them: either both are there or the
        # record still names the older ones.
        folder.mkdir(parents=True, exist_ok=True)
        if better:
            save_weights(model, folder / _weights_file(check["step"]))
            self.best = check
        write_json(folder / STATE_FILE, {"best": self.best, "history": self.history})
        for path in folder.iterdir():
            if path.name not in (STATE_FILE, _weights_file(self.best["step"])):
                path.unlink()


def report_checks(trainer: Trainer) -> None:
    """Send what every `ValidationNDCG` of this trainer finds where its other logs go: `report_to`, callbacks, history.

    A callback cannot reach its trainer by itself: without this call the numbers stand in `state.log_history` alone.
    TensorBoard shows them as `train/validation/ndcg@10`; wandb, trackio and whatever else transformers knows under
    `report_to` get them on the same way.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ValidationNDCG):
            callback._trainer = trainer


def _weights_file(step: int) -> str:
    return f"weights-{step}.safetensors"


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the trainable parameters as safetensors; a reader sees the whole file or none."""
    from safetensors.torch import save_file

    staging = path.with_suffix(".part")
    save_file({name: weight.detach().cpu().contiguous() for name, weight in _trainable(model).items()}, staging)
    staging.replace(path)


@torch.no_grad()
def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Put saved parameters back into the model, in place.

    Raises:
        ValueError: the file holds other parameters than the model trains.
    """
    from safetensors.torch import load_file

    weights, saved = _trainable(model), load_file(path)
    if strange := sorted(weights.keys() ^ saved.keys()):
        raise ValueError(f"{path} holds other weights than the model trains, {strange[0]} for one; train anew")
    for name, weight in weights.items():
        weight.copy_(saved[name])


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    # With adapters that is little; otherwise everything, tied weights once.
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _refuse_sliced() -> None:
    if sliced():
        raise ValueError(
            "validation by beam needs whole weights on the main process, which ZeRO-3 and FSDP slice: train with DDP "
            "or ZeRO-2, or without validation steps"
        )


def _from_main(value: bool) -> bool:
    """The main process's value, on every process; the others wait here while it checks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def _share_weights(model: torch.nn.Module) -> None:
    if distributed.is_available() and distributed.is_initialized():
        for weight in _trainable(model).values():
            distributed.broadcast(weight.data, src=0)
