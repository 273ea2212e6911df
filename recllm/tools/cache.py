"""The answers of every tool, computed once: a planner rollout then costs only the planner's own tokens.

One parquet row per (role, user, position, tool), with the tool's first 50 items, scores, margin and cost. Roles are
`calibration` (some of half A's routing targets, for margin digits alone), `routing` (half B's), `validation`, `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recllm.data.splits import Examples, RolesSplit, sampled
from recllm.metrics.ranking import ndcg_at_k, rank_in_list
from recllm.tools.answer import ToolAnswer

FILE = "cache.parquet"
DEPTH = 50
ROLES = ("calibration", "routing", "validation", "test")
TOOL_NAMES = ("retrieve", "rank", "reason")
_CALIBRATION = 1000  # so many place the deciles of a margin within a percent or so


def examples_of(split: RolesSplit, role: str) -> Examples:
    """The examples behind a role of the cache; calibration takes one routing target of each user of half A, of a
    thousand users at most."""
    if role == "calibration":
        examples = split.routing("A")
        return sampled(examples.subset(np.unique(examples.user_E, return_index=True)[1]), _CALIBRATION)
    return split.routing("B") if role == "routing" else getattr(split, role)


def cache_frame(role: str, tool: str, examples: Examples, answer: ToolAnswer) -> pl.DataFrame:
    """Rows of the cache for one tool and role."""
    return pl.DataFrame(
        {
            "role": [role] * len(examples),
            "row": np.arange(len(examples), dtype=np.int32),
            "user": examples.user_ids_E,
            "position": examples.position_E,
            "target": examples.targets_E,
            "tool": [tool] * len(examples),
            "items": answer.items_EK.tolist(),
            "scores": answer.scores_EK.tolist(),
            "margin": answer.margin_E,
            "cost": answer.cost_E,
        },
        schema_overrides={"items": pl.List(pl.Int32), "scores": pl.List(pl.Float32)},
    )


def without_tool(folder: str | Path, tool: str, target: str | Path) -> int:
    """Write a cache to `target` in which a tool answers what retrieve answers, at its own cost; returns its rows.

    Raises:
        ValueError: there is no such tool, or it is retrieve.
    """
    if tool not in TOOL_NAMES[1:]:
        raise ValueError(f"tool {tool!r} cannot be taken out; choose from {', '.join(TOOL_NAMES[1:])}")
    frame = pl.read_parquet(Path(folder) / FILE)
    found = ["items", "scores", "margin"]
    retrieved = frame.filter(pl.col("tool") == "retrieve").select("role", "row", *found)
    replaced = frame.filter(pl.col("tool") == tool).drop(found).join(retrieved, ["role", "row"], validate="1:1")
    others = frame.filter(pl.col("tool") != tool)
    pl.concat([others, replaced.select(frame.columns)]).write_parquet(Path(target) / FILE)
    return len(replaced)


def list_entropy(scores_EK: np.ndarray) -> np.ndarray:
    """Entropy in nats of the softmax of each list's scores, float32 `E`: 0 for a tool sure of one item, ln K for one
    that holds all of its K for equal. Scores that are not finite (items that were not found) do not count."""
    finite_EK = np.isfinite(scores_EK)
    top_E = np.max(scores_EK, axis=1, initial=-np.inf, where=finite_EK)
    gap_EK = np.where(
        finite_EK, scores_EK.astype(np.float64) - np.where(np.isfinite(top_E), top_E, 0)[:, None], -np.inf
    )
    weight_EK = np.exp(gap_EK)
    total_E = np.maximum(weight_EK.sum(1), np.finfo(float).tiny)
    moment_E = (weight_EK * np.where(finite_EK, gap_EK, 0.0)).sum(1)
    return (np.log(total_E) - moment_E / total_E).clip(min=0).astype(np.float32) * finite_EK.any(1)


@dataclass(frozen=True)
class ToolCache:
    """Cached answers of one role: `items_PEK` (P tools in the order of `TOOL_NAMES`), `margin_PE`, `cost_PE`.

    `edges_P9` are the deciles of each tool's margin on half A; `margin_digit` places a margin among them. `entropy_PE`:
    see `list_entropy`.
    """

    items_PEK: np.ndarray
    margin_PE: np.ndarray
    cost_PE: np.ndarray
    targets_E: np.ndarray
    edges_P9: np.ndarray
    entropy_PE: np.ndarray

    @classmethod
    def load(cls, folder: str | Path, role: str, split: RolesSplit) -> ToolCache:
        """Read one role.

        Raises:
            ValueError: the file lacks rows, because the cache was made from another split.
        """
        path = Path(folder) / FILE
        frame = pl.read_parquet(path)
        examples = examples_of(split, role)
        parts, edges = [], []
        for tool in TOOL_NAMES:
            rows = frame.filter((pl.col("role") == role) & (pl.col("tool") == tool)).sort("row")
            if rows["row"].to_list() != list(range(len(examples))):
                raise ValueError(f"{path}: {len(rows)} rows for {tool} on {role}, the split has {len(examples)}")
            known = {"user": examples.user_ids_E, "position": examples.position_E}
            known["target"] = examples.targets_E
            if not all(np.array_equal(rows[column], values) for column, values in known.items()):
                raise ValueError(f"{path}: the rows for {tool} on {role} are of another split; build the cache again")
            parts.append(rows)
            calibration = frame.filter((pl.col("role") == "calibration") & (pl.col("tool") == tool))[
                "margin"
            ].to_numpy()
            edges.append(np.quantile(calibration, np.arange(1, 10) / 10))
        return cls(
            items_PEK=np.stack([np.array(rows["items"].to_list(), dtype=np.int32) for rows in parts]),
            margin_PE=np.stack([rows["margin"].to_numpy() for rows in parts]),
            cost_PE=np.stack([rows["cost"].to_numpy() for rows in parts]),
            targets_E=examples.targets_E,
            edges_P9=np.stack(edges),
            entropy_PE=np.stack([list_entropy(np.array(rows["scores"].to_list())) for rows in parts]),
        )

    def __len__(self) -> int:
        return len(self.targets_E)

    def first(self, count: int) -> ToolCache:
        """The first `count` examples."""
        parts = (self.items_PEK[:, :count], self.margin_PE[:, :count], self.cost_PE[:, :count])
        return ToolCache(*parts, self.targets_E[:count], self.edges_P9, self.entropy_PE[:, :count])

    def margin_digit(self, tool: int, example: int) -> int:
        """0 (the weakest tenth on half A) to 9 (the strongest)."""
        return int(np.searchsorted(self.edges_P9[tool], self.margin_PE[tool, example]))

    @cached_property
    def rank_PE(self) -> np.ndarray:
        """Rank of the target in each tool's list, `DEPTH` where it is absent."""
        found = [rank_in_list(items_EK, self.targets_E) for items_EK in self.items_PEK]
        return np.minimum(np.stack(found), DEPTH)

    @cached_property
    def ndcg_PE(self) -> np.ndarray:
        """NDCG@10 of each tool's list."""
        return np.stack([ndcg_at_k(rank_E, 10) for rank_E in self.rank_PE])
