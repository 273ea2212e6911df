"""A trial: a recipe run with a configuration of a space, inside limits, its outcome a record and never an exception.

What a tuner sees are validation metrics. The recipe is not asked to rank the test targets, so during a study no test
metric exists anywhere; `recllm.tuning.trials.finalize` reads them once at its end. On a surface, which was measured
before any study, they do exist: `Surface.lookup` tells none, and a study's end reads them with `Surface.test_metrics`.
"""

from __future__ import annotations

import json
import math
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from recllm.provenance import METRICS_FILE, content_fingerprint, read_json
from recllm.tuning.spaces.recipe import recipe_path
from recllm.tuning.spaces.space import Space
from recllm.tuning.trials.launch import Direct, Ended, Launcher
from recllm.tuning.trials.models import check_inputs, count_parameters

Status = Literal["ok", "crash", "nan", "timeout", "out_of_memory", "too_large", "refused"]
STATUSES: tuple[str, ...] = get_args(Status)
OBJECTIVE = "validation/ndcg@10"
_LAST_WORDS = 400


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Args:
        key: of the configuration; empty where the space refused it, not where the backbone did.
        config: the checked configuration; what was proposed where the space refused it.
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

    @property
    def counted(self) -> float:
        """The score, or 0 for a trial that failed: the least that NDCG can be."""
        return self.score if self.ok else 0.0

    def row(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass
class TrialRunner:
    """Runs trials of one space on one data set.

    Args:
        space: what may be asked for, and the limits of a trial.
        inputs: the recipe's input folders by argument, `dataset` and where the recipe reads one `sid_table`; their
            content must stay what it was when the runner first looked.
        scratch: trials work in folders under it that are gone afterwards; None is the system's place for such.
        launcher: how a process is started.

    Raises:
        ValueError: an input is missing or cannot be read.
    """

    space: Space
    inputs: Mapping[str, Path]
    scratch: Path | None = None
    launcher: Launcher = field(default_factory=Direct)

    def __post_init__(self) -> None:
        self.inputs = {name: Path(folder) for name, folder in self.inputs.items()}
        check_inputs(self.space.recipe, self.inputs)
        self.fingerprints = {name: content_fingerprint(folder) for name, folder in self.inputs.items()}

    def run(self, config: Mapping[str, Any], seed: int = 0) -> Outcome:
        """Run one trial; the recipe never looks at the test targets.

        Raises:
            ValueError: an input is not what it was: no outcome on it could be compared with earlier ones.
        """
        return self._run(config, seed, test=False)

    def run_unsealed(self, config: Mapping[str, Any], seed: int = 0) -> Outcome:
        """As `run`, with test metrics: for measuring surfaces and for the one reading at a study's end, nothing else.

        Raises:
            ValueError: as `run`.
        """
        return self._run(config, seed, test=True)

    def _run(self, config: Mapping[str, Any], seed: int, test: bool) -> Outcome:
        try:
            checked = self.space.check(config)
        except ValueError as error:
            proposed = dict(config) if isinstance(config, Mapping) else {}
            return Outcome("refused", "", proposed, seed, words=str(error))
        # An input that cannot be read must not pass for a configuration that the backbone refuses.
        self._check_inputs("before")
        arguments = self.space.arguments(checked)
        told = Outcome("ok", self.space.key(checked), checked, seed)
        try:
            parameters = count_parameters(self.space.recipe, arguments, self.inputs)
        except ValueError as error:
            return replace(told, status="refused", words=str(error))
        told = replace(told, parameters=parameters)
        most = self.space.limits.parameters
        if most is not None and parameters > most:
            return replace(told, status="too_large", words=f"{parameters} parameters, {most} are allowed")
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self.scratch) as folder:
            output, log = Path(folder) / "run", Path(folder) / "log"
            arguments |= {**self.inputs, "output_dir": output, "seed": seed, "report_test": test}
            words = [f"--{name}={value}" for name, value in arguments.items()]
            ended = self.launcher.run(recipe_path(self.space.recipe), words, log, self.space.limits)
            outcome = _judge(told, ended, output / METRICS_FILE, log, test)
        self._check_inputs("after")
        return outcome

    def _check_inputs(self, when: str) -> None:
        for name, folder in self.inputs.items():
            found = content_fingerprint(folder) if folder.exists() else "nothing there"
            if found != (known := self.fingerprints[name]):
                raise ValueError(
                    f"{name} {folder} is not what it was ({found[:13]} {when} a trial, {known[:13]} at the start): its "
                    "trials cannot be compared; make it again as it was, or start another study"
                )


def _judge(told: Outcome, ended: Ended, metrics_file: Path, log: Path, test: bool) -> Outcome:
    told = replace(told, **{name: getattr(ended, name) for name in ("cpu_seconds", "wall_seconds", "peak_gib")})
    if ended.stopped:
        spent = f"{ended.cpu_seconds:.1f} processor seconds, {ended.wall_seconds:.1f} s, {ended.peak_gib:.2f} GiB"
        return replace(told, status=ended.stopped, words=f"stopped after {spent}")
    if ended.status:
        how = f"status {ended.status}" if ended.status > 0 else f"signal {signal.Signals(-ended.status).name}"
        words = (_last_words(log) if ended.status > 0 else "") or f"ended with {how}"
        return replace(told, status=_failure(ended, words), words=words)
    roles = ("validation/", "test/") if test else ("validation/",)
    found = read_json(metrics_file)
    if not test and any(name.startswith("test/") for name in found):
        raise ValueError(f"{told.key}: the recipe ranked test targets although it was not asked to")
    metrics = {name: float(value) for name, value in found.items() if name.startswith(roles)}
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        return replace(told, status="nan", words=f"{bad[0]} is {metrics[bad[0]]}")
    return replace(told, status="ok", metrics=metrics, parameters=int(found["parameters"]))


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
