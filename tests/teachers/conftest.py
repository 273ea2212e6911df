"""The teachers' tests' worlds."""

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def worlds():
    """The names of worlds.py; dataclasses look their module up by its name, so it has one."""
    module = ModuleType("teacher_worlds")
    sys.modules[module.__name__] = module
    vars(module).update(runpy.run_path(str(Path(__file__).with_name("worlds.py")), run_name=module.__name__))
    return module


@pytest.fixture
def chat(worlds, monkeypatch):
    """A chat endpoint on this machine, in an environment that names no other."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with worlds.FakeChat() as server:
        yield server
