"""What a language model is told before it proposes or reflects, in two styles.

`full` is for general models: see `recllm.tuning.language.briefing`. `brief` is for a small model that was post-trained
on it: no instructions and no legal values, about 350 short tokens at most. Scores are percent of the default's, so that
data sets are alike. A model is trained on the brief style: changing it means training anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from recllm.tuning.language.telling import as_json, figures, grouped, pruned, reference, shown, signed
from recllm.tuning.study.plain import line
from recllm.tuning.study.proposal import Proposal, Refusal
from recllm.tuning.study.reflection import change_of
from recllm.tuning.study.trial import History, Situation, Trial

Style = Literal["full", "brief"]
STYLES: tuple[str, ...] = get_args(Style)
Messages = tuple[Mapping[str, str], ...]

BRIEF_TRIALS = 10
_BRIEF_GAINS = 12
_BRIEF_PRUNED = 10
_BRIEF_DATA = ("users", "items", "avg_len", "density")
_MOST_ECHO = 2000  # characters of a refused reply that are shown again


def situation_messages(situation: Situation, style: Style) -> Messages:
    """The chat that asks for a proposal."""
    if style == "brief":
        return ({"role": "user", "content": brief(situation)},)
    from recllm.tuning.language.briefing import briefing

    return briefing(situation)


def reflection_messages(situation: Situation, trial: Trial, style: Style, fields: Iterable[str] = ()) -> Messages:
    """The chat that asks to look back on a trial; `situation` may hold it already. fields: of the wanted object."""
    if style == "brief":
        told = f"{brief(situation)}\nreflect {trial_line(situation.history, trial)}"
        return ({"role": "user", "content": told},)
    from recllm.tuning.language.briefing import reflection_briefing

    return reflection_briefing(situation, trial, fields)


def proposal_text(proposal: Proposal) -> str:
    """The reply that makes this proposal, letter by letter as a model's constrained decoding writes it."""
    return "{" + ",".join(f'"{name}":{as_json(value)}' for name, value in proposal.row().items()) + "}"


def repair_messages(messages: Messages, reply: str, refusal: Refusal) -> Messages:
    """The chat that goes on after a refused reply, with the reason."""
    said = {"role": "assistant", "content": line(reply, _MOST_ECHO) or "(nothing)"}
    asked = f"refused ({refusal.reason}): {line(refusal.words, 400)}. Reply with one legal JSON object."
    return (*messages, said, {"role": "user", "content": asked})


def brief(situation: Situation) -> str:
    """The brief style: data; score, noise and trials left; configuration; trials; pruned settings; masked axes; what
    memory expects of single changes, in percent of the default's score.

    A part that is empty is left out. A setting that a trial's own line calls pruned is not told again.
    """
    history, data = situation.history, situation.data
    full, standing, trials = reference(history), history.standing, history.trials[-BRIEF_TRIALS:]
    score = f"{100 * standing.outcome.score / full:.1f}" if standing else "none"
    parts = [
        " ".join([history.space.name, *(f"{name} {figures(data[name])}" for name in _BRIEF_DATA if name in data)]),
        f"now {score} noise {100 * history.epsilon / full:.1f} left {situation.left}",
        " ".join(f"{name} {shown(value)}" for name, value in history.present.items()),
        *(trial_line(history, trial) for trial in trials),
    ]
    told = {(step[0], step[2]) for trial in trials if _self_pruned(trial, step := change_of(history, trial))}
    if ruled_out := [setting for setting in pruned(history) if setting not in told][-_BRIEF_PRUNED:]:
        parts.append(f"pruned {grouped(ruled_out)}")
    if situation.masked:
        parts.append("masked " + " ".join(sorted(situation.masked)))
    if gains := [one for one in situation.gains if one[0] not in situation.masked][:_BRIEF_GAINS]:
        here = 100 * (standing.outcome.score if standing else full) / full
        listed = [f"{name} {shown(value)} {signed(here * gain)}" for name, value, gain in gains]
        parts.append(f"expected {', '.join(listed)}")
    return "\n".join(parts)


def trial_line(history: History, trial: Trial) -> str:
    """`lr 0.001>0.003 +4.1 kept`: what changed, percent of the default's score gained, what became of it.

    `kept` where the study stood on it, `pruned` where its reflection ruled the setting out. A trial that changed no
    single axis is told by its source and its score; a failed one by how it failed.
    """
    step, full = change_of(history, trial), reference(history)
    what = f"{step[0]} {shown(step[1])}>{shown(step[2])}" if step else trial.source
    delta = history.delta(trial) if step else None
    if not trial.outcome.ok:
        number = trial.outcome.status
    else:
        number = f"{100 * trial.outcome.score / full:.1f}" if delta is None else signed(100 * delta / full)
    became = "kept" if trial.kept else "pruned" if _self_pruned(trial, step) else ""
    return " ".join(filter(None, [what, number, became]))


def _self_pruned(trial: Trial, step: tuple[str, Any, Any] | None) -> bool:
    return bool(step and trial.reflection and (step[0], step[2]) in trial.reflection.prune)
