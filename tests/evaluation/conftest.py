"""The planner tests' worlds, for the routers."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

_FILE = Path(__file__).parents[1] / "planner" / "worlds.py"


@pytest.fixture(scope="session")
def worlds():
    """The functions of tests/planner/worlds.py."""
    return SimpleNamespace(**runpy.run_path(str(_FILE), run_name="planner_worlds"))
