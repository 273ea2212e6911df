"""TRL's GRPOTrainer with advantages weighted by inclusion probability: one method, pinned to the TRL it was read in."""

from __future__ import annotations

import inspect

import torch
import trl
from trl import GRPOTrainer

from recllm.recommender.inclusion import inclusion_weights, reweighted
from recllm.recommender.rewards import members_of

_METHOD = "_generate_and_score_completions"


class InclusionWeightedTrainer(GRPOTrainer):
    """Weights every advantage for having been drawn without replacement (see `recommender/inclusion.py`).

    The rollout must leave `group`, `logp` and `inclusion` with every row, as `GroupRollout` does. Groups lie within one
    process, so the weights need no exchange.
    """

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = weighted_advantages(output["advantages"], inputs)
        return output


def weighted_advantages(advantages_R: torch.Tensor, rows: list[dict]) -> torch.Tensor:
    """The rows' advantages weighted and centred within each group; the same shape, device and dtype.

    Raises:
        RuntimeError: not one advantage a row, which another TRL may hand over.
    """
    if advantages_R.shape != (len(rows),):
        raise RuntimeError(
            f"TRL {trl.__version__} gives advantages of shape {tuple(advantages_R.shape)} for {len(rows)} completions; "
            "set inclusion_weights: false or install trl>=1.16,<1.17"
        )
    weighted_R = advantages_R.clone()
    for members in members_of([row["group"] for row in rows]):
        logp_1K, inclusion_1K = (torch.tensor([[rows[i][name] for i in members]]) for name in ("logp", "inclusion"))
        weights_1K = inclusion_weights(logp_1K, inclusion_1K).to(advantages_R)
        weighted_R[members] = reweighted(advantages_R[None, members], weights_1K)[0]
    return weighted_R


def check_override(trainer: type = GRPOTrainer) -> None:
    """Raise RuntimeError where the trainer's method is not the one that is overridden here."""
    method = getattr(trainer, _METHOD, None)
    found = list(inspect.signature(method).parameters) if method else None
    if found != ["self", "inputs"]:
        raise RuntimeError(
            f"inclusion_weights overrides {trainer.__name__}.{_METHOD}(self, inputs), which in TRL {trl.__version__} "
            f"takes {found}: set inclusion_weights: false or install trl>=1.16,<1.17"
        )
