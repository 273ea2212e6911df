"""The pieces of a card: untrusted text made harmless, and the tables of what was measured, spent and used.

Whatever a record says is data: names and titles are shown as code or with every mark escaped, on one line, so that
none of them can end the front matter, open a table cell or pass for a link.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from recllm.data.markdown import code, plain, prose
from recllm.provenance import several

_COST = re.compile(r"cost|flops|seconds|latency|memory|_gib$|_ms$|tokens$")
_SUFFIXES = ("_lo", "_hi", "_n")


def metric_rows(metrics: Mapping[str, Any], costs: bool) -> list[list[str]]:
    """Rows (name, value, 95% interval, n) of the costs or of everything else; `x_lo` and `x_hi` join the row of x."""
    rows = []
    for name, value in metrics.items():
        part = any(name.endswith(end) and name.removesuffix(end) in metrics for end in _SUFFIXES)
        if part or _is_count(name) or bool(_COST.search(name)) is not costs:
            continue
        rows.append([code(name), _number(value), interval(metrics, name) or "-", count(metrics, name) or "-"])
    return rows


def interval(metrics: Mapping[str, Any], name: str) -> str:
    """`lo to hi` of a metric, or an empty string where the interval was not taken."""
    lo, hi = metrics.get(f"{name}_lo"), metrics.get(f"{name}_hi")
    return f"{_number(lo)} to {_number(hi)}" if finite(lo) and finite(hi) else ""


def count(metrics: Mapping[str, Any], name: str) -> str:
    """How many examples a metric is over: `x_n`, else `n` beside it, else `n` of the whole file; or empty."""
    prefix = name.rpartition("/")[0]
    beside = [f"{prefix}/n", f"{prefix}/n_users"] if prefix else []
    for key in (f"{name}_n", *beside, "n", "n_users"):
        if finite(metrics.get(key)):
            return _number(metrics[key])
    return ""


def finite(value: object) -> bool:
    """Whether the value is a finite number (truth values are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_costs(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows for the time and memory of the run itself."""
    wanted = [("wall time, seconds", "wall_seconds"), ("peak memory, GiB", "peak_memory_gib")]
    return [[label, _number(record[key]), "-", "1 run"] for label, key in wanted if finite(record.get(key))]


def data_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows on the inputs, the split and the data set's own figures."""
    config, own = record.get("config") or {}, record.get("dataset")
    rows = [[f"input {code(name)}", f"fingerprint {code(mark)}"] for name, mark in _inputs(record)]
    if isinstance(own, Mapping):
        rows += [[code(key), code(value)] for key, value in own.items() if isinstance(value, str | int | float)]
        counts = own.get("counts")
        rows += [[code(key), code(value)] for key, value in counts.items()] if isinstance(counts, Mapping) else []
    rows += [
        [code(key), code(config[key])] for key in ("split", "routing_items", "seen") if config.get(key) is not None
    ]
    return rows


def _inputs(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and fingerprint of every input folder; an input may be a list of them."""
    return [(name, mark) for name, marks in (record.get("inputs") or {}).items() for mark in several(marks)]


def provenance_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows on code, versions, seed and fingerprints; what is not known is said to be so."""
    sha = record.get("git_sha")
    dirty = " with uncommitted changes" if record.get("git_dirty") else ""
    versions = record.get("versions") or {}
    rows = [
        ["recipe", code(record.get("recipe") or "unknown")],
        ["git commit", f"{code(sha)}{dirty}" if sha else "not recorded"],
        ["device", code(record["device"]) if record.get("device") else "not recorded"],
        ["seed", code(record["seed"]) if record.get("seed") is not None else "not recorded"],
        ["versions", ", ".join(code(f"{name} {version}") for name, version in versions.items()) or "not recorded"],
    ]
    rows += [[f"input {code(name)}", f"sha256 {code(mark)}"] for name, mark in _inputs(record)]
    return rows + ([["this folder", f"sha256 {code(record['fingerprint'])}"]] if record.get("fingerprint") else [])


def assets(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The asset records (`assets.source_of`), kept in run.json as a list or by name."""
    found = record.get("assets") or []
    values = found.values() if isinstance(found, Mapping) else found
    return [entry for entry in values if isinstance(entry, Mapping)]


def asset_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows (asset, licence, source, file, sha256): which of its sources an asset came from decides its bytes."""
    rows = []
    for entry in assets(record):
        source = entry.get("source") if isinstance(entry.get("source"), Mapping) else {"location": entry.get("source")}
        where = f"{plain(source.get('kind') or '')} {plain(source.get('location') or '')}".strip()
        where = f"{code(where)} {prose(source['note'])}" if source.get("note") else code(where)
        sums = source.get("sha256") or entry.get("sha256") or {"-": "-"}
        for file, digest in (sums if isinstance(sums, Mapping) else {"-": sums}).items():
            rows.append([code(entry.get("name")), prose(entry.get("licence") or "-"), where, code(file), code(digest)])
    return rows


def shown_config(config: Mapping[str, Any]) -> str:
    """The configuration as JSON text: nothing unset, no secrets, and of a path only its last part."""
    kept = {key: _without_folders(value) for key, value in config.items() if value is not None and not _secret(key)}
    text = json.dumps(kept, indent=2, ensure_ascii=False, default=str) if kept else ""
    # Invisible characters and halves of surrogate pairs go back to their escapes, so that JSON stays what it was.
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else json.dumps(c)[1:-1] for c in text)


def _secret(key: str) -> bool:
    return bool(re.search(r"(^|_)(token|secret|password|api_?key)$", key.lower()))


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return PurePath(value).name if re.match(r"[/~\\]|[A-Za-z]:[/\\]", value) else value
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items() if not _secret(str(key))}
    return [_without_folders(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_count(name: str) -> bool:
    return name.rpartition("/")[2] in ("n", "n_users")


def _number(value: object) -> str:
    if not finite(value):
        return code(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}" if abs(value) < 1e7 else f"{value:.3e}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def walk_features(features: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(column, type) of a saved data set's features: a value's dtype, else the kind of the structure."""
    for name, kind in features.items():
        if isinstance(kind, Mapping):
            yield name, str(kind.get("dtype") or kind.get("_type") or "struct")
        else:
            yield name, "list" if isinstance(kind, list) else str(kind)
