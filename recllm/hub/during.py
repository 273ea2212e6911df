"""Checkpoints that go to the Hub while training goes on, each to a revision of its own.

A lost machine then costs no more than the steps since the last push. The trainer's own pushing would write half a run
over what is there, so recllm switches it off (`hub/run.py`) and pushes through `publish`, in the background: training
waits for a copy by hard links and for nothing else, and no failure of the Hub stops it.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.hub.card import render_card
from recllm.hub.client import PublishError
from recllm.hub.publish import publish
from recllm.hub.revision import CARD_FILE
from recllm.hub.selection import select
from recllm.provenance import RunRecord

logger = logging.getLogger(__name__)

# Of transformers' `hub_strategy`; the others mean the push of the finished run alone.
STRATEGIES = ("checkpoint", "all_checkpoints")
# Hidden, and by its name no part of what a run delivers (`provenance`).
STAGING = ".staging-push"
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
_PUSHED = (
    *(*_WEIGHTS, "model.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("spiece.model", "chat_template.*", "processor_config.json", "preprocessor_config.json", "trainer_state.json"),
)
# As what resumes a run the trainer's state stays behind (`selection`); here it is the record of the steps so far.
_RENAMED = {"trainer_state.json": "training_log.json"}
# Of a run's record; they would make another content of the same checkpoint.
_PASSING = ("wall_seconds", "peak_memory_gib")


@dataclass(frozen=True)
class Waiting:
    """A copied checkpoint: the step it is of, the copy, and the revision it goes to."""

    step: int
    folder: Path
    revision: str


class CheckpointPusher:
    """Pushes saved checkpoints of one run, one at a time, from a thread of its own.

    Args:
        record: the run; its config and versions stand in each revision's card.
        repo_id, token, private: as in `publish.publish`.
        revision: what the names of the revisions begin with; nothing by default. A checkpoint goes to
            `[REVISION-]checkpoint-STEP-CONTENT`, CONTENT being 12 hex digits of what it holds: two runs in one
            repository never meet, and the same content goes on where its push broke off.
        strategy: `checkpoint` keeps only the newest checkpoint in line, `all_checkpoints` every one.
        options: more arguments for `publish`, such as `retries`.

    What goes up: weights as safetensors, configs, tokenizer, the trainer's state as `training_log.json`, and a card.
    A push that failed after `publish`'s own retries comes again with the next save (with `checkpoint` that newer one
    takes its place), and once more in `finish`.
    """

    def __init__(
        self,
        record: RunRecord,
        repo_id: str,
        revision: str | None,
        token: str | None,
        private: bool,
        strategy: str,
        **options: Any,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"checkpoints are pushed with hub_strategy {' or '.join(STRATEGIES)}; got {strategy!r}")
        self.record, self.repo_id, self.every = record, repo_id, strategy == "all_checkpoints"
        self._prefix = f"{revision}-" if revision else ""
        self._options = {"token": token, "private": private, "allow_incomplete": True, **options}
        self._staging = record.folder / STAGING
        self._line: deque[Waiting] = deque()
        self._failed: list[Waiting] = []
        self._errors: dict[int, str] = {}  # step -> why it is not at the Hub
        self._taken: set[int] = set()
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def callback(self) -> Any:
        """The `TrainerCallback` that hands every saved checkpoint over, on the main process."""
        from transformers import TrainerCallback

        pusher = self

        class HandOver(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                if state.is_world_process_zero:
                    shutil.rmtree(pusher._staging, ignore_errors=True)  # of a process that was killed

            def on_save(self, args, state, control, **kwargs):
                if state.is_world_process_zero:
                    pusher.take(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

        return HandOver()

    def take(self, checkpoint: Path, step: int) -> None:
        """Copy a checkpoint, which may soon be rotated away, and put the copy in line; never raises for the disk.

        A step that was handed over before is not taken again.
        """
        if step in self._taken:
            return
        try:
            waiting = self._copied(checkpoint, step)
        except (OSError, ValueError) as error:
            logger.warning("the checkpoint of step %d cannot be pushed: %s", step, error)
            self._errors[step] = str(error)
            return
        self._taken.add(step)
        with self._changed:
            older = [*self._failed, *self._line]
            self._failed, self._line = [], deque([*older, waiting] if self.every else [waiting])
            if not self.every:
                for dropped in older:
                    self._drop(dropped)
                self._errors.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint pusher", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> str | None:
        """Wait for what is in line, try once more what failed, and remove the copies.

        Returns what is not at the Hub and why, or None. Where the Hub fails again, the rest is not tried any more: each
        try waits as long as `publish` does.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        left = sorted([*self._failed, *self._line], key=lambda waiting: waiting.step)
        for number, waiting in enumerate(left):
            if isinstance(self._push(waiting), PublishError):
                for other in left[number + 1 :]:
                    self._errors.setdefault(other.step, f"not tried after the one of step {waiting.step} had failed")
                break
        shutil.rmtree(self._staging, ignore_errors=True)
        if not self._errors:
            return None
        steps = ", ".join(map(str, sorted(self._errors)))
        return f"checkpoints are not published, of step {steps}: {'; '.join(dict.fromkeys(self._errors.values()))}"

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closing)
                if not self._line:
                    return
                waiting = self._line.popleft()
            error = self._push(waiting)
            with self._changed:
                if error is not None and (self.every or not self._line):
                    self._failed.append(waiting)
                elif error is not None:  # a newer one came meanwhile
                    self._drop(waiting)
                if self._closing and isinstance(error, PublishError):
                    return  # `finish` tries once more, and would have to wait for every other one, too

    def _push(self, waiting: Waiting) -> Exception | None:
        try:
            result = publish(waiting.folder, self.repo_id, waiting.revision, **self._options)
        except Exception as error:  # whatever it is, the training in the other thread goes on
            # `publish` says that its folder is kept, and how to go on with it: true of runs, not of this copy.
            reason = str(error).partition(". The folder is kept")[0]
            self._errors[waiting.step] = reason
            logger.warning("the checkpoint of step %d is not pushed: %s", waiting.step, reason)
            return error
        self._drop(waiting)
        logger.info("the checkpoint of step %d is at %s", waiting.step, result.url)
        return None

    def _drop(self, waiting: Waiting) -> None:
        """Done with this one: it is at the Hub, or its successor stands for it."""
        self._errors.pop(waiting.step, None)
        shutil.rmtree(waiting.folder, ignore_errors=True)

    def _copied(self, checkpoint: Path, step: int) -> Waiting:
        folder = self._staging / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        copy_checkpoint(checkpoint, folder)
        limits = [f"This is step {step} of a run that was still training; nothing here was evaluated."]
        record = {**self.record.draft(), "metrics": {}, "limits": limits}
        for name in _PASSING:
            record.pop(name)
        (folder / CARD_FILE).write_text(render_card(folder, record), encoding="utf-8")
        content = select(folder, "content", allow_incomplete=True).content_id()[:12]
        return Waiting(step, folder, f"{self._prefix}checkpoint-{step}-{content}")


def copy_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Copy what of a checkpoint is pushed: weights by hard links where the disk has them, small files as they are.

    Raises:
        ValueError: it holds no weights as safetensors.
        OSError: it is gone, or the disk is full.
    """
    names = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file() and _any(path.name, _PUSHED)]
    if not any(_any(name, _WEIGHTS) for name in names):
        raise ValueError(f"{checkpoint} holds no weights as {' or '.join(_WEIGHTS)}")
    for name in names:
        target = folder / _RENAMED.get(name, name)
        if not (name.endswith(".safetensors") and _linked(checkpoint / name, target)):
            shutil.copyfile(checkpoint / name, target)


def _linked(path: Path, target: Path) -> bool:
    try:
        os.link(path, target)
    except OSError:  # a disk without hard links
        return False
    return True


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
