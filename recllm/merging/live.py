"""One live model that becomes one point after the other, and the evaluator that asks it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recllm.device import device_here
from recllm.evaluation.samples import Evaluator, Samples
from recllm.merging.checkpoint import Weights, stored_dtype
from recllm.merging.engine import MergeEngine
from recllm.merging.methods import DIRECT
from recllm.merging.space import Point

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Bench:
    """Parents that are mapped, a model in their dtype, and an evaluator. Nothing is loaded before the first point.

    Args:
        folders: role -> local folder.
        points: those that may be asked for.
        workers, streams: as the preflight found.
    """

    def __init__(
        self, folders: Mapping[str, Path], points: Iterable[Point], evaluator: Evaluator, workers: int, streams: bool
    ) -> None:
        self.folders, self.points, self.evaluator = dict(folders), tuple(points), evaluator
        self.workers, self.streams = workers, streams

    @cached_property
    def engine(self) -> MergeEngine:
        """The fast path over the parents."""
        weights = {role: Weights(folder) for role, folder in self.folders.items()}
        return MergeEngine(weights, self.points, workers=self.workers)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The direct parent as transformers loads it, on this process's device."""
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, stored_dtype(self.engine.parents.values()))
        return AutoModelForCausalLM.from_pretrained(self.folders[DIRECT], dtype=dtype).to(_own_device())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The direct parent's; the preflight found the others to be the same."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folders[DIRECT])

    def ask(self, point: Point) -> tuple[Samples, dict[str, float]]:
        """A point's samples, and the seconds that merging and evaluating took.

        Raises:
            FloatingPointError: the point's logits are not finite.
            TypeError: the evaluator answered with something else than samples.
            Exception: whatever the evaluator raises.
        """
        from transformers import set_seed

        targets, tokenizer = self.model.state_dict(), self.tokenizer
        began = time.perf_counter()
        self.engine.write_into(point, targets)
        if self.streams:
            for name in self.engine.layout.places:
                self.engine.release(name)
        merged = time.perf_counter()
        self.model.eval()
        set_seed(0)  # for an evaluator that draws from the global generators: no point hears of those before it
        with _finite_logits(self.model):
            samples = self.evaluator(self.model, tokenizer)
        if not isinstance(samples, Samples):
            raise TypeError(f"the evaluator answered with {type(samples).__name__}, it must be Samples")
        done = time.perf_counter()
        return samples, {"merge_seconds": round(merged - began, 4), "evaluate_seconds": round(done - merged, 4)}


@contextlib.contextmanager
def _finite_logits(model: PreTrainedModel) -> Iterator[None]:
    """Look at all logits that are computed in the block; greedy decoding of NaN would answer as if nothing were wrong.

    The flag stays on the model's device until the block ends, so that no step waits for it.
    """
    head = model.get_output_embeddings()
    is_bad = torch.zeros((), dtype=torch.bool, device=model.device)

    def look(_module: torch.nn.Module, _inputs: tuple, logits: torch.Tensor) -> None:
        # One pass over the logits. A sum of finite ones is finite in float32, one with NaN or infinity is not.
        is_bad.logical_or_(~torch.isfinite(logits.detach().sum(dtype=torch.float32)))

    handle = head.register_forward_hook(look)
    try:
        yield
    except Exception as error:
        if is_bad.item():
            raise FloatingPointError(f"the merged model's logits are not finite ({error})") from error
        raise
    finally:
        handle.remove()
    if is_bad.item():
        raise FloatingPointError("the merged model's logits are not finite")


def _own_device() -> torch.device:
    """The accelerator, each rank of a launch on its own, or the CPU."""
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
    return device_here()
