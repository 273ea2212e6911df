"""A study's journal: one Optuna study in a file of lines, each on disk before the work goes on.

A planned trial is one line and so are its record and its end; a kill between any two leaves a study that goes on. A
line that a kill tore is no record: the next writer cuts it off, under the lock that every writer holds. A trial that
was planned and whose worker died is run again, with the configuration that was planned.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recllm.disk import claimed
from recllm.tuning.language.proposer import Proposed
from recllm.tuning.spaces.space import Space
from recllm.tuning.study.proposal import Proposal, Refusal
from recllm.tuning.study.trial import Trial
from recllm.tuning.trials.runner import Outcome

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

JOURNAL_FILE = "journal.log"
CLAIMS_FOLDER = "claims"
_PLANNED, _RAN, _ENDED = "planned", "ran", "ended"
_MOST_REPLY = 4000  # characters that are kept of each reply


@dataclass(frozen=True)
class Planned:
    """A trial that is to run: what was chosen, the seed to run it with, the number of the trial that it changes."""

    number: int
    seed: int
    proposed: Proposed
    parent: int | None = None

    def row(self) -> dict[str, Any]:
        """As plain JSON values, which `of_row` reads."""
        said = self.proposed
        return {
            "seed": self.seed,
            "config": dict(said.config),
            "source": said.source,
            "parent": self.parent,
            "proposal": said.proposal.row() if said.proposal else None,
            "refusals": [[refusal.reason, refusal.words] for refusal in said.refusals],
            "replies": [reply[:_MOST_REPLY] for reply in said.replies],
        }

    @classmethod
    def of_row(cls, number: int, row: Mapping[str, Any]) -> Planned:
        """The plan of a record."""
        proposal = Proposal(**row["proposal"]) if row["proposal"] else None
        refusals = tuple(Refusal(*refusal) for refusal in row["refusals"])
        proposed = Proposed(proposal, row["config"], row["source"], refusals, tuple(row["replies"]))
        return cls(number, row["seed"], proposed, row["parent"])


class Journal:
    """The journal in a study's folder, shared by its workers.

    Args:
        folder: of the study. space: the trials' space. name: of the Optuna study; several may share a file.

    Raises:
        ValueError: a journal that cannot be read.
    """

    def __init__(self, folder: str | Path, space: Space, name: str = "trials") -> None:
        self.folder, self.space, self.name = Path(folder), space, name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._study = _opened(self.folder / JOURNAL_FILE, name)

    def ended(self) -> list[Trial]:
        """The finished trials in the order in which they ended."""
        rows = [found.user_attrs[_ENDED] for found in self._trials() if _ENDED in found.user_attrs]
        return [Trial.of_row(row["trial"]) for row in sorted(rows, key=lambda row: row["order"])]

    def running(self) -> list[Planned]:
        """The planned trials that have not ended, by number; their workers may be dead."""
        return [
            Planned.of_row(found.number, found.user_attrs[_PLANNED])
            for found in self._trials()
            if _ENDED not in found.user_attrs
        ]

    def plan(self, seed: int, proposed: Proposed, parent: int | None) -> Planned:
        """Write down what will be run. Only one worker at a time may plan: see `alone`."""
        from optuna.trial import TrialState, create_trial

        number = self.planned()
        planned = Planned(number, seed, proposed, parent)
        said = {name: _distribution(self.space, name) for name in proposed.config}
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(proposed.config),
                distributions=said,
                user_attrs={_PLANNED: planned.row()},
            )
        )
        return planned

    def planned(self) -> int:
        """How many trials were planned, whatever became of them."""
        return len(self._trials())

    def outcome_of(self, planned: Planned) -> Outcome | None:
        """The outcome of a trial whose worker died before it was judged."""
        row = self._trials()[planned.number].user_attrs.get(_RAN)
        return None if row is None else Outcome(**row)

    def ran(self, planned: Planned, outcome: Outcome) -> None:
        """Write down a trial's outcome; nothing runs it again."""
        self._handle(planned.number).set_user_attr(_RAN, outcome.row())

    def end(self, trial: Trial) -> None:
        """Write down what became of a planned trial. Only one worker at a time may: see `alone`."""
        order = sum(_ENDED in found.user_attrs for found in self._trials())
        self._handle(trial.number).set_user_attr(_ENDED, {"order": order, "trial": trial.row()})
        self._tell(trial)

    def _handle(self, number: int) -> Any:
        from optuna.trial import Trial as Handle

        return Handle(self._study, self._trials()[number]._trial_id)

    def mend(self) -> None:
        """Close the trials whose worker was killed between record and end. One worker at a time: see `alone`."""
        for found in self._trials():
            if _ENDED in found.user_attrs and not found.state.is_finished():
                self._tell(Trial.of_row(found.user_attrs[_ENDED]["trial"]))

    def _tell(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        if trial.outcome.ok:
            self._study.tell(trial.number, trial.outcome.score)
        else:
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _trials(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def claim(self, planned: Planned) -> ExitStack | None:
        """The right to run a planned trial until this is closed or the process ends; None where another has it."""
        stack = ExitStack()
        mine = stack.enter_context(claimed(self.folder / CLAIMS_FOLDER / f"{self.name}-{planned.number}"))
        # Its worker may have ended it after `running` was asked and before the lock was let go.
        if mine and any(other.number == planned.number for other in self.running()):
            return stack
        stack.close()
        return None

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Wait until no other worker does `what` to this study."""
        with claimed(self.folder / CLAIMS_FOLDER / what, wait=True):
            yield


class _WholeLines:
    """Optuna's lock of its file, by `flock`: it ends with its process, so that nobody waits for a dead one, and it is
    where a line that was torn by a kill is cut off before the next is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, path.with_name(f".{path.name}.lock")
        self._stream: Any = None

    def acquire(self) -> bool:
        self._stream = self._lock.open("ab")
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        _cut_torn(self._path)
        return True

    def release(self) -> None:
        self._stream.close()


def _cut_torn(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(end - 1)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        os.fsync(stream.fileno())


def _opened(path: Path, name: str) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_WholeLines(path)))
        if name not in optuna.get_all_study_names(storage):  # creating one that is there would leave a line
            optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        return optuna.load_study(storage=storage, study_name=name)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it was changed by hand or is another file") from error


def _distribution(space: Space, name: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    axis = space.by_name[name]
    if axis.values:
        return CategoricalDistribution(axis.values)
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)
