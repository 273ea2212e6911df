"""How far the parents are apart: norms, gap, cosine and conflicts of sign, by kind of module and overall.

Read tensor by tensor and piece by piece from the mapped files, so that memory does not grow with the model. With a base
the task vectors (parent less base) are compared as well; it is their signs that TIES elects and whose conflicts undo a
merge.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recllm.merging.checkpoint import Weights
from recllm.merging.layout import MODULES, Layout
from recllm.merging.ledger import read_sweep
from recllm.merging.methods import BASE, DIRECT, THINKING
from recllm.merging.parents import holds

logger = logging.getLogger(__name__)

_PIECE = 1 << 20  # elements held in float64 at once, of each parent


@dataclass(frozen=True)
class Divergence:
    """Direct (D) and thinking (T) parent over some tensors; with a base (B), the task vectors D - B and T - B.

    Attributes:
        parameters: elements compared.
        direct_norm, thinking_norm, gap_norm: Euclidean norms of D, T and T - D.
        relative_gap: |T - D| over the mean of |D| and |T|.
        sigma: sum |T - D| over (sum |T| + sum |D|), elementwise, from 0 to 1 (the relative gap of Shadow-FT, arXiv
            2505.12716).
        cosine: of D and T.
        sign_conflicts: share of opposite signs among the elements that neither parent has at 0.
        direct_task, thinking_task: norm of the task vector over the base's norm; None without a base.
        task_cosine, task_sign_conflicts: the same two for the task vectors.
    """

    parameters: int
    direct_norm: float
    thinking_norm: float
    gap_norm: float
    relative_gap: float
    sigma: float
    cosine: float
    sign_conflicts: float
    direct_task: float | None = None
    thinking_task: float | None = None
    task_cosine: float | None = None
    task_sign_conflicts: float | None = None


@dataclass
class _Sums:
    """What is added up; floats are sums of float64 pieces."""

    count: int = 0
    direct: float = 0.0
    thinking: float = 0.0
    product: float = 0.0
    gap: float = 0.0
    gap_size: float = 0.0
    direct_size: float = 0.0
    thinking_size: float = 0.0
    conflicts: int = 0
    signed: int = 0
    base: float = 0.0
    direct_task: float = 0.0
    thinking_task: float = 0.0
    task_product: float = 0.0
    task_conflicts: int = 0
    task_signed: int = 0

    def add(self, other: _Sums) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def result(self, has_base: bool) -> Divergence:
        direct, thinking = math.sqrt(self.direct), math.sqrt(self.thinking)
        task = {}
        if has_base:
            base, moves = math.sqrt(self.base), (math.sqrt(self.direct_task), math.sqrt(self.thinking_task))
            task = {
                "direct_task": _ratio(moves[0], base),
                "thinking_task": _ratio(moves[1], base),
                "task_cosine": _ratio(self.task_product, moves[0] * moves[1]),
                "task_sign_conflicts": _ratio(self.task_conflicts, self.task_signed),
            }
        return Divergence(
            parameters=self.count,
            direct_norm=direct,
            thinking_norm=thinking,
            gap_norm=math.sqrt(self.gap),
            relative_gap=_ratio(math.sqrt(self.gap), (direct + thinking) / 2),
            sigma=_ratio(self.gap_size, self.direct_size + self.thinking_size),
            cosine=_ratio(self.product, direct * thinking),
            sign_conflicts=_ratio(self.conflicts, self.signed),
            **task,
        )


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def divergence(parents: Mapping[str, str | Path]) -> dict[str, Divergence]:
    """Kind of module -> divergence, and `all` first.

    Args:
        parents: role -> local folder; `direct` and `thinking`, and `base` where there is one.

    Raises:
        ValueError: a parent is missing, a tensor is missing in one, or has another shape; the message names it.
    """
    if missing := {DIRECT, THINKING} - set(parents):
        raise ValueError(f"the divergence needs both parents; {', '.join(sorted(missing))} is missing")
    weights = {role: Weights(parents[role]) for role in (DIRECT, THINKING, BASE) if role in parents}
    layout = Layout(weights[DIRECT])
    sums = {module: _Sums() for module in MODULES}
    for name, info in weights[DIRECT].infos.items():
        _check(name, weights)
        if info.dtype[0] in "FB" and info.dtype != "BOOL":
            for piece in _pieces(name, weights):
                sums[layout.places[name].module].add(piece)
    total = _Sums()
    for part in sums.values():
        total.add(part)
    return {
        name: part.result(BASE in weights)
        for name, part in {"all": total, **sums}.items()
        if part.count or name == "all"
    }


def parents_apart(sweep: str | Path | None) -> dict[str, Divergence]:
    """The divergence of a sweep's parents, by the sweep's folder; of no sweep, empty.

    Empty, and said so, where a parent is not there any more, or where its folder has something else by now.
    """
    parents = read_sweep(sweep).parents if sweep else {}
    for role, entry in parents.items():
        folder, mark = Path(entry["folder"]), entry["fingerprint"]
        if not folder.is_dir():
            logger.warning("%s (%s) is gone: how far the parents are apart is left out", folder, role)
            return {}
        if not holds(folder, mark):
            cause = f"does not have the {role} parent that was swept (fingerprint {mark[:12]}) any more"
            logger.warning("%s %s: how far the parents are apart is left out", folder, cause)
            return {}
    return divergence({role: entry["folder"] for role, entry in parents.items()}) if parents else {}


def _check(name: str, weights: Mapping[str, Weights]) -> None:
    shape = weights[DIRECT].infos[name].shape
    for role, other in weights.items():
        if name not in other.infos:
            raise ValueError(f"{other.folder} ({role}) has no tensor {name}, which {weights[DIRECT].folder} has")
        if other.infos[name].shape != shape:
            raise ValueError(f"tensor {name} has shape {list(other.infos[name].shape)} in {other.folder} ({role})")


def _pieces(name: str, weights: Mapping[str, Weights]) -> Iterator[_Sums]:
    flat = {role: other.tensor(name).reshape(-1) for role, other in weights.items()}
    for start in range(0, len(flat[DIRECT]), _PIECE):
        yield _sums({role: tensor[start : start + _PIECE].double() for role, tensor in flat.items()})
    for other in weights.values():
        other.release(name)


def _sums(piece: Mapping[str, Any]) -> _Sums:
    direct, thinking = piece[DIRECT], piece[THINKING]
    gap, product = thinking - direct, direct * thinking
    found = _Sums(
        count=len(direct),
        direct=float(direct @ direct),
        thinking=float(thinking @ thinking),
        product=float(product.sum()),
        gap=float(gap @ gap),
        gap_size=float(gap.abs().sum()),
        direct_size=float(direct.abs().sum()),
        thinking_size=float(thinking.abs().sum()),
        conflicts=int((product < 0).sum()),
        signed=int((product != 0).sum()),
    )
    if BASE in piece:
        base = piece[BASE]
        moved, other = direct - base, thinking - base
        product = moved * other
        found.base, found.direct_task, found.thinking_task = (float(one @ one) for one in (base, moved, other))
        found.task_product = float(product.sum())
        found.task_conflicts, found.task_signed = int((product < 0).sum()), int((product != 0).sum())
    return found


def plain(found: Mapping[str, Divergence]) -> dict[str, float]:
    """As flat metrics, `divergence/KIND/NAME`, without those that need a base where there was none."""
    return {
        f"divergence/{kind}/{name}": value
        for kind, one in found.items()
        for name, value in asdict(one).items()
        if value is not None
    }
