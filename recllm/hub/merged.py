"""A chosen point of a sweep as a folder that can be published: merged weights, card, curve and record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recllm.hub.card import write_card
from recllm.hub.licences import combined, licence_of
from recllm.merging.analysis import Analysis, analyse, measured
from recllm.merging.checkpoint import Weights, stored_dtype
from recllm.merging.deliver import CONFIG_FILE, deliver_into
from recllm.merging.layout import Layout
from recllm.merging.ledger import Sweep, read_sweep
from recllm.merging.mergekit_yaml import rename_models, to_mergekit
from recllm.merging.methods import DIRECT
from recllm.merging.pick import Pick, ready_parents, roles_of
from recllm.merging.report_plot import plot_curve
from recllm.merging.results import from_sweep
from recllm.merging.space import Point
from recllm.provenance import RunRecord

RECIPE = "merge_deliver"


@dataclass(frozen=True, eq=False)
class Delivery:
    """A sweep whose points may be delivered.

    Attributes:
        folders: role -> local folder of the parent.
        licences: role -> what the parent states.
        mark: identity of the parents.
    """

    sweep: Sweep
    found: Analysis
    folders: Mapping[str, Path]
    licences: Mapping[str, str]
    mark: str


def open_sweep(folder: str | Path, seed: int = 0) -> tuple[Sweep, Analysis]:
    """A sweep and its figures; the seed is of the halves and of the resamples."""
    sweep = read_sweep(folder)
    return sweep, analyse(from_sweep(sweep), seed=seed)


def open_delivery(
    sweep: Sweep,
    found: Analysis,
    points: list[Point],
    output: Path,
    checkpoints: int = 1,
    elsewhere: Mapping[str, str] | None = None,
) -> Delivery:
    """Make the parents ready; arguments and errors as of `merging.pick.ready_parents`."""
    folders = ready_parents(sweep, points, output, checkpoints, elsewhere)
    addresses = {role: (elsewhere or {}).get(role) or entry["address"] for role, entry in sweep.parents.items()}
    licences = {
        role: licence_of(sweep.parents[role].get("hub_id"), path, addresses[role]) for role, path in folders.items()
    }
    mark = hashlib.sha256(" ".join(sorted(f"{r} {e['fingerprint']}" for r, e in sweep.parents.items())).encode())
    return Delivery(sweep, found, folders, licences, mark.hexdigest())


def make_point(delivery: Delivery, chosen: Pick, record: RunRecord) -> dict[str, Any]:
    """Merge the point into the run's folder, draw the curve, and note in the record what its card tells.

    A merge that is there already is kept.

    Returns:
        The point's metrics: accuracy and tokens over all questions, and `held_out/` of the half that had no part in the
        choice, where there is one.
    """
    sweep, point = delivery.sweep, chosen.point
    roles = roles_of(point, sweep)
    deliver_into(point, delivery.folders, record.folder, delivery.mark)
    plot_curve(delivery.found, record.folder, chosen.row)
    names = {role: parent_name(role, sweep.parents[role]) for role in roles}
    text = recipe_text(point, delivery.folders, names)
    (record.folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    licence = combined({f"{names[role]} ({role})": delivery.licences[role] for role in roles})
    if licence.name:
        record.extra["license"] = licence.name
    record.extra["merge"] = {
        "point": {"key": point.key, "label": point.label, "method": point.method, "axes": point.axes},
        "why": chosen.why,
        "parents": [_parent(delivery, role, names[role]) for role in roles],
        "recipe": text,
        "notes": list(licence.notes),
    }
    return _metrics(chosen)


def finish_point(delivery: Delivery, chosen: Pick, record: RunRecord) -> None:
    """Merge, describe, and complete the run."""
    metrics = make_point(delivery, chosen, record)
    write_card(record, metrics)
    record.finish(metrics)


def recipe_text(point: Point, folders: Mapping[str, Path], names: Mapping[str, str]) -> str:
    """The point's mergekit YAML with the parents' names in place of this machine's paths."""
    stored = stored_dtype([Weights(path) for path in folders.values()])
    text = to_mergekit(point, Layout(Weights(folders[DIRECT])), folders, stored)
    return rename_models(text, {str(folders[role].resolve()): name for role, name in names.items()})


def parent_name(role: str, entry: Mapping[str, str | None]) -> str:
    """A parent as others may read it: its Hub id where the sweep says that it has one, else a path of role and folder.

    A path with a dot in front is no Hub id to mergekit or to a reader, however the folder is called.
    """
    return entry.get("hub_id") or f"./{role}/{Path(entry['address']).name or Path(entry['folder']).name}"


def _parent(delivery: Delivery, role: str, name: str) -> dict[str, str]:
    entry = delivery.sweep.parents[role]
    told = {"role": role, "name": name, "licence": delivery.licences[role], "fingerprint": entry["fingerprint"]}
    hub_id = entry.get("hub_id")
    return told | ({"id": hub_id.partition("@")[0]} if hub_id else {})


def _metrics(chosen: Pick) -> dict[str, Any]:
    metrics: dict[str, Any] = {**measured(chosen.row), "n": chosen.row.n}
    if chosen.choice and chosen.choice.is_held_out:
        for name, interval in (("accuracy", chosen.choice.accuracy), ("tokens", chosen.choice.tokens)):
            metrics[f"held_out/{name}"] = interval.mean
            metrics |= {f"held_out/{name}_lo": interval.lo, f"held_out/{name}_hi": interval.hi}
        metrics["held_out/n"] = chosen.choice.accuracy.n
    return metrics
