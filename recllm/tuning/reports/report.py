"""A study as a person reads it: what was found, how soon beside other tuners, by whom, and what was learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recllm.data.markdown import code, plain, prose
from recllm.evaluation.report import markdown_table
from recllm.provenance import write_text
from recllm.tuning.language.telling import reference, shown, signed
from recllm.tuning.reports.curves import SHARES, best_so_far, trials_to
from recllm.tuning.reports.report_plot import FILE, plot_curves
from recllm.tuning.reports.stored import Stored, check_alike
from recllm.tuning.study.export import study_metrics
from recllm.tuning.study.reflection import change_of
from recllm.tuning.study.trial import SOURCES, History
from recllm.tuning.trials.runner import OBJECTIVE
from recllm.tuning.trials.surface import Surface, reached_by

REPORT_FILE = "report.md"
BASELINES, SEEDS = ("random", "tpe"), 20
_MOST_RULES = 12
_TEST = OBJECTIVE.replace("validation/", "test/")


@dataclass(frozen=True)
class Comparison:
    """Studies of one space and data set, and what counts as a target.

    Args:
        scores: tuner -> the scores of its studies, trial by trial, 0 where one failed; who is told of comes first.
        targets: words -> validation NDCG@10.
        measured: words on what the best share of configurations is of.
    """

    scores: Mapping[str, list[list[float]]]
    targets: Mapping[str, float]
    measured: str


def write_report(studies: Sequence[Stored], folder: Path, surface: Surface | None = None) -> Path:
    """Write report.md and best_so_far.png of the first study beside the others; returns the report's path.

    With a surface of the same space and data the best shares are of its evenly spread configurations, and random search
    and TPE on it stand beside.

    Raises:
        ValueError: studies of several spaces or data sets, or another's surface.
    """
    check_alike(studies)
    found = compare(studies, surface)
    folder.mkdir(parents=True, exist_ok=True)
    plot_curves(found.scores, reference(studies[0].history), folder / FILE)
    write_text(folder / REPORT_FILE, markdown(studies[0], found))
    return folder / REPORT_FILE


def compare(studies: Sequence[Stored], surface: Surface | None) -> Comparison:
    """The scores of all studies by tuner, and the targets."""
    scores: dict[str, list[list[float]]] = defaultdict(list)
    for study in studies:
        scores[study.label].append(_scores(study.history))
    if surface is not None:
        scores |= _on_surface(studies[0], surface)
        targets = {_share(share): surface.target(share) for share in SHARES}
        measured = f"the {len(surface)} measured configurations of the surface, those spread evenly"
    else:
        ran: dict[str, float] = {}
        for study in studies:
            for trial, score in zip(study.history.trials, _scores(study.history), strict=True):
                ran[trial.outcome.key] = max(score, ran.get(trial.outcome.key, 0.0))
        score_C = np.array(list(ran.values()))
        targets = {_share(share): reached_by(score_C, share) for share in SHARES}
        measured = f"the {len(score_C)} configurations that these studies ran"
    best = max(max(one) for many in scores.values() for one in many)
    targets |= {f"{share:.0%} of the best score": share * best for share in (0.95, 0.99, 1.0)}
    return Comparison(dict(scores), targets, measured)


def _share(share: float) -> str:
    return f"best {share:.0%}"


def _scores(history: History) -> list[float]:
    return [trial.outcome.counted for trial in history.trials]


def _on_surface(study: Stored, surface: Surface) -> dict[str, list[list[float]]]:
    from recllm.tuning.reports.contest import Contest

    told = surface.provenance
    if study.told["space"] != surface.space.name or study.told["fixed"] != told["fixed"]:
        raise ValueError(f"the surface is of another space than {study.folder}: run the study with `space: surface`")
    if (study.told.get("inputs") or {}).get("dataset") != told.get("data_fingerprint"):
        raise ValueError(f"the surface was measured on other data than {study.folder}: their scores cannot be compared")
    contest = Contest({"surface": surface}, SEEDS, len(study.history.trials))
    return {f"{name} on the surface": [_scores(one) for one in contest.sampled("surface", name)] for name in BASELINES}


def markdown(study: Stored, found: Comparison) -> str:
    """The report of a study as a page of Markdown."""
    told, history = study.told, study.history
    title = f"# {code(told['space'])} on {code(told.get('dataset', 'a data set'))}, tuned by {code(study.label)}"
    parts = [title, _said(study), f"![best score so far]({FILE})"]
    parts += ["## Trials to a target", _target_words(found), markdown_table(_target_rows(found), right=True)]
    parts += ["## The best configuration", markdown_table(_best_rows(history))]
    if study.tests:
        parts += ["## Test, read once", markdown_table(_test_rows(study), right=True)]
    parts += ["## Who chose", markdown_table(_source_rows(history), right=True)]
    parts += ["## Dimensions", markdown_table(_axis_rows(history), right=True)]
    if rules := _rule_rows(history):
        parts += ["## Rules learned", markdown_table(rules)]
    parts += ["## Trials", markdown_table(_trial_rows(history))]
    return "\n\n".join(parts) + "\n"


def _said(study: Stored) -> str:
    numbers = study_metrics(study.history, ())
    default, best, gain = (numbers[name] for name in (f"default/{OBJECTIVE}", f"best/{OBJECTIVE}", "gain"))
    failed = Counter(trial.outcome.status for trial in study.history.trials if not trial.outcome.ok)
    words = [f"{numbers['trials']} of {study.told['budget']} trials, {numbers['cpu_seconds']:,.0f} processor seconds."]
    if best is not None and default:
        words.append(f"Validation NDCG@10 {best:.4f} against the default's {default:.4f}, {gain:+.1%};")
        words.append(f"a change below {study.history.epsilon:.4f} counts as noise.")
    else:
        words.append("The default or every trial failed, so no gain can be told.")
    if failed:
        words.append(f"Failed: {', '.join(f'{count} {status}' for status, count in failed.most_common())}.")
    return " ".join(words)


def _target_words(found: Comparison) -> str:
    return (
        f"Median over the studies of a tuner, the first trial being 1. The best shares are of {found.measured}; the "
        "best score is the highest of all tuners here. More than n: at least half of the studies did not get there in "
        "n trials."
    )


def _target_rows(found: Comparison) -> list[list[str]]:
    rows = [["tuner", "studies", *(f"{words} ({target:.4f})" for words, target in found.targets.items()), "best score"]]
    for label, many in found.scores.items():
        length = min(len(one) for one in many)
        row = [code(label), str(len(many))]
        for target in found.targets.values():
            median = float(np.median([trials_to(one, target, length) for one in many]))
            row.append(f"more than {length}" if median > length else f"{median:g}")
        row.append(f"{np.mean([best_so_far(one)[length - 1] for one in many]):.4f}")
        rows.append(row)
    return rows


def _best_rows(history: History) -> list[list[str]]:
    rows = [["dimension", "default", "best"]]
    default = history.space.default
    best = history.best.config if history.best else default
    for axis in history.space.axes:
        values = [code(shown(config[axis.name])) if axis.name in config else "" for config in (default, best)]
        if values[0] != values[1]:
            rows.append([axis.name, *values])
    return rows if len(rows) > 1 else [*rows, ["no dimension differs", "", ""]]


def _test_rows(study: Stored) -> list[list[str]]:
    names = sorted({name for record in study.tests.values() for name in record.get("summary", {}) if "test/" in name})
    names = [name for name in names if not name.endswith("_std")]
    rows = [["configuration", "seeds", *(name.removeprefix("test/") for name in names)]]
    found = {who: record.get("summary", {}) for who, record in study.tests.items()}
    for who, summary in found.items():
        seeds = str(len(study.tests[who]["outcomes"]))
        rows.append([who, seeds, *(_mean_text(summary, name) for name in names)])
    best, default = found.get("best", {}), found.get("default", {})
    if names and all(default.get(name) and name in best for name in names):
        rows.append(["gain", "", *(f"{best[name] / default[name] - 1:+.1%}" for name in names)])
    return rows


def _mean_text(summary: Mapping[str, float], name: str) -> str:
    if name not in summary:
        return "not read to the end"
    return f"{summary[name]:.4f}, std {summary[f'{name}_std']:.4f}"


def _source_rows(history: History) -> list[list[str]]:
    rows = [["source", "trials", "kept", "share"]]
    for source in SOURCES:
        trials = [trial for trial in history.trials if trial.source == source]
        if trials:
            share = len(trials) / len(history.trials)
            rows.append([source, str(len(trials)), str(sum(trial.kept for trial in trials)), f"{share:.0%}"])
    share = study_metrics(history, ())["model_share"]
    return rows if share is None else [*rows, ["the model's own of those it was asked for", "", "", f"{share:.0%}"]]


def _axis_rows(history: History) -> list[list[str]]:
    changed, kept, best = Counter(), Counter(), {}
    for trial in history.trials:
        if change := change_of(history, trial):
            changed[change[0]] += 1
            kept[change[0]] += trial.kept
            if (delta := history.delta(trial)) is not None:
                best[change[0]] = max(best.get(change[0], delta), delta)
    full = reference(history)
    rows = [["dimension", "values run", "trials that changed it", "kept", "best change, % of the default"]]
    for axis in history.space.axes:
        values = {trial.config[axis.name] for trial in history.trials if axis.name in trial.config}
        change = signed(100 * best[axis.name] / full) if axis.name in best else ""
        rows.append([axis.name, str(len(values)), str(changed[axis.name]), str(kept[axis.name]), change])
    return rows


def _rule_rows(history: History) -> list[list[str]]:
    found: dict[tuple[str, Any, str], list[Any]] = defaultdict(list)
    for trial in history.trials:
        if trial.reflection and (rule := trial.reflection.rule):
            found[rule.dimension, rule.value, rule.effect].append(rule)
    ranked = sorted(found.items(), key=lambda one: (-len(one[1]), -max(rule.confidence for rule in one[1])))
    rows = [["setting", "effect", "trials", "confidence", "seen where"]]
    for (dimension, value, effect), rules in ranked[:_MOST_RULES]:
        confidence = np.mean([rule.confidence for rule in rules])
        setting = f"{dimension} = {shown(value)}"
        rows.append([code(setting), effect, str(len(rules)), f"{confidence:.2f}", _words(rules[-1].when)])
    return rows if ranked else []


def _trial_rows(history: History) -> list[list[str]]:
    rows = [["trial", "from", "source", "change", "NDCG@10", "kept", "hypothesis", "verdict"]]
    for trial in history.trials:
        change, outcome, said = change_of(history, trial), trial.outcome, trial.proposal
        words = f"{change[0]} {shown(change[1])} to {shown(change[2])}" if change else ""
        score = f"{outcome.score:.4f}" if outcome.ok else outcome.status
        parent = "" if trial.parent is None else str(trial.parent)
        looked = trial.reflection.verdict if trial.reflection else ""
        row = [str(trial.number), parent, trial.source, code(words) if words else "", score]
        row += ["yes" if trial.kept else "", _words(said.hypothesis) if said else "", looked]
        rows.append(row)
    return rows


def _words(text: str) -> str:
    return prose(plain(text, 120))
