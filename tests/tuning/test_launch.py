"""How a trial's process is started, watched and ended, both ways alike."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from recllm.tuning.spaces.space import Limits
from recllm.tuning.trials.launch import Direct, Forked

KINDS = {"direct": Direct, "forked": lambda: Forked(["json"])}


@pytest.fixture(params=KINDS)
def launch(request, tmp_path):
    """Run a piece of Python as a recipe: (how it ended, what it printed)."""
    launcher = KINDS[request.param]()

    def run(code, *words, **limits):
        recipe, log = tmp_path / "recipe.py", tmp_path / "log"
        recipe.write_text(textwrap.dedent(code))
        ended = launcher.run(recipe, words, log, Limits(**limits))
        return ended, log.read_text()

    yield run
    launcher.close()


def test_a_recipe_ends_by_itself(launch):
    code = """
        import os, sys
        assert __name__ == "__main__" and sys.stdin.read() == "" and os.getpgrp() == os.getpid()
        print("told", sys.argv[1:])
        print("aside", file=sys.stderr)
    """
    ended, printed = launch(code, "--lr=0.1", "two words")
    assert (ended.status, ended.stopped) == (0, None)
    assert "told ['--lr=0.1', 'two words']" in printed and "aside" in printed
    assert 0 < ended.cpu_seconds < 60 and 0 < ended.wall_seconds < 300 and 0.001 < ended.peak_gib < 1


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit()", 0, ""),
        ("raise FloatingPointError('loss is nan')", 1, "FloatingPointError: loss is nan\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import os; print('x', flush=True); os.abort()", -6, ""),
    ],
)
def test_how_it_ended_is_told(launch, code, status, last):
    ended, printed = launch(code)
    assert (ended.status, ended.stopped) == (status, None)
    assert printed.endswith(last)


def test_processor_time_is_limited_whatever_the_clock_says(launch):
    ended, _ = launch("while True: pass", cpu_seconds=0.3)
    assert (ended.status, ended.stopped) == (-9, "timeout")
    assert 0.3 <= ended.cpu_seconds < 3


def test_waiting_is_limited_by_the_clock(launch):
    ended, _ = launch("import time; time.sleep(600)", wall_seconds=0.5)
    assert (ended.status, ended.stopped) == (-9, "timeout")
    assert ended.wall_seconds >= 0.5 and ended.cpu_seconds < 0.5


def test_memory_is_limited(launch):
    code = """
        held = []
        while True:
            held.append(bytearray(1 << 22))
    """
    ended, _ = launch(code, memory_gib=0.15, wall_seconds=120)
    assert (ended.status, ended.stopped) == (-9, "out_of_memory")
    assert 0.1 < ended.peak_gib < 2


def test_children_of_a_killed_trial_end_with_it(launch, tmp_path):
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        while True: pass
    """
    assert launch(code, cpu_seconds=0.8)[0].stopped == "timeout"
    gone(int((tmp_path / "pid").read_text()))


LEAVES = """
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({pid!r}, "w").write(str(child.pid))
    {end}
"""


@pytest.mark.parametrize(("end", "status"), [("os._exit(0)", 0), ("sys.exit(3)", 3), ("os.abort()", -6)])
def test_children_of_an_ended_trial_end_with_it(launch, tmp_path, end, status):
    ended, _ = launch(LEAVES.format(pid=str(tmp_path / "pid"), end=end))
    assert (ended.status, ended.stopped) == (status, None)
    gone(int((tmp_path / "pid").read_text()), 5)


@pytest.mark.parametrize("kind", ["Direct()", "Forked([])"])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "as from a key"])
def test_an_interrupt_ends_a_trial_and_its_children(tmp_path, kind, group):
    pids, recipe = tmp_path / "pids", tmp_path / "recipe.py"
    recipe.write_text(f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pids) + "_"!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(pids) + "_"!r}, {str(pids)!r})
time.sleep(600)
""")
    code = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from recllm.tuning.trials.launch import Direct, Forked
from recllm.tuning.spaces.space import Limits
try:
    {kind}.run(Path({str(recipe)!r}), [], Path({str(tmp_path / "log")!r}), Limits())
except KeyboardInterrupt:
    # When it is raised the trial is reaped, not only on its way out.
    trial = int(open({str(pids)!r}).read().split()[0])
    try:
        os.kill(trial, 0)
    except ProcessLookupError:
        print("reaped", flush=True)
"""
    runner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    until(pids.is_file)
    (os.killpg if group else os.kill)(runner.pid, signal.SIGINT)
    assert runner.communicate(timeout=60)[0] == b"reaped\n"
    for pid in pids.read_text().split():
        gone(int(pid), 5)


def test_a_trial_has_the_usual_signals(launch):
    code = """
        import signal
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM).name)
    """
    assert launch(code)[1] == "True SIG_DFL\n"


def test_trials_do_not_see_each_other(launch, tmp_path):
    code = """
        import json, os
        print(hasattr(json, "mark"), os.environ.get("MARK"), os.getcwd())
        json.mark, os.environ["MARK"] = 1, "1"
        os.chdir("/")
    """
    first, second = launch(code), launch(code)
    assert first[1] == second[1] == f"False None {Path.cwd()}\n"


def test_a_warm_process_that_was_killed_costs_one_trial(tmp_path):
    launcher, recipe = Forked([]), tmp_path / "recipe.py"
    recipe.write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL); import time; time.sleep(600)")
    ended = launcher.run(recipe, [], tmp_path / "log", Limits())
    assert (ended.status, ended.stopped) == (-9, None)
    recipe.write_text("print('well')")
    assert launcher.run(recipe, [], tmp_path / "log", Limits()).status == 0
    launcher._server.kill()
    launcher._server.wait()
    assert launcher.run(recipe, [], tmp_path / "log", Limits()).status == 0
    launcher.close()
    launcher.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("kind", ["Direct()", "Forked([])"])
def test_a_trial_does_not_outlive_its_runner(tmp_path, kind):
    recipe, pid = tmp_path / "recipe.py", tmp_path / "pid"
    recipe.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    code = f"""
from pathlib import Path
from recllm.tuning.trials.launch import Direct, Forked
from recllm.tuning.spaces.space import Limits
{kind}.run(Path({str(recipe)!r}), [], Path({str(tmp_path / "log")!r}), Limits())
"""
    runner = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: pid.is_file() and pid.read_text())
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    gone(int(pid.read_text()))


def gone(pid: int, seconds: float = 60) -> None:
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, seconds)


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
