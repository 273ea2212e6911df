"""Facts about the machine, the checkout and the libraries that a run records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

_VERSIONED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "mergekit", "polars", "numpy")


def peak_memory_gib() -> float:
    """Largest resident set of this process so far, in GiB."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / (1 << (30 if sys.platform == "darwin" else 20))


def git(*arguments: str) -> str | None:
    """What git says of this checkout, or None where there is none."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed wheel has no checkout
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The accelerator's name, or how many cores the CPU has."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"cpu ({os.cpu_count()} cores)"
