"""The one fit loop of the backbones: length buckets, AdamW, early stop on validation, progress on the terminal."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recllm.backbones.base import Backbone, left_align
from recllm.data.interactions import Sequences
from recllm.data.splits import Examples
from recllm.metrics.bootstrap import flat, mean_interval
from recllm.metrics.ranking import ndcg_at_k, rank_of_targets, recall_at_k


@dataclass(frozen=True)
class FitReport:
    """What a fit did. `best_metric` is the validation metric of the epoch whose weights were kept."""

    best_metric: float
    best_epoch: int
    epochs: int
    seconds: float


def windows(
    sequences: Sequences, fit_length_U: np.ndarray, max_len: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every user's fitting fold into windows of at most `max_len` + 1 events, each event a target once.

    The cut starts at a random offset, so that over the epochs an event is seen at every depth of context. Returns
    (start_W, length_W): flat positions into `sequences.items_M`; windows of fewer than 2 events are dropped.
    """
    start_U = sequences.offsets_U1[:-1]
    pieces = []
    shift_U = rng.integers(0, max_len, size=len(fit_length_U))
    deepest = int(fit_length_U.max(initial=0)) // max_len + 2
    for step in range(deepest):
        begin_U = np.maximum(step * max_len - shift_U, 0)
        end_U = np.minimum((step + 1) * max_len - shift_U + 1, fit_length_U)
        keep_U = end_U - begin_U >= 2
        pieces.append(np.stack([(start_U + begin_U)[keep_U], (end_U - begin_U)[keep_U]]))
    start_W, length_W = np.concatenate(pieces, axis=1)
    return start_W, length_W


def window_batches(
    sequences: Sequences, fit_length_U: np.ndarray, max_len: int, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (`history_BT`, `target_BT`), item id + 1, left-aligned; windows of like length share a batch."""
    start_W, length_W = windows(sequences, fit_length_U, max_len, rng)
    order_W = np.argsort(length_W + rng.random(len(length_W)), kind="stable")
    batches = np.split(order_W, np.arange(batch_size, len(order_W), batch_size))
    for index in rng.permutation(len(batches)):
        chosen_B = batches[index]
        width = int(length_W[chosen_B].max())
        column_BT = start_W[chosen_B][:, None] + np.arange(width)[None]
        inside_BT = np.arange(width)[None] < length_W[chosen_B][:, None]
        event_BT = sequences.items_M[np.minimum(column_BT, len(sequences.items_M) - 1)].astype(np.int64) + 1
        event_BT = torch.from_numpy(np.where(inside_BT, event_BT, 0))
        yield event_BT[:, :-1] * (event_BT[:, 1:] > 0), event_BT[:, 1:]


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
) -> FitReport:
    """Train until `epochs`, or until `validate()` (higher is better) has not risen for `patience` epochs.

    The weights of the best epoch are put back. Batches are moved to the model's device.

    Raises:
        FloatingPointError: the loss is not finite; the message names epoch and step.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, best_epoch, best_state = -math.inf, -1, copy.deepcopy(model.state_dict())
    began = time.monotonic()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with bar:
        task = bar.add_task(label, total=epochs)
        for epoch in range(epochs):
            model.train()
            for step, batch in enumerate(batches(epoch)):
                value = loss(*(part.to(device) for part in batch))
                if not torch.isfinite(value):
                    raise FloatingPointError(f"{label}: loss is {value.item()} at epoch {epoch}, step {step}")
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
            model.eval()
            metric = validate()
            if metric > best:
                best, best_epoch, best_state = metric, epoch, copy.deepcopy(model.state_dict())
            bar.update(task, advance=1, description=f"{label} loss {value.item():.3f} val {metric:.4f} best {best:.4f}")
            if epoch - best_epoch >= patience:
                break
    model.load_state_dict(best_state)
    return FitReport(best, best_epoch, epoch + 1, time.monotonic() - began)


@torch.no_grad()
def full_ranks(model: Backbone, examples: Examples, exclude_seen: bool, batch_size: int = 256) -> np.ndarray:
    """Rank of each example's target over the whole catalogue, `rank_E` (0 is first).

    With `exclude_seen` the items of the history leave the ranking, the target never does.
    """
    rank_E = np.zeros(len(examples))
    for rows, scores_BN in score_batches(model, examples, batch_size):
        seen = [examples.history(row) for row in rows] if exclude_seen else None
        rank_E[rows] = rank_of_targets(scores_BN.float().cpu().numpy(), examples.targets_E[rows], exclude=seen)
    return rank_E


@torch.no_grad()
def score_batches(
    model: Backbone, examples: Examples, batch_size: int = 256
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield (rows of `examples`, `scores_BN`) in batches of like history length."""
    if not len(examples):
        return
    device = next(model.parameters()).device
    order_E = np.argsort(examples.lengths_E, kind="stable")
    histories_ET = torch.from_numpy(examples.padded_histories(model.max_len))
    for rows in np.split(order_E, np.arange(batch_size, len(order_E), batch_size)):
        yield rows, model.score(left_align(histories_ET[rows]).to(device))


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
        order_BN = torch.argsort(scores_BN, dim=1, descending=True, stable=True)[:, :k]
        top_BK = scores_BN.gather(1, order_BN)
        if not torch.isfinite(top_BK).all():
            raise ValueError(f"an example has fewer than {k} unseen items; ask for less")
        items_EK[rows], scores_EK[rows] = order_BN.int().cpu().numpy(), top_BK.cpu().numpy()
    return items_EK, scores_EK


def ranking_metrics(rank_E: np.ndarray, ks: tuple[int, ...] = (5, 10)) -> dict[str, float]:
    """NDCG and Recall at each cut-off with bootstrap 95% intervals (`_lo`, `_hi`), and the count `n`."""
    metrics: dict[str, float] = {"n": len(rank_E)}
    for k in ks:
        metrics |= flat(f"ndcg@{k}", mean_interval(ndcg_at_k(rank_E, k)))
        metrics |= flat(f"recall@{k}", mean_interval(recall_at_k(rank_E, k)))
    return metrics
