"""From a log of visits to patterns: clusters, the mixture, typicality and its cut, names.

Whatever is estimated comes from targets of the fold "fit". Visits of other folds are read with what was fitted; of a
user they add the visit itself to what the user's fitted visits say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.catalog import Catalog
from recllm.data.checkins import Visits
from recllm.needs.clusters import NOISE, ClusterOptions, cluster, joined, profiles
from recllm.needs.context import Contexts, contexts_of, features
from recllm.needs.faults import Venues
from recllm.needs.mixture import HOURS, Log, Mixture, posterior
from recllm.needs.mixture_choose import choose
from recllm.needs.mixture_fit import Fit
from recllm.needs.naming import name_needs
from recllm.needs.pattern_table import centroids, pattern_frame
from recllm.needs.patterns import Patterns
from recllm.needs.typicality import Weights, cut, likenesses, typicality
from recllm.teachers.protocol import Teacher

# A need whose daily peaks lie farther apart has patterns at each of them.
_APART = 4.0


@dataclass(frozen=True)
class PatternOptions:
    """How patterns are found.

    most_needs: needs that the fit starts from and merges. classes: numbers of classes of users to choose from. steps:
    of expectation and maximisation. least_users, least_support: a pattern has at least so many users and kept visits.
    """

    clusters: ClusterOptions = field(default_factory=ClusterOptions)
    weights: Weights = field(default_factory=Weights)
    most_needs: int = 20
    classes: Sequence[int] = (1, 4, 8, 12, 16)
    steps: int = 30
    least_users: int = 5
    least_support: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.most_needs, self.steps, self.least_users, self.least_support, *self.classes)
        if not self.classes or least < 1:
            raise ValueError(
                f"most_needs, classes, steps, least_users and least_support must be at least 1, got {self}"
            )


@dataclass(frozen=True)
class _Read:
    """What the mixture says of all `M` rows: the cell (need, peak, category) of each, an index, -1 for rows that may
    not be asked for; log-odds of a need, and P(accident)."""

    cell_M: np.ndarray
    odds_M: np.ndarray
    accident_M: np.ndarray


def find_patterns(
    visits: Visits, catalog: Catalog, options: PatternOptions, teacher: Teacher, ledger: str | Path
) -> tuple[Patterns, dict[str, float]]:
    """The patterns of a log, and counts.

    Raises:
        ValueError: the fold fit has no targets, or so few or scattered visits that no pattern is left.
        TeacherError: the teacher failed; what it answered is in the ledger.
    """
    contexts, rows = contexts_of(visits, catalog), visits.rows("fit")
    if len(rows) == 0:
        raise ValueError("the fold fit has no targets: there is nothing to find patterns in")
    fitted_M = np.zeros(len(visits), dtype=bool)
    fitted_M[rows] = True
    feature_MF = features(contexts, rows)
    found, label_E, criteria = _fitted(contexts, rows, feature_MF, options)
    read = _read(contexts, visits, found)
    pattern_M, typical_M, limit = _kept(contexts, read, feature_MF, fitted_M, options)
    kept_M = (pattern_M >= 0) & (np.nan_to_num(typical_M, nan=-np.inf) >= limit)

    needs = found.mixture.needs
    cells_R3 = _cells(pattern_M, read.cell_M, len(contexts.categories))
    names, replaced = name_needs(
        centroids(contexts, cells_R3, pattern_M, kept_M & fitted_M), teacher, ledger, Venues(catalog.titles)
    )
    frame = pattern_frame(contexts, rows, cells_R3, pattern_M, kept_M & fitted_M, names)
    events = _events(frame, pattern_M, typical_M, kept_M)
    about = {"options": asdict(options), "cut": limit, "teacher": teacher.name, "criteria": criteria, "needs": needs}
    counts = {
        "patterns": frame.height,
        "needs": frame["need"].n_unique(),
        "need_types": frame["need_type"].n_unique(),
        "components": needs,
        "classes": len(found.mixture.class_K),
        "cut": limit,
        "clusters": int(label_E.max()) + 1,
        "cluster_noise": float((label_E == NOISE).mean()),
        "accidents": found.mixture.accidents,
        "returns": found.mixture.returns,
        "names_replaced": replaced,
        "kept/fit": float(kept_M[rows].mean()),
    }
    return Patterns(frame, events, about), counts


def _fitted(
    contexts: Contexts, rows: np.ndarray, feature_MF: np.ndarray, options: PatternOptions
) -> tuple[Fit, np.ndarray, dict]:
    label_E = cluster(feature_MF[rows], contexts.category_M[rows], options.clusters)
    if label_E.max() < 0:
        raise ValueError(f"no category has enough like visits to make a cluster; {len(rows)} fitted visits are too few")
    need_E = joined(profiles(contexts, rows, label_E), label_E, options.most_needs)
    found, criteria = choose(Log.of(contexts, rows), need_E, options.classes, options.steps, options.seed)
    return found, label_E, criteria


def _read(contexts: Contexts, visits: Visits, found: Fit) -> _Read:
    size = len(visits)
    cell_M, odds_M, accident_M = np.full(size, -1), np.full(size, np.nan), np.full(size, np.nan)
    for fold in ("fit", "validation", "test"):
        rows = visits.rows(fold)
        if len(rows):
            seen = posterior(found.mixture, Log.of(contexts, rows), found.evidence_UK, read=fold == "fit")
            peak_E = _peak(found.mixture, contexts.hour_M[rows], seen.need_E)
            cell_M[rows] = (seen.need_E * 2 + peak_E) * len(contexts.categories) + contexts.category_M[rows]
            odds_M[rows], accident_M[rows] = seen.log_odds_E, seen.accident_E
    return _Read(cell_M, odds_M, accident_M)


def _peak(mixture: Mixture, hour_E: np.ndarray, need_E: np.ndarray) -> np.ndarray:
    """At which of its need's peaks an event is, 0 where they lie near each other."""
    away_N = np.abs(np.angle(np.exp(1j * (mixture.peak_NP[:, 0] - mixture.peak_NP[:, 1])))) * HOURS / (2 * np.pi)
    peak_E = mixture.peaks(hour_E)[np.arange(len(need_E)), need_E].argmax(-1)
    return np.where(away_N[need_E] > _APART, peak_E, 0)


def _kept(
    contexts: Contexts, read: _Read, feature_MF: np.ndarray, fitted_M: np.ndarray, options: PatternOptions
) -> tuple[np.ndarray, np.ndarray, float]:
    """Pattern of every row (-1: none), typicality (NaN: not asked for), and the cut."""
    # First the patterns that the mixture's own verdict supports: typicality counts their users.
    likely_M = fitted_M & (read.accident_M < 0.5)
    pattern_M = _supported(contexts, read.cell_M, likely_M, options)[0]
    asked_M = read.cell_M >= 0
    users_M = _users(contexts, pattern_M, likely_M)
    likeness_M = likenesses(feature_MF, pattern_M, likely_M)
    typical_M = np.full(len(pattern_M), np.nan)
    typical_M[asked_M] = typicality(
        *(value_M[asked_M] for value_M in (users_M, read.odds_M, likeness_M, contexts.same_M)), options.weights
    )
    limit = cut(typical_M[fitted_M], read.accident_M[fitted_M])
    above_M = fitted_M & (np.nan_to_num(typical_M, nan=-np.inf) >= limit)
    pattern_M, count = _supported(contexts, read.cell_M, above_M, options)
    if count == 0:
        raise ValueError(
            f"no pattern has {options.least_support} visits of {options.least_users} users; lower least_support or "
            "least_users, or bring a longer log"
        )
    return pattern_M, typical_M, limit


def _supported(
    contexts: Contexts, cell_M: np.ndarray, counted_M: np.ndarray, options: PatternOptions
) -> tuple[np.ndarray, int]:
    """Cells with enough counted visits and users, numbered from the best supported on; -1 for rows in others."""
    counted = pl.DataFrame({"cell": cell_M, "user": contexts.user_M}).filter(counted_M & (cell_M >= 0))
    sizes = counted.group_by("cell").agg(pl.len().alias("support"), pl.col("user").n_unique().alias("users"))
    sizes = sizes.filter((pl.col("support") >= options.least_support) & (pl.col("users") >= options.least_users))
    cells = sizes.sort(["support", "cell"], descending=[True, False])["cell"].to_numpy()
    number_R = np.full(int(cell_M.max()) + 2, -1)
    number_R[cells] = np.arange(len(cells))
    return number_R[cell_M], len(cells)


def _users(contexts: Contexts, pattern_M: np.ndarray, counted_M: np.ndarray) -> np.ndarray:
    """Distinct users behind the pattern of every row, 0 without one."""
    inside_M = counted_M & (pattern_M >= 0)
    pairs = np.unique(np.stack([pattern_M[inside_M], contexts.user_M[inside_M]]), axis=1)
    users_R = np.bincount(pairs[0], minlength=int(pattern_M.max(initial=-1)) + 2)
    return np.where(pattern_M >= 0, users_R[pattern_M], 0)


def _cells(pattern_M: np.ndarray, cell_M: np.ndarray, categories: int) -> np.ndarray:
    """Need, peak and category of every pattern, int64 of shape (R, 3)."""
    first_R = np.unique(pattern_M, return_index=True)[1][-(pattern_M.max() + 1) :]
    cell_R = cell_M[first_R]
    return np.stack([cell_R // categories // 2, cell_R // categories % 2, cell_R % categories], axis=1)


def _events(frame: pl.DataFrame, pattern_M: np.ndarray, typical_M: np.ndarray, kept_M: np.ndarray) -> pl.DataFrame:
    texts = {name: np.array([*frame[name].to_list(), ""], dtype=object)[pattern_M] for name in ("need", "need_type")}
    return pl.DataFrame({"pattern_id": pattern_M, **texts, "typicality": typical_M, "kept": kept_M})
