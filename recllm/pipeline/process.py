"""A stage as a child process that sees no launcher, streams to the terminal and never outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# A child that finds these takes itself for a rank of the parent's job.
_LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK"}
_LAUNCHER_PREFIXES = ("ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "DEEPSPEED_")
_SET = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
_GRACE_SECONDS = 10.0


class StageError(RuntimeError):
    """A stage failed; the message names it, its command line and how it ended."""


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's where None) without the variables of torchrun and accelerate.

    Both launchers also set OMP_NUM_THREADS to 1, which would leave a stage all but one core idle.
    """
    source = os.environ if environment is None else environment
    launched = any(name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIXES) for name in source)
    if launched and source.get("OMP_NUM_THREADS") == "1":
        source = {name: value for name, value in source.items() if name != "OMP_NUM_THREADS"}
    kept = {k: v for k, v in source.items() if k not in _LAUNCHER and not k.startswith(_LAUNCHER_PREFIXES)}
    return kept | _SET


def run_child(command: list[str], stage: str, keep_open: int | None = None) -> None:
    """Run `command` to its end with this terminal as its own.

    keep_open: a file descriptor that the child inherits; a lock on it then holds as long as the child lives.

    Raises:
        StageError: the child ended with a status other than 0 or by a signal.
    """
    descriptors = () if keep_open is None else (keep_open,)
    with _sigterm_raises():
        child = subprocess.Popen(
            command, env=clean_environment(), pass_fds=descriptors, preexec_fn=dies_with(os.getpid())
        )
        try:
            status = child.wait()
        finally:
            _end(child)
    if status:
        how = f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
        raise StageError(f"stage {stage} ended with {how}: {shlex.join(command)}")


def _end(child: subprocess.Popen) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, so that the child is ended before this process is."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def dies_with(parent: int) -> Callable[[], None] | None:
    """Ask Linux to kill the child when this process is killed; elsewhere the inherited lock has to do."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def arm() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)  # it died before we asked

    return arm
