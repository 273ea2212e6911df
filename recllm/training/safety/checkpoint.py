"""Checkpoints on disk that are whole or not there.

One is written into a staging folder beside its later place, so on the same file system: every file and folder is
brought to disk, a manifest with the size and the sha256 of each file comes last, and then the folder is renamed to
`checkpoint-N`. Whoever is killed in between leaves a staging folder, which the next start removes. Reading goes by the
manifest, so a checkpoint that was damaged later, or that something else wrote, is never taken for a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.disk import sync
from recllm.provenance import read_json, sha256_file

logger = logging.getLogger(__name__)

# What begins with `.staging` is no part of a run's fingerprint, and hidden folders are never published.
STAGING = ".staging-checkpoints"
MANIFEST = "manifest.json"
_SCHEMA = 1
# Seconds to wait for another process that has the staging folder.
_PATIENCE = 10.0
_NAME = re.compile(r"checkpoint-(\d+)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors, tokenizers and torch write from other languages: their errors carry the system's words or their own.
_FULL_WORDS = (
    *("No space left on device", "Disk quota exceeded", "File too large"),
    *("PytorchStreamWriter failed", "file write failed", "unexpected pos"),
)


def staging_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is whole."""
    return Path(folder) / STAGING / f"checkpoint-{step}"


@dataclass
class Staging:
    """A checkpoint that is being written, from `open` to `commit`; `discard` in any case.

    While it is open, nobody else's `newest_complete` removes it. One process opens it; others may write into `path`.
    """

    path: Path
    _lock: int

    @classmethod
    def open(cls, folder: str | Path, step: int) -> Staging:
        """An empty staging folder for the checkpoint of `step` in `folder`; what was left of earlier ones goes.

        Raises:
            BlockingIOError: another process is writing a checkpoint in this folder.
            OSError: the folder cannot be made.
        """
        path, until = staging_path(folder, step), time.monotonic() + _PATIENCE
        while (lock := _locked(path.parent)) is None:
            if time.monotonic() > until:
                raise BlockingIOError(f"{path.parent} is in use: another run saves in {folder}; give each a folder")
            time.sleep(0.05)  # somebody who looks for the newest checkpoint is done at once
        for left in path.parent.iterdir():
            _remove(left)
        path.mkdir()
        return cls(path, lock)

    def commit(self) -> Path:
        """Make the checkpoint whole: manifest, disk, rename. Returns its place; one that lay there is replaced."""
        final = self.path.parent.parent / self.path.name
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path != self.path / MANIFEST)
        known = {str(path.relative_to(self.path)): _to_disk(path) for path in files}
        with (self.path / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump({"schema": _SCHEMA, "files": known}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        for inner in [*(path for path in self.path.rglob("*") if path.is_dir()), self.path]:
            sync(inner)
        if final.exists() or final.is_symlink():
            # Of a torn one, or of an earlier run that this one does not go on from: nobody needs it any more.
            final.rename(self.path.parent / f"{final.name}-replaced")
        self.path.rename(final)
        sync(final.parent)
        return final

    def discard(self) -> None:
        """Remove whatever is still staged and let others write."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        os.close(self._lock)


def newest_complete(folder: str | Path) -> str | None:
    """The newest checkpoint of `folder` whose files agree with its manifest in size and sha256, or None.

    Newest is the one of the highest step. Each newer one that is passed over is told in a warning with the reason.
    Staging folders that a killed process left are removed. Reading hashes the files of what it returns, once.
    """
    folder = Path(folder)
    clear_leftovers(folder)
    for checkpoint in reversed(_checkpoints(folder)):
        reason = fault(checkpoint)
        if reason is None:
            return str(checkpoint)
        logger.warning("%s is passed over: %s. Training does not go on from it; remove it", checkpoint, reason)
    return None


def fault(checkpoint: str | Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, by its manifest, or None. Without `hashes` only presence and sizes count."""
    checkpoint = Path(checkpoint)
    try:
        files = _manifest(checkpoint)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end, or not by recllm"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, known in files.items():
        path = checkpoint / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != known["size"]:
                return f"{name} has {size} bytes and was written with {known['size']}"
            if hashes and sha256_file(path) != known["sha256"]:
                return f"{name} has another sha256 than it was written with"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None


def size_of(checkpoint: str | Path) -> int:
    """Bytes of a checkpoint by its manifest.

    Raises:
        OSError, ValueError: it has no manifest, or none that can be read.
    """
    return sum(known["size"] for known in _manifest(Path(checkpoint)).values())


def newest_size(folder: str | Path) -> int | None:
    """Bytes of the newest checkpoint with a manifest, which tell what the next one takes; None where there is none."""
    for checkpoint in reversed(_checkpoints(Path(folder))):
        with contextlib.suppress(OSError, ValueError):
            return size_of(checkpoint)
    return None


def rotate(
    folder: str | Path, limit: int | None, keep: Collection[str | Path] = (), trusted: Collection[str] = ()
) -> set[str]:
    """Remove all complete checkpoints but the newest `limit` and those in `keep`; None or 0 removes nothing.

    Incomplete ones neither count nor go, so the last complete one stays however many torn ones are newer. `trusted`
    names checkpoints that were whole in this process before, whose files are not hashed again; returns those names and
    of whatever else was found whole.
    """
    if not limit or limit < 0:
        return set()
    folder = Path(folder)
    complete = [path for path in _checkpoints(folder) if fault(path, hashes=path.name not in trusted) is None]
    kept = {Path(path).resolve() for path in keep}
    for path in complete[:-limit]:
        if path.resolve() not in kept:
            # Renamed first, so that a kill leaves no half of it under its name.
            (folder / STAGING).mkdir(exist_ok=True)
            removed = path.rename(folder / STAGING / f"{path.name}-removed")
            _remove(removed)
    return {path.name for path in complete}


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk, the quota or the allowed file size is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def step_of(checkpoint: str | Path) -> int:
    """The optimizer step that a checkpoint's name tells."""
    return int(_NAME.fullmatch(Path(checkpoint).name)[1])


def later(folder: str | Path, step: int) -> list[Path]:
    """Checkpoints of steps after `step`, ascending, whole or not."""
    return [path for path in _checkpoints(Path(folder)) if step_of(path) > step]


def _checkpoints(folder: Path) -> list[Path]:
    """By step: as text, 9 would come after 10."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def _manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(path)
    found = read_json(path)
    try:
        return {str(name): {"size": int(m["size"]), "sha256": str(m["sha256"])} for name, m in found["files"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no manifest: it lacks files with size and sha256") from error


def _to_disk(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
        return {"size": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _locked(folder: Path) -> int | None:
    """A handle on `folder`, made where it is missing, that locks it until it is closed; None where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another rank cleared it just now
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = folder.exists() and os.path.samestat(folder.stat(), os.fstat(handle))
    except BlockingIOError:
        there = False
    except OSError as error:  # some network file systems know no locks: then nobody has it
        logger.debug("%s cannot be locked: %s", folder, error)
        there = True
    if there:
        return handle
    os.close(handle)
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove the staging folder, unless another process is writing in it."""
    if (folder / STAGING).is_dir() and (lock := _locked(folder / STAGING)) is not None:
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        os.close(lock)
