"""Loading the three tools from their folders, and filling the cache with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recllm.backbones.ranker import CandidateFeatures
from recllm.data.catalog import Catalog
from recllm.data.splits import load_split
from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.tools.answer import ToolAnswer
from recllm.tools.cache import DEPTH, FILE, ROLES, cache_frame, examples_of
from recllm.tools.letter import LetterRank, Score
from recllm.tools.rank import Rank
from recllm.tools.reason import Reason
from recllm.tools.retrieve import Retrieve


@dataclass(frozen=True)
class Tools:
    """The planner's three tools, loaded."""

    retrieve: Retrieve
    rank: Rank | LetterRank
    reason: Reason


def load_tools(
    dataset: str | Path,
    sasrec: str | Path,
    din: str | Path | None,
    reasoner: str | Path,
    think_tokens: int = 24,
    letter_ranker: str | Path | None = None,
    letter_score: Score = "sid",
) -> Tools:
    """Load the tools; the ranker is DIN or, with `letter_ranker`, a language model (see `letter.py`).

    Raises:
        ValueError: the data set's split is not `roles`, a tool's catalogue has another size, or not one ranker.
    """
    if (din is None) == (letter_ranker is None):
        raise ValueError("rank is done by din or by letter_ranker: give the folder of one of them")
    split, catalog = load_split(dataset), Catalog.load(dataset)
    if split.kind != "roles":
        raise ValueError(f"{dataset} is split {split.kind}; the planner's tools need split: roles")
    retrieve, reason = Retrieve.load(sasrec), Reason.load(reasoner, think_tokens)
    sizes = {"sasrec": retrieve.model.num_items, "reasoner": len(reason.texts)}
    if letter_ranker is None:
        rank = Rank.load(din, retrieve, CandidateFeatures.from_fitting_fold(split, catalog))
        sizes["din"] = rank.model.num_items
    else:
        rank = LetterRank.load(letter_ranker, retrieve, letter_score)
        sizes["letter_ranker"] = len(rank.texts)
    for name, size in sizes.items():
        if size != len(catalog):
            raise ValueError(f"{name} knows {size} items, the catalogue of {dataset} has {len(catalog)}; fit it again")
    return Tools(retrieve, rank, reason)


def build_cache(dataset: str | Path, tools: Tools, folder: str | Path) -> dict[str, float]:
    """Write the cache of all roles; returns each tool's NDCG@10 and mean cost on routing and validation."""
    split = load_split(dataset)
    frames, metrics = [], {}
    for role in ROLES:
        examples = examples_of(split, role)
        answers: dict[str, ToolAnswer] = {
            "retrieve": tools.retrieve.answer(examples, DEPTH),
            "rank": tools.rank.answer(examples, DEPTH),
            "reason": tools.reason.answer(examples, DEPTH, label=f"reason: {role}"),
        }
        for name, answer in answers.items():
            frames.append(cache_frame(role, name, examples, answer))
            # Test targets are read once, by the evaluation.
            if role in ("routing", "validation"):
                rank_E = rank_in_list(answer.items_EK, examples.targets_E)
                metrics[f"{name}/{role}_ndcg@10"] = float(ndcg_at_k(rank_E, 10).mean())
                metrics[f"{name}/{role}_cost"] = float(answer.cost_E.mean())
    pl.concat(frames).write_parquet(Path(folder) / FILE)
    return metrics
