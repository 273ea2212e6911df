"""What a trainer holds in memory between two steps and the library's own checkpoint leaves out.

GRPO trains on a buffer of generated completions over several steps; TRL forgets on resume how far it was, the buffer,
and what it collected since the last log. Objects that a user gives a trainer may have a state, too. All of it goes into
a checkpoint as JSON and safetensors, one of each a process.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, load_model, save_file, save_model

from recllm.provenance import read_json
from recllm.training.models import sliced

logger = logging.getLogger(__name__)

# A buffer is cut by these and by the number of processes.
_LAYOUT = (
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("steps_per_generation", "num_iterations", "num_generations"),
)
_COUNTERS = ("_step", "_total_train_tokens")
_TENSOR = "__tensor__"
_REFERENCE = "reference.safetensors"
Warn = Callable[[str], None]


def write_state(trainer: Any, folder: Path, warn: Warn) -> None:
    """Write this process's part into `folder`: `run_state-RANK.json` and `.safetensors`, and `stateful.json`.

    What is neither JSON nor tensors is left out, and `warn` is told what a resume does without it.
    """
    rank = trainer.accelerator.process_index
    tensors: dict[str, torch.Tensor] = {}
    known: dict[str, Any] = {"layout": layout(trainer)}
    known["counters"] = {name: getattr(trainer, name) for name in _COUNTERS if hasattr(trainer, name)}
    if hasattr(trainer, "_tr_loss"):
        window = {"loss": trainer._tr_loss, "last_logged": trainer._globalstep_last_logged}
        known["window"] = _packed(window, tensors)
    parts = {"metrics": getattr(trainer, "_metrics", None), "logs": getattr(trainer, "_logs", None)}
    for name, value in {**parts, "buffer": _needed_buffer(trainer)}.items():
        try:
            known[name] = _packed(value, tensors)
        except TypeError as error:
            warn(f"checkpoints leave out the trainer's {name} ({error}): a resumed run starts with none")
    folder.mkdir(parents=True, exist_ok=True)  # on a node whose main process does not save
    _write(folder / f"run_state-{rank}.json", known)
    save_file(tensors, folder / f"run_state-{rank}.safetensors")
    states: dict[str, list[Any]] = {}
    for thing in objects(trainer):
        name, state = type(thing).__name__, thing.state_dict()
        try:
            states.setdefault(name, []).append(_packed(state, None))
        except TypeError as error:
            warn(f"checkpoints leave out the state of {name}, which is not JSON ({error}): a resume starts it anew")
            states[name].append(None)
    _write(folder / objects_file(rank), states)
    if (reference := _moving_reference(trainer, warn)) is not None and trainer.args.should_save:
        save_model(reference, str(folder / _REFERENCE))


def read_state(trainer: Any, folder: Path) -> dict[str, Any]:
    """Put this process's part of checkpoint `folder` back.

    Returns the window of the next logged loss, `loss` (a tensor) and `last_logged` (a step), which the trainer resets
    once more before it trains. It is empty where the checkpoint has no part for this process, or one of another layout;
    then a warning says so.
    """
    if (reference := _moving_reference(trainer)) is not None and (folder / _REFERENCE).is_file():
        load_model(reference, str(folder / _REFERENCE))
    path = folder / f"run_state-{trainer.accelerator.process_index}.json"
    known = read_json(path) if path.is_file() else {}
    # All take up the buffer or none: whoever generates anew waits for the others to do so, too.
    if unlike := next(filter(None, gather_object([_unlike(known.get("layout"), layout(trainer))])), ""):
        logger.warning(
            "%s: %s. Completions that it may hold and numbers since the last log do not fit this run: it generates "
            "anew and goes on, but will not equal an uninterrupted one",
            *(folder, unlike),
        )
        if hasattr(trainer, "_buffered_inputs"):
            # In step with the sampler, which repeats each prompt for as many steps as its completions serve.
            trainer._step = trainer.state.global_step * trainer.args.gradient_accumulation_steps
        return {}
    known = _unpacked(known, load_file(path.with_suffix(".safetensors")), trainer.accelerator.device)
    for name, value in known["counters"].items():
        setattr(trainer, name, value)
    for mode, values in (known.get("metrics") or {}).items():
        trainer._metrics[mode].update(values)
    for name, values in (known.get("logs") or {}).items():
        for column, entries in values.items() if isinstance(values, dict) else [(None, values)]:
            (trainer._logs[name] if column is None else trainer._logs[name][column]).extend(entries)
    if known.get("buffer") is not None:
        trainer._buffered_inputs = known["buffer"]
    return known.get("window", {})


def layout(trainer: Any) -> dict[str, int]:
    """How many processes share a run and how each cuts its batches."""
    cuts = {name: getattr(trainer.args, name) for name in _LAYOUT if hasattr(trainer.args, name)}
    return {"processes": trainer.accelerator.num_processes, **cuts}


def objects(trainer: Any) -> list[Any]:
    """What was given to the trainer and has both `state_dict()` and `load_state_dict()`: rollout, rewards, callbacks,
    training data. Models are not meant, nor streams, in which the trainer finds its place by itself."""
    from datasets import IterableDataset

    given = [getattr(trainer, "rollout_func", None), *(getattr(trainer, "reward_funcs", None) or [])]
    given += [*trainer.callback_handler.callbacks, trainer.train_dataset, sampler_of(trainer)]
    found: dict[int, Any] = {}
    for thing in given:
        thing = getattr(thing, "__self__", thing)  # a method stands for its object
        stateful = all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict"))
        if stateful and not isinstance(thing, torch.nn.Module | IterableDataset | type):
            found[id(thing)] = thing
    return list(found.values())


def objects_file(rank: int) -> str:
    """The file of the objects' states: each process has its own, and the main one's has the plain name."""
    return f"stateful-{rank}.json" if rank else "stateful.json"


def restore_objects(trainer: Any, folder: Path) -> None:
    """Give each of `objects` its state of checkpoint `folder`; a class without one is told in a warning.

    A process that the checkpoint's run did not have takes the main process's states.
    """
    own, main = (folder / objects_file(rank) for rank in (trainer.accelerator.process_index, 0))
    states = next((read_json(path) for path in (own, main) if path.is_file()), {})
    for thing in objects(trainer):
        left = states.get(type(thing).__name__)
        state = left.pop(0) if left else None
        if state is None:
            logger.warning("%s has no state for %s, which starts anew", folder, type(thing).__name__)
        else:
            thing.load_state_dict(state)


def sampler_of(trainer: Any) -> Any:
    """The sampler of the running training loop's data, within whatever batches and shares it; None before training."""
    part = getattr(trainer.callback_handler, "train_dataloader", None)
    while (inner := getattr(part, "batch_sampler", None)) is not None:
        part = inner
    return getattr(part, "sampler", None)


def _needed_buffer(trainer: Any) -> Any:
    """The generation buffer where the next step reads it, else None: then the next step generates."""
    if getattr(trainer, "_buffered_inputs", None) is None:
        return None
    serves = trainer.args.steps_per_generation * trainer.num_iterations
    return trainer._buffered_inputs if trainer._step % serves else None


def _moving_reference(trainer: Any, warn: Warn = logger.warning) -> torch.nn.Module | None:
    """The reference model where it follows the policy (`sync_ref_model`), so that its source is not what it is."""
    reference = getattr(trainer, "ref_model", None)
    if reference is None or not getattr(trainer.args, "sync_ref_model", False):
        return None
    if sliced():
        warn(
            "FSDP and ZeRO-3 slice the reference model of sync_ref_model: true, so checkpoints leave it out and a "
            "resumed run starts with the model's source for it; DDP or ZeRO-2 keep it"
        )
        return None
    return trainer.accelerator.unwrap_model(reference)


def _unlike(then: dict[str, int] | None, now: dict[str, int]) -> str:
    """What differs between the layouts of a checkpoint and of this run, in words; empty where nothing does."""
    if then is None:
        return "it was written without recllm's part, or has none for this process"
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name} was {then.get(name)} and is {now.get(name)}" for name in names)


def _packed(value: Any, tensors: dict[str, torch.Tensor] | None) -> Any:
    """`value` as JSON; a tensor goes into `tensors`, and its name stays in its place.

    Raises:
        TypeError: a part is neither, or a tensor where there are no `tensors`.
    """
    if isinstance(value, torch.Tensor) and tensors is not None:
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _packed(part, tensors) for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_packed(part, tensors) for part in value]
    raise TypeError(f"{type(value).__name__} found")


def _unpacked(value: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]].to(device)
        return {key: _unpacked(part, tensors, device) for key, part in value.items()}
    return [_unpacked(part, tensors, device) for part in value] if isinstance(value, list) else value


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
