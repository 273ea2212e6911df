"""Who works on what: a file for each point that is being worked on, over processes and machines that share a folder.

A claim holds its worker's host and process, and the file's time is the last sign of life. Claims are looked at, made,
taken over and given back under one lock, so a point has one worker. A claim is void once its process is gone, where
that can be seen (the same host), or else once it gave no sign of life for long enough. Times are compared on the file
system's own clock, so the clocks of the machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from recllm.merging.ledger import locked

CLAIMS_FOLDER = "claims"
_LOCK = ".lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Seconds. A shared folder may show another machine's time stamps a minute late.
BEAT_SECONDS, LIMIT_SECONDS = 15.0, 300.0
_SAME_START = 5.0  # how far apart two readings of a process's start may lie


def worker_name() -> str:
    """This process, for people."""
    return f"{platform.node()}:{os.getpid()}"


class Claims:
    """The claims in a sweep's folder, as this process sees and makes them.

    Args:
        folder: the sweep's.
        beat_seconds: how often a held claim gives a sign of life.
        limit_seconds: after so much silence a claim of another host is void.
    """

    def __init__(self, folder: Path, beat_seconds: float = BEAT_SECONDS, limit_seconds: float = LIMIT_SECONDS) -> None:
        self.folder = folder / CLAIMS_FOLDER
        self.beat_seconds, self.limit_seconds = beat_seconds, limit_seconds
        self._me = {"host": _host(), "pid": os.getpid(), "started": psutil.Process().create_time()}

    @contextlib.contextmanager
    def held(self, key: str) -> Iterator[bool]:
        """Hold the claim on a point, if nobody else does, until the block ends; answers whether it is held."""
        handle = self._take(key)
        if handle is None:
            yield False
            return
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(handle, over), daemon=True)
        beats.start()
        try:
            yield True
        finally:
            over.set()
            beats.join()
            os.close(handle)
            self._give_back(key)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other worker from claiming anything, and from this block, for as long as it lasts."""
        with locked(self.folder / _LOCK):
            yield

    def discard(self, keys: Iterable[str]) -> None:
        """Remove the claims on points that are done, whoever left them."""
        with locked(self.folder / _LOCK):
            for key in keys:
                (self.folder / f"{key}.json").unlink(missing_ok=True)

    def _take(self, key: str) -> int | None:
        """A descriptor of the claim's file, or None where another worker is at the point."""
        path = self.folder / f"{key}.json"
        with locked(self.folder / _LOCK) as lock:
            if path.exists():
                if not self._is_void(path, lock.fileno()):
                    return None
                path.unlink()
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(handle, json.dumps(self._me).encode())
            return handle

    def _give_back(self, key: str) -> None:
        path = self.folder / f"{key}.json"
        with locked(self.folder / _LOCK):
            if _read(path) == self._me:  # else it was taken over, and is no longer ours to give back
                path.unlink()

    def _beat(self, handle: int, over: threading.Event) -> None:
        while not over.wait(self.beat_seconds):
            os.utime(handle)  # by descriptor: never another worker's claim

    def _is_void(self, path: Path, lock: int) -> bool:
        claim = _read(path)
        if claim is None:
            return True  # torn: whoever wrote it held the lock, and is gone
        if claim["host"] == self._me["host"]:
            return not _lives(claim["pid"], claim["started"])
        os.utime(lock)
        return os.fstat(lock).st_mtime - path.stat().st_mtime > self.limit_seconds


def _read(path: Path) -> dict[str, Any] | None:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
        return {"host": str(claim["host"]), "pid": int(claim["pid"]), "started": float(claim["started"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _SAME_START  # else the number was given to a later process
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _host() -> str:
    """The machine as it was started, and where process numbers are counted apart (containers), in which counting.

    Machines may share a name, and the number of a kernel's first counting is the same everywhere.
    """
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(_BOOT.read_text(encoding="ascii").strip())
    space = Path("/proc/self/ns/pid")
    if space.exists():
        parts.append(str(space.stat().st_ino))
    return "/".join(parts)
