"""Checkpoints that survive being killed and carry what a run needs to go on exactly, for any transformers trainer.

`protect(trainer)` lets the library write its checkpoint into a staging folder and makes it whole afterwards (see
`checkpoint.py`). Beside it lies what the library forgets: GRPO's place within its generation buffer and the buffer
itself, the window of numbers that the next log averages, and the state of rollouts, rewards, callbacks and samplers
that have one. A resumed run then equals the uninterrupted one bit for bit where the hardware does. A full disk costs a
checkpoint and never the run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from recllm.training.overrides import override
from recllm.training.safety import checkpoint
from recllm.training.safety.run_state import read_state, restore_objects, sampler_of, write_state

logger = logging.getLogger(__name__)

_REMEDY = "leave out protect(trainer), which keeps the library's own checkpoints"

_INIT = ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial")


def protect(trainer: Any) -> Protection:
    """Make the checkpoints of this trainer whole, exact and safe from a full disk; returns what counts failed saves.

    Resume with `trainer.train(resume_from_checkpoint=newest_complete(output_dir))`. Rotation keeps the newest
    `save_total_limit` complete checkpoints and the best one besides. TRL's model card, which would be half written in
    the output folder of a killed run, is not made at each save. A trainer that is protected already stays as it is.

    With another number of processes or batch layout than the checkpoint was written with, its buffer does not fit: a
    warning says so and completions are generated anew. A sampler gets its state before the trainer skips to its place
    in the epoch, a callback after its own `on_train_begin`.

    Under ZeRO or FSDP, where processes write in step, one whose disk is full may leave the others waiting.

    Raises:
        OverrideError: the trainer's methods take other arguments than those this was written for.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Protection):
            return callback
    protection = Protection(trainer)
    override(trainer, "_save_checkpoint", ("model", "trial"), protection.save, _REMEDY)
    override(trainer, "_load_optimizer_and_scheduler", ("checkpoint",), protection.load, _REMEDY)
    override(trainer, "_init_training_state", _INIT, protection.init, _REMEDY)
    trainer.add_callback(protection)
    return protection


class Protection(TrainerCallback):
    """The protected saves of one trainer. `failed_saves` counts those that a full disk cost, `saves` the others."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.saves = self.failed_saves = 0
        self._whole: set[str] = set()
        self._resumed: Path | None = None
        self._window: dict[str, Any] = {}
        self._told: set[str] = set()

    def save(self, original: Callable[..., None], model: Any, trial: Any) -> None:
        """In place of `_save_checkpoint`; every process calls it."""
        trainer, state = self.trainer, self.trainer.state
        folder, best = Path(trainer._get_output_dir(trial)), state.best_model_checkpoint
        staging: list[checkpoint.Staging] = []

        def begin() -> None:
            if trainer.args.should_save:
                staging.append(checkpoint.Staging.open(folder, state.global_step))

        def write() -> None:
            path = checkpoint.staging_path(folder, state.global_step)
            with _redirected(trainer, folder):
                original(model, trial)
            write_state(trainer, path, self._warn_once)

        def commit() -> None:
            for opened in staging:
                self._commit(opened, folder)

        failed = None
        try:
            # In steps, since no process may write before the folder is there, nor rename before all have written.
            failed = self._together(begin) or self._together(write) or self._together(commit)
        finally:
            for opened in staging:
                opened.discard()
        if failed:
            self.failed_saves += 1
            state.best_model_checkpoint = best
            self._tell_full(folder, failed)
            return
        self.saves += 1
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(folder / f"checkpoint-{state.global_step}"))

    def load(self, original: Callable[..., None], checkpoint: str | None) -> None:
        """In place of `_load_optimizer_and_scheduler`, which a trainer calls when it resumes, before it trains."""
        original(checkpoint)
        if checkpoint is not None:
            self._resumed = Path(checkpoint)
            self._window = read_state(self.trainer, self._resumed)

    def init(self, original: Callable[..., tuple[int, int]], *args: Any, **kwargs: Any) -> tuple[int, int]:
        """In place of `_init_training_state`, which tells the epochs that are over and the batches of the next one.

        A run that was killed after its last save has no step left; the library would take one more.
        """
        over = original(*args, **kwargs)
        named = dict(zip(_INIT, args, strict=False)) | kwargs
        if named["resume_from_checkpoint"] is not None and self.trainer.state.global_step >= named["max_steps"]:
            return named["num_train_epochs"], 0
        return over

    def on_train_begin(self, args, state, control, **kwargs):
        """What the trainer makes or resets after it has loaded the rest."""
        folder, self._resumed = self._resumed, None
        if folder is None:
            return
        trainer = self.trainer
        _advance(sampler_of(trainer), int(state.epoch or 0))
        restore_objects(trainer, folder)
        if self._window:
            trainer._tr_loss = self._window["loss"]
            trainer._globalstep_last_logged = self._window["last_logged"]
            # The trainer's `train_loss` is about the steps of this call alone.
            trainer._total_loss_scalar = -trainer.accelerator.gather(trainer._tr_loss).mean().item()

    def _together(self, work: Callable[[], None]) -> str | None:
        """Do `work` on all processes; what went wrong where a disk is full, None where all is well, else raise."""
        error = None
        try:
            work()
        except Exception as caught:
            error = caught
        full = checkpoint.disk_full(error)
        outcomes = gather_object([None if error is None else (full, f"{type(error).__name__}: {error}")])
        if error is not None and not full:
            raise error
        failures = [outcome for outcome in outcomes if outcome is not None]
        for full, told in failures:
            if not full:
                raise RuntimeError(f"another process could not save its part of the checkpoint: {told}")
        return failures[0][1] if failures else None

    def _commit(self, staging: checkpoint.Staging, folder: Path) -> None:
        state = self.trainer.state
        if state.best_global_step:  # written without it, see `_redirected`
            state.save_to_json(str(staging.path / TRAINER_STATE_NAME))
        final = staging.commit()
        self._whole.add(final.name)
        if strangers := checkpoint.later(folder, state.global_step):
            self._warn_once(
                f"{strangers[-1]} is of a later step than this run has reached: a restart from the newest checkpoint "
                "would go on from that one. Remove it if it belongs to another run"
            )
        self._rotate(folder)

    def _rotate(self, folder: Path) -> None:
        best = self.trainer.state.best_model_checkpoint
        keep = [best] if best else []
        self._whole |= checkpoint.rotate(folder, self.trainer.args.save_total_limit, keep, self._whole)

    def on_train_end(self, args, state, control, **kwargs):
        """A process that was killed after its last save and before it rotated left one too many."""
        if args.should_save and args.save_strategy != "no":
            self._rotate(Path(args.output_dir))
            checkpoint.clear_leftovers(Path(args.output_dir))  # which a save does by itself

    def _tell_full(self, folder: Path, reason: str) -> None:
        free, needed = shutil.disk_usage(folder).free, checkpoint.newest_size(folder)
        takes = "" if needed is None else f", and the newest one takes {needed / 2**20:.1f} MiB"
        logger.warning(
            "NO CHECKPOINT of step %d: %s. %s has %.1f MiB free%s. The earlier checkpoints are kept and training goes "
            "on; what follows is lost if it is killed. Free space there, raise the quota or the limit of file sizes "
            "(ulimit -f), or lower save_total_limit: the next save tries again. Failed so far: %d",
            *(self.trainer.state.global_step, reason, folder, free / 2**20, takes, self.failed_saves),
        )

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            logger.warning(text)


@contextmanager
def _redirected(trainer: Any, folder: Path) -> Iterator[None]:
    """Let the library write its checkpoint into the staging of `folder`, neither push nor rotate, and name as the best
    checkpoint the place where it will lie.

    Where the library knows a best step it holds a barrier, at which the others would wait for ever for a process whose
    disk is full, so it is not told.
    """
    state = trainer.state
    best_step, state.best_global_step = state.best_global_step, None
    if best_step and (best_step == state.global_step or (folder / f"checkpoint-{best_step}").is_dir()):
        state.best_model_checkpoint = str(folder / f"checkpoint-{best_step}")
    root = str(checkpoint.staging_path(folder, state.global_step).parent)  # in which its rotation finds this one alone
    stand_ins = {
        "_get_output_dir": lambda trial=None: root,
        "_push_from_checkpoint": lambda checkpoint_folder: None,
        "create_model_card": lambda *args, **kwargs: None,
    }
    before = {name: vars(trainer)[name] for name in stand_ins if name in vars(trainer)}
    vars(trainer).update(stand_ins)
    try:
        yield
    finally:
        state.best_global_step = best_step
        for name in stand_ins:
            del vars(trainer)[name]
        vars(trainer).update(before)


def _advance(sampler: Any, epochs: int) -> None:
    """Let TRL's sampler draw the order of the epochs that are over: it has one generator for all, and a new one starts
    with the first epoch's."""
    from trl.trainer.utils import RepeatSampler

    if isinstance(sampler, RepeatSampler):
        for _ in range(epochs):
            next(iter(sampler), None)
