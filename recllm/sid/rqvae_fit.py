"""The training loop of an RQ-VAE: batches, dead codes, early stop, one progress line."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recllm.sid.quantizer import collision_rate
from recllm.sid.rqvae_network import Quantised, squared_distances

if TYPE_CHECKING:
    from recllm.sid.rqvae import RQVAE


def fit_network(network: Quantised, vectors_ND: torch.Tensor, settings: RQVAE, generator: torch.Generator) -> None:
    """Train `network` in place and leave it at its best measurement.

    A measurement encodes all vectors: mse is the squared error of the reconstruction, summed over the axes and
    averaged over the items, and the collision rate that of the codes; mse / (1 - collision rate) decides.

    Raises:
        FloatingPointError: the loss is not finite; the message names the epoch.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.0)
    best, best_epoch, best_state = math.inf, -1, copy.deepcopy(network.state_dict())
    used = [torch.zeros(size, dtype=torch.long, device=vectors_ND.device) for size in settings.level_sizes]
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with bar:
        task = bar.add_task("rqvae", total=settings.epochs)
        for epoch in range(settings.epochs):
            for rows_B in torch.randperm(len(vectors_ND), generator=generator).split(settings.batch_size):
                loss, codes_BL = network.loss(
                    vectors_ND[rows_B.to(vectors_ND.device)], settings.beta, settings.sinkhorn
                )
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"rqvae: loss is {loss.item()} in epoch {epoch}; lower the learning rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                for counts_K, codes_B in zip(used, codes_BL.T, strict=True):
                    counts_K += torch.bincount(codes_B, minlength=len(counts_K))
            bar.update(task, advance=1)
            if (epoch + 1) % settings.check_every and epoch + 1 < settings.epochs:
                continue
            mse, collisions = measure(network, vectors_ND)
            score = mse / (1 - collisions)
            if score < best:
                best, best_epoch, best_state = score, epoch, copy.deepcopy(network.state_dict())
            bar.update(task, description=f"rqvae loss {loss.item():.3f} mse {mse:.3f} collisions {collisions:.3f}")
            if epoch - best_epoch >= settings.patience * settings.check_every:
                break
            revive(network, vectors_ND, used, generator)
            for counts_K in used:
                counts_K.zero_()
    network.load_state_dict(best_state)


@torch.no_grad()
def measure(network: Quantised, vectors_ND: torch.Tensor) -> tuple[float, float]:
    """Mean squared error of the reconstruction (summed over the axes) and collision rate of all vectors."""
    codes_NL, _, _ = network.quantise(network.encode(vectors_ND), beta=0.0)
    error = (network.decode(codes_NL) - vectors_ND).square().sum(1).mean()
    return float(error), collision_rate(codes_NL.cpu().numpy().astype(np.int64))


@torch.no_grad()
def revive(network: Quantised, vectors_ND: torch.Tensor, used: list[torch.Tensor], generator: torch.Generator) -> int:
    """Move the codes that `used` counts no row for to residuals of random vectors; returns how many moved.

    `used` holds the number of rows (codes,) of each level. With more dead codes than vectors the rest stays.
    """
    residual_ND, moved = network.encode(vectors_ND), 0
    for entries_KD, counts_K in zip(network.codebooks, used, strict=True):
        codes_N = squared_distances(residual_ND, entries_KD).argmin(1)
        dead_E = (counts_K == 0).nonzero().squeeze(1)[: len(vectors_ND)]
        rows_E = torch.randperm(len(vectors_ND), generator=generator)[: len(dead_E)].to(residual_ND.device)
        after_ND = residual_ND - entries_KD[codes_N]
        entries_KD[dead_E] = residual_ND[rows_E]
        residual_ND, moved = after_ND, moved + len(dead_E)
    return moved
