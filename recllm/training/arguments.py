"""Arguments of a recipe: dataclasses, YAML and command line through one TrlParser, and what the hardware allows."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse(*dataclass_types: type | str, argv: Sequence[str] | None = None, default_config: Path | None = None) -> tuple:
    """Parse `--config x.yaml` and `--key value` into one instance of each dataclass.

    Both ways behave alike: the command line overrides the file, and an unknown key in either stops with the
    nearest known one. `default_config` is read where no `--config` is given. A type given by name is one of TRL's
    (`"GRPOConfig"`), with the switches of `configs.py` where it has any, and imported only here because that takes
    seconds; its precision and device follow the hardware unless told.

    Raises:
        SystemExit: an unknown key, a wrong type or a missing file (message on stderr, status 2).
    """
    from trl import TrlParser

    named = [kind for kind in dataclass_types if isinstance(kind, str)]
    dataclass_types = tuple(_trl_type(kind) if isinstance(kind, str) else kind for kind in dataclass_types)
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    argv = [f"--{arg[2:].replace('-', '_')}" if arg.startswith("--") and "=" not in arg else arg for arg in argv]
    parser = TrlParser(dataclass_types, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    if named:
        use_all_cores()
        parser.set_defaults(**hardware_defaults({action.dest for action in parser._actions}))
    if default_config is not None and "--config" not in argv and "--help" not in argv:
        argv = ["--config", str(default_config), *argv]
    if "--config" in argv:
        argv = _from_file(parser, argv) + argv
    known = {option for action in parser._actions for option in action.option_strings} | {"--config"}
    for arg in argv:
        name = arg.split("=")[0]
        if name.startswith("--") and name not in known:
            parser.error(_unknown(name, known, "the command line"))
    return parser.parse_args_into_dataclasses(args=argv)


def use_all_cores() -> None:
    """Take the threads back that a launcher withholds from a single CPU process.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nobody said otherwise, also for the only process of a machine.
    """
    import torch

    alone = os.environ.get("WORLD_SIZE", "1") == "1" and not torch.accelerator.is_available()
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def hardware_defaults(known: set[str]) -> dict[str, Any]:
    """Trainer settings for this machine: bf16 on an accelerator that has it, float32 on the CPU.

    Gradient checkpointing trades time for memory, which a CPU run has and a GPU run lacks.
    """
    import torch

    accelerator = torch.accelerator.is_available()
    bf16 = accelerator and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported())
    wanted = {"use_cpu": not accelerator, "bf16": bf16, "gradient_checkpointing": accelerator, "report_to": "none"}
    return {name: value for name, value in wanted.items() if name in known}


def _trl_type(name: str) -> type:
    import trl

    from recllm.training import configs

    return getattr(configs, name, None) or getattr(trl, name)


def _from_file(parser: Any, argv: list[str]) -> list[str]:
    """Take `--config path` out of `argv`; its values as words of a command line, so that both are checked alike."""
    import yaml

    index = argv.index("--config")
    if index + 1 >= len(argv):
        parser.error("--config needs the path of a YAML file")
    path = Path(argv[index + 1])
    del argv[index : index + 2]
    if not path.is_file():
        parser.error(f"--config {path}: no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        parser.error(f"{path} is not valid YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} must hold a mapping of keys to values")
    known = {action.dest: action for action in parser._actions}
    words = []
    for key, value in values.items():
        if key not in known:
            parser.error(_unknown(str(key), set(known), str(path)))
        if value is None or value == []:  # no words say it
            known[key].default, known[key].required = value, False
        elif isinstance(value, list):
            words += [f"--{key}", *map(_word, value)]
        else:
            words.append(f"--{key}={_word(value)}")
    return words


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _unknown(name: str, known: set[str], where: str) -> str:
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; see --help for the known ones"
    return f"unknown key {name} in {where}{hint}"
