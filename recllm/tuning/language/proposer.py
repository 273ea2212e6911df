"""From a situation to the next configuration: what a model proposes, repaired once, or a change drawn at random.

Nothing but `read_proposal` judges a reply, so whoever writes it can only ever name a legal change of one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recllm.tuning.language.language import Ask, LanguageModel
from recllm.tuning.language.prompt import repair_messages, situation_messages
from recllm.tuning.language.telling import pruned, taken
from recllm.tuning.study.proposal import Proposal, Refusal, listed_values, open_axes, proposal_schema, read_proposal
from recllm.tuning.study.trial import Situation, Source

_DRAWS = 32  # of a value from a range, before its axis counts as used up
_SAMPLES = 1000


@dataclass(frozen=True)
class Proposed:
    """The next configuration and how it came to be.

    Args:
        proposal: what the model said; None where nobody proposed.
        source: of an agent's model `model`, `repaired` (its second reply) or `random`; see `Source`.
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
    situations = [_with_room(situation) for situation in situations]
    asks = [ask_of(situation, model, seed) for situation, seed in zip(situations, seeds, strict=True)]
    found: list[Proposed | None] = [None] * len(asks)
    todo = [row for row, ask in enumerate(asks) if ask.schema["anyOf"]]
    for last in (False, True):
        if not todo:
            break
        replies, refused = model.reply([asks[row] for row in todo]), []
        for row, reply in zip(todo, replies, strict=True):
            found[row] = proposed = _judged(situations[row], reply, found[row])
            if proposed.proposal is None and not last:
                messages = repair_messages(asks[row].messages, reply, proposed.refusals[-1])
                asks[row] = replace(asks[row], messages=messages)
                refused.append(row)
        todo = refused
    for row, proposed in enumerate(found):
        if proposed is None or proposed.proposal is None:
            config = random_change(situations[row], seeds[row])
            found[row] = replace(proposed, config=config) if proposed else Proposed(None, config, "random")
    return found


def ask_of(situation: Situation, model: LanguageModel, seed: int) -> Ask:
    """What the model is asked: its schema leaves no proposal that is illegal or, where values are listed, was tried."""
    return Ask(situation_messages(situation, model.style), _schema(situation), seed)


def _schema(situation: Situation) -> dict[str, Any]:
    history = situation.history
    return proposal_schema(history.space, history.present, situation.masked, taken(history))


def _with_room(situation: Situation) -> Situation:
    """The situation, unmasked where the open axes have nothing left to try."""
    if situation.masked and not _schema(situation)["anyOf"]:
        return replace(situation, masked=frozenset())
    return situation


def _judged(situation: Situation, reply: str, before: Proposed | None) -> Proposed:
    """What a reply makes of the situation; without a proposal where it is refused."""
    history = situation.history
    refusals, replies = (before.refusals, before.replies) if before else ((), ())
    judged = read_proposal(reply, history.space, history.present, situation.masked, history.tried)
    if isinstance(judged, Refusal):
        return Proposed(None, history.present, "random", (*refusals, judged), (*replies, reply))
    return Proposed(*judged, "repaired" if before else "model", refusals, (*replies, reply))


def random_change(situation: Situation, seed: int) -> dict[str, Any]:
    """A legal change of one axis that was not tried: first the axis is drawn, then its value.

    What reflections ruled out waits until nothing else is left. Where the open axes have none left, all axes count;
    where no single change is left, any untried configuration.

    Raises:
        ValueError: none was found.
    """
    history, space = situation.history, situation.history.space
    rng = np.random.default_rng([seed, len(history.trials)])
    closed = set(pruned(history))
    for masked, ruled_out in ((situation.masked, closed), ((), closed), ((), ())):
        axes = open_axes(space, history.present, masked)
        for index in rng.permutation(len(axes)):
            axis = axes[index]
            values = listed_values(axis) or [axis.from_unit(share) for share in rng.random(_DRAWS)]
            for place in rng.permutation(len(values)):
                value = values[place]
                if value == history.present[axis.name] or (axis.name, value) in ruled_out:
                    continue
                if not history.leads_back(history.present, axis.name, value):
                    return space.change(history.present, axis.name, value)
    config = history.untried(lambda: space.sample(rng), _SAMPLES)
    if space.key(config) in history.tried:
        raise ValueError(f"no configuration of {space.name} is left to try after {len(history.trials)} trials")
    return config
