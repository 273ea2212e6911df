"""The one fit loop of the backbones: early stop on validation, resume after a kill, progress on the terminal; and what
a fitted backbone is asked for: ranks over the whole catalogue, lists, metrics.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from recllm.backbones.base import Backbone, uses_time
from recllm.backbones.batches import example_batches
from recllm.backbones.optimizers import make_optimizers
from recllm.backbones.ranks import best_items, count_ranks
from recllm.backbones.resume import Checkpointer, Progress
from recllm.data.splits import Examples
from recllm.metrics.bootstrap import flat, mean_interval
from recllm.metrics.ranking import ndcg_at_k, recall_at_k

# Scores of a batch of examples held at once, 64 MiB of float32.
_SCORES = 1 << 24


@dataclass(frozen=True)
class FitReport:
    """What a fit did. `best_metric` is the validation metric of the epoch whose weights were kept.

    `seconds` counts all sittings of a resumed fit; `history` has each epoch's mean `loss`, `metric` and `seconds`.
    """

    best_metric: float
    best_epoch: int
    epochs: int
    seconds: float
    history: tuple[dict[str, float], ...] = field(default=())


def fit(
    model: torch.nn.Module,
    batches: Callable[[int], Iterable[tuple[torch.Tensor, ...]]],
    loss: Callable[..., torch.Tensor],
    validate: Callable[[], float],
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    patience: int,
    label: str,
    optimizer: str = "adamw",
    betas: tuple[float, float] = (0.9, 0.999),
    folder: str | Path | None = None,
    rngs: Sequence[np.random.Generator] = (),
) -> FitReport:
    """Train until `epochs`, or until `validate()` (higher is better) has not risen for `patience` epochs.

    The weights of the best epoch are put back. Batches are moved to the model's device.

    Args:
        optimizer, betas: `adam` or `adamw`; embeddings with `sparse` set are updated row by row, see `LazyAdam`.
        folder: the state after each epoch is kept in its checkpoint-fit/; a fit that finds one there goes on from it
            as if it had never been interrupted. The caller removes it (`discard_checkpoint`).
        rngs: the numpy generators that `batches` draws from, kept with the state. Torch's are kept anyway.

    Raises:
        FloatingPointError: the loss is not finite; the message names epoch and step.
        ValueError: the checkpoint cannot be read, or another model or other settings left it.
    """
    asked = {"label": label, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "betas": betas}
    optimizers = make_optimizers(model, optimizer, lr, weight_decay, betas)
    keeper = None if folder is None else Checkpointer(Path(folder), model, optimizers, rngs, asked)
    progress, best_state = (keeper and keeper.restore()) or (Progress(), copy.deepcopy(model.state_dict()))
    with Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(label, total=epochs, completed=progress.epoch)
        while progress.epoch < epochs and (not progress.epoch or progress.epoch - 1 - progress.best_epoch < patience):
            began = time.monotonic()
            mean = _train_epoch(model, batches(progress.epoch), loss, optimizers, f"{label} {progress.epoch}")
            metric = validate()
            if metric > progress.best:
                progress.best, progress.best_epoch = metric, progress.epoch
                best_state = copy.deepcopy(model.state_dict())
            progress.ended(mean, metric, time.monotonic() - began)
            if keeper is not None:
                keeper.save(progress, best_state)
            bar.update(task, advance=1, description=f"{label} {progress.told}")
    model.load_state_dict(best_state)
    return FitReport(progress.best, progress.best_epoch, progress.epoch, progress.seconds, tuple(progress.history))


def _train_epoch(
    model: torch.nn.Module,
    batches: Iterable[tuple[torch.Tensor, ...]],
    loss: Callable[..., torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    where: str,
) -> float:
    """One pass over the batches in training mode; the mean loss of its steps. Leaves the model in evaluation mode."""
    device = next(model.parameters()).device
    model.train()
    total, steps = 0.0, 0
    for step, batch in enumerate(batches):
        value = loss(*(part.to(device) for part in batch))
        told = value.item()
        if not math.isfinite(told):
            label, _, epoch = where.rpartition(" ")
            raise FloatingPointError(f"{label}: loss is {told} at epoch {epoch}, step {step}")
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        total, steps = total + told, step + 1
    model.eval()
    return total / max(steps, 1)


@torch.no_grad()
def full_ranks(model: Backbone, examples: Examples, exclude_seen: bool, batch_size: int | None = None) -> np.ndarray:
    """Rank of each example's target over the whole catalogue, `rank_E` (0 is first), by counting better items.

    With `exclude_seen` the items of the history leave the ranking, the target never does. `batch_size` is by default
    256, or as many examples as keep the scores of a batch under 64 MiB.
    """
    rank_E, targets_E = np.zeros(len(examples)), examples.targets_E
    size = batch_size or max(min(256, _SCORES // max(getattr(model, "num_items", 0), 1)), 1)
    for rows, scores_BN in score_batches(model, examples, size):
        seen = [examples.history(row) for row in rows] if exclude_seen else None
        rank_E[rows] = count_ranks(scores_BN.float(), targets_E[rows], seen)
    return rank_E


@torch.no_grad()
def score_batches(
    model: Backbone, examples: Examples, batch_size: int = 256
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (rows of `examples`, `scores_BN`) in batches of like history length; times go to models that use them."""
    device = next(model.parameters()).device
    for rows, parts in example_batches(examples, model.max_len, batch_size, uses_time(model)):
        yield rows, model.score(*(part.to(device) for part in parts))


@torch.no_grad()
def top_lists(model: Backbone, examples: Examples, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every example and their scores: `items_EK` int32, `scores_EK` float32, best first.

    Ties go to the lower item id. Raises `ValueError` where an example has fewer than k items left.
    """
    items_EK = np.zeros((len(examples), k), dtype=np.int32)
    scores_EK = np.zeros((len(examples), k), dtype=np.float32)
    for rows, scores_BN in score_batches(model, examples):
        scores_BN = scores_BN.float()
        if exclude_seen:
            for place, row in enumerate(rows):
                scores_BN[place, torch.as_tensor(examples.history(row).astype(np.int64))] = float("-inf")
        if not 0 < k <= scores_BN.shape[1]:
            raise ValueError(f"asked for {k} of {scores_BN.shape[1]} items")
        top_BK, order_BK = best_items(scores_BN, k)
        if not torch.isfinite(top_BK).all():
            raise ValueError(f"an example has fewer than {k} unseen items; ask for less")
        items_EK[rows], scores_EK[rows] = order_BK.int().cpu().numpy(), top_BK.cpu().numpy()
    return items_EK, scores_EK


def ranking_metrics(rank_E: np.ndarray, ks: tuple[int, ...] = (5, 10)) -> dict[str, float]:
    """NDCG and Recall at each cut-off with bootstrap 95% intervals (`_lo`, `_hi`), and the count `n`."""
    metrics: dict[str, float] = {"n": len(rank_E)}
    for k in ks:
        metrics |= flat(f"ndcg@{k}", mean_interval(ndcg_at_k(rank_E, k)))
        metrics |= flat(f"recall@{k}", mean_interval(recall_at_k(rank_E, k)))
    return metrics
