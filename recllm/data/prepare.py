"""Raw rows -> dataset/: duplicates, k-core, ids, harmless item text, and the quarantine of malformed rows.

The readers of the sources hand over a `Raw`; everything after that is shared, in this order: item rows with a known
key are dropped, repeated (user, item) pairs are dropped by the dedup policy, the k-core is taken, users are numbered
by first appearance in the input and items by their row in the item file (items without one after those), and events
are sorted by user, timestamp and input order.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recllm.data import catalog, interactions
from recllm.data.checkins import Visits, folds_split, target_counts, write_visits
from recllm.data.splits import DATASET_FILE, Split, make_split
from recllm.data.text import neutralise

Dedup = Literal["first", "last", "none"]
QUARANTINE_FILE = "quarantine.parquet"
QUARANTINE_SCHEMA = {"file": pl.String, "row": pl.Int64, "reason": pl.String}
TIE_RULE = "stable: equal timestamps keep input order"
SCHEMA = 1
# Arguments of a data_prep script that dataset.json records under their own names, where the script has them.
POLICIES = (
    *("routing_items", "split_seed", "k_core", "dedup", "keep_unseen", "max_bad_fraction"),
    *("sample_users", "sample_seed"),
)


@dataclass(frozen=True)
class Raw:
    """What a reader found.

    `events`: user str, item str, timestamp int64, in input order. `items`: item str (the source's key), title str,
    categories list<str>. Both have what else the source has. `bad`: file, row (1-based line number) and reason of every
    malformed row. `rows` counts all data rows of each file, good and bad. `time` is "seconds" or "order".
    """

    events: pl.DataFrame
    items: pl.DataFrame
    bad: pl.DataFrame
    rows: dict[str, int]
    time: Literal["seconds", "order"] = "seconds"


@dataclass(frozen=True)
class Prepared:
    """A finished data set in memory, in the layout of dataset/; `interactions` with what else the events had."""

    catalog: pl.DataFrame
    interactions: pl.DataFrame
    counts: dict[str, float] = field(default_factory=dict)


def quarantine(rows: list[tuple[str, int, str]]) -> pl.DataFrame:
    """A quarantine table from (file, row, reason) tuples."""
    return pl.DataFrame(rows, schema=QUARANTINE_SCHEMA, orient="row")


def check_bad_fraction(raw: Raw, max_bad_fraction: float) -> None:
    """Stop where too much of one file is malformed.

    Raises:
        ValueError: more than `max_bad_fraction` (0 to 1) of a file's rows are in quarantine; names the count and the
            first reasons.
    """
    for file, rows in raw.rows.items():
        bad = raw.bad.filter(pl.col("file") == file)
        if bad.height > max_bad_fraction * rows:
            first = "; ".join(f"line {row}: {reason}" for _, row, reason in bad.head(3).iter_rows())
            raise ValueError(
                f"{file}: {bad.height} of {rows} rows are malformed, more than max_bad_fraction={max_bad_fraction} "
                f"allows ({first}). Mend the file, or raise max_bad_fraction to go on without these rows"
            )


def drop_repeats(events: pl.DataFrame, dedup: Dedup) -> pl.DataFrame:
    """Keep one event per (user, item): the first or the last in time, ties by input order. "none" keeps all.

    Raises:
        ValueError: an unknown policy.
    """
    if dedup not in ("first", "last", "none"):
        raise ValueError(f'unknown dedup {dedup!r}; choose "first", "last" or "none"')
    if dedup == "none":
        return events
    ranked = events.with_row_index("_row").sort("timestamp", maintain_order=True)
    return ranked.unique(["user", "item"], keep=dedup, maintain_order=True).sort("_row").drop("_row")


def k_core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest subset where every user and every item has at least `k` events. 0 and 1 change nothing.

    Raises:
        ValueError: nothing is left, or `k` is negative.
    """
    if k < 0:
        raise ValueError(f"k_core must be 0 or more, got {k}")
    before = -1
    while events.height != before:
        before = events.height
        events = events.filter(pl.len().over("user") >= k)
        events = events.filter(pl.len().over("item") >= k)
    if events.height == 0:
        raise ValueError(f"no event is left in the {k}-core; lower k_core")
    return events


def sample_users(events: pl.DataFrame, users: int | None, seed: int = 0) -> pl.DataFrame:
    """The events of `users` users drawn by `seed`, in their order; all of them where there are no more, or None.

    Raises:
        ValueError: fewer than one user is asked for.
    """
    if users is None:
        return events
    if users < 1:
        raise ValueError(f"sample_users must be at least 1, got {users}")
    # numpy's generator draws the same users under every version of polars.
    names = events["user"].unique(maintain_order=True)
    drawn = np.random.default_rng(seed).permutation(len(names))[:users]
    return events.filter(pl.col("user").is_in(names.gather(np.sort(drawn)).implode()))


def prepare(
    raw: Raw,
    *,
    k: int,
    dedup: Dedup,
    keep_unseen: bool = False,
    max_bad_fraction: float = 0.01,
    sampled_users: int | None = None,
    sample_seed: int = 0,
) -> Prepared:
    """Build the data set. `keep_unseen` keeps items that have no event; the users are sampled first.

    Raises:
        ValueError: too many malformed rows, no events, or an empty k-core.
    """
    check_bad_fraction(raw, max_bad_fraction)
    if raw.events.height == 0:
        raise ValueError(f"no usable event in {', '.join(raw.rows)}; nothing to prepare")
    whole = drop_repeats(raw.events, dedup)
    drawn = sample_users(whole, sampled_users, sample_seed)
    events = k_core(drawn, k)
    known = raw.items.unique("item", keep="first", maintain_order=True)
    items = _number_items(known, events, keep_unseen)
    users = events.select(pl.col("user").unique(maintain_order=True)).with_row_index("user_id")
    frame = (
        events.join(users, on="user", maintain_order="left")
        .join(items.select("item_id", "item"), on="item", maintain_order="left")
        .select(
            *(pl.col(name).cast(dtype) for name, dtype in interactions.SCHEMA.items()),
            pl.exclude("user", "item", *interactions.SCHEMA),
        )
        .sort("user_id", "timestamp", maintain_order=True)
    )
    counts = {
        "users": users.height,
        "items": items.height,
        "events": frame.height,
        "density": frame.height / (users.height * items.height),
        "mean_length": frame.height / users.height,
        "unseen_items": items.height - frame["item_id"].n_unique(),
        "items_without_metadata": items.height - items.join(known, on="item", how="semi").height,
        "items_without_title": items.filter(pl.col("title") == "").height,
        "duplicate_items": raw.items.height - known.height,
        "dropped_repeats": raw.events.height - whole.height,
        "dropped_by_sampling": whole.height - drawn.height,
        "dropped_by_k_core": drawn.height - events.height,
        "quarantined": raw.bad.height,
    }
    return Prepared(items.drop("item"), frame, counts)


def _number_items(known: pl.DataFrame, events: pl.DataFrame, keep_unseen: bool) -> pl.DataFrame:
    seen = events.select(pl.col("item").unique(maintain_order=True))
    if not keep_unseen:
        known = known.join(seen, on="item", how="semi", maintain_order="left")
    absent = seen.join(known, on="item", how="anti", maintain_order="left")
    items = pl.concat([known, absent], how="diagonal").with_row_index("item_id")
    raw_text = [name for name, dtype in items.schema.items() if dtype == pl.String and name not in ("item", "title")]
    return items.select(
        pl.col("item_id").cast(pl.Int32),
        pl.Series("title", _harmless(items["title"])),
        pl.Series("categories", _harmless_lists(items["categories"]), dtype=pl.List(pl.String)),
        *(pl.Series(name, _harmless(items[name])) for name in raw_text),
        pl.exclude("item_id", "title", "categories", *raw_text),
        pl.col("item").alias("source_id"),
    )


# Categories and brands repeat over the items, so each distinct text is cleaned once.
@lru_cache(maxsize=1 << 16)
def _clean(text: str | None) -> str:
    # Web shops escape HTML in titles; unescaping may bring markers to light, so it comes first.
    return neutralise(html.unescape(text)) if text else ""


def _harmless(texts_N: pl.Series) -> list[str]:
    return [_clean(text) for text in texts_N.to_list()]


def _harmless_lists(lists_N: pl.Series) -> list[list[str]]:
    cleaned = ([_clean(name) for name in names or []] for names in lists_N.to_list())
    return [list(dict.fromkeys(name for name in names if name)) for names in cleaned]


def content_fingerprint(prepared: Prepared, visits: pl.DataFrame | None = None) -> str:
    """sha256 over the values of the tables, the same for every version of the file format."""
    digest = hashlib.sha256()
    for name in interactions.SCHEMA:
        digest.update(prepared.interactions[name].to_numpy().tobytes())
    tables = [prepared.catalog] if visits is None else [prepared.catalog, visits]
    for table in tables:
        digest.update(table.select(sorted(table.columns)).write_ndjson().encode())
    return digest.hexdigest()


def _split(prepared: Prepared, policies: Any, visits: pl.DataFrame | None) -> tuple[Split, dict[str, int]]:
    """The split, and its counts.

    Raises:
        ValueError: the split is unknown, or leaves no user to test on.
    """
    columns = (prepared.interactions[name].to_numpy() for name in interactions.SCHEMA)
    sequences = interactions.Sequences.from_arrays(*columns)
    if visits is None:
        asked = (policies.split, policies.routing_items, policies.split_seed, getattr(policies, "role_share", 1.0))
        split, counts = make_split(sequences, *asked), {}
        why = (
            f"no user is long enough for split={policies.split} with routing_items={policies.routing_items}; "
            "lower routing_items, raise role_share, or bring longer histories"
        )
    else:
        known = Visits(visits, sequences)
        split, counts = folds_split(known), target_counts(known)
        why = "no visit of the fold test may be asked for; bring a longer log, or ask for a larger test fold"
    if not len(split.test):
        raise ValueError(why)
    users = len(set(split.test.user_E.tolist()))
    return split, {"fitting_events": int(split.fit_length_U.sum()), "test_users": users, **counts}


def write_dataset(
    output_dir: str | Path,
    prepared: Prepared,
    raw: Raw,
    policies: Any,
    description: Mapping[str, Any],
    visits: pl.DataFrame | None = None,
) -> dict[str, float]:
    """Write catalog, interactions, quarantine and, last, dataset.json; return the counts, those of the split included.

    `policies` is a script's arguments: what `POLICIES` names is recorded. `description` adds name, source, licence
    and what is particular to the source. `visits` (`prepared.interactions` with a `fold`) go to visits.parquet, and
    their folds are the split.

    Raises:
        ValueError: the split is unknown, or leaves no user to test on.
    """
    folder, role_share = Path(output_dir), getattr(policies, "role_share", 1.0)
    split, split_counts = _split(prepared, policies, visits)
    counts = {**prepared.counts, **split_counts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATASET_FILE).unlink(missing_ok=True)
    prepared.catalog.write_parquet(folder / catalog.FILE)
    prepared.interactions.select(*interactions.SCHEMA).write_parquet(folder / interactions.FILE)
    if visits is not None:
        write_visits(folder, visits)
    raw.bad.write_parquet(folder / QUARANTINE_FILE)
    known = {
        "schema": SCHEMA,
        **description,
        "split": split.kind,
        **{name: getattr(policies, name) for name in POLICIES if hasattr(policies, name)},
        **({"role_share": role_share} if role_share < 1 else {}),
        "ties": TIE_RULE,
        "time": raw.time,
        "counts": counts,
        "fingerprint": content_fingerprint(prepared, visits),
    }
    text = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
    (folder / DATASET_FILE).write_text(text, encoding="utf-8")
    return counts
