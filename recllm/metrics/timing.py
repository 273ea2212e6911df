"""Wall-clock timing for benchmarks and logs: laps of a stopwatch, and medians that leave the warm-up out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stopwatch:
    """Collects laps in seconds; `with watch:` times one. The first `warmup` laps never enter the figures.

    First laps pay for imports, caches and allocators, and a median shrugs off a neighbour's burst of work.

    Example:
        watch = Stopwatch(warmup=1)
        for batch in batches:
            with watch:
                model(batch)
        print(watch.median)
    """

    warmup: int = 0
    laps: list[float] = field(default_factory=list)
    _began: float | None = field(default=None, repr=False)

    def __enter__(self) -> Stopwatch:
        if self._began is not None:
            raise RuntimeError("this stopwatch already runs; use a second one for the inner block")
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        began, self._began = self._began, None
        if kind is None:  # a lap cut short by an error is no measurement
            self.laps.append(time.perf_counter() - began)

    @property
    def counted(self) -> list[float]:
        """Laps after the warm-up, in seconds.

        Raises:
            ValueError: nothing was timed beyond the warm-up.
        """
        if len(self.laps) <= self.warmup:
            raise ValueError(f"{len(self.laps)} laps were timed and {self.warmup} of them are warm-up")
        return self.laps[self.warmup :]

    @property
    def median(self) -> float:
        """Median lap after the warm-up, in seconds."""
        return statistics.median(self.counted)

    @property
    def best(self) -> float:
        """Shortest lap after the warm-up, in seconds."""
        return min(self.counted)

    @property
    def total(self) -> float:
        """Sum of all laps, warm-up included, in seconds."""
        return sum(self.laps)


def timed(call: Callable[[], Any], repeats: int = 5, warmup: int = 1) -> Stopwatch:
    """Time `call()` `repeats` times after `warmup` rounds that do not count."""
    return compare({"": call}, repeats, warmup)[""]


def compare(calls: Mapping[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, Stopwatch]:
    """Time several calls in turn, a round at a time, so that a drift of the machine's speed meets all of them alike.

    Returns:
        A stopwatch for each name, with `warmup + repeats` laps.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    watches = {name: Stopwatch(warmup) for name in calls}
    for _ in range(warmup + repeats):
        for name, call in calls.items():
            with watches[name]:
                call()
    return watches


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 05 min`."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
