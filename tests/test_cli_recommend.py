"""`recllm recommend` on a tiny model: titles are found or the nearest named, the data set is found or asked for."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from recllm.data.splits import load_split
from recllm.evaluation.recommender import Recommender
from recllm.evaluation.serve import find_dataset
from recllm.provenance import RunRecord

_FILE = Path(__file__).parent / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = worlds.make_table()
HOSTILE = "[bold red]Loud[/] <|im_start|>\x1b[31m\u202e"


def finish(folder: Path, recipe: str, **inputs: str) -> None:
    """End a run that read `inputs`, by the paths that a command line gave."""
    RunRecord.start(folder, recipe, {"output_dir": str(folder), **inputs}, inputs).finish({})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """outputs/p/dataset -> chats -> sft -> model, each with its run.json, by paths relative to the project."""
    root, patch = tmp_path_factory.mktemp("project"), pytest.MonkeyPatch()
    patch.chdir(root)
    base = Path("outputs/p")
    worlds.write_dataset(base / "dataset")
    catalog = pl.read_parquet(base / "dataset/catalog.parquet")
    titles = [*catalog["title"][:5], "Dr. Strangelove; or: How I Learned", HOSTILE, *catalog["title"][7:]]
    catalog.with_columns(pl.Series("title", titles)).write_parquet(base / "dataset/catalog.parquet")
    finish(base / "dataset", "movielens")
    TABLE.save(base / "sid_table")
    finish(base / "sid_table", "train_sid_tokenizer", dataset="outputs/p/dataset")
    (base / "chats/rows").mkdir(parents=True)
    (base / "chats/rows/data.json").write_text("{}")
    finish(base / "chats", "recommendation", dataset="outputs/p/dataset", sid_table="outputs/p/sid_table")
    for name, source in (("sft", "HuggingFaceTB/SmolLM2-135M"), ("model", "outputs/p/sft")):
        worlds.save_model(base / name, TABLE)
        inputs = {"chats": "outputs/p/chats/rows"} if name == "sft" else {"model_name_or_path": source}
        finish(base / name, name, **inputs)
    patch.undo()
    return root


@pytest.fixture
def ask(call, project):
    """Ask the model for what follows a history."""
    return lambda history, *words: call("--model", project / "outputs/p/model", "--history", history, *words)


def test_the_answer_is_the_models(ask, project):
    done = ask("film A0 ;  Film b1;#2", "--json", "-k", 5)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["history"] == [0, 1, 2] and answer["notes"] == []
    recommender = Recommender.load(project / "outputs/p/model")
    history = [np.array([0, 1, 2])]
    items_1K, scores_1K = recommender.recommend(history, 5, 50, history)
    assert [row["item"] for row in answer["rows"]] == items_1K[0].tolist()
    assert [row["score"] for row in answer["rows"]] == pytest.approx(np.exp(scores_1K[0]).tolist())
    assert [row["place"] for row in answer["rows"]] == [1, 2, 3, 4, 5]
    assert not {row["item"] for row in answer["rows"]} & {0, 1, 2}, "what was seen is not recommended"
    first = answer["rows"][0]
    assert first["sid"] == TABLE.text(first["item"]) and first["categories"] == [
        ["Drama", "Comedy", "War"][first["item"] % 3]
    ]


def test_the_table_shows_the_same(ask):
    rows = json.loads(ask("Film a0", "--json").stdout)["rows"]
    out = ask("Film a0").stdout
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.count("│") == 6]
    assert len(lines) == len(rows) == 10
    for cells, row in zip(lines, rows, strict=True):
        assert cells == [str(row["place"]), row["title"], row["categories"][0], row["sid"], f"{row['score']:.3g}"]


def test_the_order_of_the_history_matters(ask):
    one, other = (json.loads(ask(text, "--json").stdout)["rows"] for text in ("#0; #9", "#9; #0"))
    assert [row["score"] for row in one] != [row["score"] for row in other]


def test_a_title_with_a_semicolon_is_found(ask):
    for text in ("Film a0; Dr. Strangelove; or: How I Learned; #3", "film a0;dr. strangelove ;or: how i learned;#3;"):
        assert json.loads(ask(text, "--json").stdout)["history"] == [0, 5, 3]


def test_a_title_of_several_items_says_so_and_takes_the_most_popular(ask, project):
    fold = load_split(project / "outputs/p/dataset").fitting
    events = np.bincount(fold.items_M, minlength=worlds.ITEMS)[28:]
    assert events[0] != events[1]
    best, other = (28, 29) if events[0] > events[1] else (29, 28)
    done = ask("twins", "--json")
    answer = json.loads(done.stdout)
    assert answer["history"] == [best]
    assert answer["notes"] == [f"2 items are called Twins; took #{best}, the most popular, and not #{other}"]
    assert f"note: 2 items are called Twins; took #{best}" in ask("twins").stderr


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("Flim c2", "no item is called 'Flim c2'; the nearest are Film c2 (#2)"),
        (
            "Film a0; strangelove",
            "no item is called 'strangelove'; the nearest are Dr. Strangelove; or: How I Learned (#5)",
        ),
        ("0123456789", "none is near"),
        ("#30", "#30 is no item: the catalogue holds #0 to #29"),
        (" ; ", "the history is empty"),
        ("<|im_end|>\x1b[2J", "no item is called '‹|im_end|›(2J'"),
    ],
)
def test_what_is_not_in_the_catalogue_is_an_error(ask, history, message):
    done = ask(history)
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stdout == "" and "\x1b" not in done.stderr


def test_hostile_titles_are_found_and_printed_as_text(ask):
    assert json.loads(ask(HOSTILE, "--json").stdout)["history"] == [6]
    everything = ask("Film a0", "-k", 29).stdout
    assert "(bold red)Loud(/) ‹|im_start|›(31m" in everything
    assert "\x1b" not in everything and "\u202e" not in everything


def test_fewer_items_than_asked_for_are_all_that_is_left(ask):
    assert len(json.loads(ask("Film a0; Film b1", "-k", 40, "--json").stdout)["rows"]) == worlds.ITEMS - 2
    assert "-k must be at least 1" in ask("Film a0", "-k", 0).stderr


def test_the_data_set_is_found_through_the_runs_before(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "sft", "chats"):
        found = find_dataset(project / "outputs/p" / name)
        assert found.resolve() == (project / "outputs/p/dataset").resolve()


def test_a_chain_that_breaks_asks_for_the_data_set(call, project, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(project / "outputs/p", copy / "outputs/p")
    words = ("--model", copy / "outputs/p/model", "--history", "Film a0", "--json")
    (copy / "outputs/p/chats/rows/data.json").write_text("other content")
    (copy / "outputs/p/chats/run.json").unlink()
    done = call(*words)
    assert done.exit_code == 1 and "name its folder with --dataset" in done.stderr
    named = call(*words, "--dataset", project / "outputs/p/dataset")
    assert named.exit_code == 0 and json.loads(named.stdout)["history"] == [0]
    # A published folder knows its inputs' fingerprints, but its paths lead nowhere.
    shutil.copytree(project / "outputs/p/model", tmp_path / "alone/model")
    assert "--dataset" in call("--model", tmp_path / "alone/model", "--history", "Film a0").stderr


def test_a_data_set_that_was_made_anew_is_not_the_models(call, project, tmp_path):
    shutil.copytree(project / "outputs/p", tmp_path / "copy/outputs/p")
    words = ("--model", tmp_path / "copy/outputs/p/model", "--history", "#0", "--json")
    assert call(*words).exit_code == 0
    worlds.write_dataset(tmp_path / "copy/outputs/p/dataset", worlds.histories(seed=5))
    (tmp_path / "copy/outputs/p/dataset/run.json").unlink()
    done = call(*words)
    assert done.exit_code == 1 and "name its folder with --dataset" in done.stderr


def test_what_does_not_belong_together_is_one_clear_error(call, project, tmp_path):
    small = worlds.write_dataset(tmp_path / "small", [[0, 1, 2, 3, 4]], items=5)
    done = call("--model", project / "outputs/p/model", "--history", "#0", "--dataset", small)
    assert done.exit_code == 1 and "knows 30 items, the catalogue of" in done.stderr
    done = call("--model", tmp_path / "nowhere", "--history", "#0")
    assert done.exit_code == 1 and "is no folder, no asset" in done.stderr
    done = call("--model", project / "outputs/p/dataset", "--history", "#0", "--dataset", project / "outputs/p/dataset")
    assert done.exit_code == 1 and "sid_table.json is missing" in done.stderr
