"""From a data set folder to a fitted backbone: one function a kind, the same shape of answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recllm.backbones.din import DIN
from recllm.backbones.fit import fit, full_ranks, ranking_metrics, top_lists, window_batches
from recllm.backbones.ranker import NUM_FEATURES, CandidateFeatures, candidate_set, rerank
from recllm.backbones.sasrec import SASRec
from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.device import device_here
from recllm.metrics.ranking import ndcg_at_k, rank_in_list


def train_sasrec(dataset: str | Path, args: Any) -> tuple[SASRec, dict[str, float]]:
    """Fit SASRec on the fitting fold; the epoch with the best validation NDCG@10 is kept. Metrics are validation's."""
    catalog, split = Catalog.load(dataset), load_split(dataset)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = SASRec(
        len(catalog), args.max_len, args.hidden_dim, args.num_blocks, args.num_heads, args.dropout, args.tie_embeddings
    ).to(device_here())
    report = fit(
        model,
        batches=lambda epoch: window_batches(split.fitting, split.fit_length_U, args.max_len, args.batch_size, rng),
        loss=lambda history, target: model.loss(history, target, args.num_negatives),
        validate=lambda: float(ndcg_at_k(full_ranks(model, split.validation, args.exclude_seen), 10).mean()),
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        patience=args.patience,
        label="sasrec",
    )
    rank_E = full_ranks(model.eval(), split.validation, args.exclude_seen)
    return model, _metrics("validation", rank_E, model, report)


def train_din(dataset: str | Path, args: Any) -> tuple[DIN, dict[str, float]]:
    """Fit DIN on half A's routing targets over the retriever's list; validation decides the epoch.

    Lists that lack their target teach nothing and are left out, unless `inject_target` puts it in as published; the
    published way trains the ranker on lists that the retriever never gives.
    """
    catalog, split = Catalog.load(dataset), load_split(dataset)
    if split.kind != "roles":
        raise ValueError(f"{dataset} is split {split.kind}; a ranker needs split: roles (its targets are half A's)")
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    retriever = SASRec.from_pretrained(str(args.retriever)).to(device_here()).eval()
    features = CandidateFeatures.from_fitting_fold(split, catalog)

    def candidates(examples, inject_target=False):
        items_EM, scores_EM = top_lists(retriever, examples, args.candidates, exclude_seen=True)
        if not inject_target and examples is routing:
            kept_E = (items_EM == examples.targets_E[:, None]).any(1)
            examples, items_EM, scores_EM = examples.subset(kept_E), items_EM[kept_E], scores_EM[kept_E]
        return candidate_set(examples, items_EM, scores_EM, features, args.max_len, inject_target)

    routing = split.routing("A")
    train, validation = candidates(routing, args.inject_target), candidates(split.validation)
    model = DIN(len(catalog), NUM_FEATURES, args.hidden_dim, args.attention_hidden, args.max_len, args.dropout).to(
        device_here()
    )

    def ranks() -> np.ndarray:
        return rank_in_list(rerank(model.eval(), validation)[0], split.validation.targets_E)

    report = fit(
        model,
        batches=lambda epoch: train.batches(args.batch_size, rng),
        loss=lambda *batch: model.loss(*batch, listwise=args.listwise),
        validate=lambda: float(ndcg_at_k(ranks(), 10).mean()),
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        patience=args.patience,
        label="din",
    )
    return model, _metrics("validation", ranks(), model, report) | {"train_lists": len(train.items_EM)}


TRAINERS: dict[str, Callable[..., tuple[torch.nn.Module, dict[str, float]]]] = {
    "sasrec": train_sasrec,
    "din": train_din,
}


def train_backbone(backbone: str, dataset: str | Path, args: Any) -> tuple[torch.nn.Module, dict[str, float]]:
    """Fit the backbone of that name.

    Raises:
        ValueError: the name is unknown.
    """
    if backbone not in TRAINERS:
        raise ValueError(f"backbone {backbone!r} is unknown; choose one of {', '.join(TRAINERS)}")
    return TRAINERS[backbone](dataset, args)


def _metrics(prefix: str, rank_E: np.ndarray, model: torch.nn.Module, report: Any) -> dict[str, float]:
    named = {f"{prefix}/{name}": value for name, value in ranking_metrics(rank_E).items()}
    named["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return named | {"epochs": report.epochs, "best_epoch": report.best_epoch, "train_seconds": round(report.seconds, 1)}
