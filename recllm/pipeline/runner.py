"""Running a pipeline: one stage after the other, by one process at a time, while other ranks wait."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recllm.pipeline.process import StageError, run_child
from recllm.pipeline.spec import Pipeline, Stage, load_pipeline
from recllm.pipeline.state import note_request, why_incomplete
from recllm.provenance import load_run, read_json, write_json

_LOCK = ".lock"
_FAILED = ".failed.json"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class StageResult:
    """What became of a stage. `built` is false where it was complete before; `seconds` is its wall time then 0."""

    name: str
    folder: Path
    built: bool
    seconds: float


def run_pipeline(
    path: str | Path,
    outputs_root: str | Path = "outputs",
    until: str | None = None,
    only_upstream_of: str | None = None,
) -> list[StageResult]:
    """Run a pipeline's stages in order, skipping complete ones.

    until: run this stage and what it needs. only_upstream_of: run what this stage needs, not the stage itself.

    Raises:
        ValueError: the YAML is wrong, a stage, script or config is missing, or both choices were given.
        StageError: a stage failed; those before it stay complete and a new start goes on from there.
    """
    pipeline = load_pipeline(path)
    if until and only_upstream_of:
        raise ValueError("give until or only_upstream_of, not both")
    if only_upstream_of:
        stages = pipeline.upstream(only_upstream_of)
    elif until:
        stages = [*pipeline.upstream(until), pipeline.stage(until)]
    else:
        stages = list(pipeline.stages)
    return _run(pipeline, stages, Path(outputs_root))


def ensure_inputs(
    path: str | Path, stage: str, outputs_root: str | Path = "outputs", timeout_seconds: float = 6 * 3600
) -> dict[str, Path]:
    """Build what `stage` needs and return its input folders by argument name.

    In a distributed job only rank 0 builds (read from RANK); the others wait until everything is complete.

    Raises:
        ValueError, StageError: as `run_pipeline`; a waiting rank raises `StageError` when rank 0 has failed.
        TimeoutError: a waiting rank waited longer than `timeout_seconds`.
    """
    pipeline, root = load_pipeline(path), Path(outputs_root)
    stages = pipeline.upstream(stage)
    if int(os.environ.get("RANK", "0")) > 0:
        _wait(pipeline, stages, root, timeout_seconds)
    elif any(_why(pipeline, needed, root) for needed in stages):
        _run(pipeline, stages, root)
    return pipeline.input_folders(pipeline.stage(stage), root)


def _run(pipeline: Pipeline, stages: list[Stage], root: Path) -> list[StageResult]:
    for stage in stages:
        for file in filter(None, (stage.script, stage.config)):
            if not file.is_file():
                raise ValueError(f"{pipeline.path}: stage {stage.name}: {file} does not exist")
    home = root / pipeline.name
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / _LOCK) as lock:
        (home / _FAILED).unlink(missing_ok=True)
        try:
            return [
                _run_stage(pipeline, stage, root, f"[{number}/{len(stages)}] {stage.name}:", lock)
                for number, stage in enumerate(stages, 1)
            ]
        except BaseException as error:
            # For the ranks that wait; BaseException because they should also hear of an interrupt.
            write_json(home / _FAILED, {"launcher": os.getppid(), "message": str(error) or type(error).__name__})
            raise


def _run_stage(pipeline: Pipeline, stage: Stage, root: Path, label: str, lock: int) -> StageResult:
    folder = pipeline.folder(stage.name, root)
    reason = _why(pipeline, stage, root)
    if reason is None:
        _say(f"{label} complete, skipped")
        return StageResult(stage.name, folder, built=False, seconds=0.0)
    _say(f"{label} {stage.script}" + ("" if reason == "not built yet" else f" ({reason})"), "bold")
    started = time.monotonic()
    run_child(stage.command(folder, pipeline.input_folders(stage, root)), stage.name, keep_open=lock)
    seconds = time.monotonic() - started
    if load_run(folder) is None:
        raise StageError(f"stage {stage.name} ended with status 0 but left no valid run.json in {folder}")
    note_request(stage, folder)
    _say(f"{label} done in {seconds:.1f} s")
    if still := _why(pipeline, stage, root):
        _say(f"{label} warning: it will be started again next time, since {still}", "yellow")
    return StageResult(stage.name, folder, built=True, seconds=seconds)


def _why(pipeline: Pipeline, stage: Stage, root: Path) -> str | None:
    return why_incomplete(stage, pipeline.folder(stage.name, root), pipeline.input_folders(stage, root))


def _wait(pipeline: Pipeline, stages: list[Stage], root: Path, timeout_seconds: float) -> None:
    started, failed = time.time(), root / pipeline.name / _FAILED
    while missing := next((stage for stage in stages if _why(pipeline, stage, root)), None):
        if message := _failure(failed, started):
            raise StageError(f"rank 0 failed to build what this rank waits for: {message}")
        if time.time() - started > timeout_seconds:
            raise TimeoutError(f"stage {missing.name} was not complete after {timeout_seconds:.0f} s of waiting")
        time.sleep(_POLL_SECONDS)


def _failure(path: Path, started: float) -> str | None:
    """The failure that rank 0 of this job left; one that an earlier job left does not count."""
    try:
        left = path.stat().st_mtime
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record["message"] if left >= started or record["launcher"] == os.getppid() else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is building in {path.parent}, waiting for it to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def _say(text: str, style: str = "") -> None:
    """One line: plain, flushed before a child writes; styled where a person reads it."""
    if style and sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(text, style=style, markup=False, soft_wrap=True)
    else:
        print(text, flush=True)
