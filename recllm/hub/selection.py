"""What of a run folder goes to the Hub: delivered files only, weights as safetensors only, nothing from outside."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from recllm.provenance import RUN_FILE, fingerprint, load_run, sha256_file

# What training leaves behind and nobody loads: resume state, logs, hidden folders.
_LEFT_DIRS = (".*", "checkpoint*", "logs", "runs", "wandb", "mlruns", "global_step*", "__pycache__")
_LEFT_FILES = (
    *(".*", "*.log", "*.tmp", "*.lock", "events.out.tfevents*", "training_args.bin", "trainer_state.json"),
    *("optimizer*", "scheduler.*", "scaler.*", "rng_state*"),
)
# Loading one of these can run code that the file brings along.
_REFUSED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_NO_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\.lock(/|$)|(^|/)\.|[/.]$|^[-/]|^refs/|^HEAD$")
_READ_AT_ONCE = 16 << 20  # bytes; larger files are weights or tables, which hold no configuration


@dataclass(frozen=True)
class Selection:
    """What would go up: `files` maps a path in the repository to the local file, `left` names what stays behind."""

    folder: Path
    files: dict[str, Path]
    left: list[str]
    revision: str

    def show(self, repo_id: str) -> None:
        """Print the selection, one line a file with its size in bytes."""
        print(f"{self.folder} -> {repo_id} at revision {self.revision}", flush=True)
        for path, local in self.files.items():
            print(f"  {local.stat().st_size:>14,}  {path}", flush=True)
        for path in self.left:
            print(f"  {'stays here':>14}  {path}", flush=True)

    def content_id(self, extra: bytes = b"") -> str:
        """32 hex digits that name exactly this content: every path and every byte, and `extra`."""
        digest = hashlib.sha256(extra)
        for path, local in self.files.items():
            digest.update(f"{path}\0{sha256_file(local)}\n".encode())
        return digest.hexdigest()[:32]

    def check_no_secret(self, secret: str) -> None:
        """Raise `ValueError` with the file's name where a file to be published holds the secret."""
        for local in self.files.values():
            if local.stat().st_size <= _READ_AT_ONCE and secret.encode() in local.read_bytes():
                raise ValueError(f"{local} holds the access token itself: remove it there before publishing")


def select(folder: str | Path, revision: str | None = None, allow_incomplete: bool = False) -> Selection:
    """Choose what of a folder is published, without any request.

    Args:
        revision: the branch to publish to; by default `run-` and the first 12 digits of the folder's fingerprint.
        allow_incomplete: take a folder without a valid run.json as well.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder is not a complete run, holds nothing, pickled weights or a link that leads out of it,
            or the revision is not a branch name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; publish the output folder of a finished run")
    if load_run(folder) is None and not allow_incomplete:
        raise ValueError(
            f"{folder} has no valid {RUN_FILE}: the run is not finished. Finish it first, or publish it as it is with "
            "--allow_incomplete true"
        )
    files, left = _sorted_out(folder)
    if not files:
        raise ValueError(f"{folder} holds nothing to publish")
    revision = revision or f"run-{fingerprint(folder)[:12]}"
    check_revision(revision)
    return Selection(folder=folder, files=files, left=left, revision=revision)


def check_revision(revision: str) -> None:
    """Raise `ValueError` where a revision is no valid branch name."""
    if not revision or len(revision) > 200 or _NO_BRANCH.search(revision):
        raise ValueError(f"revision {revision!r} is not a branch name; use letters, digits, '-', '_', '.' and '/'")


def _sorted_out(folder: Path) -> tuple[dict[str, Path], list[str]]:
    files, left, root = {}, [], folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(folder).as_posix()
        *parents, base = name.split("/")
        if _matches(base, _LEFT_FILES) or any(_matches(parent, _LEFT_DIRS) for parent in parents):
            left.append(name)
        elif not path.resolve().is_relative_to(root) or not path.is_file():
            raise ValueError(f"{path} is no plain file of this folder: replace the link by a copy, or remove it")
        elif path.suffix.lower() in _REFUSED:
            raise ValueError(f"{path} may hold pickled objects, which run code when loaded: save it as safetensors")
        else:
            files[name] = path
    return files, left


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
