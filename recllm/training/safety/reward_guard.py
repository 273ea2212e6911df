"""Rewards that fail stop the run, and say on which completion: the case is written down, small enough to look at.

A reward function is given a whole batch, so its own error seldom tells which completion it choked on. `guard_rewards`
finds that out by asking again with less, and leaves what the function was given in a JSON file.
"""

from __future__ import annotations

import functools
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recllm.provenance import write_json

# What TRL hands to every reward beside columns: nothing to write down, and a second call must not log a second time.
_SILENCED = {"log_extra": lambda *_: None, "log_metric": lambda *_: None}
_NO_COLUMNS = ("trainer_state", *_SILENCED)
_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|access_?key|auth", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|api_org_)\w{8,}")
_SECRET_LENGTH = 8  # shorter values are words that occur anywhere
_SHOWN = 200  # characters of a completion in a message
_LARGEST = torch.finfo(torch.float32).max


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, the completion and the file with the case."""


@dataclass(frozen=True)
class Fault:
    """What was wrong with a call. Faults of one `kind` are the same; `row` is set where the values tell the row."""

    kind: str
    text: str
    row: int | None = None
    error: Exception | None = None


def guard_rewards(trainer: Any) -> None:
    """Wrap the reward functions of a GRPOTrainer, sync and async; reward models (modules) are left alone.

    Where one raises, returns another number of values than there are completions, or a value that is infinite, NaN or
    no number at all (None stays None: the reward does not apply), the run stops with `RewardError`. It names the first
    completion on which the function fails in the same way by itself, else the group, or says that only the whole batch
    fails. `output_dir/reward-error-step-N.json` (`-RANK` added where there are several processes) holds prompt,
    completion, the columns that JSON can hold, and the traceback. Values of environment variables that are named like
    secrets are blotted out of message and file.
    """
    for index, function in enumerate(trainer.reward_funcs):
        if not isinstance(function, torch.nn.Module):
            trainer.reward_funcs[index] = _guarded(trainer, function, trainer.reward_func_names[index])


def _guarded(trainer: Any, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    from trl.trainer.utils import is_async_callable

    def guarded(**columns: Any) -> list[float | None]:
        found, fault = _judged(lambda: function(**columns), len(columns["completions"]))
        if fault is None:
            return found
        search = _Search(len(columns["completions"]), _group_size(trainer), fault)
        for rows in search:
            less = _sliced(columns, rows)
            search.told = _judged(lambda less=less: function(**less), len(rows))[1]
        raise _error(trainer, name, columns, search) from fault.error

    async def guarded_async(**columns: Any) -> list[float | None]:
        found, fault = await _judged_async(function, columns, len(columns["completions"]))
        if fault is None:
            return found
        search = _Search(len(columns["completions"]), _group_size(trainer), fault)
        for rows in search:
            search.told = (await _judged_async(function, _sliced(columns, rows), len(rows)))[1]
        raise _error(trainer, name, columns, search) from fault.error

    wrapped = functools.wraps(function)(guarded_async if is_async_callable(function) else guarded)
    owner = getattr(function, "__self__", function)
    if hasattr(owner, "state_dict"):
        wrapped.__self__ = owner  # as a method names its object: checkpoints ask it for its state
    return wrapped


def _judged(call: Callable[[], Any], rows: int) -> tuple[list[float | None], Fault | None]:
    try:
        values = call()
    except Exception as error:
        return [], Fault(type(error).__name__, f"raised {type(error).__name__}: {error}", error=error)
    return _read(values, rows)


async def _judged_async(function: Callable, columns: dict, rows: int) -> tuple[list[float | None], Fault | None]:
    try:
        values = await function(**columns)
    except Exception as error:
        return [], Fault(type(error).__name__, f"raised {type(error).__name__}: {error}", error=error)
    return _read(values, rows)


def _read(values: Any, rows: int) -> tuple[list[float | None], Fault | None]:
    """The values as numbers, or the first thing that is wrong with them."""
    if not hasattr(values, "__len__") or isinstance(values, (str, bytes, Mapping)):
        return [], Fault("no list", f"returned {type(values).__name__} where a list of {rows} values was due")
    if len(values) != rows:
        return [], Fault("length", f"returned {len(values)} values for {rows} completions")
    read = []
    for row, value in enumerate(values):
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            value = value.item()  # a scalar of numpy or torch
        if value is not None and (not isinstance(value, (int, float)) or not abs(value) <= _LARGEST):
            kind = "is no number" if not isinstance(value, (int, float)) else "is not finite in float32"
            return [], Fault("value", f"returned {str(value)[:80]!r}, which {kind}", row=row)
        read.append(None if value is None else float(value))
    return read, None


class _Search:
    """Slices of the batch to ask again with, ever smaller; whoever asks sets `told` to the fault before going on.

    `rows` is then the smallest slice that fails as the whole batch did.
    """

    def __init__(self, batch: int, group: int, fault: Fault) -> None:
        self.batch, self.group, self.fault, self.told = batch, group, fault, None
        self.rows = range(batch) if fault.row is None else range(fault.row, fault.row + 1)

    def __iter__(self) -> Iterator[range]:
        for size in (self.group, 1):
            within = self.rows
            for start in range(within.start, within.stop, size) if len(within) > size else ():
                rows = range(start, min(start + size, within.stop))
                self.told = None
                yield rows
                # Alone a function may fail for another reason, such as a group that lacks its others.
                if self.told is not None and self.told.kind == self.fault.kind:
                    self.rows = rows
                    break
            else:
                if len(within) > size:
                    return

    @property
    def where(self) -> str:
        first, last = self.rows.start, self.rows.stop - 1
        if len(self.rows) == 1:
            return f"on completion {first} of {self.batch}"
        if len(self.rows) < self.batch:
            return f"on the group of completions {first} to {last} of {self.batch}, and on none of them alone"
        return f"on the whole batch of {self.batch}, and on no group of it alone"


def _group_size(trainer: Any) -> int:
    training = trainer.model.training
    return trainer.num_generations if training else getattr(trainer, "num_generations_eval", trainer.num_generations)


def _sliced(columns: dict[str, Any], rows: range) -> dict[str, Any]:
    batch, cut = len(columns["completions"]), slice(rows.start, rows.stop)
    per_row = (list, tuple, np.ndarray, torch.Tensor)
    found = {k: v[cut] if isinstance(v, per_row) and len(v) == batch else v for k, v in columns.items()}
    return found | {name: silent for name, silent in _SILENCED.items() if name in columns}


def _error(trainer: Any, name: str, columns: dict[str, Any], search: _Search) -> RewardError:
    step, fault = trainer.state.global_step + 1, search.fault
    path = Path(trainer.args.output_dir) / f"reward-error-step-{step}{rank_mark(trainer)}.json"
    less = {key: value for key, value in _sliced(columns, search.rows).items() if key not in _NO_COLUMNS}
    kept, left = {}, []
    for key, value in less.items():
        try:
            kept[key] = plain(value)
        except TypeError:
            left.append(key)
    told = {"reward": name, "step": step, "fault": blotted(fault.text), "where": search.where}
    told |= {"prompt": kept.pop("prompts", None), "completion": kept.pop("completions", None), "columns": kept}
    told["columns_that_json_cannot_hold"] = left
    told["traceback"] = blotted("".join(traceback.format_exception(fault.error))) if fault.error else None
    write_json(path, told)
    shown = repr(told["completion"][0])[:_SHOWN] if told["completion"] else "?"
    return RewardError(
        f"step {step}: reward {name} {blotted(fault.text)}, {search.where}: {shown}. The case is in {path}; mend the "
        "reward, or return None where it does not apply"
    )


def plain(value: Any) -> Any:
    """The value as JSON holds it, without secrets; NaN and infinities as text.

    Raises:
        TypeError: JSON cannot hold it.
    """
    if isinstance(value, str):
        return blotted(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return {blotted(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} is nothing that JSON holds")


def blotted(text: str) -> str:
    """The text without values of environment variables that are named like secrets, and without what looks like one."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_LENGTH:
            text = text.replace(value, "***")
    return _SECRET_VALUE.sub("***", text)


def number(value: float) -> float | str:
    """The value as JSON knows it: NaN and infinities have no number there, and are told as text."""
    return value if math.isfinite(value) else str(value)


def rank_mark(trainer: Any) -> str:
    """`-RANK` where there are several processes, so that none overwrites another's file."""
    accelerator = trainer.accelerator
    return f"-{accelerator.process_index}" if accelerator.num_processes > 1 else ""
