"""Points as checkpoints: written by mergekit where they are delivered, or streamed by the engine within little memory.

mergekit is the reference and writes what leaves the house. `stream` writes the engine's tensors shard by shard without
holding more than one of them: for evaluation in another process, and for models that do not fit in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recllm.disk import sync
from recllm.merging.checkpoint import (
    INDEX,
    SINGLE,
    TORCH_DTYPES,
    TensorInfo,
    Weights,
    read_headers,
    stored_dtype,
    write_header,
)
from recllm.merging.layout import Layout
from recllm.merging.mergekit_yaml import to_mergekit
from recllm.merging.methods import DIRECT
from recllm.merging.space import Point
from recllm.provenance import read_json, write_json
from recllm.sid.vocabulary import TABLE_FOLDER

if TYPE_CHECKING:
    from recllm.merging.engine import MergeEngine

CONFIG_FILE, POINT_FILE = "mergekit_config.yml", "point.json"
_DONE_FILE = ".staging-point.json"  # by its name no part of what a run delivers
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", INDEX)
_RECORDS = (".", "run.json", "metrics.json", "README.md")  # of the parent's own run
# What says that a process is one of several ranks; mergekit's process is none.
_RANKED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "ACCELERATE_", "FSDP_")


def deliver_point(point: Point, parents: Mapping[str, str | Path], folder: str | Path) -> Path:
    """Write the point's checkpoint with mergekit, in a process of its own.

    Args:
        parents: role -> local folder, as `make_ready` answers.
        folder: must not exist yet, or be empty; it appears whole or not at all.

    Raises:
        ValueError: the folder is taken, or the point needs a parent that is not given.
        RuntimeError: mergekit failed, or lost a tensor; its last words are in the message.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder, or remove it")
    weights = Weights(parents[DIRECT])
    stored = stored_dtype([Weights(path) for path in parents.values()])
    text = to_mergekit(point, Layout(weights), parents, stored)
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / CONFIG_FILE).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "recllm.merging.write", str(staging / CONFIG_FILE), str(staging)]
    if point.seed is not None:
        command.append(str(point.seed))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_RANKED)}
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"mergekit could not write {point.label}: {last}")
    _complete(staging, point, Path(parents[DIRECT]))
    check_tensors(staging, weights.infos)
    if folder.exists():
        folder.rmdir()
    staging.replace(folder)
    return folder


def _complete(folder: Path, point: Point, source: Path) -> None:
    """What mergekit leaves out: the SID table, the generation config, and which point this is."""
    if (source / TABLE_FOLDER).is_dir():
        shutil.copytree(source / TABLE_FOLDER, folder / TABLE_FOLDER, dirs_exist_ok=True)
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", folder / "generation_config.json")
    write_json(folder / POINT_FILE, {"key": point.key, "method": point.method, "axes": point.axes})


def deliver_into(point: Point, parents: Mapping[str, str | Path], folder: Path, mark: str) -> None:
    """Deliver the point into a folder that may hold more, a run's for instance; what is there already is kept.

    Args:
        mark: identity of the parents. The same point of the same parents is not merged again.

    Raises:
        RuntimeError: as `deliver_point`.
    """
    done, wanted = folder / _DONE_FILE, {"key": point.key, "parents": mark}
    if done.is_file() and read_json(done) == wanted:
        return
    done.unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name.endswith(_WEIGHTS):  # of another point, in other shards
            path.unlink()
    staging = folder / ".staging-point"
    shutil.rmtree(staging, ignore_errors=True)
    deliver_point(point, parents, staging)
    for path in sorted(staging.iterdir()):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    staging.rmdir()
    write_json(done, wanted)


def check_tensors(folder: str | Path, expected: Mapping[str, TensorInfo]) -> None:
    """Compare a written checkpoint's headers with the tensors that it must hold.

    Raises:
        RuntimeError: a tensor is missing, too much, or of another shape.
    """
    found = read_headers(Path(folder))
    for name in sorted(set(found) ^ set(expected)):
        raise RuntimeError(f"{folder}: tensor {name} {'was lost' if name in expected else 'came from nowhere'}")
    for name, info in expected.items():
        if found[name].shape != info.shape:
            raise RuntimeError(f"{folder}: tensor {name} has shape {found[name].shape}, expected {info.shape}")


def stream(
    engine: MergeEngine, point: Point, folder: str | Path, shard_bytes: int = 5 << 30, release: bool = True
) -> Path:
    """Write the point as a sharded checkpoint, one tensor at a time.

    Beside the engine's own needs it holds one merged tensor. With `release`, the parents' pages of a tensor are given
    back once it is written, so that resident memory stays bounded whatever the model's size.

    Returns:
        The folder: safetensors, index, and the direct parent's config, tokenizer and SID table.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = engine.parents[DIRECT].folder
    shards = _shards(_written_infos(engine, point), shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    tensors = engine.tensors(point)
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as out:
            out.write(write_header(shard))
            for name, (merged, tensor) in zip(shard, tensors, strict=False):
                if merged != name:
                    raise RuntimeError(f"tensor {merged} came where {name} was due")
                out.write(_raw(tensor))
                if release:
                    engine.release(name)
        sync(folder / file)
    _index(folder, files, shards)
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS) and not path.name.startswith(_RECORDS):
            shutil.copy(path, folder / path.name)
    _complete(folder, point, source)
    return folder


def _raw(tensor: Any) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _written_infos(engine: MergeEngine, point: Point) -> dict[str, TensorInfo]:
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    infos = {}
    for name, dtype in engine.out_dtypes(point).items():
        info = engine.parents[DIRECT].infos[name]
        infos[name] = replace(info, dtype=names[str(dtype).removeprefix("torch.")])
    return infos


def _shards(infos: Mapping[str, TensorInfo], limit: int) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + info.bytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.bytes
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _index(folder: Path, files: list[str], shards: list[dict[str, TensorInfo]]) -> None:
    if len(files) == 1:
        return
    placed = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(info.bytes for shard in shards for info in shard.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
