"""Imports go down the floors; TRL and mergekit have one importer each; light modules stay light.

Each law is a function from source text to complaints, shown to be able to fail on a small bad snippet.
"""

import ast
import subprocess
import sys

import pytest

FLOORS = {
    "data": 0, "metrics": 0, "assets": 0, "provenance": 0, "machine": 0, "device": 0, "disk": 0,
    "sid": 1, "pipeline": 1,
    "decoding": 2,
    "backbones": 3,
    "tools": 4, "teachers": 4,
    "planner": 5, "needs": 5, "rationales": 5, "recommender": 5,
    "evaluation": 6,
    "training": 7, "merging": 7,
    "hub": 8, "tuning": 8,
    "cli": 9, "doctor": 9,
}  # fmt: skip

# (importing room, imported room): why the rule does not hold between them.
ALLOWED = {
    ("provenance", "machine"): "a run records where it ran",
    ("assets", "provenance"): "writing JSON atomically and hashing files is done in one place",
    ("assets", "disk"): "bringing files to disk is done in one place",
    ("cli", "doctor"): "the doctor is one of the command line's commands, kept in a file of its own",
}

# Library: the one room that may import it.
ONE_IMPORTER = {"trl": "training", "mergekit": "merging"}

ROOF = {"recipes", "data_prep", "benchmarks", "tests"}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "mergekit",
    "peft",
    "sklearn",
    "matplotlib",
    "sentence_transformers",
}


def imported_modules(source: str, path: str) -> list[tuple[int, str]]:
    """(line, dotted module) of every import at any depth; `from a import b` names a.b, for b may be a module."""
    package = path.removesuffix(".py").split("/")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def room_of(path: str) -> str:
    """recllm/data/splits.py -> data, recllm/cli.py -> cli, recllm/__init__.py -> __init__."""
    return path.split("/")[1].removesuffix(".py")


def floor_complaints(source: str, path: str) -> list[str]:
    """Imports of a module in recllm/ that go sideways, up or out onto the roof."""
    room, complaints = room_of(path), []
    if room != "__init__" and room not in FLOORS:
        return [f"{path}: the room {room} has no floor; add it to the table"]
    for line, module in imported_modules(source, path):
        top, _, rest = module.partition(".")
        if top in ROOF:
            complaints.append(f"{path}:{line} imports {module}: nobody imports the roof")
        target = rest.split(".")[0]
        if top != "recllm" or target in (room, "") or (room, target) in ALLOWED:
            continue
        if target not in FLOORS:
            if target != "__version__":
                complaints.append(f"{path}:{line} imports {module}: the room {target} has no floor")
        elif room == "__init__" or FLOORS[target] >= FLOORS[room]:
            complaints.append(
                f"{path}:{line} imports {module}: {room} may only import below floor {FLOORS.get(room, 0)}"
            )
    return complaints


def importer_complaints(source: str, path: str) -> list[str]:
    """Imports of TRL and mergekit outside the room that owns them. The roof may use TRL's config classes."""
    complaints = []
    for line, module in imported_modules(source, path):
        owner = ONE_IMPORTER.get(module.split(".")[0])
        if owner and not path.startswith(f"recllm/{owner}/"):
            complaints.append(f"{path}:{line} imports {module}: only {owner} does")
    return complaints


def test_imports_go_down_the_floors(sources):
    library = {path: text for path, text in sources.items() if path.startswith("recllm/")}
    assert len(library) > 5
    complaints = [complaint for path, text in library.items() for complaint in floor_complaints(text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_trl_and_mergekit_have_one_importer_each(sources):
    bound = {path: text for path, text in sources.items() if path.startswith(("recllm/", "data_prep/"))}
    complaints = [complaint for path, text in bound.items() for complaint in importer_complaints(text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_allowed_exception_is_still_needed(sources):
    used = {
        (room_of(path), module.split(".")[1])
        for path, text in sources.items()
        if path.startswith("recllm/")
        for _, module in imported_modules(text, path)
        if module.startswith("recllm.")
    }
    assert set(ALLOWED) <= used, "drop the exceptions that nobody uses"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("recllm/data/splits.py", "from recllm.sid.table import SidTable"),
        ("recllm/data/splits.py", "def f():\n    import recllm.provenance"),
        ("recllm/data/splits.py", "from recllm import metrics"),
        ("recllm/data/splits.py", "from ..tools import rank"),
        ("recllm/hub/card.py", "from recllm.tuning.spaces.space import Space"),
        ("recllm/sid/table.py", "from recipes.sft import main"),
        ("recllm/__init__.py", "from recllm.data.catalog import Catalog"),
        ("recllm/helpers/x.py", "x = 1"),
        ("recllm/cli.py", "from recllm.helpers import x"),
    ],
)
def test_the_floor_law_can_fail(path, source):
    assert floor_complaints(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("recllm/data/splits.py", "from recllm.data.catalog import Catalog\nfrom .interactions import Sequences"),
        (
            "recllm/evaluation/routing.py",
            "def f():\n    from recllm.metrics.ranking import ndcg_at_k\n    import torch",
        ),
        ("recllm/cli.py", "from recllm.doctor import report\nfrom recllm import __version__"),
    ],
)
def test_the_floor_law_lets_good_imports_pass(path, source):
    assert floor_complaints(source, path) == []


def test_the_importer_law_can_fail():
    assert importer_complaints("def f():\n    from trl import GRPOTrainer", "recllm/planner/env.py")
    assert importer_complaints("import mergekit.merge", "recllm/training/save.py")
    assert importer_complaints("from trl import GRPOTrainer", "recllm/training/grpo.py") == []


@pytest.mark.parametrize("command", ["import recllm", "import recllm.cli"])
def test_import_is_light(command):
    code = f"{command}; import sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "import these inside the function that needs them"


def test_help_answers_without_heavy_imports():
    code = f"""
import sys
from recllm.cli import app
sys.argv = ["recllm", "--help"]
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
print("HEAVY", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("HEAVY []")
