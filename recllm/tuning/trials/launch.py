"""One process a trial, watched: it ends by itself or is killed at the end of its time or memory.

Two ways to start it, with the same answer. `Direct` runs the recipe as a command. `Forked` keeps one process that has
imported what every trial imports and forks it for each trial (`python -m recllm.tuning.trials.launch`): the trial's
process is as separate as before and four processor seconds cheaper, half of what a small trial costs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from recllm.pipeline.process import clean_environment, dies_with
from recllm.tuning.spaces.space import Limits

_LOOK_SECONDS = 0.02
_GRACE_SECONDS = 10.0
_GIB = 1 << 30
_READY = b"ready\n"
# What train_backbone imports inside its functions, and torch's compiler, which the first optimizer brings along.
PRELOADED = ("torch._dynamo", "recllm.backbones.train", "recllm.training.arguments", "trl:TrlParser")


@dataclass(frozen=True)
class Ended:
    """How a trial's process ended.

    `status` is its exit status, negative for the signal that ended it. `stopped` says why it was killed here, if so:
    `timeout` or `out_of_memory`. Times are of the process alone; `peak_gib` is its largest resident set, which in a
    fork holds what was preloaded, too.
    """

    status: int
    cpu_seconds: float
    wall_seconds: float
    peak_gib: float
    stopped: str | None = None


class Launcher(Protocol):
    """Runs a recipe once."""

    def run(self, recipe: Path, words: Sequence[str], log: Path, limits: Limits) -> Ended:
        """Run `recipe` with the words of its command line; what it prints goes to `log`."""
        ...

    def close(self) -> None:
        """End what was kept for the next trial."""
        ...


def watch(pid: int, limits: Limits) -> Ended:
    """Wait for a child that leads its own process group, and kill it at its limits; nothing of the group is left."""
    began, stopped = time.monotonic(), None
    process = psutil.Process(pid)
    # The ended leader is left unreaped until its group is dead: nobody else can get its number meanwhile.
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if stopped is None and (stopped := _over(process, time.monotonic() - began, limits)):
            _kill(pid)
        time.sleep(_LOOK_SECONDS)
    wall = time.monotonic() - began
    _kill(pid)
    _, code, usage = os.wait4(pid, 0)
    peak = usage.ru_maxrss / (_GIB if sys.platform == "darwin" else 1 << 20)
    cpu = usage.ru_utime + usage.ru_stime
    return Ended(os.waitstatus_to_exitcode(code), round(cpu, 3), round(wall, 3), round(peak, 3), stopped)


def _kill(pid: int) -> None:
    """Kill a child that is not reaped yet, and its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it does not lead its group yet; macOS: only its remains are there
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _over(process: psutil.Process, wall: float, limits: Limits) -> str | None:
    try:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info().rss
    except psutil.Error:
        return None  # it ended between two looks
    if limits.memory_gib is not None and memory > limits.memory_gib * _GIB:
        return "out_of_memory"
    cpu = times.user + times.system
    if limits.cpu_seconds is not None and cpu > limits.cpu_seconds:
        return "timeout"
    return "timeout" if limits.wall_seconds is not None and wall > limits.wall_seconds else None


class Direct:
    """A command a trial."""

    def run(self, recipe: Path, words: Sequence[str], log: Path, limits: Limits) -> Ended:
        with log.open("wb") as stream:
            child = subprocess.Popen(
                [sys.executable, str(recipe), *words],
                **{"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT},
                env=clean_environment(),
                start_new_session=True,
                preexec_fn=dies_with(os.getpid()),
            )
            try:
                ended = watch(child.pid, limits)
            except BaseException:
                _kill(child.pid)
                child.wait()
                raise
            child.returncode = ended.status  # it was reaped by `watch`
            return ended

    def close(self) -> None:
        """Nothing is kept."""


class Forked:
    """A fork of a warm process a trial. The warm one starts with the first trial and ends with `close`.

    `preloaded`: modules that it imports once for all.
    """

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._preloaded = tuple(preloaded)
        self._server: subprocess.Popen | None = None

    def run(self, recipe: Path, words: Sequence[str], log: Path, limits: Limits) -> Ended:
        asked = {"recipe": str(recipe), "words": list(words), "log": str(log.absolute()), "limits": asdict(limits)}
        server, began = self._warm(), time.monotonic()
        try:
            server.stdin.write(json.dumps(asked).encode() + b"\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        except BrokenPipeError:
            answer = b""
        except BaseException:
            self.close()  # it ends the trial first
            raise
        if not answer:  # somebody killed the warm process, and its trial with it
            self.close()
            return Ended(-signal.SIGKILL, 0.0, round(time.monotonic() - began, 3), 0.0)
        return Ended(**json.loads(answer))

    def _warm(self) -> subprocess.Popen:
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "recllm.tuning.trials.launch", *self._preloaded],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
                env=clean_environment(),
                preexec_fn=dies_with(os.getpid()),
            )
            if self._server.stdout.readline() != _READY:
                self.close()
                raise RuntimeError("the process that forks trials did not start; what it printed says why")
        return self._server

    def close(self) -> None:
        """End the warm process; the next trial starts another."""
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
            self._server.stdout.close()
            self._server = None


# What a trial's process does on a signal, whatever the one that forks it does.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def _leave(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise SystemExit(128 + number)


def serve(preloaded: Sequence[str], requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say ready, then answer each line of `requests` with the `Ended` of a fork that ran it, until there are no more.

    A name `module:attribute` is preloaded for modules that import what they have only when it is asked for.
    """
    for name in preloaded:
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute or "__name__")
    answers.write(_READY)
    answers.flush()
    for line in requests:
        asked = json.loads(line)
        pid = _fork(asked)
        try:
            ended = watch(pid, Limits(**asked["limits"]))
        except BaseException:  # `Forked.close` ends this process
            _kill(pid)
            os.waitpid(pid, 0)
            raise
        answers.write(json.dumps(asdict(ended)).encode() + b"\n")
        answers.flush()


def _fork(asked: dict[str, Any]) -> int:
    parent = os.getpid()
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        for number, handler in _USUAL.items():
            signal.signal(number, handler)
        if (arm := dies_with(parent)) is not None:
            arm()
        _redirect(asked["log"])
        sys.argv = [asked["recipe"], *asked["words"]]
        runpy.run_path(asked["recipe"], run_name="__main__")
        status = 0
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the server's own clean-up is not the trial's


def _redirect(log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, descriptor in ((nothing, 0), (target, 1), (target, 2)):
        os.dup2(source, descriptor)


if __name__ == "__main__":
    # A key pressed at the terminal reaches this process, too: what follows the runner says by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    # Answers keep the pipe to themselves: what an import prints goes to the terminal.
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1:], sys.stdin.buffer, _answers)
