"""Tables of patterns: their contexts and rules, and the centroids of the needs behind them, for a teacher to name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from recllm.needs.context import Contexts
from recllm.needs.naming import Centroid, Name
from recllm.needs.patterns import PATTERN_SCHEMA
from recllm.needs.taxonomy import daypart

# Hours from a pattern's hour that its context reaches.
_REACH = 2.0
# What is so many times as common with a need as anywhere is typical of it; and a scene only if it has this share.
_TYPICAL, _SCENE_SHARE = 1.5, 0.35
# A second part of the day is told from this share on, and so many categories.
_SECOND_PART, _TOLD = 0.3, 8


def circular_hour(hours: np.ndarray) -> float:
    """Circular mean of hours 0 to 24, NaN where none is known."""
    known = hours[~np.isnan(hours)]
    if len(known) == 0:
        return float("nan")
    return float(np.angle(np.exp(2j * np.pi * known / 24).mean()) * 24 / (2 * np.pi) % 24)


def pattern_frame(
    contexts: Contexts,
    fitted: np.ndarray,
    cells_R3: np.ndarray,
    pattern_M: np.ndarray,
    member_M: np.ndarray,
    names: Sequence[Name],
) -> pl.DataFrame:
    """One row a pattern, as `patterns.PATTERN_SCHEMA` says.

    fitted: rows that confidence and lift are counted on. cells_R3: need, peak, category of each pattern. member_M: kept
    fitted rows. names: of the needs that occur in `cells_R3`, in ascending order.
    """
    name_of = dict(zip(np.unique(cells_R3[:, 0]).tolist(), names, strict=True))
    members_R = _rows_of(pattern_M, member_M, len(cells_R3))
    records = []
    for number, ((need, _, category), rows) in enumerate(zip(cells_R3.tolist(), members_R, strict=True)):
        hour, scene = circular_hour(contexts.hour_M[rows]), _commonest(contexts.scene_M[rows])
        known = contexts.weekend_M[rows] < 2
        weekend = float((contexts.weekend_M[rows][known] == 1).mean()) if known.any() else 0.0
        confidence, share = _rule(contexts, fitted, hour, weekend > 0.5, scene, category)
        records.append(
            {
                "pattern_id": number,
                "need": name_of[need].need,
                "need_type": name_of[need].need_type,
                "category": contexts.categories[category],
                "hour": None if np.isnan(hour) else hour,
                "weekend": weekend,
                "scene": contexts.scenes[scene],
                "weather": contexts.weathers[_commonest(contexts.weather_M[rows])],
                "support": len(rows),
                "users": len(np.unique(contexts.user_M[rows])),
                "confidence": confidence,
                "lift": confidence / share,
            }
        )
    return pl.DataFrame(records, schema=PATTERN_SCHEMA)


def _rows_of(pattern_M: np.ndarray, member_M: np.ndarray, count: int) -> list[np.ndarray]:
    rows = np.flatnonzero(member_M)
    rows = rows[np.argsort(pattern_M[rows], kind="stable")]
    return np.split(rows, np.searchsorted(pattern_M[rows], np.arange(1, count)))


def _commonest(code_E: np.ndarray) -> int:
    return int(np.bincount(code_E).argmax())


def _rule(
    contexts: Contexts, fitted: np.ndarray, hour: float, weekend: bool, scene: int, category: int
) -> tuple[float, float]:
    """P(category | context) and P(category) on the fitted rows, accidental ones included."""
    own_E = contexts.category_M[fitted] == category
    here_E = (contexts.scene_M[fitted] == scene) & (contexts.weekend_M[fitted] != (0 if weekend else 1))
    if not np.isnan(hour):
        away_E = np.abs((contexts.hour_M[fitted] - hour + 12) % 24 - 12)
        here_E &= ~(away_E > _REACH)
    return float(own_E[here_E].mean()) if here_E.any() else 0.0, float(own_E.mean())


def centroids(contexts: Contexts, cells_R3: np.ndarray, pattern_M: np.ndarray, member_M: np.ndarray) -> list[Centroid]:
    """What a teacher is told of each need that occurs in `cells_R3`, in ascending order.

    member_M: kept fitted rows; what is typical is told against all of them together.
    """
    need_M = np.append(cells_R3[:, 0], -1)[pattern_M]
    everyone = np.flatnonzero(member_M)
    found = []
    for need in np.unique(cells_R3[:, 0]):
        rows = np.flatnonzero(member_M & (need_M == need))
        own = cells_R3[cells_R3[:, 0] == need, 2]
        found.append(
            Centroid(
                parts=_parts(contexts.hour_M[rows]),
                day=_day(contexts.weekend_M[rows], contexts.weekend_M[everyone]),
                scene=_typical(contexts.scenes, contexts.scene_M[rows], contexts.scene_M[everyone], _SCENE_SHARE),
                weather=_typical(contexts.weathers, contexts.weather_M[rows], contexts.weather_M[everyone], 0.0),
                categories=_categories(contexts, contexts.category_M[rows]),
                avoid=tuple(sorted({contexts.categories[category] for category in own.tolist()} - {""})),
            )
        )
    return found


def _parts(hour_E: np.ndarray) -> tuple[str, ...]:
    known = hour_E[~np.isnan(hour_E)]
    if len(known) == 0:
        return ("",)
    # Parts of the day by the hour: a log has tens of thousands of visits.
    names = [daypart(hour) for hour in np.arange(0, 24, 0.5)]
    share_H = np.bincount((known * 2).astype(np.int64) % 48, minlength=48) / len(known)
    total: dict[str, float] = {}
    for name, share in zip(names, share_H.tolist(), strict=True):
        total[name] = total.get(name, 0.0) + share
    order = sorted(total, key=lambda name: (-total[name], name))
    return tuple(name for place, name in enumerate(order[:2]) if place == 0 or total[name] >= _SECOND_PART)


def _day(own_E: np.ndarray, all_E: np.ndarray) -> str:
    if not ((own_E < 2).any() and (all_E == 1).any() and (all_E == 0).any()):
        return ""
    free, working = ((own_E == kind).mean() / (all_E == kind).mean() for kind in (1, 0))
    if free >= _TYPICAL * working:
        return "weekend"
    return "working day" if working >= _TYPICAL * free else ""


def _typical(names: Sequence[str], own_E: np.ndarray, all_E: np.ndarray, least: float) -> str:
    own_X = np.bincount(own_E, minlength=len(names)) / len(own_E)
    all_X = np.bincount(all_E, minlength=len(names)) / len(all_E)
    best = int(own_X.argmax())
    typical = own_X[best] >= least and own_X[best] >= _TYPICAL * all_X[best]
    return names[best] if typical else ""


def _categories(contexts: Contexts, category_E: np.ndarray) -> tuple[tuple[str, str, float], ...]:
    share_C = np.bincount(category_E, minlength=len(contexts.categories)) / len(category_E)
    order = [category for category in np.argsort(-share_C, kind="stable")[:_TOLD] if share_C[category] > 0]
    return tuple((contexts.categories[c], contexts.roots[c], round(float(share_C[c]), 3)) for c in order)
