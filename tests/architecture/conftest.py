"""The project's own files, as the laws see them: what git tracks, and what it would track."""

import os
import subprocess
from pathlib import Path

import pytest

_SKIPPED_FOLDERS = {"__pycache__", "outputs", "build", "dist"}
_BINARY = {".png", ".jpg", ".gif", ".pdf", ".safetensors", ".parquet", ".whl", ".zip", ".gz", ".gguf"}


def project_files(root: Path) -> list[Path]:
    """Every file of the checkout but ignored ones; without git, a walk that leaves out what git would ignore."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
        found = [root / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, below, files in os.walk(root):
            below[:] = [
                name for name in below if name not in _SKIPPED_FOLDERS and not name.startswith((".git", ".venv"))
            ]
            below[:] = [name for name in below if not name.endswith("_cache") and not name.endswith(".egg-info")]
            found += [Path(folder) / name for name in files]
    return sorted(path for path in found if path.is_file())


@pytest.fixture(scope="session")
def texts(repo_root) -> dict[str, str]:
    """Relative path -> content of each text file."""
    files = [path for path in project_files(repo_root) if path.suffix not in _BINARY]
    return {path.relative_to(repo_root).as_posix(): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture(scope="session")
def sources(texts) -> dict[str, str]:
    """Relative path -> content of each Python file."""
    return {name: text for name, text in texts.items() if name.endswith(".py")}
