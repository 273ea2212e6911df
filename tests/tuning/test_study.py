"""A study in its folder: killed at every point it goes on as if nothing had been, and workers share it."""

import hashlib
import json
import os
import re
import signal
import time
import traceback
from pathlib import Path

import pytest
from drawing import Chooses
from optuna.storages.journal import JournalFileBackend
from part_spaces import part_space

from recllm.tuning.baselines.suggesters import suggester
from recllm.tuning.language.language import Recorder, Transcript
from recllm.tuning.study.agent import Agent
from recllm.tuning.study.choosers import ModelChooser, SamplerChooser
from recllm.tuning.study.journal import JOURNAL_FILE
from recllm.tuning.study.study import STUDY_FILE, Study
from recllm.tuning.trials.runner import Outcome

SPACE = part_space("sasrec")
BUDGET = 6


def evaluate(config, seed):
    """A made-up score that every digit of the configuration counts for; a quarter of the trials fail."""
    key = SPACE.key(config)
    number = int(hashlib.sha256(f"{key} {seed}".encode()).hexdigest()[:8], 16)
    if config != SPACE.default and number % 4 == 0:
        return Outcome("timeout", key, dict(config), seed, words="stopped")
    return Outcome("ok", key, dict(config), seed, {"validation/ndcg@10": 0.05 + (number % 1000) * 1e-5}, 1000)


def study(folder, run=evaluate, budget=BUDGET, chooser=None, **options):
    agent = Agent(SPACE, {"users": 40}, budget, seed=3)
    return Study(folder, agent, chooser or SamplerChooser(suggester("climb", seed=3)), run, seed=7, **options)


def rows(history):
    return [trial.row() for trial in history.trials]


def in_child(act):
    """Run `act` in a forked process; returns the process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dies_at(append, torn):
    """Let the journal's `append`-th line of this process be its last act, half of the line on disk where `torn`."""
    real, seen = JournalFileBackend.append_logs, 0

    def append_logs(self, logs):
        nonlocal seen
        seen += 1
        if seen < append:
            return real(self, logs)
        if not torn:
            real(self, logs)
            os.kill(os.getpid(), signal.SIGKILL)
        self._lock.acquire()
        text = "\n".join(json.dumps(log) for log in logs).encode()
        with Path(self._file_path).open("ab") as stream:
            stream.write(text[: len(text) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    JournalFileBackend.append_logs = append_logs


def killed_until_done(folder, append, torn, **options):
    """Start worker after worker, each killed at its `append`-th line, until one lives; returns how many died."""
    repeated = folder.parent / "repeated"

    def run(config, seed):
        # What the journal says was run must not be run again.
        told = [json.loads(line) for line in (folder / JOURNAL_FILE).read_bytes().split(b"\n") if line[-1:] == b"}"]
        ran = [log["user_attr"]["ran"] for log in told if "ran" in log.get("user_attr", {})]
        if any((row["key"], row["seed"]) == (SPACE.key(config), seed) for row in ran):
            repeated.touch()
        return evaluate(config, seed)

    def act():
        dies_at(append, torn)
        study(folder, run, **options).run()

    for deaths in range(100):
        if (status := ended(in_child(act))) == 0:
            assert not repeated.exists()
            return deaths
        assert status == -signal.SIGKILL
    raise AssertionError("100 workers died and the study is not done")


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("append", [1, 2, 3, 5, 8])
def test_a_study_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path, append, torn):
    if append == 1 and torn:
        pytest.skip("nothing is ever written")
    whole = study(tmp_path / "whole").run()
    deaths = killed_until_done(tmp_path / "killed" / "study", append, torn)
    assert deaths > 3
    found = study(tmp_path / "killed" / "study").run()
    assert rows(found) == rows(whole)
    assert found.epsilon == whole.epsilon > 1e-4
    assert [trial.number for trial in found.trials] == list(range(BUDGET))


def test_a_recorded_study_is_replayed_through_any_kills(tmp_path):
    """Proposals, repairs and reflections as they were, with nothing but the transcript to ask."""
    recorder = Recorder(Chooses(style="full"), tmp_path / "replies.jsonl")
    whole = study(tmp_path / "whole", chooser=ModelChooser(recorder)).run()
    assert {trial.source for trial in whole.trials} >= {"default", "model"}
    replayed = {"chooser": ModelChooser(Transcript(tmp_path / "replies.jsonl"))}
    assert killed_until_done(tmp_path / "killed" / "study", 3, True, **replayed) > 3
    assert rows(study(tmp_path / "killed" / "study", **replayed).run()) == rows(whole)


def test_a_finished_study_runs_nothing(tmp_path):
    first = study(tmp_path).run()

    def never(config, seed):
        raise AssertionError("a finished study runs nothing")

    assert rows(study(tmp_path, never).run()) == rows(first)


def test_workers_share_a_study_and_take_over_from_the_dead(tmp_path):
    budget, counts = 14, tmp_path / "counts"
    counts.mkdir()

    def run(config, seed):
        (counts / f"{SPACE.key(config)}-{seed}-{os.getpid()}").touch()
        time.sleep(0.05)
        return evaluate(config, seed)

    def stuck(config, seed):
        (counts / f"{SPACE.key(config)}-{seed}-{os.getpid()}").touch()
        if len(list(counts.iterdir())) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return evaluate(config, seed)

    workers = [in_child(lambda: study(tmp_path / "study", run, budget).run()) for _ in range(2)]
    victim = in_child(lambda: study(tmp_path / "study", stuck, budget).run())
    assert ended(victim) == -signal.SIGKILL
    assert [ended(pid) for pid in workers] == [0, 0]

    found = study(tmp_path / "study", budget=budget).run()
    assert sorted(trial.number for trial in found.trials) == list(range(budget))
    assert len(found.tried) == budget  # none got the same configuration
    assert len({name.name.rsplit("-", 1)[1] for name in counts.iterdir()}) == 3
    # One trial was begun by the victim and again by a survivor; the repeats of the default are two.
    assert len(list(counts.iterdir())) == budget + 2 + 1
    # The default and its repeats come before everything else.
    assert found.trials[0].number == 0
    assert found.trials[0].config == SPACE.default


def test_the_default_is_first_and_its_repeats_tell_the_noise(tmp_path):
    found = study(tmp_path)
    history = found.run()
    scores = [evaluate(SPACE.default, seed).score for seed in (7, 8, 9)]
    mean = sum(scores) / 3
    deviation = (sum((score - mean) ** 2 for score in scores) / 2) ** 0.5
    assert history.epsilon == pytest.approx(max(1e-4, deviation))
    assert [trial.outcome.seed for trial in found.noise()] == [8, 9]
    assert [trial.source for trial in history.trials] == ["default"] + ["sampler"] * (BUDGET - 1)
    assert {trial.outcome.seed for trial in history.trials} == {7}


def test_a_known_epsilon_needs_no_repeats(tmp_path):
    found = study(tmp_path, epsilon=0.002)
    assert found.run().epsilon == 0.002
    assert found.noise() == []
    with pytest.raises(ValueError, match="repeats"):
        study(tmp_path, repeats=0)


def test_another_study_does_not_go_on_in_this_folder(tmp_path):
    study(tmp_path, budget=2).run()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / STUDY_FILE}: seed was 7 and is 8 now")):
        other = study(tmp_path, budget=2)
        Study(other.folder, other.agent, other.chooser, other.evaluate, seed=8).run()
    with pytest.raises(ValueError, match="data_fingerprint"):
        study(tmp_path, budget=2, facts={"data_fingerprint": "x"}).run()
    with pytest.raises(ValueError, match="proposer"):
        Study(tmp_path, Agent(SPACE, {"users": 40}, 2, 3), SamplerChooser(suggester("tpe")), evaluate, seed=7).run()
    (tmp_path / STUDY_FILE).unlink()
    with pytest.raises(ValueError, match="nothing says of what"):
        study(tmp_path, budget=2).run()


def test_a_budget_may_grow_until_the_test_was_read(tmp_path):
    assert rows(study(tmp_path, budget=3).run()) == rows(study(tmp_path, budget=6).run())[:3]
    (tmp_path / "test_read.json").write_text("{}")
    study(tmp_path, budget=6).run()
    with pytest.raises(ValueError, match="test was read"):
        study(tmp_path, budget=7).run()


def test_a_budget_does_not_shrink_and_no_worker_plans_once_the_test_was_read(tmp_path):
    study(tmp_path, budget=4).run()
    with pytest.raises(ValueError, match="may grow, not shrink"):
        study(tmp_path, budget=3).run()

    def read_by_another(config, seed):
        (tmp_path / "test_read.json").write_text("{}")
        return evaluate(config, seed)

    late = study(tmp_path, budget=7)
    with pytest.raises(ValueError, match="test was read; it has no more trials"):
        Study(late.folder, late.agent, late.chooser, read_by_another, seed=7).run()
    (tmp_path / "test_read.json").unlink()
    assert len(late.history().trials) == 5


def test_the_wording_of_an_axis_does_not_make_another_study(tmp_path):
    study(tmp_path, budget=2).run()
    assert "description" not in (tmp_path / STUDY_FILE).read_text()


def test_a_journal_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / JOURNAL_FILE).write_text("not a line of it\nnor this\n")
    with pytest.raises(ValueError, match=r"journal\.log"):
        study(tmp_path).run()
