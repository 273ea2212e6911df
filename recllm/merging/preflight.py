"""Whether parents can be merged, answered from configs and headers, before a byte is downloaded or written.

mergekit finds out late or not at all: a tied parent beside an untied one loses its head in silence, tokenizers of
different order merge rows of different words, and a full disk shows after an hour.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recllm.merging.methods import DIRECT, METHODS, THINKING
from recllm.merging.parents import Parent
from recllm.merging.space import Point

# Fields that say what a tensor is for: equal shapes with other values would still merge, into nonsense.
_SAME = (
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "num_experts", "num_experts_per_tok"),
    *("rms_norm_eps", "quantization_config"),
)
_SLACK = 1.05  # headers, configs, tokenizers
# Bytes of scratch for each element of the largest tensor, measured: a sort of each parent's differences (keys, order,
# their copies), mergekit's own functions and masks, or the merged tensor alone.
_SORT, _GENERIC, _PIECEWISE = 48, 28, 4
_SORTED = ("ties", "breadcrumbs", "breadcrumbs_ties", "selective_overwrite", "selective_average", "selective_surgical")
_BY_PIECE = ("linear", "slerp", "task_arithmetic")


@dataclass(frozen=True)
class Preflight:
    """What was found.

    model_bytes: size of one merged checkpoint. disk_bytes: what delivering `checkpoints` of them takes.
    memory_bytes: what the engine holds beside mapped pages: the live model and the largest tensor's scratch.
    workers: how many parents may be sorted at a time (MergeEngine's argument): 2, or 1 where memory is short.
    streams: the parents do not fit in memory beside it; their pages are given back tensor by tensor.
    warnings: likely mistakes that do not stop a merge.
    """

    model_bytes: int
    disk_bytes: int
    memory_bytes: int
    workers: int
    streams: bool
    warnings: tuple[str, ...]


def preflight(
    parents: Mapping[str, Parent],
    points: Iterable[Point] = (),
    output: str | Path = ".",
    checkpoints: int = 1,
    available_memory: int | None = None,
) -> Preflight:
    """Compare every parent with the direct one and the needs with what is there.

    Args:
        parents: role -> what `describe` found; `direct` and `thinking` at least.
        points: the sweep's points; each must find its parents.
        output: where checkpoints will land; it need not exist yet.
        checkpoints: how many will lie there at a time.
        available_memory: bytes; asked from the system where not given.

    Raises:
        ValueError: the first difference or lack, with parent and tensor or field, and what to do.
    """
    for role in (DIRECT, THINKING):
        if role not in parents:
            raise ValueError(
                f"no parent {role!r}: give the direct and the thinking parent (and a base for task vectors)"
            )
    points = list(points)
    _check_points(points, parents)
    first = parents[DIRECT]
    warnings = []
    for role, other in parents.items():
        _check_configs(first, other, role)
        _check_tensors(first, other, role)
        warnings += _check_speech(first, other, role)
    disk = _disk(parents, Path(output), checkpoints)
    available = available_bytes() if available_memory is None else available_memory
    return _memory(parents, points, disk, available, warnings)


def _check_points(points: Iterable[Point], parents: Mapping[str, Parent]) -> None:
    for point in points:
        config = point.axes.get("config", {})
        base = config.get("base_model") if config else point.axes.get("base")
        if base in METHODS[point.method].bases and base != "none" and base not in parents:
            raise ValueError(f"{point.label} needs the parent {base!r}: give it, or set base: direct where it can be")


def _check_configs(first: Parent, other: Parent, role: str) -> None:
    for field in _SAME:
        mine, theirs = first.config.get(field), other.config.get(field)
        if mine != theirs:
            raise ValueError(
                f"{other.address} ({role}): {field} in config.json is {theirs!r}, of {first.address} {mine!r}; "
                "only models of one architecture and vocabulary can be merged"
            )
    if first.config.get("quantization_config"):
        raise ValueError(f"{first.address}: config.json has a quantization_config; merge the full-precision weights")
    if {_tied(first), _tied(other)} == {True, False}:
        tied, untied = (first, other) if _tied(first) else (other, first)
        raise ValueError(
            f"{tied.address} ties its embeddings (tie_word_embeddings in config.json) and {untied.address} does not: a "
            "merge would drop lm_head.weight in silence. Save both tied or both untied"
        )


def _tied(parent: Parent) -> bool | None:
    """By the config, else by whether there is a head; None where neither can be seen."""
    said = parent.config.get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    return None if parent.pickled else not any(name.startswith(("lm_head.", "embed_out.")) for name in parent.tensors)


def _check_tensors(first: Parent, other: Parent, role: str) -> None:
    if first.pickled or other.pickled:
        return  # a pickle has no header: the tensors are compared once it is converted
    for name in sorted(set(first.tensors) ^ set(other.tensors)):
        has, lacks = (first, other) if name in first.tensors else (other, first)
        raise ValueError(f"tensor {name} is in {has.address} but not in {lacks.address} ({role} against direct)")
    for name, info in first.tensors.items():
        theirs = other.tensors[name]
        if info.shape != theirs.shape:
            raise ValueError(
                f"tensor {name} has shape {list(theirs.shape)} in {other.address} ({role}) and {list(info.shape)} in "
                f"{first.address} (direct)"
            )
        if (info.dtype[0] in "FB") != (theirs.dtype[0] in "FB"):
            raise ValueError(f"tensor {name} is {theirs.dtype} in {other.address} ({role}) and {info.dtype} in direct")


def _check_speech(first: Parent, other: Parent, role: str) -> list[str]:
    """Tokenizers and SID tables; returns warnings."""
    if first.sid_table != other.sid_table and (role == THINKING or other.sid_table):
        raise ValueError(
            f"{other.address} ({role}) speaks SID table {other.sid_table[:12] or 'none'} and {first.address} (direct) "
            f"{first.sid_table[:12] or 'none'}: a SID token would mean another item; make both with the same table"
        )
    warnings = []
    if first.sid_table != other.sid_table:
        warnings.append(f"{other.address} ({role}) has no SID table: its rows of the SID tokens are untrained")
    if not other.tokenizer or not first.tokenizer:
        warnings.append(f"{(first if not first.tokenizer else other).address} has no tokenizer: it was not compared")
    elif first.tokenizer != other.tokenizer:
        raise ValueError(
            f"{other.address} ({role}) has another tokenizer than {first.address}: tokenizer.json differs, so a "
            "row of the embeddings is another token. Save both with one tokenizer"
        )
    return warnings


def _disk(parents: Mapping[str, Parent], output: Path, checkpoints: int) -> int:
    model = max(parent.bytes for parent in parents.values())
    ready = sum(parent.bytes for parent in parents.values() if parent.adapter or parent.pickled)
    disk = int((model * checkpoints + ready) * _SLACK)
    there = output.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if disk > free:
        raise ValueError(
            f"{output}: {checkpoints} checkpoint(s) of {_gib(model)} need {_gib(disk)} of disk, {_gib(free)} are free; "
            "free some, choose another folder, or keep fewer checkpoints"
        )
    return disk


def _memory(
    parents: Mapping[str, Parent], points: Iterable[Point], disk: int, available: int, warnings: list[str]
) -> Preflight:
    model = max(parent.bytes for parent in parents.values())
    infos = [info for parent in parents.values() for info in parent.tensors.values()]
    largest = max(infos, key=lambda info: info.numel, default=None)
    count = largest.numel if largest else 0
    methods = {point.method for point in points}
    sorts, workers = bool(methods & set(_SORTED)), 2
    generic = _GENERIC if methods - set(_SORTED) - set(_BY_PIECE) else _PIECEWISE
    scratch = count * max(generic, _SORT * workers if sorts else 0)
    if sorts and model + scratch > available:
        workers, scratch = 1, count * max(generic, _SORT)
    if scratch > available:
        raise ValueError(
            f"tensor {largest.name} needs {_gib(scratch)} of memory to merge, {_gib(available)} are available; use a "
            "larger machine" + (", or methods that sort nothing (linear, slerp, task_arithmetic)" if sorts else "")
        )
    if model + scratch > available:
        warnings.append(f"a live model of {_gib(model)} does not fit in {_gib(available)}: stream the points")
    streams = model + scratch + sum(parent.bytes for parent in parents.values()) > available
    return Preflight(model, disk, model + scratch, workers, streams, tuple(warnings))


def available_bytes() -> int:
    """Memory that the system can give without swapping, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"


def report(found: Preflight) -> dict[str, Any]:
    """The findings as plain values, for a record."""
    return {**asdict(found), "warnings": list(found.warnings)}
