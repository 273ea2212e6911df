"""Every YAML is read by its own script's last line: strictly, with a header that tells what it is for.

The script runs as `__main__` up to the point where its arguments are parsed, so these tests know nothing about how a
script lists its dataclasses.
"""

import dataclasses
import re
import runpy
import sys
import typing
from pathlib import Path

import pytest
import trl
import yaml

import recllm.training.arguments as arguments

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes" / "configs"
PIPELINES = sorted((ROOT / "recipes" / "pipelines").glob("*.yaml"))
YAMLS = sorted(CONFIGS.glob("*/*.yaml"))
SCRIPTS = sorted([*(ROOT / "recipes").glob("*.py"), *(ROOT / "data_prep").glob("*.py")])
# Script -> why it does not run at both offline scales, quickstart and smoke.
ONE_SCALE = {
    "movielens": "it reads real files; its tests write small ones",
    "amazon": "it reads real files; its tests write small ones",
    "kuairec": "it reads real files; its tests write small ones",
    "taobao_mm": "it reads real files; its tests write small ones",
    "foursquare": "it reads real files; its tests write small ones",
    "local_life": "it reads real files; its tests write small ones",
    "publish": "it sends a finished folder; what it sends is on the command line",
    "evaluate": "it evaluates a finished folder; which one is on the command line",
    "ablate_tool": "it has no settings; which cache and which tool is on the command line",
    "evaluate_frontier": "it evaluates finished folders; which ones is on the command line",
    "evaluate_needs": "it evaluates finished folders; which ones is on the command line",
    "merge_report": "it reports on a finished sweep; which one is on the command line",
    "merge_deliver": "it delivers from a finished sweep; which one is on the command line",
    "evaluate_recommender": "it evaluates a finished folder; which one is on the command line",
}
# Keys that say where a result lands differ from run to run and may repeat a default.
PLACES = {"output_dir"}


class ParsedError(Exception):
    """Carries what a script parsed out of it, before its main starts."""


def script_of(config: Path) -> Path:
    """The script that a YAML's folder is named after."""
    found = [path for path in SCRIPTS if path.stem == config.parent.name]
    assert len(found) == 1, f"{config}: no script recipes/{config.parent.name}.py or data_prep/{config.parent.name}.py"
    return found[0]


def dummy(field: dataclasses.Field) -> str:
    """A value that a required field accepts."""
    if typing.get_origin(field.type) is typing.Literal:
        return str(typing.get_args(field.type)[0])
    return {int: "1", float: "1", bool: "true"}.get(field.type, "x")


def parsed(script: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[type, ...], tuple]:
    """The dataclasses that the script parses, and their instances read from `config`.

    Required keys that the file leaves to the command line get dummies; the CPU is asked for, since a file for GPUs
    must parse here, too.
    """
    real = arguments.parse
    given = set(yaml.safe_load(config.read_text(encoding="utf-8")) or {})

    def parse(*types, **_):
        kinds = tuple(getattr(trl, kind) if isinstance(kind, str) else kind for kind in types)
        fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.init]
        argv = ["--config", str(config)]
        for field in fields:
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if missing and field.name not in given:
                argv += [f"--{field.name}", dummy(field)]
            if field.name == "use_cpu":
                argv += ["--use_cpu", "true"]
        raise ParsedError(kinds, tuple(real(*types, argv=argv)))

    monkeypatch.setattr(arguments, "parse", parse)
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(ParsedError) as caught:
        runpy.run_path(str(script), run_name="__main__")
    return caught.value.args


def header_complaints(text: str, script: str) -> list[str]:
    """What the comment at the top of a YAML lacks: a purpose and the command that runs it."""
    header = re.match(r"(?:#.*\n)*", text).group()
    found = [] if len(re.findall(r"^# *\w.*$", header, re.M)) >= 2 else ["no header comment with purpose and command"]
    return found if script in header else [*found, f"its header has no command with {script}"]


def repeated_defaults(values: dict, types: tuple[type, ...]) -> list[str]:
    """Keys whose value is the dataclass's default anyway."""
    defaults = {field.name: field.default for kind in types for field in dataclasses.fields(kind)}
    return [
        key
        for key, value in values.items()
        if key not in PLACES and key in defaults and type(value) is type(defaults[key]) and value == defaults[key]
    ]


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("config", YAMLS, ids=ids)
def test_the_yaml_is_parsed_by_its_script(config, monkeypatch):
    types, instances = parsed(script_of(config), config, monkeypatch)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    for key, value in values.items():
        if isinstance(value, str | int) and key != "use_cpu":
            assert any(getattr(instance, key, None) == value for instance in instances), f"{key} did not arrive"
    assert repeated_defaults(values, types) == [], "these keys repeat their defaults"


@pytest.mark.parametrize("config", YAMLS, ids=ids)
def test_the_yaml_has_a_header(config):
    script = script_of(config).relative_to(ROOT).as_posix()
    assert header_complaints(config.read_text(encoding="utf-8"), script) == []


def scales(script: Path) -> set[str]:
    """The offline scales at which the script runs: by a config of its own, or with its defaults in a pipeline."""
    names = [path.stem for path in (CONFIGS / script.stem).glob("*.yaml")]
    own = {scale for scale in ("quickstart", "smoke") for name in names if name.split("_")[0] == scale}
    named = script.relative_to(ROOT).as_posix()
    return own | {path.stem for path in PIPELINES if named in path.read_text(encoding="utf-8")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_runs_at_both_offline_scales(script):
    missing = {"quickstart", "smoke"} - scales(script)
    assert not missing or script.stem in ONE_SCALE, f"recipes/configs/{script.stem}/ lacks {sorted(missing)}"


def test_configs_hold_nothing_else():
    stray = [path for path in CONFIGS.rglob("*") if path.is_file() and path not in YAMLS]
    assert stray == []


@pytest.mark.parametrize("path", PIPELINES, ids=ids)
def test_the_pipeline_loads_and_what_it_names_exists(path):
    from recllm.pipeline import load_pipeline

    assert load_pipeline(path)
    text = path.read_text(encoding="utf-8")
    assert header_complaints(text, path.name) == []
    named = re.findall(r"(?:recipes|data_prep)/[\w./-]+\.(?:py|yaml)", text)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_main_jobs_pipelines_exist():
    assert {"quickstart", "smoke"} <= {path.stem for path in PIPELINES}


SCRIPT = """
from dataclasses import dataclass, field
from recllm.training.arguments import parse

@dataclass
class Arguments:
    output_dir: str
    rounds: int = 3
    name: str = "a"

def main(args):
    raise AssertionError("main must not start")

if __name__ == "__main__":
    main(*parse(Arguments))
"""


@pytest.fixture
def toy(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT)
    return script


def read(toy, text, monkeypatch):
    config = toy.with_suffix(".yaml")
    config.write_text(text)
    return parsed(toy, config, monkeypatch)


def test_a_good_yaml_arrives(toy, monkeypatch):
    _, (instance,) = read(toy, "rounds: 5\n", monkeypatch)
    assert (instance.output_dir, instance.rounds, instance.name) == ("x", 5, "a")


@pytest.mark.parametrize("text", ["round: 5\n", "rounds: many\n", "- rounds\n"])
def test_a_bad_yaml_is_refused(toy, text, monkeypatch, capsys):
    with pytest.raises((SystemExit, ValueError, AttributeError, TypeError)):
        read(toy, text, monkeypatch)


def test_the_checkers_can_fail(toy, monkeypatch):
    assert header_complaints("a: 1\n", "recipes/x.py")
    assert header_complaints("# Purpose.\n# Some words.\na: 1\n", "recipes/x.py")
    assert header_complaints("# python recipes/x.py\na: 1\n", "recipes/x.py")
    assert header_complaints("# Purpose.\n#\n#   python recipes/x.py\na: 1\n", "recipes/x.py") == []
    types, _ = read(toy, "rounds: 5\n", monkeypatch)
    assert repeated_defaults({"rounds": 3, "name": "b", "output_dir": "x"}, types) == ["rounds"]
