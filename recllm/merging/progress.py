"""How far a sweep is, for whoever waits: one bar on a terminal, one line a finished point elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from recllm.metrics.timing import duration


def is_first_rank() -> bool:
    """Whether this process speaks for its launch: the first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


class SweepProgress:
    """Counts the points of all workers; the time left is by their common pace since this one started.

    Shows nothing in any rank of a launch but the first.

    Args:
        total: number of points. done: how many are finished at the start.
        console: by default one on standard output.
    """

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        self.total, self.first, self.done = total, done, done
        self.began = time.monotonic()
        self.shows = is_first_rank()
        self.console = console or Console()
        self._bar: Bar | None = None

    def __enter__(self) -> SweepProgress:
        if self.shows and self.console.is_terminal:
            columns = (
                TextColumn("sweep"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Bar(*columns, console=self.console)
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def finished(self, done: int, record: Mapping[str, Any]) -> None:
        """A point of this worker is finished; `done` are, by all of them."""
        self.done = done
        told = f"{record['label']}: accuracy {record['accuracy']:.4f}, {record['tokens']:.1f} tokens"
        left = self.seconds_left()
        if left:
            told += f" | {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=told)
        elif self.shows:
            print(f"{done}/{self.total} {told}", file=self.console.file, flush=True)

    def waits(self, done: int) -> None:
        """Only points that other workers hold are left."""
        if self.shows and done != self.done:
            self.done = done
            if self._bar is not None:
                self._bar.update(self._task, completed=done, description="waiting for other workers")
            else:
                print(f"{done}/{self.total} waiting for other workers", file=self.console.file, flush=True)

    def seconds_left(self) -> float | None:
        """Seconds until the last point, or None before one was finished."""
        new = self.done - self.first
        return (time.monotonic() - self.began) / new * (self.total - self.done) if new > 0 else None
