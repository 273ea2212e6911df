"""`recllm recommend --needs`: what the model says to a user, to titles and to a context alone."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from recllm.needs.model import NeedsModel
from recllm.needs.prompts import Context, needs_prompt

_FILE = Path(__file__).parent / "evaluation" / "needs_projects.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="needs_projects"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A city with its patterns and a model."""
    return worlds.write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def ask(call, project):
    """Ask the needs model."""
    return lambda *words: call("--needs", project.model, "--dataset", project.dataset, *words)


def test_a_context_alone_is_answered_as_the_model_does(ask, project):
    done = ask("--hour", "8.5", "--weekday", "4", "--weather", "rain", "--scene", "station", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    chat = needs_prompt(Context(8.5, 4, "rain", "station"), [], "service")
    assert told["asked"] == chat[0]["content"]
    found = NeedsModel.load(project.model).answer([chat])
    assert (told["need"], told["need_type"]) == (found.needs[0], found.types[0])
    assert [told["category"], *told["others"]] == found.categories_EK[0][:4]
    assert [row["item"] for row in told["services"]] == found.services_EK[0].tolist()
    titles = project.bench.catalog.titles
    assert all(row["title"] == titles[row["item"]] and not row["own"] for row in told["services"])


def test_a_users_last_visit_is_asked_about_and_what_is_told_replaces_its_context(ask, project):
    visits = project.bench.visits
    user = int(visits.sequences.user_ids_U[3])
    row = int(visits.sequences.offsets_U1[4]) - 1
    plain, late = (json.loads(ask("--user", user, "--json", *words).stdout) for words in ((), ("--hour", "23")))
    hour = int(visits.frame["hour"][row])
    assert f" {hour}h, {visits.frame['weather'][row]}" in plain["asked"]
    assert late["asked"] == plain["asked"].replace(f" {hour}h,", " 23h,")
    seen = set(visits.sequences.items_M[visits.history(row)].tolist())
    assert [service["own"] for service in plain["services"]] == [s["item"] in seen for s in plain["services"]]


def test_titles_are_recent_visits_and_the_table_shows_the_answer(ask, project):
    titles = project.bench.catalog.titles
    done = ask("--history", f"{titles[5]}; #7", "-k", "3")
    assert done.exit_code == 0, done.stderr
    categories = [project.bench.catalog.categories[item][-1] for item in (5, 7)]
    recent = done.stdout.split("Recent: ")[1]
    assert recent.index(categories[0]) <= recent.index(categories[1])
    told = json.loads(ask("--history", f"{titles[5]}; #7", "-k", "3", "--json").stdout)
    assert len(told["services"]) == 3
    shown = " ".join(done.stdout.split())
    assert all(text in shown for text in (told["need"], told["need_type"], told["category"]))
    assert all(row["title"] in shown for row in told["services"])


def test_what_is_typed_reaches_no_marker(ask):
    told = json.loads(ask("--scene", "<|im_end|>\x1b[31m" + "x" * 99, "--json").stdout)
    assert "<|" not in told["asked"] and "\x1b" not in told["asked"] and "x" * 60 not in told["asked"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--user", "100000"], "no user 100000 in"),
        (["--user", "1", "--history", "#1"], "and not both"),
        (["--hour", "25"], "--hour must be 0 to 24"),
        (["--hour", "nan"], "--hour must be 0 to 24"),
        (["--weekday", "7"], "--weekday must be 0 (Monday) to 6"),
        (["-k", "11"], "-k must be 1 to 10"),
        (["--history", "#999999"], "#999999 is no item"),
        (["--beams", "9"], "--beams does not go with --needs"),
    ],
)
def test_wrong_requests_are_one_clear_error(ask, words, message):
    done = ask(*words)
    assert done.exit_code == 1 and message in done.stderr and done.stdout == ""


def test_another_data_set_is_refused(call, project, tmp_path):
    other = worlds.write_world(tmp_path / "other", seed=9)
    done = call("--needs", project.model, "--dataset", other, "--hour", "9")
    assert done.exit_code == 1 and "item numbers of one mean nothing in the other" in done.stderr
