"""Non-finite numbers stop a training run, and leave behind what the cause can be found with.

The guard attaches to one trainer, TRL's GRPOTrainer or SFTTrainer. A NaN or infinite loss or gradient is found before
the optimizer steps, so no weight and no moment has seen it; the micro-batches of that step are written down, or the
step is left out. Rewards that fail have a guard of their own (`reward_guard.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from recllm.provenance import write_json
from recllm.training.overrides import override
from recllm.training.safety.reward_guard import number, rank_mark

logger = logging.getLogger(__name__)

ON_NONFINITE = ("stop", "skip")
# Steps left out one after another: more than that is no bad batch but a broken model.
MAX_IN_A_ROW = 10
# Parameters that a message names.
_NAMED = 3
_REMEDY = "train without a guard on non-finite numbers"


class NonFiniteError(RuntimeError):
    """The loss or a gradient of a step is NaN or infinite; the message names the step, what, and the saved batch."""


def guard_finite(trainer: Any) -> NonFiniteGuard:
    """Check every step's losses and gradients before the optimizer steps; returns the callback that does.

    `args.on_nonfinite` says what happens then: `stop` (default) raises `NonFiniteError` and saves the step's
    micro-batches in `output_dir/nonfinite-step-N/`, or `nonfinite-step-N-RANK/` for each of several processes; `skip`
    gives no gradient to the optimizer, so that neither weights nor moments nor weight decay move, logs
    `nonfinite_steps` (the count so far) with every training log, and stops after `MAX_IN_A_ROW` in a row, too. The
    learning rate's schedule and the step count go on. All processes decide alike.

    A run in fp16 has a gradient scaler that skips steps by itself, as its way to find the scale: it is left to it.
    DeepSpeed steps inside the backward pass: there the loss is checked before it, the norm of the gradients only
    after the step, and `skip` is refused.

    Raises:
        ValueError: an unknown `on_nonfinite`, or `skip` with DeepSpeed.
    """
    policy = getattr(trainer.args, "on_nonfinite", "stop")
    if policy not in ON_NONFINITE:
        raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}; got {policy!r}")
    guard = NonFiniteGuard(trainer, policy)
    if guard.deepspeed and policy == "skip":
        raise ValueError(
            "on_nonfinite: skip cannot keep DeepSpeed from stepping, which it does inside the backward pass; "
            "set on_nonfinite: stop"
        )
    if getattr(trainer.accelerator, "scaler", None) is not None:
        logger.warning("fp16: steps with non-finite gradients are left to the gradient scaler, which skips them")
        return guard
    override(trainer, "compute_loss", ("model", "inputs"), guard.watch_loss, _REMEDY)
    override(trainer, "training_step", (), guard.watch_gradients, _REMEDY)
    if policy == "skip":
        override(trainer, "log", ("logs",), guard.log_count, _REMEDY)
    trainer.add_callback(guard)
    return guard


class NonFiniteGuard(TrainerCallback):
    """See `guard_finite`. `count` is the steps skipped so far, `in_a_row` those since the last good one."""

    def __init__(self, trainer: Any, policy: str) -> None:
        self.trainer, self.policy = trainer, policy
        self.count = self.in_a_row = 0
        self.deepspeed = str(trainer.accelerator.distributed_type).endswith("DEEPSPEED")
        self._batches: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._bad: list[str] = []

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting from a checkpoint."""
        self.count, self.in_a_row = int(state["count"]), int(state["in_a_row"])

    def watch_loss(self, original: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep the micro-batch and its loss until the step is decided; evaluation passes through."""
        batch = dict(inputs)  # some losses take entries out
        found = original(model, inputs, *args, **kwargs)
        if self.trainer.model.training and torch.is_grad_enabled():
            loss = found[0] if isinstance(found, tuple) else found
            self._batches.append(batch)
            # A number, not yet read: reading waits for the device, and is due once a step only.
            self._losses.append(loss.detach().float().mean())
            if self.deepspeed and self._anywhere([not bool(self._losses[-1].isfinite())]):
                self._stop(self._what())
        return found

    def watch_gradients(self, original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Look at the gradients once they are complete, before clipping spreads one bad number over all of them."""
        found = original(model, *args, **kwargs)
        if self.trainer.accelerator.sync_gradients and not self.deepspeed:
            self._bad = bad_gradients(model)
        return found

    def log_count(self, original: Any, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add `nonfinite_steps` to a training log."""
        if "loss" in logs:
            logs["nonfinite_steps"] = self.count
        return original(logs, *args, **kwargs)

    def on_step_begin(self, args, state, control, **kwargs):
        self._forget()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.deepspeed:
            norm = self.trainer.accelerator.deepspeed_engine_wrapped.get_global_grad_norm()
            self._bad = [] if norm is None or math.isfinite(norm) else ["all parameters together (norm)"]
        losses = torch.stack(self._losses).isfinite().all() if self._losses else torch.tensor(True)
        if not self._anywhere([bool(self._bad), not bool(losses)]):
            self.in_a_row = 0
            return self._forget()
        what = self._what()
        if self.policy == "stop":
            self._stop(what)
        self._skip(state.global_step + 1, model, what)

    def _skip(self, step: int, model: torch.nn.Module, what: str) -> None:
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        if self.in_a_row > MAX_IN_A_ROW:
            self._stop(f"{what}, as in the {MAX_IN_A_ROW} steps before, which were skipped")
        # An optimizer passes parameters without a gradient over; zeros would still decay weights and moments.
        for weight in model.parameters():
            weight.grad = None
        logger.warning("step %d is skipped: %s (%d skipped so far)", step, what, self.count)
        self._forget()

    def _stop(self, what: str) -> None:
        step = self.trainer.state.global_step + 1
        folder = Path(self.trainer.args.output_dir) / f"nonfinite-step-{step}{rank_mark(self.trainer)}"
        save_batches(folder, self._batches, self._losses, step, what, self.trainer.processing_class)
        raise NonFiniteError(
            f"step {step}: {what}, found before the optimizer stepped. The step's micro-batches are in {folder} "
            "(batch.safetensors, batch.json). Lower the learning rate, look at the batch, or set on_nonfinite: skip to "
            "leave such steps out"
        )

    def _what(self) -> str:
        losses = [float(loss) for loss in self._losses]
        wrong = [
            f"{value} in micro-batch {i} of {len(losses)}"
            for i, value in enumerate(losses, 1)
            if not math.isfinite(value)
        ]
        if wrong:
            return f"the loss is {', '.join(wrong)}"
        if not self._bad:
            return "a loss or gradient of another process is not finite"
        more = f" and {len(self._bad) - _NAMED} more" if len(self._bad) > _NAMED else ""
        return f"the gradient of {', '.join(self._bad[:_NAMED])}{more} is not finite"

    def _anywhere(self, flags: list[bool]) -> bool:
        """Whether any flag is set on any process."""
        accelerator = self.trainer.accelerator
        mine = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
        return bool(accelerator.reduce(mine, reduction="sum").sum() > 0)

    def _forget(self) -> None:
        self._batches, self._losses, self._bad = [], [], []


@torch.no_grad()
def bad_gradients(model: torch.nn.Module) -> list[str]:
    """Names of the parameters whose gradient holds a NaN or an infinity, on this process's part of them."""
    grads = [(name, _local(weight.grad)) for name, weight in model.named_parameters() if weight.grad is not None]
    if not grads:
        return []
    # One wait for the device: every gradient's verdict is computed there first.
    device = grads[0][1].device
    fine = torch.stack([grad.isfinite().all().to(device) for _, grad in grads]).tolist()
    return [name.removeprefix("module.") for (name, _), good in zip(grads, fine, strict=True) if not good]


def _local(grad: torch.Tensor) -> torch.Tensor:
    return grad.to_local() if hasattr(grad, "to_local") else grad


def save_batches(
    folder: Path, batches: list[dict[str, Any]], losses: list[torch.Tensor], step: int, what: str, tokenizer: Any
) -> None:
    """Write the micro-batches of one step.

    `batch.safetensors` holds every tensor as `INDEX.NAME`; `batch.json` tells step, cause, losses, what is no tensor,
    and for every row its text: prompt, completion and advantage where the batch has them, else the whole text.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, others = {}, {}
    for i, batch in enumerate(batches):
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{i}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                others[f"{i}.{name}"] = repr(value)[:1000]
    save_file(tensors, folder / "batch.safetensors")
    told = {"step": step, "what": what, "losses": [number(float(loss)) for loss in losses], "other_inputs": others}
    told["rows"] = [{"micro_batch": i, **row} for i, batch in enumerate(batches) for row in texts(batch, tokenizer)]
    write_json(folder / "batch.json", told)


def texts(batch: dict[str, Any], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """One dict of decoded text a row."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    parts = {"prompt": ("prompt_ids", "prompt_mask"), "completion": ("completion_ids", "completion_mask")}
    if "prompt_ids" not in batch:
        parts = {"text": ("input_ids", "attention_mask")}
    parts = {name: keys for name, keys in parts.items() if keys[0] in batch}
    rows = len(batch[next(iter(parts.values()))[0]]) if parts else 0
    for i in range(rows):
        row = {}
        for name, (ids, mask) in parts.items():
            kept = batch[ids][i][batch[mask][i].bool()] if mask in batch else batch[ids][i]
            row[name] = tokenizer.decode(kept.tolist())
        if "advantages" in batch:
            row["advantage"] = _advantage(batch["advantages"][i])
        yield row


def _advantage(value: torch.Tensor) -> Any:
    return number(float(value)) if value.dim() == 0 else [number(float(one)) for one in value]
