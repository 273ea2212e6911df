"""From a situation to the next configuration: what a model proposes, repaired once, or a change drawn at random.

Nothing but `read_proposal` judges a reply, so whoever writes it can only ever name a legal change of one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recllm.tuning.language import Ask, LanguageModel
from recllm.tuning.prompt import repair_messages, situation_messages
from recllm.tuning.proposal import Proposal, Refusal, open_axes, proposal_schema, read_proposal
from recllm.tuning.space import Space
from recllm.tuning.telling import taken
from recllm.tuning.trial import History, Situation, Source

_DRAWS = 32  # of a value from a range, before its axis counts as used up
_SAMPLES = 1000


@dataclass(frozen=True)
class Proposed:
    """The next configuration and how it came to be.

    Args:
        proposal: what the model said; None where the change was drawn at random.
        source: `model`, `repaired` (its second reply) or `random`.
        refusals: of the replies before, in order. replies: all that the model said.
    """

    proposal: Proposal | None
    config: Mapping[str, Any]
    source: Source
    refusals: tuple[Refusal, ...] = ()
    replies: tuple[str, ...] = ()


def propose(model: LanguageModel, situations: Sequence[Situation], seeds: Sequence[int]) -> list[Proposed]:
    """One configuration a situation, none of which its history tried; all are asked in one batch, repairs in another.

    seeds: one a situation; they decide the draws of the model and those at random.

    Raises:
        TeacherError: the model could not be asked at all: a study must not go on at random without its telling.
        ValueError: every configuration of a space was tried.
    """
    asks = [ask_of(situation, model, seed) for situation, seed in zip(situations, seeds, strict=True)]
    first = model.reply(asks) if asks else []
    found = [_judged(situation, reply) for situation, reply in zip(situations, first, strict=True)]
    open_ = [row for row, proposed in enumerate(found) if isinstance(proposed, Refusal)]
    repairs = [
        replace(asks[row], messages=repair_messages(asks[row].messages, first[row], found[row])) for row in open_
    ]
    second = model.reply(repairs) if repairs else []
    for row, reply in zip(open_, second, strict=True):
        refusal, judged = found[row], _judged(situations[row], reply)
        told = {"refusals": (refusal,), "replies": (first[row], reply)}
        if isinstance(judged, Refusal):
            told["refusals"] = (refusal, judged)
            judged = Proposed(None, random_change(situations[row], seeds[row]), "random")
        found[row] = replace(judged, source="random" if judged.proposal is None else "repaired", **told)
    return found


def ask_of(situation: Situation, model: LanguageModel, seed: int) -> Ask:
    """What the model is asked: its schema leaves no proposal that is illegal or, where values are listed, was tried."""
    history = situation.history
    closed = taken(history.space, history.present, [trial.config for trial in history.trials])
    schema = proposal_schema(history.space, history.present, situation.masked, closed)
    return Ask(situation_messages(situation, model.style), schema, seed)


def random_change(situation: Situation, seed: int) -> dict[str, Any]:
    """A legal change of one axis that was not tried: first the axis is drawn, then its value.

    Where the open axes have none left, all axes count; where no single change is left, any untried configuration.

    Raises:
        ValueError: none was found.
    """
    history, space = situation.history, situation.history.space
    rng = np.random.default_rng([seed, len(history.trials)])
    by_name = {axis.name: axis for axis in space.axes}
    for axes in (open_axes(space, history.present, situation.masked), [by_name[name] for name in history.present]):
        for index in rng.permutation(len(axes)):
            axis = axes[index]
            values = axis.values or [axis.from_unit(share) for share in rng.random(_DRAWS)]
            for place in rng.permutation(len(values)):
                if (config := _untried(space, history, axis.name, values[place])) is not None:
                    return config
    for _ in range(_SAMPLES):
        if space.key(config := space.sample(rng)) not in history.tried:
            return config
    raise ValueError(f"no configuration of {space.name} is left to try after {len(history.trials)} trials")


def _untried(space: Space, history: History, name: str, value: Any) -> dict[str, Any] | None:
    if value == history.present[name]:
        return None
    config = space.change(history.present, name, value)
    return None if space.key(config) in history.tried else config


def _judged(situation: Situation, reply: str) -> Proposed | Refusal:
    history = situation.history
    judged = read_proposal(reply, history.space, history.present, situation.masked, history.tried)
    return judged if isinstance(judged, Refusal) else Proposed(*judged, source="model", replies=(reply,))
