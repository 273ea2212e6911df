"""How well patterns tell planted needs and accidents, where a made-up world knows them, beside the Bayes observer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from recllm.data.checkins import Visits
from recllm.needs.patterns import Patterns

_BAYES = "bayes/fit/"
_COMPARED = ("precision", "recall", "need_nmi")


def planted_scores(patterns: Patterns, visits: Visits, dataset_dir: str | Path) -> dict[str, float]:
    """Scores on the fold "fit", {} where its visits are not known to be accidental or not.

    `filter/precision` and `filter/recall` are of the dropped visits against the accidental ones. `need_nmi` is the
    normalised mutual information of derived and planted needs on visits that have one, dropped ones included, as the
    Bayes observer's is; `need_nmi_kept` the same on the kept ones. `bayes/...` are that observer's, from the data set.
    """
    from sklearn.metrics import normalized_mutual_info_score

    rows = visits.rows("fit")
    accidental_E = visits.frame["accidental"][rows]
    if accidental_E.null_count():
        return {}
    accidental_E = accidental_E.to_numpy()
    kept_E = patterns.events["kept"].to_numpy()[rows]
    hit = float((accidental_E & ~kept_E).sum())
    found = {"filter/precision": hit / max((~kept_E).sum(), 1), "filter/recall": hit / max(accidental_E.sum(), 1)}
    planted_E, derived_E = (frame["need"].to_numpy()[rows] for frame in (visits.frame, patterns.events))
    for name, chosen_E in (("need_nmi", ~accidental_E), ("need_nmi_kept", ~accidental_E & kept_E)):
        if chosen_E.any():
            found[name] = float(normalized_mutual_info_score(*_codes(planted_E[chosen_E], derived_E[chosen_E])))
    return {name: float(value) for name, value in found.items()} | _bayes(Path(dataset_dir))


def _codes(*texts: np.ndarray) -> list[np.ndarray]:
    return [np.unique(each.astype(str), return_inverse=True)[1] for each in texts]


def _bayes(dataset_dir: Path) -> dict[str, float]:
    path = dataset_dir / "metrics.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {f"bayes/{name}": known[_BAYES + name] for name in _COMPARED if _BAYES + name in known}
