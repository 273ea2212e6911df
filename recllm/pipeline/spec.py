"""What a pipeline YAML says, read strictly."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from recllm.provenance import several

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PIPELINE_KEYS = ("name", "extends", "stages")
_STAGE_KEYS = ("name", "script", "config", "args", "inputs")


@dataclass(frozen=True)
class Stage:
    """One script of a pipeline. `inputs`: argument of the script -> `stage` or `stage/subfolder`, or a list of them."""

    name: str
    script: Path
    config: Path | None
    args: Mapping[str, Any]
    inputs: Mapping[str, str | list[str]]

    @property
    def needs(self) -> list[str]:
        """Names of the stages whose folders this one reads."""
        sources = [source for value in self.inputs.values() for source in several(value)]
        return [PurePosixPath(source).parts[0] for source in sources]

    def values(self) -> dict[str, Any]:
        """What the stage is asked for: the keys of its config, overridden by `args`, without its folders."""
        asked = dict(_read_mapping(self.config)) if self.config else {}
        asked |= self.args
        return {key: value for key, value in asked.items() if key not in self.inputs and key != "output_dir"}

    def command(self, folder: Path, inputs: Mapping[str, Path | list[Path]]) -> list[str]:
        """The command line that builds the stage in `folder` from its input folders."""
        line = [sys.executable, str(self.script)]
        if self.config:
            line += ["--config", str(self.config)]
        for key, value in self.args.items():
            line += [f"--{key}", *_words(value)]
        for key, path in inputs.items():
            line += [f"--{key}", *_words(path)]
        return [*line, "--output_dir", str(folder)]


@dataclass(frozen=True)
class Pipeline:
    """A named list of stages, in the order in which they run."""

    name: str
    path: Path
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises `ValueError` that names the nearest one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"{self.path}: no stage {name!r}{_nearest(name, [stage.name for stage in self.stages])}")

    def upstream(self, name: str) -> list[Stage]:
        """The stages that stage `name` needs, transitively, in running order; without itself."""
        needed = set(self.stage(name).needs)
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed |= set(stage.needs)
        return [stage for stage in self.stages if stage.name in needed]

    def folder(self, stage: str, outputs_root: str | Path) -> Path:
        """Output folder of a stage."""
        return Path(outputs_root) / self.name / stage

    def input_folders(self, stage: Stage, outputs_root: str | Path) -> dict[str, Path | list[Path]]:
        """Argument of the stage -> the folder, or list of folders, that is passed for it."""
        home = Path(outputs_root) / self.name
        return {
            key: [home / each for each in source] if isinstance(source, list) else home / source
            for key, source in stage.inputs.items()
        }


def load_pipeline(path: str | Path) -> Pipeline:
    """Read a pipeline YAML.

    `extends: other.yaml`, beside it, takes over the name, and the stages before the own ones, but for those that
    the own ones replace by name. Both write the same folders, so that what is complete is not run again.

    Raises:
        ValueError: not such a YAML; an unknown key, a duplicate name, an input that is no earlier stage, a pipeline
            that extends itself, or no folder `recipes/` at or above the file. The message names the file, the stage and
            the key.
    """
    path = Path(path)
    name, entries = _contents(path, ())
    root = _project_root(path)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    stages: list[Stage] = []
    for number, entry in enumerate(entries, 1):
        stages.append(_stage(entry, f"{path}: stage {number}", root, [stage.name for stage in stages], names))
    return Pipeline(name=name, path=path, stages=tuple(stages))


def _contents(path: Path, extending: tuple[Path, ...]) -> tuple[str, list[Any]]:
    """Name and entries of a file, those of the file that it extends included."""
    content = _read_mapping(path)
    _check_keys(content, _PIPELINE_KEYS, f"{path}")
    entries = content.get("stages")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: stages must be a list with at least one stage")
    if "extends" not in content:
        _check_name(content.get("name"), f"{path}: name")
        return content["name"], entries
    if "name" in content:
        raise ValueError(f"{path}: name stands beside extends; the name is that of the extended pipeline")
    other = path.parent / str(content["extends"])
    if other.resolve() in (resolved := (*extending, path.resolve())):
        raise ValueError(f"{path}: extends {other}, which extends this one")
    name, earlier = _contents(other, resolved)
    own = {entry.get("name") for entry in entries if isinstance(entry, dict)}
    return name, [entry for entry in earlier if not isinstance(entry, dict) or entry.get("name") not in own] + entries


def _stage(entry: Any, where: str, root: Path, earlier: list[str], every: list[Any]) -> Stage:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping with name and script")
    _check_name(entry.get("name"), f"{where}: name")
    name = entry["name"]
    where = f"{where} ({name})"
    _check_keys(entry, _STAGE_KEYS, where)
    if name in earlier:
        raise ValueError(f"{where}: there is another stage of that name")
    if not isinstance(entry.get("script"), str):
        raise ValueError(f"{where}: script must be the path of a Python file")
    args, inputs = entry.get("args") or {}, entry.get("inputs") or {}
    if not isinstance(args, dict) or not isinstance(inputs, dict):
        raise ValueError(f"{where}: args and inputs must be mappings")
    for key, source in inputs.items():
        if source == []:
            raise ValueError(f"{where}: input {key} is an empty list; name at least one earlier stage")
        for one in several(source):
            _check_input(one, f"{where}: input {key}", earlier, every)
        if key in args:
            raise ValueError(f"{where}: {key} stands in args and in inputs")
    if taken := {"output_dir", "config"} & (set(args) | set(inputs)):
        raise ValueError(f"{where}: {sorted(taken)[0]} is set by the pipeline and cannot be an argument")
    config = root / entry["config"] if entry.get("config") else None
    return Stage(name=name, script=root / entry["script"], config=config, args=args, inputs=inputs)


def _check_input(source: Any, where: str, earlier: list[str], every: list[Any]) -> None:
    parts = PurePosixPath(source).parts if isinstance(source, str) else ()
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"{where}: {source!r} must name an earlier stage, or `stage/subfolder`")
    if parts[0] not in earlier:
        if parts[0] in every:
            raise ValueError(f"{where}: stage {parts[0]!r} comes later; a stage reads earlier ones only")
        raise ValueError(f"{where}: no stage {parts[0]!r}{_nearest(parts[0], [name for name in every if name])}")


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(str(key), list(known))}")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where} must be a word of letters, digits, _, . and -, not {name!r}")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _project_root(path: Path) -> Path:
    # Kept relative to the working folder where possible, so that the command lines shown stay short.
    for parent in path.absolute().parents:
        if (parent / "recipes").is_dir():
            here = Path.cwd()
            return parent.relative_to(here) if parent.is_relative_to(here) else parent
    raise ValueError(f"{path}: no folder above it holds recipes/; scripts are looked for from there")


def _read_mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values")
    return content


def _words(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
