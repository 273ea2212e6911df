"""Environments of the peers that need one of their own."""

import logging
import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

from recllm.assets import cache_root

logger = logging.getLogger("peers")


def peer_environment(name: str, packages: Sequence[str], imports: str) -> Path:
    """Python of the environment `name` in the cache, made now where it is not there or cannot import `imports`."""
    folder = cache_root() / "peers" / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    check = [str(python), "-c", f"import {imports}"]
    if not python.is_file() or subprocess.run(check, capture_output=True).returncode:
        logger.warning("making the environment of the peers in %s", folder)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python
