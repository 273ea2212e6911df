"""Grading recommenders: beam, exact scoring and a backbone on the same users, each in the same flat metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recllm.backbones.base import Backbone
from recllm.backbones.fit import ranking_metrics
from recllm.data.catalog import Catalog
from recllm.data.splits import Examples, load_split, sampled
from recllm.device import device_here
from recllm.evaluation.recommender import TOP, Answers, Recommender, by_backbone, by_beam, by_exact
from recllm.metrics.bootstrap import Interval, flat, mean_interval, paired_interval
from recllm.metrics.catalogue import coverage, exposure, gini, novelty, validity
from recllm.metrics.ranking import ndcg_at_k
from recllm.provenance import fingerprint, load_run
from recllm.sid.quantizer import row_ids
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER

ROLES = ("test", "validation")
METHODS = ("beam", "exact", "both")


@dataclass(frozen=True)
class Targets:
    """What recommenders are graded on: a role's examples, and the fitting events `events_N` of every item."""

    examples: Examples
    events_N: np.ndarray

    @classmethod
    def load(cls, dataset: str | Path, role: str = "test", users: int | None = None, seed: int = 0) -> Targets:
        """Targets of `role`, of at most `users` users drawn by `seed`.

        Raises:
            ValueError: an unknown role, or a data set without such targets.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}; got {role!r}")
        split = load_split(dataset)
        examples = sampled(getattr(split, role), users, seed)
        if not len(examples):
            raise ValueError(f"{dataset} has no {role} target: all users are too short")
        return cls(examples, np.bincount(split.fitting.items_M, minlength=len(Catalog.load(dataset))))


def load_recommender(folder: str | Path, targets: Targets, sid_table: str | Path | None = None) -> Recommender:
    """A model with its own table, or with `sid_table` where that is the same one. Popular items come first in a sid.

    Raises:
        ValueError: the model was built on another table, or the table has another number of items than the data set.
    """
    table = SidTable.load(Path(folder) / TABLE_FOLDER if sid_table is None else sid_table)
    if len(table) != len(targets.events_N):
        raise ValueError(
            f"{folder} knows {len(table)} items, the data set has {len(targets.events_N)}: they do not belong together"
        )
    return Recommender.load(folder, table, targets.events_N)


def evaluate_recommender(
    recommender: Recommender,
    targets: Targets,
    method: str = "beam",
    *,
    beams: int = 50,
    exclude_seen: bool = True,
    batch_size: int = 64,
    backbone: Backbone | None = None,
) -> dict[str, float]:
    """Flat metrics under `beam/`, `exact/` and `backbone/`, whichever were asked for; see `answer_metrics`.

    Besides: `n`, `exclude_seen` (1 or 0), `beams`; with both methods `beam_recall`, the share of the exact first ten
    that the beam's first ten hold; with a backbone `over_backbone`, the paired difference in NDCG@10 of the first
    method; intervals with each.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    examples, answers = targets.examples, {}
    if method != "exact":
        answers["beam"] = by_beam(recommender, examples, exclude_seen, beams, batch_size)
    if method != "beam":
        answers["exact"] = by_exact(recommender, examples, exclude_seen, batch_size)
    if backbone is not None:
        answers["backbone"] = by_backbone(backbone, examples, exclude_seen, recommender.sid_N)
    metrics: dict[str, float] = {"n": len(examples), "exclude_seen": int(exclude_seen)}
    if method != "exact":
        metrics["beams"] = max(beams, recommender.sid_lists_of(TOP))
    for name, answer in answers.items():
        metrics |= {f"{name}/{key}": value for key, value in answer_metrics(answer, targets.events_N).items()}
    if method == "both":
        metrics |= flat("beam_recall", beam_recall(answers["beam"], answers["exact"]))
    if backbone is not None:
        first, other = (ndcg_at_k(answers[name].rank_E, TOP) for name in (next(iter(answers)), "backbone"))
        metrics |= flat("over_backbone", paired_interval(first, other))
    return metrics


def answer_metrics(answers: Answers, events_N: np.ndarray) -> dict[str, float]:
    """NDCG and Recall at 5 and 10 with intervals, at item level and under `sid/` at sid level; what the first ten do
    to the catalogue (`coverage@10`, `gini@10`, `novelty@10` in bits); `validity`; `wall_ms` a user, and `n`.

    Raises:
        RuntimeError: something was recommended that is no item, which the trie rules out.
    """
    metrics = ranking_metrics(answers.rank_E)
    metrics |= {f"sid/{key}": value for key, value in ranking_metrics(answers.sid_rank_E).items() if key != "n"}
    valid = validity(answers.items_EK, len(events_N))
    if valid != 1.0:
        raise RuntimeError(f"{1 - valid:.2%} of what was recommended is no item of the catalogue")
    exposure_N = exposure(answers.items_EK, len(events_N))
    metrics |= {f"coverage@{TOP}": coverage(exposure_N), f"gini@{TOP}": gini(exposure_N)}
    metrics |= {f"novelty@{TOP}": novelty(answers.items_EK, events_N), "validity": valid}
    return metrics | {"wall_ms": round(1000 * answers.seconds / len(answers), 3)}


def backbone_metrics(
    model: Backbone, targets: Targets, table: SidTable, exclude_seen: bool = True, batch_size: int = 256
) -> dict[str, float]:
    """`answer_metrics` of a backbone alone; the table says which items share a sid."""
    answers = by_backbone(model, targets.examples, exclude_seen, row_ids(table.codes_NL), batch_size)
    return answer_metrics(answers, targets.events_N)


def beam_recall(beam: Answers, exact: Answers) -> Interval:
    """Share of each user's exact first ten that the beam's first ten hold, with its interval over the users."""
    found_EK = (exact.items_EK[:, :, None] == beam.items_EK[:, None, :]).any(2) & (exact.items_EK >= 0)
    return mean_interval(found_EK.sum(1) / (exact.items_EK >= 0).sum(1).clip(min=1))


def load_backbone(folder: str | Path, dataset: str | Path, items: int) -> Backbone:
    """A SASRec folder, in evaluation mode on this machine's device.

    Raises:
        ValueError: it is another backbone, knows another number of items, or was fitted on another data set or split.
    """
    from recllm.backbones.sasrec import SASRec

    known = load_run(folder) or {}
    kind = known.get("config", {}).get("backbone", "sasrec")
    if kind != "sasrec":
        raise ValueError(f"{folder} is a {kind}; a sasrec can stand beside a recommender")
    model = SASRec.from_pretrained(str(folder)).to(device_here()).eval()
    if model.num_items != items:
        raise ValueError(f"{folder} knows {model.num_items} items, the data set has {items}: fit it again")
    fitted_on = known.get("inputs", {}).get("dataset")
    if fitted_on is not None and fitted_on != fingerprint(dataset):
        raise ValueError(f"{folder} was fitted on another data set or split than {dataset}: fit it again")
    return model
