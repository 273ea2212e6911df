"""Fitting and grading TIGER and GLASS: one budget, one beam, ranks of items over the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recllm.backbones.batches import rows_by_length
from recllm.backbones.fit import FitReport, fit, ranking_metrics
from recllm.backbones.generate import recommend, trie_of
from recllm.backbones.glass import GLASS
from recllm.backbones.tiger import TIGER
from recllm.data.histories import HistoryBlocks, Prefixes, example_batches, write_histories
from recllm.data.splits import Examples, Split, load_split, sampled
from recllm.decoding.trie import SidTrie
from recllm.device import device_here
from recllm.metrics.bootstrap import flat, mean_interval
from recllm.metrics.compare import save_ranks
from recllm.metrics.ranking import ndcg_at_k, rank_in_scored_list
from recllm.sid.embeddings import load_embeddings
from recllm.sid.quantizer import LEVEL_LETTERS
from recllm.sid.table import SidTable

BACKBONES = ("tiger", "glass")
CUT_OFFS = (1, 3, 5, 10, 20)
# Named like a checkpoint: it is no part of what a run delivers.
HISTORIES_FILE = "checkpoint-histories.arrow"
_SHAPE = ("hidden_dim", "num_blocks", "num_heads", "head_dim", "ffn_dim", "dropout", "user_tokens")
_PARTS = ("tier", "retrieval", "gate", "retrieved", "neighbours", "threshold")


def build(backbone: str, table: SidTable, vectors_ND: np.ndarray | None, args: Any) -> TIGER | GLASS:
    """A model with fresh weights; `args` has the fields of the recipe.

    Raises:
        ValueError: an unknown backbone, and as `GLASS.of_table`.
    """
    options = _options(backbone, args)
    if backbone == "tiger":
        return TIGER.of_table(table, **options)
    return GLASS.of_table(table, vectors_ND, **options)


def build_empty(backbone: str, table: SidTable, args: Any) -> TIGER | GLASS:
    """The same model before it has learned the table: for counting its parameters.

    Raises:
        ValueError: an unknown backbone, or options that do not go together.
    """
    options = _options(backbone, args)
    return (TIGER if backbone == "tiger" else GLASS)(len(table), list(table.level_sizes), **options)


def _options(backbone: str, args: Any) -> dict[str, Any]:
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is unknown; choose one of {', '.join(BACKBONES)}")
    shape = {name: getattr(args, name) for name in _SHAPE}
    if backbone == "tiger":
        return {"max_len": args.max_len, **shape}
    return {"short_len": args.max_len, **shape, **{name: getattr(args, name) for name in _PARTS}}


@dataclass(frozen=True)
class Fold:
    """Who is fitted and graded: all users of a split, or as many as were asked for, drawn by seed."""

    split: Split
    rows: np.ndarray

    @classmethod
    def load(cls, dataset: str | Path, users: int | None, seed: int) -> Fold:
        """Raises ValueError where the data set has fewer users than asked for."""
        split = load_split(dataset)
        everyone = np.arange(len(split.sequences))
        if users is None:
            return cls(split, everyone)
        if not 0 < users <= len(everyone):
            raise ValueError(f"{users} users asked for, {dataset} has {len(everyone)}")
        return cls(split, np.sort(np.random.default_rng(seed).choice(everyone, users, replace=False)))

    @property
    def user_ids(self) -> np.ndarray:
        """Ids of these users."""
        return self.split.sequences.user_ids_U[self.rows]

    def examples(self, role: str) -> Examples:
        """Their validation or test examples."""
        examples = getattr(self.split, role)
        return examples.subset(np.isin(examples.user_E, self.rows))


def popular_trie(model: TIGER | GLASS, fold: Fold) -> SidTrie:
    """The catalogue's trie; of several items behind one sid the most popular in the fitting fold stands first."""
    events_N = np.bincount(fold.split.fitting.items_M, minlength=len(model.token_NL) - 1)
    return trie_of(model.token_NL, events_N)


@torch.no_grad()
def item_ranks(
    model: TIGER | GLASS,
    examples: Examples,
    trie: SidTrie,
    beams: int = 20,
    exclude_seen: bool = True,
    batch_size: int = 128,
) -> np.ndarray:
    """Expected rank of each target among the items that a beam reaches, `rank_E` from 0, inf where it is not reached.

    Items that share a sid share its score, so a target takes the mean of their places. With `exclude_seen` the items
    of the history leave the ranking, the target never does.
    """
    depth = int(trie.behind_V1.diff().sort(descending=True).values[:beams].sum())
    rank_E = np.full(len(examples), np.inf)
    histories = Prefixes.of_examples(examples)
    for rows in rows_by_length(examples, batch_size):
        targets_B, exclude = examples.targets_E[rows], None
        if exclude_seen:
            exclude = [np.setdiff1d(examples.history(row), examples.targets_E[row : row + 1]) for row in rows]
        found = recommend(model.writing(histories.subset(rows)), trie, depth, beams, exclude)
        items_BK, scores_BK = (part.cpu().numpy() for part in found)
        rank_E[rows] = rank_in_scored_list(items_BK == targets_B[:, None], scores_BK, items_BK >= 0)
    return rank_E


@dataclass(frozen=True)
class CodeRanks:
    """CRP: ranks of the true codes given the true codes before them, from 0, ties count half, float64 `EL`.

    `all_EL` counts all codes of a level, as in the paper; `trie_EL` those that may follow in the catalogue, which are
    the fewer the larger the codebooks before. `first_E` is the probability of the true first code.
    """

    all_EL: np.ndarray
    trie_EL: np.ndarray
    first_E: np.ndarray


@torch.no_grad()
def code_ranks(model: TIGER | GLASS, examples: Examples, trie: SidTrie, batch_size: int = 256) -> CodeRanks:
    """How the targets' codes stand among the codes of their levels."""
    shape = (len(examples), trie.depth)
    ranks = CodeRanks(np.zeros(shape), np.zeros(shape), np.zeros(len(examples)))
    histories, device = Prefixes.of_examples(examples), trie.device
    for rows in rows_by_length(examples, batch_size):
        batch = [part.to(device) for part in model.collate(histories.subset(rows))]
        token_BL = model.token_NL[batch[2] + 1]
        node_B = torch.zeros(len(rows), dtype=torch.long, device=device)
        for level, logits_BC in enumerate(part[:, 0].float() for part in model.logits(*batch)):
            start = model.starts[level]
            children = trie.children_batched(node_B)
            row_F = torch.repeat_interleave(torch.arange(len(rows), device=device), children.offsets_B1.diff())
            allowed_BC = torch.zeros_like(logits_BC, dtype=torch.bool)
            allowed_BC[row_F, children.tokens_F - start] = True
            own_B1 = logits_BC.gather(1, token_BL[:, level : level + 1] - start)
            for found_EL, among_BC in ((ranks.all_EL, torch.ones_like(allowed_BC)), (ranks.trie_EL, allowed_BC)):
                higher_B = (among_BC & (logits_BC > own_B1)).sum(1)
                tied_B = (among_BC & (logits_BC == own_B1)).sum(1) - 1
                found_EL[rows, level] = (higher_B + tied_B / 2).cpu().numpy()
            node_B = trie.step_batched(node_B, token_BL[:, level])
            if level == 0:
                ranks.first_E[rows] = (own_B1[:, 0] - logits_BC.logsumexp(1)).exp().cpu().numpy()
    return ranks


def grade(
    model: TIGER | GLASS, examples: Examples, trie: SidTrie, beams: int, exclude_seen: bool
) -> tuple[dict[str, float], np.ndarray]:
    """Recall and NDCG at 1 to 20 (Recall@1 is H@1), CRP and the first code, all with intervals; and the ranks `rank_E`.

    `crp/b` is the mean rank of the true second code among all codes, `crp_trie/b` among those that may follow in the
    catalogue, `crp_found/b` the former over the targets that the beam reaches; `first_code/accuracy` and
    `first_code/probability` are those of the true first code.
    """
    rank_E = item_ranks(model, examples, trie, beams, exclude_seen)
    codes, found_E = code_ranks(model, examples, trie), np.isfinite(rank_E)
    metrics = ranking_metrics(rank_E, tuple(k for k in CUT_OFFS if k <= beams))
    for level in range(1, trie.depth):
        named = LEVEL_LETTERS[level]
        metrics |= flat(f"crp/{named}", mean_interval(codes.all_EL[:, level]))
        metrics |= flat(f"crp_trie/{named}", mean_interval(codes.trie_EL[:, level]))
        if found_E.any():
            metrics |= flat(f"crp_found/{named}", mean_interval(codes.all_EL[found_E, level]))
    metrics |= flat("first_code/accuracy", mean_interval(codes.trie_EL[:, 0] < 0.5))
    return metrics | flat("first_code/probability", mean_interval(codes.first_E)), rank_E


def train_generative(dataset: str | Path, sid_table: str | Path, args: Any) -> tuple[TIGER | GLASS, dict[str, float]]:
    """Fit on the fitting fold, keep the epoch with the best validation NDCG, then read the test targets once.

    With `report_test` false they are never read.

    `args` has the fields of the recipe. In its `output_dir` the fit keeps its state after each epoch and goes on from
    there when called again (see `fit`), and ranks.parquet is left, see `save_ranks`.

    Raises:
        ValueError: the SID table has another number of items than the data set knows.
    """
    fold, table = Fold.load(dataset, args.users, args.seed), SidTable.load(sid_table)
    if (highest := int(fold.split.sequences.items_M.max())) >= len(table):
        raise ValueError(f"{sid_table} knows {len(table)} items, {dataset} has an item {highest}: make the table of it")
    torch.manual_seed(args.seed)
    model = build(args.backbone, table, load_embeddings(sid_table) if args.backbone == "glass" else None, args)
    model = model.to(device_here())
    trie = popular_trie(model, fold)
    report = _fit(model, dataset, fold, trie, args)
    metrics: dict[str, float] = {"exclude_seen": int(args.exclude_seen), "beams": args.beams}
    ranks = {}
    for role in ("validation", "test") if args.report_test else ("validation",):
        examples = fold.examples(role)
        graded, rank_E = grade(model.eval(), examples, trie, args.beams, args.exclude_seen)
        metrics |= {f"{role}/{name}": value for name, value in graded.items()}
        ranks[role] = (examples.user_ids_E, rank_E)
    save_ranks(args.output_dir, ranks)
    metrics["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    seconds = round(report.seconds, 1)
    return model, metrics | {"epochs": report.epochs, "best_epoch": report.best_epoch, "train_seconds": seconds}


def _fit(model: TIGER | GLASS, dataset: str | Path, fold: Fold, trie: SidTrie, args: Any) -> FitReport:
    path = Path(args.output_dir) / HISTORIES_FILE
    write_histories(dataset, path, None if args.users is None else fold.user_ids)
    blocks, watched = HistoryBlocks(path), sampled(fold.examples("validation"), args.validation_users, args.seed)

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, ...]]:
        # Drawn anew from seed and epoch, so that a run that goes on sees what it would have seen.
        rng = np.random.default_rng((args.seed, epoch))
        drawn = (args.targets_per_user, args.max_len, args.recent)
        for histories in example_batches(blocks, args.batch_size, rng, *drawn):
            yield model.collate(histories)

    def validate() -> float:
        k = args.validation_k
        return float(ndcg_at_k(item_ranks(model, watched, trie, max(k, 10), args.exclude_seen), k).mean())

    report = fit(
        model,
        batches=batches,
        loss=model.loss,
        validate=validate,
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        patience=args.patience,
        label=args.backbone,
        folder=args.output_dir,
    )
    path.unlink()
    return report
