"""A trial: a recipe run with a configuration of a space, inside limits, its outcome a record and never an exception.

What a tuner sees are validation metrics. The recipe is not asked to rank the test targets, so during a study no test
metric exists anywhere; `recllm.tuning.finalize` reads them once at its end.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

from recllm.provenance import METRICS_FILE, content_fingerprint, read_json
from recllm.tuning.launch import Direct, Ended, Launcher
from recllm.tuning.recipe import recipe_arguments, recipe_path
from recllm.tuning.space import Space

Status = Literal["ok", "crash", "nan", "timeout", "out_of_memory", "too_large", "refused"]
STATUSES: tuple[str, ...] = get_args(Status)
OBJECTIVE = "validation/ndcg@10"
_LAST_WORDS = 400


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Args:
        key: of the configuration, empty where it was refused.
        config: the checked configuration; of a refused one what was proposed.
        metrics: `validation/...` of an `ok` trial, else empty. With `unsealed` runs `test/...` besides.
        parameters: of the model, where it is known.
        cpu_seconds, wall_seconds, peak_gib: of the trial's process; 0 where none was started.
        words: why it failed, in the last words of the trial; empty for `ok`.
    """

    status: Status
    key: str
    config: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_gib: float = 0.0
    words: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def score(self) -> float:
        """Validation NDCG@10; minus infinity for a trial that failed."""
        return self.metrics.get(OBJECTIVE, -math.inf)

    def row(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass
class TrialRunner:
    """Runs trials of one space on one data set.

    Args:
        space: what may be asked for, and the limits of a trial.
        dataset: folder of the data set; its content must stay what it was when the runner first looked.
        scratch: trials work in folders under it that are gone afterwards; None is the system's place for such.
        launcher: how a process is started.
    """

    space: Space
    dataset: Path
    scratch: Path | None = None
    launcher: Launcher = field(default_factory=Direct)

    def __post_init__(self) -> None:
        self.dataset = Path(self.dataset)
        self.data_fingerprint = content_fingerprint(self.dataset)

    def run(self, config: Mapping[str, Any], seed: int = 0) -> Outcome:
        """Run one trial.

        Raises:
            ValueError: the data set is not what it was: no outcome on it could be compared with earlier ones.
        """
        return self._run(config, seed, test=False)

    def run_unsealed(self, config: Mapping[str, Any], seed: int = 0) -> Outcome:
        """As `run`, with test metrics: for measuring surfaces and for the one reading at a study's end, nothing else.

        Raises:
            ValueError: as `run`.
        """
        return self._run(config, seed, test=True)

    def parameters(self, config: Mapping[str, Any]) -> int:
        """Parameters of the model that a configuration makes, without making it.

        Raises:
            ValueError: the configuration is not legal, or the backbone refuses it.
        """
        import torch

        from recllm.backbones.train import build_sequential

        with torch.device("meta"):
            model = build_sequential(*self._catalogue, SimpleNamespace(**self._arguments(config)))
        return sum(parameter.numel() for parameter in model.parameters())

    def _arguments(self, config: Mapping[str, Any]) -> dict[str, Any]:
        usual = {name: argument.default for name, argument in recipe_arguments(self.space.recipe).items()}
        return usual | self.space.arguments(config)

    @cached_property
    def _catalogue(self) -> tuple[int, str]:
        from recllm.data.catalog import Catalog
        from recllm.data.splits import DATASET_FILE

        return len(Catalog.load(self.dataset)), read_json(self.dataset / DATASET_FILE)["time"]

    def _run(self, config: Mapping[str, Any], seed: int, test: bool) -> Outcome:
        try:
            checked = self.space.check(config)
            parameters = self.parameters(checked)
        except ValueError as error:
            return Outcome("refused", "", dict(config) if isinstance(config, Mapping) else {}, seed, words=str(error))
        told = Outcome("ok", self.space.key(checked), checked, seed, parameters=parameters)
        most = self.space.limits.parameters
        if most is not None and parameters > most:
            return _as(told, "too_large", words=f"{parameters} parameters, {most} are allowed")
        self._check_data("before")
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self.scratch) as folder:
            output, log = Path(folder) / "run", Path(folder) / "log"
            words = self._words(checked, seed, output, test)
            ended = self.launcher.run(recipe_path(self.space.recipe), words, log, self.space.limits)
            outcome = _judge(told, ended, output / METRICS_FILE, log, test)
        self._check_data("after")
        return outcome

    def _words(self, config: Mapping[str, Any], seed: int, output: Path, test: bool) -> list[str]:
        arguments = self.space.arguments(config)
        arguments |= {"dataset": self.dataset, "output_dir": output, "seed": seed, "report_test": test}
        return [f"--{name}={value}" for name, value in arguments.items()]

    def _check_data(self, when: str) -> None:
        if (found := content_fingerprint(self.dataset)) != self.data_fingerprint:
            raise ValueError(
                f"{self.dataset} is not what it was ({found[:12]} {when} a trial, {self.data_fingerprint[:12]} at the "
                "start): its trials cannot be compared; make the data set again and start another study"
            )


def _judge(told: Outcome, ended: Ended, metrics_file: Path, log: Path, test: bool) -> Outcome:
    told = _as(told, "ok", cpu_seconds=ended.cpu_seconds, wall_seconds=ended.wall_seconds, peak_gib=ended.peak_gib)
    if ended.stopped:
        spent = f"{ended.cpu_seconds:.1f} processor seconds, {ended.wall_seconds:.1f} s, {ended.peak_gib:.2f} GiB"
        return _as(told, ended.stopped, words=f"stopped after {spent}")
    if ended.status:
        words = _last_words(log) or f"ended with status {ended.status}"
        return _as(told, _failure(ended, words), words=words)
    roles = ("validation/", "test/") if test else ("validation/",)
    found = read_json(metrics_file)
    if not test and any(name.startswith("test/") for name in found):
        raise ValueError(f"{told.key}: the recipe ranked test targets although it was not asked to")
    metrics = {name: float(value) for name, value in found.items() if name.startswith(roles)}
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        return _as(told, "nan", words=f"{bad[0]} is {metrics[bad[0]]}")
    return _as(told, "ok", metrics=metrics, parameters=int(found["parameters"]))


def _failure(ended: Ended, words: str) -> Status:
    if "FloatingPointError" in words:
        return "nan"
    if "MemoryError" in words or "out of memory" in words or "can't allocate memory" in words:
        return "out_of_memory"
    return "crash"


def _last_words(log: Path) -> str:
    """The last line that a process printed, its end where it is long."""
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(stream.tell() - 20_000, 0))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][-_LAST_WORDS:] if lines else ""


def _as(outcome: Outcome, status: Status, **values: Any) -> Outcome:
    return replace(outcome, status=status, **values)
