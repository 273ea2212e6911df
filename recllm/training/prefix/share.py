"""One reading of a prompt for all its completions, in place of one a completion, inside TRL's GRPOTrainer.

`share_prefixes` attaches to a trainer and changes what a step costs, not what it computes: the policy's and the
reference's log-probabilities come from packed sequences (`loss.py`), and generation reads each prompt once
(`generation.py`). Completions of later turns hold other tokens, but lie in one packed sequence with the first ones all
the same, since TRL counts tool answers and later turns to the completion.

Where a batch or a model cannot be packed, TRL's own code runs; the reason is logged once.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel

from recllm.training.models import sliced
from recllm.training.overrides import OverrideError, override
from recllm.training.prefix.loss import Batch, packed_logps, unsupported
from recllm.training.prefix.packing import group_rows
from recllm.training.validation import evaluating

if TYPE_CHECKING:
    from trl import GRPOTrainer

logger = logging.getLogger(__name__)

REMEDY = "set shared_prefix: false to train with TRL's own steps"
# What is read of the trainer besides the two methods.
_READ = ("_buffered_inputs", "_step", "_entropy_bonus_enabled", "aux_loss_enabled", "top_entropy_quantile")
_LOGPS = ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss")
# Of the largest log-probability: what rounding may move, and the block mask of a model that knows none moves far more.
_ROUNDING = {torch.float32: 1e-3}
_COARSE = 3e-2


@dataclass
class Sharing:
    """How often prompts were shared, and how often not and why: counts of forward calls and of generations.

    `difference` is what `difference` found before the first forward, None until then.
    """

    shared: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    difference: float | None = None

    def share(self) -> float:
        """Of the forward calls and generations, those that shared; 0 before any."""
        others = sum(count for reason, count in self.reasons.items() if not reason.startswith("micro-batches"))
        return self.shared.total() / max(1, self.shared.total() + others)

    def fall_back(self, where: str, reason: str) -> None:
        """Count a call that runs as TRL wrote it; say the reason the first time."""
        self.reasons[f"{where}: {reason}"] += 1
        if self.reasons[f"{where}: {reason}"] == 1:
            logger.warning("prompts are not shared in %s: %s", where, reason)


def share_prefixes(trainer: GRPOTrainer) -> Sharing:
    """Make this trainer read each prompt once for all its completions, in the loss and in generation.

    The loss, log-probabilities and gradients equal TRL's but for rounding; the order of random draws is TRL's, too.
    With dropout a prompt's completions see one draw of it where TRL's see their own.

    Raises:
        OverrideError: TRL's methods are not those that this was written for.
    """
    from recllm.training.prefix.generation import sharing_prefill

    sharing = Sharing()

    def logps(original: Callable, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **options):
        batch = Batch(input_ids, attention_mask, logits_to_keep)
        reason = unsupported(model, options, input_ids.shape[1])
        if reason is None and sharing.difference is None:
            sharing.difference = difference(trainer, original, model)
        if reason is None and sliced() and batch_size is not None:
            # Every process has to make as many forwards as the others, and the packed ones depend on its rows.
            reason = "weights are sliced over processes, and this call makes several forwards"
        reason = reason or batch.unsupported()
        if reason is None and sharing.difference > _tolerated(trainer, model):
            reason = f"packed, this model's log-probabilities differ by up to {sharing.difference:.2g} of the largest"
        if reason is not None:
            sharing.fall_back("the loss", reason)
            return original(model, input_ids, attention_mask, logits_to_keep, batch_size, **options)
        sharing.shared["loss"] += 1
        return packed_logps(trainer, model, batch, batch_size, options.get("compute_entropy", False))

    def prepare(original: Callable, generation_batch):
        before = trainer._buffered_inputs
        with sharing_prefill(trainer, sharing):
            inputs = original(generation_batch)
        if trainer._buffered_inputs is before or not trainer.model.training:
            return inputs
        _regroup(trainer, sharing)
        return trainer._buffered_inputs[trainer._step % trainer.args.steps_per_generation]

    _check(trainer)
    override(trainer, "_get_per_token_logps_and_entropies", _LOGPS, logps, REMEDY)
    override(trainer, "_prepare_inputs", ("generation_batch",), prepare, REMEDY)
    return sharing


def _check(trainer: GRPOTrainer) -> None:
    """Raise where TRL has changed what is read of it, and warn where results will not be TRL's."""
    for name in _READ:
        if not hasattr(trainer, name):
            raise OverrideError(f"{type(trainer).__name__} has no {name} in this version of TRL: {REMEDY}")
    if active_dropout(trainer.model):
        logger.warning(
            "dropout is on: a prompt's completions see one draw of it, where TRL's own steps draw for each. Set "
            "lora_dropout: 0 and disable_dropout: true for the same results"
        )


def active_dropout(model: torch.nn.Module) -> bool:
    """Whether some layer drops out while the model trains."""
    return any(
        getattr(module, "p", 0) > 0 if isinstance(module, torch.nn.Dropout) else getattr(module, "attention_dropout", 0)
        for module in model.modules()
    )


@torch.no_grad()
def difference(trainer: GRPOTrainer, original: Callable, model: torch.nn.Module) -> float:
    """How far packed log-probabilities are from TRL's on a few random rows, relative to the largest of them.

    Architectures differ in what they make of a mask of ours; one that ignores it would train on something else.
    """
    vocabulary = extract_model_from_parallel(model).config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids_RT = torch.randint(0, vocabulary, (2, 9), generator=generator).repeat_interleave(2, 0)
    ids_RT[:, -4:] = torch.randint(0, vocabulary, (4, 4), generator=generator)
    mask_RT = torch.ones_like(ids_RT)
    mask_RT[2:, :2] = 0  # a shorter prompt
    mask_RT[3, -1] = 0  # a shorter completion
    ids_RT, mask_RT = (part.to(trainer.accelerator.device) for part in (ids_RT, mask_RT))
    with evaluating(model):
        wanted_RC = original(model, ids_RT, mask_RT, 4)[0]
        found_RC, _, _ = packed_logps(trainer, model, Batch(ids_RT, mask_RT, 4), None, False)
    return float((found_RC - wanted_RC).abs().max() / wanted_RC.abs().max())


def _tolerated(trainer: GRPOTrainer, model: torch.nn.Module) -> float:
    mixed = trainer.accelerator.mixed_precision not in ("no", None)
    return _COARSE if mixed else _ROUNDING.get(extract_model_from_parallel(model).dtype, _COARSE)


def _regroup(trainer: GRPOTrainer, sharing: Sharing) -> None:
    """Put rows of one prompt next to each other again, within the micro-batches that one optimizer step adds up.

    TRL shuffles the buffer, so that every micro-batch holds strangers. What an optimizer step sees stays the same, and
    with it the gradient, unless the loss is normalised a micro-batch at a time.
    """
    args, buffer = trainer.args, trainer._buffered_inputs
    by_batch = args.loss_type == "bnpo" or trainer._entropy_bonus_enabled or trainer.aux_loss_enabled
    if by_batch or trainer.top_entropy_quantile < 1:
        sharing.fall_back("micro-batches", "a term is reckoned within each, so their rows stay as they were drawn")
        return
    # Blocks of this many micro-batches never straddle an optimizer step.
    span = math.gcd(args.gradient_accumulation_steps, len(buffer))
    if span == 1 or any("num_images" in inputs for inputs in buffer):
        return
    for start in range(0, len(buffer), span):
        buffer[start : start + span] = _sorted(buffer[start : start + span])


def _sorted(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in as many parts of the same sizes, by prompt."""
    sizes = [len(part["prompt_ids"]) for part in parts]
    rows = {
        name: torch.cat([part[name] for part in parts])
        for name, value in parts[0].items()
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == sizes[0]
    }
    order_R = torch.argsort(group_rows(rows["prompt_ids"], rows["prompt_mask"]), stable=True)
    split = {name: value[order_R].split(sizes) for name, value in rows.items()}
    return [{**part, **{name: pieces[i] for name, pieces in split.items()}} for i, part in enumerate(parts)]
