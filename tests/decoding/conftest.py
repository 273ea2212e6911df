"""The decoding tests' models, tries and plain twins."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def worlds():
    """The functions of worlds.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("worlds.py")), run_name="decoding_worlds"))
