"""From a data set folder to a fitted backbone: one function a kind, the same shape of answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recllm.backbones.base import uses_time
from recllm.backbones.batches import window_batches
from recllm.backbones.din import DIN
from recllm.backbones.fit import FitReport, fit, full_ranks, ranking_metrics, top_lists
from recllm.backbones.hstu import HSTU
from recllm.backbones.losses import Objective
from recllm.backbones.optimizers import use_sparse_rows
from recllm.backbones.priors import FILE as PRIORS_FILE
from recllm.backbones.priors import PriorOptions, Priors, WithPriors
from recllm.backbones.ranker import NUM_FEATURES, CandidateFeatures, candidate_set, rerank
from recllm.backbones.sasrec import SASRec
from recllm.data.catalog import Catalog
from recllm.data.splits import DATASET_FILE, Split, load_split
from recllm.device import device_here
from recllm.metrics.compare import save_ranks
from recllm.metrics.ranking import ndcg_at_k, rank_in_list, recall_at_k
from recllm.provenance import load_run, read_json
from recllm.sid.embeddings import load_embeddings

SEQUENTIAL = {"sasrec": SASRec, "hstu": HSTU}
_BOTH = ("max_len", "hidden_dim", "num_blocks", "num_heads", "dropout", "tie_embeddings", "pooling", "pool_k")
_OWN = {"sasrec": ("ffn",), "hstu": ("linear_dim", "attention_dim", "attn_dropout")}
# None leaves them to the backbone, whose defaults are those of its paper.
_PAPERS = ("position", "l2_norm", "temperature", "init_std")
_METRICS = {"ndcg": ndcg_at_k, "recall": recall_at_k}


def build_sequential(num_items: int, time: str, args: Any) -> SASRec | HSTU:
    """A SASRec or HSTU with fresh weights; `args` has the fields of the recipe, `time` is the data set's.

    Raises:
        ValueError: the time bias is required where the data set has only an order, or of SASRec; an option is out of
            range; item vectors without a fusion, or of other items.
    """
    kind = args.backbone
    options = {name: getattr(args, name) for name in (*_BOTH, "share_blocks", *_OWN[kind])}
    options |= {name: value for name in _PAPERS if (value := getattr(args, name)) is not None}
    if args.time_bias == "required" and kind != "hstu":
        raise ValueError(f"time_bias required: {kind} has no time bias; take backbone hstu, or time_bias none")
    if args.time_bias == "required" and time != "seconds":
        raise ValueError(
            f"time_bias required: {DATASET_FILE} says time: {time}, so its timestamps are no times; "
            "set time_bias to auto or none"
        )
    if kind == "hstu":
        options["time_bias"] = args.time_bias != "none" and time == "seconds"
    if args.item_vectors and args.embedding_fusion == "none":
        raise ValueError("item_vectors are given and embedding_fusion is none: set it to add or gate")
    vectors_ND = load_embeddings(args.item_vectors) if args.item_vectors else None
    options["content_dim"] = 0 if vectors_ND is None else vectors_ND.shape[1]
    model = SEQUENTIAL[kind](num_items, embedding_fusion=args.embedding_fusion, **options)
    if model.fusion is not None:
        model.fusion.learn_vectors(vectors_ND)
    return model


def train_sequential(dataset: str | Path, args: Any) -> tuple[torch.nn.Module, dict[str, float]]:
    """Fit SASRec or HSTU on the fitting fold; the epoch with the best validation metric is kept.

    Metrics are validation's, and with `report_test` test's, read once at the end. Where a prior has a weight, the
    answer is the model with its priors, and the model's own metrics go under `validation_plain`.
    """
    catalog, split = Catalog.load(dataset), load_split(dataset)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    options = PriorOptions(*(getattr(args, f"prior_{name}") for name in PriorOptions.__dataclass_fields__))
    objective, measure = _objective(split, len(catalog), args), _measure(args.metric)
    model = build_sequential(len(catalog), read_json(Path(dataset) / DATASET_FILE)["time"], args).to(device_here())
    if args.sparse_rows:
        use_sparse_rows(model)
    if args.compile:
        model.compile(dynamic=True)
    if not 1 <= (width := args.train_window or args.max_len) <= args.max_len:
        raise ValueError(f"train_window {width} must lie between 1 and max_len {args.max_len}")
    report = fit(
        model,
        batches=lambda epoch: window_batches(
            *(split.fitting, split.fit_length_U, width, args.batch_size, rng), args.train_targets, uses_time(model)
        ),
        loss=lambda *batch: objective(model, *batch),
        validate=lambda: measure(full_ranks(model, split.validation, args.exclude_seen)),
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        patience=args.patience,
        label=args.backbone,
        optimizer=args.optimizer,
        betas=(0.9, args.beta2),
        folder=args.output_dir,
        rngs=[rng],
    )
    model.eval()
    metrics = {}
    if options.active:
        metrics |= _ranking("validation_plain", full_ranks(model, split.validation, args.exclude_seen))
        model = WithPriors(model, Priors.from_fitting_fold(split.fitting, len(catalog), options))
    ranks = {}
    for role in ("validation", "test") if args.report_test else ("validation",):
        examples = getattr(split, role)
        rank_E = full_ranks(model, examples, args.exclude_seen)
        metrics |= _ranking(role, rank_E)
        ranks[role] = (examples.user_ids_E, rank_E)
    save_ranks(args.output_dir, ranks)
    return model, metrics | _facts(model, report)


def _objective(split: Split, items: int, args: Any) -> Objective:
    events_N = torch.from_numpy(np.bincount(split.fitting.items_M, minlength=items))
    if args.sparse_rows and args.loss == "softmax" and not args.num_negatives:
        raise ValueError("sparse_rows: the full softmax touches every row; set num_negatives, or loss bce")
    return Objective(args.loss, args.num_negatives, args.proposal, args.logq, events_N)


def _measure(metric: str) -> Callable[[np.ndarray], float]:
    """The mean of a metric such as ndcg@10 or recall@5 over ranks."""
    name, _, k = metric.partition("@")
    if name not in _METRICS or not k.isdigit() or int(k) < 1:
        raise ValueError(f"metric {metric!r} is unknown; write {' or '.join(_METRICS)}, @ and a cut-off, as in ndcg@10")
    return lambda rank_E: float(_METRICS[name](rank_E, int(k)).mean())


def save_backbone(model: torch.nn.Module, folder: str | Path) -> None:
    """Write the weights in Hub layout, and the priors where the model has some."""
    (Path(folder) / PRIORS_FILE).unlink(missing_ok=True)
    if isinstance(model, WithPriors):
        model.priors.save(folder)
        model = model.model
    model.save_pretrained(folder)


def load_sequential(folder: str | Path) -> torch.nn.Module:
    """The SASRec or HSTU of a run's folder, with its priors where it has some, in evaluation mode on this device.

    Raises:
        ValueError: the folder holds another kind of backbone.
    """
    kind = (load_run(folder) or {}).get("config", {}).get("backbone", "sasrec")
    if kind not in SEQUENTIAL:
        raise ValueError(f"{folder} is a {kind}, not one of {', '.join(SEQUENTIAL)}")
    model = SEQUENTIAL[kind].from_pretrained(str(folder)).to(device_here()).eval()
    return WithPriors(model, Priors.load(folder)) if (Path(folder) / PRIORS_FILE).is_file() else model


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
        folder=args.output_dir,
        rngs=[rng],
    )
    return model, _ranking("validation", ranks()) | _facts(model, report) | {"train_lists": len(train.items_EM)}


TRAINERS: dict[str, Callable[..., tuple[torch.nn.Module, dict[str, float]]]] = {
    "sasrec": train_sequential,
    "hstu": train_sequential,
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


def _ranking(prefix: str, rank_E: np.ndarray) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in ranking_metrics(rank_E).items()}


def _facts(model: torch.nn.Module, report: FitReport) -> dict[str, float]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"parameters": parameters, "epochs": report.epochs, "best_epoch": report.best_epoch}
    return facts | {"train_seconds": round(report.seconds, 1)}
