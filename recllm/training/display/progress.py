"""What a run shows while it trains: one progress line, and now and then a table of what the model says.

The line goes to a terminal as a live one, and elsewhere (a pipe, a log file) as a plain line every half a minute. The
table is read from what TRL keeps of the last batch. Nothing here draws from a global random generator, so a run with
a display trains bit for bit like one without.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from recllm.metrics.timing import duration
from recllm.training.display.samples import sample_table
from recllm.training.overrides import override
from recllm.training.validation import report_checks

logger = logging.getLogger(__name__)

# Seconds between two plain lines.
PLAIN_SECONDS = 30.0
# Steps whose durations tell the time left, and how many times their median one of them may count at most.
_WINDOW, _OUTLIER = 100, 20.0
NDCG_KEYS = ("validation/ndcg@10", "rewards/quality/mean")


def show_progress(trainer: Any, console: Any = None) -> Progress | None:
    """Put one progress line, and on a GRPOTrainer a table of samples, in the place of transformers' bars and prints.

    Every `args.sample_steps` steps (0 or absent: never) the table shows some of the last batch's completions; see
    `samples.sample_table`. On a terminal the line is live unless `args.disable_tqdm`. Only the main process shows
    anything; the others get None. `console` is a rich console, by default one on standard output.
    """
    report_checks(trainer)  # validation's NDCG comes to the line as it comes to every tracker: with the logs
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.is_world_process_zero():
        return None
    if console is None:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # a pipe has no width of its own
    every = int(getattr(trainer.args, "sample_steps", 0) or 0)
    draw = None
    if every and hasattr(trainer, "_logs"):
        draw = lambda step: sample_table(trainer, step, console.encoding, console.width)  # noqa: E731
    shown = Progress(console, console.is_terminal and not trainer.args.disable_tqdm, every, draw)
    trainer.add_callback(shown)
    # A training that raises never comes to its end, and would leave the terminal without a cursor.
    override(trainer, "train", (), shown.around, "train without show_progress")
    return shown


class Progress(TrainerCallback):
    """One line: step, reward, NDCG, cost and time left; the loss where there is no reward.

    The time left is the mean duration of this process's last steps, the first of them left out (it compiles, fills
    caches and validates) and none counted for more than 20 medians. A resumed run's earlier steps do not enter.
    """

    def __init__(
        self, console: Any, live: bool, sample_steps: int = 0, draw: Callable[[int], Any] | None = None
    ) -> None:
        self.console, self.live, self.sample_steps, self.draw = console, live, sample_steps, draw
        self.values: dict[str, float] = {}
        self.seconds: deque[float] = deque(maxlen=_WINDOW)
        self.steps = 0
        self._last = self._printed = None
        self._bar = self._task = None

    def around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Train, and take the live line down however that ends."""
        try:
            return original(*args, **kwargs)
        finally:
            self.close()

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds.clear()
        self.steps, self._last, self._printed = 0, time.monotonic(), None
        for entry in state.log_history:  # of a resumed run
            self._read(entry)
        if self.live:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            # One line on any terminal: what has no room is cut, not wrapped.
            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="crop"))
            self._bar = Bar(BarColumn(bar_width=10), text, console=self.console)
            self._task = self._bar.add_task(self.line(state), total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        if self.steps:
            self.seconds.append(now - self._last)
        self.steps, self._last = self.steps + 1, now
        if not control.should_log:  # the log that comes next has this step's numbers
            self._show(state)
        if self.draw is not None and self.sample_steps and state.global_step % self.sample_steps == 0:
            self._print_samples(state.global_step)

    def _print_samples(self, step: int) -> None:
        try:
            self.console.print(self.draw(step))
        except Exception as error:  # whatever a completion held, training goes on
            logger.warning("the samples of step %d cannot be shown: %s: %s", step, type(error).__name__, error)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._read(logs or {})
        if self.live or "loss" in (logs or {}):
            self._show(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._show(state, last=True)
        self.close()

    def close(self) -> None:
        """Take the live line down; its last state stays on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _read(self, logs: Mapping[str, Any]) -> None:
        for key in ("reward", "rewards/cost/mean", "loss", *NDCG_KEYS):
            if logs.get(key) is not None:
                self.values[key] = float(logs[key])

    def _show(self, state: Any, last: bool = False) -> None:
        last = last or state.global_step >= state.max_steps
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=self.line(state))
            return
        if self.live:
            return
        now = time.monotonic()
        due = self._printed is None or now - self._printed[0] >= PLAIN_SECONDS
        if (due or last) and (self._printed is None or self._printed[1] != state.global_step):
            self._printed = now, state.global_step
            print(self.line(state), file=self.console.file, flush=True)

    def line(self, state: Any) -> str:
        """The line of this moment."""
        values = self.values
        parts = [f"step {state.global_step}/{state.max_steps}"]
        if "reward" in values:
            parts.append(f"reward {values['reward']:.4f}")
        elif "loss" in values:
            parts.append(f"loss {values['loss']:.4f}")
        quality = next((values[key] for key in NDCG_KEYS if key in values), None)
        if quality is not None:
            parts.append(f"NDCG {quality:.4f}")
        if "rewards/cost/mean" in values:  # its term of the reward is minus the cost
            parts.append(f"cost {0.0 - values['rewards/cost/mean']:.4f}")
        left = self.seconds_left(state)
        if left is not None and state.global_step < state.max_steps:
            parts.append(f"{duration(left)} left")
        return " | ".join(parts)

    def seconds_left(self, state: Any) -> float | None:
        """Seconds until the last step, or None before two steps of this process are over."""
        if not self.seconds:
            return None
        most = _OUTLIER * statistics.median(self.seconds)
        return statistics.fmean(min(one, most) for one in self.seconds) * max(0, state.max_steps - state.global_step)
