"""`recllm recommend --planner`: the folders are found, a user's whole history is played, every call can be traced."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.evaluation.planner_trace import trace_table
from recllm.evaluation.serve_planner import events_of, find_inputs, play_request, request
from recllm.planner.bench import Bench
from recllm.planner.env import MAX_CALLS

_FILE = Path(__file__).parent / "planner" / "live_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="live_worlds"))
SAFE = "(bold red)Loud(/) ‹|im_start|›(31m"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """outputs/p with all folders of a planner's pipeline, by paths relative to the project."""
    root, patch = tmp_path_factory.mktemp("project"), pytest.MonkeyPatch()
    patch.chdir(root)
    made = worlds.write_project(Path("outputs/p"))
    patch.undo()
    made.base = root / "outputs/p"
    return made


@pytest.fixture
def ask(call, project):
    """Ask the planner."""
    return lambda *words: call("--planner", project.base / "planner", *words)


@pytest.fixture
def play(project, monkeypatch):
    """play(turns) -> the answer to user 106 of a planner that writes these turns and then Done; it keeps `prompts`."""
    bench = Bench.load(*(project.base / name for name in ("dataset", "sid_table", "tool_cache")), "test")
    history = events_of(project.split.sequences, 106, "dataset")

    def played(turns):
        def say(prompt, turn):
            played.prompts.append(prompt)
            return (turns[turn] if turn < len(turns) else "Done.") + "<|im_end|>"

        monkeypatch.setattr(project.model, "generate", worlds.speak(project.tokenizer, say))
        asked = request(*history)
        return play_request(project.model, project.tokenizer, project.tools, bench, project.catalog, asked), asked

    played.prompts = []
    return played


def wanted(tool: str, **arguments) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


def test_a_users_whole_history_is_played(ask, project):
    done = ask("--user", 106, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["user"] == 106 and answer["history"] == project.split.sequences.items(2).tolist()
    # The untrained planner calls nothing, so retrieve's list stands.
    assert answer["tool"] == "retrieve" and [call["tool"] for call in answer["calls"]] == ["retrieve"]
    found = project.tools.retrieve.answer(request(*events_of(project.split.sequences, 106, "")), 10)
    assert [row["item"] for row in answer["rows"]] == found.items_EK[0].tolist()
    assert answer["totals"]["cost"] == found.cost_E[0] == answer["calls"][0]["cost"]
    assert not {row["item"] for row in answer["rows"]} & set(answer["history"])


def test_titles_are_a_history_too(ask):
    answer = json.loads(ask("--history", "film 2; #5; Film 8", "--json", "-k", 3).stdout)
    assert (answer["user"], answer["history"], len(answer["rows"])) == (None, [2, 5, 8], 3)
    hostile = ask("--history", worlds.HOSTILE, "--json")
    assert json.loads(hostile.stdout)["notes"][0].startswith(f"40 items are called {SAFE}; took #")


def test_what_is_printed_is_plain_text(ask):
    done = ask("--user", 109, "--trace")
    assert done.exit_code == 0, done.output
    assert SAFE in done.stdout and "before the first turn" in done.stdout and "in all" in done.stdout
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    assert "before the first turn" not in ask("--user", 109).stdout


def test_a_trace_tells_every_call(play, project):
    answer, asked = play(
        [wanted("rank", m=20, n=4) + wanted("rank", m=0), wanted("shell", x="[red]"), wanted("reason")]
    )
    assert [call.tool for call in answer.calls] == ["retrieve", "rank", "rank", "shell", "reason"]
    found, rank, bad, shell, reason = answer.calls
    retrieved, slow = (getattr(project.tools, name).answer(asked, 50) for name in ("retrieve", "reason"))
    base = int(retrieved.cost_E[0])
    assert (
        found.cost == base
        and found.milliseconds > 0
        and [item.item for item in found.items] == (retrieved.items_EK[0, :3].tolist())
    )
    assert rank.arguments == '{"m": 20, "n": 4}' and rank.milliseconds > 0
    assert rank.cost == (project.tools.rank.cost(asked.lengths_E[0], 50) - base) * 20 // 50
    assert bad.answer.startswith("{'error': 'm must be a whole number") and (bad.items, bad.cost) == ([], 0)
    assert "Tool shell not found" in shell.answer and shell.arguments == '{"x": "(red)"}'
    assert reason.cost == slow.cost_E[0] and reason.answer.startswith("Margin ")
    assert answer.tool == "reason" and [row.item for row in answer.rows] == slow.items_EK[0, :10].tolist()
    totals = answer.totals()
    assert totals["cost"] == base + rank.cost + reason.cost
    assert totals["total_cost"] == totals["cost"] + answer.planner.cost
    times = [call.milliseconds for call in answer.calls] + [answer.planner.milliseconds]
    assert min(times) >= 0 and totals["milliseconds"] == pytest.approx(sum(times), abs=1e-3)
    assert json.loads(json.dumps(answer.plain()))["totals"] == totals


def test_the_planners_tokens_are_counted(play, project):
    first = wanted("retrieve", k=5)
    answer, _ = play([first])
    own, tokenizer = answer.planner, project.tokenizer
    wrote = [len(tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]) for text in (first, "Done.")]
    assert (own.turns, own.tokens_written, own.faults) == (2, sum(wrote), 0)
    seen = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in play.prompts]
    assert own.tokens_read == seen[1] - wrote[0] > seen[0] and own.cost > 0
    again = answer.calls[1]
    assert (again.cost, again.milliseconds) == (0, 0.0), "the prompt's retrieval is paid once"
    assert len(answer.rows) == 5


def test_calls_beyond_the_limit_are_told_and_cost_nothing(play):
    answer, _ = play([wanted("rank") * 3, wanted("rank") * 3])
    assert len(answer.calls) == 1 + 6 and answer.calls[MAX_CALLS + 1].answer == "No calls left. Answer now."
    assert [call.cost for call in answer.calls[MAX_CALLS + 1 :]] == [0, 0]
    assert answer.calls[1].cost == answer.calls[2].cost > 0
    assert answer.totals()["cost"] == answer.calls[0].cost + 4 * answer.calls[1].cost


def test_hostile_calls_are_shown_as_text(play):
    answer, _ = play([wanted("[link]\x1b[31m\u202e", **{"\x1b[2J": 1})])
    cells = [str(cell) for column in trace_table(answer).columns for cell in column.cells]
    shown = "".join(cells) + json.dumps(answer.plain(), ensure_ascii=False)
    assert "(link)(31m" in shown and not {"\x1b", "\u202e", "["} & set("".join(cells))


def test_the_folders_are_found_through_the_runs_before(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_inputs(project.base / "planner", {})
    for name in ("dataset", "tool_cache", "sasrec", "din", "reasoner"):
        assert found[name].resolve() == (project.base / name).resolve()


def test_a_broken_chain_asks_for_the_folder(call, project, tmp_path):
    lone = tmp_path / "lone/planner"
    shutil.copytree(project.base / "planner", lone)
    done = call("--planner", lone, "--user", 106)
    assert done.exit_code == 1 and "lead to the dataset it was made with: name its folder with --dataset" in done.stderr
    words = ("--planner", lone, "--user", 106, "--json", "--dataset", project.base / "dataset")
    assert "name its folder with --tool_cache" in call(*words).stderr
    done = call(*words, "--tool_cache", project.base / "tool_cache")
    assert done.exit_code == 0 and json.loads(done.stdout)["user"] == 106
    shutil.copytree(project.base / "tool_cache", tmp_path / "cache")
    assert "lead to the sasrec it was made with: build" in call(*words, "--tool_cache", tmp_path / "cache").stderr


def test_another_sid_table_is_refused(call, project, tmp_path):
    shutil.copytree(project.base.parent, tmp_path / "outputs")
    table = worlds.make_table()
    other = type(table)(np.roll(table.codes_NL, 1, axis=0), table.level_sizes)
    model, tokenizer = worlds.make_language_model(other, seed=2)
    worlds.save_extended(tmp_path / "outputs/p/planner", model, tokenizer, other)
    done = call("--planner", tmp_path / "outputs/p/planner", "--user", 106)
    assert done.exit_code == 1 and "was built on SID table" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--planner", "P"], "needs either --user ID or --history TITLES"),
        (["--planner", "P", "--user", "106", "--history", "#1"], "and not both"),
        (["--planner", "P", "--model", "P", "--user", "106"], "give either --model DIR (a recommender) or --planner"),
        (["--history", "#1"], "give either --model DIR (a recommender) or --planner"),
        (["--planner", "P", "--needs", "P", "--user", "106"], "or --planner DIR or --needs DIR (a model of needs)"),
        (["--planner", "P", "--user", "106", "--hour", "9"], "--hour does not go with --planner"),
        (["--model", "P"], "--model needs --history"),
        (["--model", "P", "--history", "#1", "--user", "106"], "--user does not go with --model"),
        (["--model", "P", "--history", "#1", "--trace"], "--trace does not go with --model"),
        (["--planner", "P", "--user", "106", "--beams", "9"], "--beams does not go with --planner"),
        (["--planner", "P", "--user", "106", "-k", "0"], "-k must be at least 1"),
        (["--planner", "P", "--user", "101"], "no user 101 in"),
        (["--planner", "P", "--user", "101"], "it has 30 users from 100 to 187"),
        (["--planner", "P", "--history", "Flim"], "no item is called 'Flim'"),
    ],
)
def test_wrong_requests_are_one_clear_error(call, project, words, message):
    done = call(*(project.base / "planner" if word == "P" else word for word in words))
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stdout == ""
