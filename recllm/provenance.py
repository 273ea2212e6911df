"""What a run was: `run.json`, the last file a recipe writes, and the proof that its folder is complete.

A folder with a valid `run.json` is complete. Any other folder is unfinished and is resumed or rebuilt. The
record holds everything that is needed to run again and to trust the result: the recipe, its full config, the
code version, library versions, seed, device, fingerprints of the input folders, wall time and peak memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recllm.machine import device_name, git, peak_memory_gib, versions

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
SCHEMA = 1
# Written while a recipe works and not part of what it delivers.
_NOT_DELIVERED = ("checkpoint", "logs", ".staging")
_SECRETS = ("hub_token", "token", "api_key")
REQUEST_FILE = ".request.json"
_RECORDS = (RUN_FILE, METRICS_FILE, REQUEST_FILE, "README.md")  # the card tells times and commits
# Where a result lands does not change the result, nor does publishing it.
_NOT_IDENTITY = {
    *("output_dir", "outputs_root", "pipeline", "stage", "run_name", "logging_dir"),
    *("report_to", "disable_tqdm", "overwrite"),
    *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision", "hub_strategy"),
}
# Of one recipe alone: elsewhere keys of these names are inputs. A moved parent is known by its fingerprint.
_NOT_IDENTITY_OF = {"merge_deliver": {"direct", "thinking", "base", "retries", "keep"}}


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        Path(staging).chmod(0o644)  # mkstemp's own mode would lock other users out of a shared result
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(staging).replace(path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one, never a half."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    # numpy's scalars are numbers, and would be text otherwise; paths and enumerations are told as text.
    return value.item() if hasattr(value, "item") else str(value)


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or torn one raises `ValueError` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run the stage again") from error


def sha256_file(path: Path) -> str:
    """Hex sha256 of one file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(folder: str | Path) -> str:
    """Identity of a folder's delivered content: sha256 over the names and contents of its files.

    A complete run folder answers from its `run.json`; any other folder is hashed file by file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; run the stage that makes it first")
    if (folder / RUN_FILE).exists() and (known := load_run(folder)):
        return known["fingerprint"]
    return content_fingerprint(folder)


def several(value: Any) -> list[Any]:
    """A list as it is, anything else as a list of one: an input may be one folder or several."""
    return list(value) if isinstance(value, list | tuple) else [value]


def fingerprints(folders: str | Path | list[str] | list[Path]) -> str | list[str]:
    """`fingerprint` of one folder, or the list of them for a list of folders, in its order."""
    return [fingerprint(each) for each in folders] if isinstance(folders, list | tuple) else fingerprint(folders)


def content_fingerprint(folder: str | Path) -> str:
    """As `fingerprint`, but always from the content: what a run.json says of it is not believed."""
    folder = Path(folder)
    if folder.is_file():
        return sha256_file(folder)
    digest = hashlib.sha256()
    # `datasets` leaves its cache-*.arrow beside a data set that somebody has mapped; the data set is the same.
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if (
            not path.is_file()
            or parts[0].startswith(_NOT_DELIVERED)
            or path.name in _RECORDS
            or path.match("cache-*.arrow")
        ):
            continue
        digest.update("/".join(parts).encode())
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()


def load_run(folder: str | Path) -> dict[str, Any] | None:
    """The folder's `run.json`, or None where it is absent, torn or of another schema."""
    path = Path(folder) / RUN_FILE
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None


def plain_config(*configs: Any) -> dict[str, Any]:
    """Dataclasses or mappings as one flat dict of JSON values; secrets are left out."""
    merged: dict[str, Any] = {}
    for config in configs:
        if hasattr(config, "to_dict"):
            values = config.to_dict()
        elif dataclasses.is_dataclass(config):
            values = dataclasses.asdict(config)
        else:
            values = dict(config)
        merged.update(values)
    merged = {key: value for key, value in merged.items() if key not in _SECRETS}
    return json.loads(json.dumps(merged, default=str))


def _identity(recipe: str, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    # Inputs are known by their content; the paths that led to them do not matter.
    left_out = _NOT_IDENTITY | _NOT_IDENTITY_OF.get(recipe, set()) | inputs.keys()
    kept = {k: v for k, v in config.items() if k not in left_out}
    return {"config": kept, "inputs": dict(inputs)}


def _disown_checkpoints(folder: Path, request: dict[str, Any]) -> None:
    """Remove checkpoints that another config or other inputs left here: resuming from them would mix two runs."""
    path = folder / REQUEST_FILE
    try:
        earlier = read_json(path)
    except ValueError:
        earlier = None
    if earlier != request:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may be at it, too
        write_json(path, request)


def _inherited(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a run takes over from its inputs: assets, the description of the data set, and the SID table they speak.

    Raises:
        ValueError: two inputs were made with different SID tables.
    """
    extra: dict[str, Any] = {}
    speaker = ""
    for name, path in ((name, Path(path)) for name, paths in inputs.items() for path in several(paths)):
        # An input may be a subfolder of a run's output.
        known = load_run(path) or load_run(path.parent) or {}
        if table := known.get("sid_table_hash"):
            if table != extra.setdefault("sid_table_hash", table):
                first = extra["sid_table_hash"]
                raise ValueError(
                    f"{speaker} speaks SID table {first[:12]} and {path} ({name}) {table[:12]}: "
                    "codes of one table mean nothing in another; make both with the same one"
                )
            speaker = speaker or f"{path} ({name})"
        if known.get("assets"):
            extra["assets"] = {**extra.get("assets", {}), **known["assets"]}
        if (path / "dataset.json").is_file():
            extra["dataset"] = read_json(path / "dataset.json")
    return extra


@dataclass
class RunRecord:
    """One recipe execution, from `start` to `finish`.

    Example:
        record = RunRecord.start(args.output_dir, recipe="train_backbone", config=args, inputs={"dataset": path})
        if record.complete:
            return
        ...
        record.finish({"ndcg@10": 0.05})
    """

    folder: Path
    recipe: str
    config: dict[str, Any]
    inputs: dict[str, str | list[str]]
    complete: bool
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @classmethod
    def start(cls, folder: str | Path, recipe: str, config: Any, inputs: Mapping[str, Any] | None = None) -> RunRecord:
        """Open a run in `folder`. `complete` is true where the same config and inputs were already finished there.

        `inputs`: name -> folder, or a list of folders.

        A finished run with another config or other inputs is not complete: it will be rebuilt in place.

        Raises:
            FileNotFoundError: an input folder does not exist.
            ValueError: two inputs were made with different SID tables. What lies in `folder` is left alone.
        """
        folder, extra = Path(folder), _inherited(inputs or {})
        configs = config if isinstance(config, (list, tuple)) else (config,)
        plain = plain_config(*configs)
        marks = {name: fingerprints(path) for name, path in (inputs or {}).items()}
        known = load_run(folder)
        same = known is not None and known["recipe"] == recipe
        same = same and _identity(recipe, known["config"], known["inputs"]) == _identity(recipe, plain, marks)
        folder.mkdir(parents=True, exist_ok=True)
        if same:
            print(f"{recipe}: {folder} is complete, nothing to do", flush=True)
        else:
            (folder / RUN_FILE).unlink(missing_ok=True)
            _disown_checkpoints(folder, {"recipe": recipe, **_identity(recipe, plain, marks)})
        return cls(folder, recipe, plain, marks, complete=same, extra=extra)

    def add_asset(self, asset: Mapping[str, Any]) -> None:
        """Note a named asset this run read (`assets.source_of`); runs downstream take the note over."""
        self.extra["assets"] = {**self.extra.get("assets", {}), str(asset["name"]): dict(asset)}

    def metrics(self) -> dict[str, Any]:
        """The metrics of a complete run."""
        return read_json(self.folder / METRICS_FILE)

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write `metrics.json` and then, last and atomically, `run.json`; return the record."""
        write_json(self.folder / METRICS_FILE, dict(metrics))
        record = {**self.draft(), "fingerprint": content_fingerprint(self.folder)}
        write_json(self.folder / RUN_FILE, record)
        return record

    def draft(self) -> dict[str, Any]:
        """What `run.json` will hold, but for the fingerprint of the folder."""
        status = git("status", "--porcelain", "--untracked-files=no")
        return {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "config": self.config,
            "inputs": self.inputs,
            "seed": self.config.get("seed"),
            "git_sha": git("rev-parse", "HEAD"),
            "git_dirty": None if status is None else bool(status),
            "versions": versions(),
            "device": device_name(),
            "wall_seconds": round(time.time() - self.started, 3),
            "peak_memory_gib": round(peak_memory_gib(), 3),
            **self.extra,
        }
