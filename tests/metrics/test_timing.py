"""Stopwatch: a hand-wound clock stands in for the real one."""

import pytest

from recllm.metrics import timing
from recllm.metrics.timing import Stopwatch, compare, timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told; `clock.append(seconds)` is read at the next look."""
    ticks = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(ticks))
    return ticks


def test_the_warm_up_is_left_out_of_the_figures(clock):
    watch = Stopwatch(warmup=1)
    for seconds in [50.0, 1.0, 9.0, 2.0]:
        with watch:
            clock.append(seconds)
    assert (watch.median, watch.best, watch.total) == (2.0, 1.0, 62.0)


def test_a_lap_cut_short_by_an_error_does_not_count(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch:
        clock.append(1.0)
        raise KeyError
    assert watch.laps == []
    with watch:
        clock.append(3.0)
    assert watch.median == 3.0


def test_nothing_timed_and_nested_use_raise():
    watch = Stopwatch(warmup=2)
    with watch, pytest.raises(RuntimeError, match="already runs"), watch:
        pass
    with pytest.raises(ValueError, match="warm-up"):
        _ = watch.median


def test_calls_are_compared_in_turn(clock):
    order = []

    def call(name, seconds):
        order.append(name)
        clock.append(seconds)

    found = compare({"a": lambda: call("a", 1.0), "b": lambda: call("b", 2.0)}, repeats=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert (found["a"].median, found["b"].median, len(found["a"].laps)) == (1.0, 2.0, 3)
    assert timed(lambda: clock.append(4.0)).median == 4.0
    with pytest.raises(ValueError, match="repeats"):
        compare({}, repeats=0)
    assert compare({"a": lambda: clock.append(5.0)}, repeats=1, warmup=0)["a"].laps == [5.0]
