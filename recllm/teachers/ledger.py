"""Asking a teacher so that no answer is lost or paid for twice: a file of JSON lines, one an answered question.

A row is written whole and brought to disk before the next batch is asked. A process that is killed leaves at most a
torn last line, which the next one cuts off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from rich.progress import track

from recllm.disk import sync
from recllm.teachers.protocol import Answer, Question, Teacher, TeacherError, digest

_START = b'{"key": "'  # of every row


def ask(
    teacher: Teacher, questions: Sequence[Question], path: str | Path, label: str = "teacher", wait: bool = False
) -> list[Answer]:
    """Answers in the order of the questions, from the ledger where it has them, else from the teacher.

    Equal questions are asked once and share an answer, as do questions of later calls with a teacher of this name.
    Every batch is on disk before the next is asked. label: what the progress bar shows; no bar where it is empty.
    wait: for another process that writes to the ledger, instead of giving up.

    Raises:
        TeacherError: the teacher failed; what it had answered is in the ledger and the message says how much.
        BlockingIOError: another process writes to this ledger.
        ValueError: a row of the ledger is damaged, or a question's facts are not JSON.
    """
    path = Path(path)
    keys = [digest(question, teacher.name) for question in questions]
    with _locked(path, wait) as stream:
        known = _known(stream, path)
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        todo = list(missing.items())
        batches = [todo[start : start + teacher.batch] for start in range(0, len(todo), teacher.batch)]
        for batch in track(batches, description=f"{label} x {len(todo)}", disable=not (todo and label)):
            failure = None
            try:
                answers = teacher.answer([question for _, question in batch])
                if len(answers) != len(batch):
                    raise TeacherError(f"{teacher.name} gave {len(answers)} answers to {len(batch)} questions")
            except TeacherError as error:
                answers, failure = error.answered, error
            # Not strict: a teacher that failed may have answered the first questions only.
            new = {key: (question, got) for (key, question), got in zip(batch, answers, strict=False) if got}
            _append(stream, teacher.name, new)
            known |= {key: got for key, (_, got) in new.items()}
            if failure:
                kept = f"{len(known.keys() & set(keys))} of {len(set(keys))} answers are kept in {path}"
                raise TeacherError(f"{failure} ({kept}; start again to go on from there)") from failure
        return [known[key] for key in keys]


def spending(
    path: str | Path,
    teacher: Teacher,
    prompt_usd: float | None = None,
    completion_usd: float | None = None,
) -> dict[str, float]:
    """What all answers of this teacher in a ledger took, as flat metrics: calls, tokens and, with prices, their cost.

    prompt_usd, completion_usd: US dollars for a million tokens. Tokens are left out where the teacher did not count
    them in every answer, and the cost is where a price or a count is unknown. Tries that failed are in no ledger.

    Raises:
        FileNotFoundError: no such ledger.
        ValueError: a row of it is damaged.
    """
    with Path(path).open("rb") as stream:
        answers = [answer for _, name, _, answer in _rows(stream, Path(path)) if name == teacher.name]
    totals: dict[str, float] = {"teacher/calls": len(answers)}
    if any(answer.prompt_tokens is None or answer.completion_tokens is None for answer in answers):
        return totals
    prompt = totals["teacher/prompt_tokens"] = sum(answer.prompt_tokens for answer in answers)
    completion = totals["teacher/completion_tokens"] = sum(answer.completion_tokens for answer in answers)
    if prompt_usd is not None and completion_usd is not None:
        totals["teacher/cost_usd"] = (prompt * prompt_usd + completion * completion_usd) / 1e6
    return totals


def recorded(path: str | Path) -> dict[tuple[str, str], dict[str, Answer]]:
    """The answers in a ledger, for reading only: (teacher's name, kind of the question) -> digest -> answer.

    Raises:
        FileNotFoundError: no such ledger.
        ValueError: a row of it is damaged.
    """
    found: dict[tuple[str, str], dict[str, Answer]] = {}
    with Path(path).open("rb") as stream:
        for key, name, kind, answer in _rows(stream, Path(path)):
            found.setdefault((name, kind), {})[key] = answer
    return found


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[BinaryIO]:
    """The ledger, made where it is missing, open for reading and appending by this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another process writes to this ledger; wait for it to end or choose another file"
            raise BlockingIOError(error.errno, message, str(path)) from error
        sync(path.parent)
        yield stream


def _known(stream: BinaryIO, path: Path) -> dict[str, Answer]:
    """The answers by key; a torn last line is cut off the file."""
    stream.seek(0)
    known = {key: answer for key, _, _, answer in _rows(stream, path)}
    stream.seek(0)
    whole = sum(len(line) for line in stream if line.endswith(b"\n"))
    stream.seek(whole)
    if not _START.startswith(stream.read(len(_START))):  # not what a row begins with: do not destroy another file
        raise ValueError(f"{path}: the last line is no row of a ledger; choose another file, or remove that line")
    stream.truncate(whole)
    return known


def _rows(stream: BinaryIO, path: Path) -> Iterator[tuple[str, str, str, Answer]]:
    """Key, teacher's name, kind and answer of every whole line; a last line that was not finished is no row."""
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            counts = row["prompt_tokens"], row["completion_tokens"]
            yield row["key"], row["teacher"], row["kind"], Answer(row["text"], *counts, row["finish"])
        except (ValueError, TypeError, LookupError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: line {number} is no row of a ledger ({cause}); remove that line") from error


def _append(stream: BinaryIO, teacher: str, new: dict[str, tuple[Question, Answer]]) -> None:
    for key, (question, answer) in new.items():
        row = {
            "key": key,
            "teacher": teacher,
            "kind": question.kind,
            "messages": [dict(message) for message in question.messages],
            "facts": dict(question.facts),
            "text": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "finish": answer.finish,
        }
        # ASCII, so that no line separator or lone surrogate of a reply can break a line.
        stream.write(json.dumps(row).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())
