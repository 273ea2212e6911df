"""A fit that was killed goes on where its last epoch ended, bit for bit: one file a fit, replaced whole each epoch.

The file holds everything as safetensors: weights, the best epoch's weights, optimizer moments and generator states as
tensors, and the rest (epoch, history, numpy generators, what the fit was asked for) as JSON in the header. It is
written beside its place, brought to disk and renamed, so a reader finds the old epoch or the new one, never a half.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recllm.disk import sync

# Runs remove folders of this pattern when their config or inputs change, and never deliver them.
FOLDER = "checkpoint-fit"
FILE = "state.safetensors"
_SCHEMA = 1


@dataclass
class Progress:
    """How far a fit has come. `epoch` counts finished epochs; `best_epoch` is -1 before the first."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def ended(self, loss: float, metric: float, seconds: float) -> None:
        """Note an epoch that is over."""
        self.history.append({"loss": loss, "metric": metric, "seconds": seconds})
        self.epoch, self.seconds = self.epoch + 1, self.seconds + seconds

    @property
    def told(self) -> str:
        """The last epoch and the best one in words."""
        last = self.history[-1]
        return f"loss {last['loss']:.3f} val {last['metric']:.4f} best {self.best:.4f}"


@dataclass
class Checkpointer:
    """Saves and restores one fit in `folder`/checkpoint-fit.

    `identity` is what must agree for a resume to make sense (the loop's settings, JSON values); `rngs` are the numpy
    generators that the fit's batches draw from.
    """

    folder: Path
    model: torch.nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    rngs: Sequence[np.random.Generator]
    identity: dict[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.folder) / FOLDER / FILE

    def save(self, progress: Progress, best_state: dict[str, torch.Tensor]) -> None:
        """Write the state after an epoch, atomically."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best_state.items()}
        tensors |= {f"rng.{name}": state for name, state in _generator_states(self._device).items()}
        groups = []
        for index, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            groups.append(state["param_groups"])
            for parameter, values in state["state"].items():
                tensors |= {f"optimizer.{index}.{parameter}.{name}": _tensor(v) for name, v in values.items()}
        told = {
            "schema": _SCHEMA,
            "identity": self.identity,
            "progress": vars(progress),
            "groups": groups,
            "numpy": [rng.bit_generator.state for rng in self.rngs],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staging = self.path.with_suffix(".staging")
        # Clones, since safetensors refuses tensors that share memory (tied weights, or best equal to current).
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, staging, metadata={"recllm": json.dumps(told)})
        sync(staging)
        staging.replace(self.path)
        sync(self.path.parent)

    def restore(self) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """Put the last finished epoch's state back; None where there is no checkpoint.

        Raises:
            ValueError: the file cannot be read, or was left by a fit of another model or with other settings.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as stored:
                told = json.loads(stored.metadata()["recllm"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}); remove its folder to start over") from error
        self._check(told, tensors)
        self.model.load_state_dict(_under(tensors, "model."))
        for index, (optimizer, groups) in enumerate(zip(self.optimizers, told["groups"], strict=True)):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _under(tensors, f"optimizer.{index}.").items():
                parameter, _, key = name.partition(".")
                state.setdefault(int(parameter), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        for rng, state in zip(self.rngs, told["numpy"], strict=True):
            rng.bit_generator.state = state
        _set_generator_states(_under(tensors, "rng."), self._device)
        best_state = {name: tensor.to(self._device) for name, tensor in _under(tensors, "best.").items()}
        return Progress(**told["progress"]), best_state

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _check(self, told: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        asked = json.loads(json.dumps(self.identity))
        for key in sorted(asked.keys() | told["identity"].keys()):
            if asked.get(key) != told["identity"].get(key):
                raise ValueError(
                    f"{self.path} was left by a fit with {key} {told['identity'].get(key)!r}, this one has "
                    f"{asked.get(key)!r}; remove its folder to start over"
                )
        here = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        there = {name: tensor.shape for name, tensor in _under(tensors, "model.").items()}
        if here != there or len(told["numpy"]) != len(self.rngs):
            raise ValueError(f"{self.path} was left by a fit of another model; remove its folder to start over")


def discard_checkpoint(folder: str | Path) -> None:
    """Remove a finished fit's checkpoint from a run's folder; nothing happens where there is none."""
    shutil.rmtree(Path(folder) / FOLDER, ignore_errors=True)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def _generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"host": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["host"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
