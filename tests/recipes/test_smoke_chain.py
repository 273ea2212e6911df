"""Every recipe of the main job in one chain, each with its smoke config, on a small made-up MovieLens.

The scripts run in this process, because importing TRL takes seconds; what is asserted is what they leave on disk.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recllm.evaluation.frontier import choose, load_points
from recllm.metrics.compare import compare_ranks
from recllm.pipeline import load_pipeline
from recllm.provenance import load_run
from recllm.training.arguments import parse

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "recipes" / "pipelines" / "smoke.yaml"
USERS, ITEMS = 24, 120


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """MovieLens files of 24 users with 14 to 25 films each; neighbours in id tend to follow each other."""
    rng = np.random.default_rng(0)
    events, genres = [], ["Drama", "Comedy", "Action", "Horror", "War"]
    for user in range(1, USERS + 1):
        start = rng.integers(1, ITEMS)
        films = [(start + 3 * step + int(rng.integers(3))) % ITEMS + 1 for step in range(40)]
        films = list(dict.fromkeys(films))[: 14 + user % 12]
        events += [f"{user}\t{film}\t4\t{1000 * user + 60 * place}" for place, film in enumerate(films)]
    titles = [f"Film number {i} of {genres[i % 5]}" for i in range(1, ITEMS + 1)]
    items = [f"{i}\t{title}\t1990\t{genres[i % 5]} {genres[i % 3]}" for i, title in enumerate(titles, start=1)]
    folder = tmp_path_factory.mktemp("raw")
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(head + "\n".join(events) + "\n")
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (folder / "ml-100k.item").write_text(head + "\n".join(items) + "\n")
    return folder


def start(script: Path, *argv: str) -> None:
    """Run a script's own parse and main on these arguments."""
    scope = runpy.run_path(str(script))
    scope["main"](*parse(scope["Arguments"], *scope.get("TRL_CONFIGS", ()), argv=argv))


@pytest.fixture(scope="module")
def outputs(raw, tmp_path_factory):
    """Output root of the finished chain."""
    root = tmp_path_factory.mktemp("outputs")
    pipeline = load_pipeline(PIPELINE)
    for stage in pipeline.stages:
        folder = pipeline.folder(stage.name, root)
        command = stage.command(folder, pipeline.input_folders(stage, root))
        argv = command[command.index(str(stage.script)) + 1 :]
        extra = ["--data", str(raw), "--k_core", "1"] if stage.name == "dataset" else []
        start(stage.script, *argv, *extra)
    return root / "smoke"


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_every_stage_left_a_complete_run(outputs):
    stages = load_pipeline(PIPELINE).stages
    records = {stage.name: load_run(outputs / stage.name) for stage in stages}
    assert all(records.values()), [name for name, record in records.items() if not record]
    for record in records.values():
        assert record["wall_seconds"] >= 0 and record["versions"]["python"] and record["fingerprint"]


def test_inputs_are_known_by_the_fingerprints_of_the_stages_before(outputs):
    known = {stage.name: load_run(outputs / stage.name) for stage in load_pipeline(PIPELINE).stages}
    assert known["sasrec"]["inputs"]["dataset"] == known["dataset"]["fingerprint"]
    assert known["grpo_planner"]["inputs"]["tool_cache"] == known["tool_cache"]["fingerprint"]


def test_the_reasoner_starts_from_a_model_that_knows_its_sids(outputs):
    from transformers import AutoTokenizer

    from recllm.sid.table import SidTable

    table = SidTable.load(outputs / "reasoner" / "sid_table")
    tokenizer = AutoTokenizer.from_pretrained(outputs / "reasoner")
    text = table.text(7)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(table.level_sizes)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_cache_holds_every_role_and_no_seen_item(outputs):
    from recllm.data.splits import load_split
    from recllm.tools.cache import ROLES, ToolCache, examples_of

    split = load_split(outputs / "dataset")
    for role in ROLES:
        cache, examples = ToolCache.load(outputs / "tool_cache", role, split), examples_of(split, role)
        for e in range(len(examples)):
            found = cache.items_PEK[:, e]
            assert not np.isin(found[found >= 0], examples.history(e)).any()
            assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
    frame = pl.read_parquet(outputs / "tool_cache" / "cache.parquet")
    assert (frame["cost"] > 0).all()


def test_traces_parse_back_to_their_label(outputs):
    from datasets import Dataset

    rows = Dataset.load_from_disk(str(outputs / "planner_traces" / "traces"))
    for row in rows:
        calls = [call["function"] for message in row["messages"] for call in message["tool_calls"] or []]
        assert [call["name"] for call in calls] == [row["tool"]]
        assert all(isinstance(json.loads(call["arguments"]), dict) for call in calls)


def test_the_planner_reports_every_router(outputs):
    found = metrics(outputs / "grpo_planner")
    routers = ("planner", "always_retrieve", "always_rank", "always_reason", "random_mix", "margin", "oracle")
    for router in routers:
        low, mean, high = (found[f"{router}/ndcg@10{end}"] for end in ("_lo", "", "_hi"))
        assert 0 <= low <= mean <= high <= 1
        assert found[f"{router}/cost"] > 0
        assert 0 <= found[f"{router}/oracle_agreement"] <= 1
    assert found["oracle/ndcg@10"] >= max(found[f"{router}/ndcg@10"] for router in routers)
    shares = [found[f"planner/share_{tool}"] for tool in ("retrieve", "rank", "reason")]
    assert sum(shares) == pytest.approx(1)
    assert found["planner/total_cost"] == pytest.approx(found["planner/own_cost"] + found["planner/cost"])
    assert {"headroom", "headroom_lo", "headroom_hi", "reward/first", "reward/last"} <= found.keys()
    assert found["steps"] == 2


def test_the_planner_is_delivered_whole(outputs):
    folder = outputs / "grpo_planner"
    pictures = ("curves.png", "frontier.png")
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "README.md", *pictures):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "sid_table").is_dir()
    assert not list(folder.glob("checkpoint-*"))


def test_the_delivered_planner_evaluates_to_its_own_numbers(outputs, tmp_path):
    folders = [f"--{name}={outputs / name}" for name in ("dataset", "sid_table", "tool_cache")]
    model = f"--model={outputs / 'grpo_planner'}"
    start(ROOT / "recipes" / "evaluate.py", model, *folders, f"--output_dir={tmp_path}")
    again, first = metrics(tmp_path), metrics(outputs / "grpo_planner")
    same = [name for name in again if name.startswith(("planner/", "always_", "oracle/")) and "wall" not in name]
    assert len(same) > 20
    assert {name: again[name] for name in same} == {name: first[name] for name in same}


def test_the_frontier_holds_every_planner_and_names_the_one_that_validation_chose(outputs):
    found, folder = metrics(outputs / "frontier"), outputs / "frontier"
    folders = {name: outputs / name for name in ("dataset", "tool_cache")}
    points = load_points([outputs / "planner_free", outputs / "planner_dear"], folders)
    assert found["cost_weight"] == choose(points, 0.5).cost_weight and found["planners"] == 2
    for planner, weight in (("planner_free", "0"), ("planner_dear", "2")):
        known = metrics(outputs / planner)
        assert found[f"planner@{weight}/validation_ndcg@10"] == known["planner/ndcg@10"]
        for name in (f"margin@{weight}", f"entropy@{weight}", f"planner@{weight}"):
            for quality in ("ndcg@5", "ndcg@10", "recall@5", "recall@10"):
                low, mean, high = (found[f"{name}/{quality}{end}"] for end in ("_lo", "", "_hi"))
                assert 0 <= low <= mean <= high <= 1
    chosen = f"planner@{found['cost_weight']:g}"
    same = [key.split("/")[1] for key in found if key.startswith(f"{chosen}/") and "validation" not in key]
    assert {key: found[f"planner/{key}"] for key in same} == {key: found[f"{chosen}/{key}"] for key in same}
    assert found["aim/tools_cost_share"] == pytest.approx(found["planner/cost"] / found["always_reason/cost"])
    assert found["latency/planner/p50_ms@1"] > 0 and "aim/p50_ms/slack" in found
    for role, name in (("test", "planner"), ("always_reason", "always_reason")):
        mean, _ = compare_ranks(folder, folder, role)["recall@10"]
        assert mean == pytest.approx(found[f"{name}/recall@10"])
    report = (folder / "report.md").read_text()
    assert "planner, weight" in report and "| learned |" in report and "## Aims" in report
    assert (folder / "frontier.png").stat().st_size > 10_000 and "<svg" in (folder / "frontier.svg").read_text()


def test_the_ablated_cache_ranks_as_retrieve_does(outputs):
    whole, less = (
        pl.read_parquet(outputs / name / "cache.parquet") for name in ("tool_cache", "tool_cache_without_rank")
    )
    assert metrics(outputs / "tool_cache_without_rank")["replaced_rows"] == (whole["tool"] == "rank").sum()
    rows = {tool: less.filter(pl.col("tool") == tool).sort("role", "row") for tool in ("retrieve", "rank")}
    assert rows["rank"]["items"].equals(rows["retrieve"]["items"])
    costs = whole.filter(pl.col("tool") == "rank").sort("role", "row")["cost"]
    assert rows["rank"]["cost"].equals(costs)


def test_planners_that_were_graded_on_test_do_not_compete(outputs, tmp_path):
    folders = [f"--{name}={outputs / name}" for name in ("dataset", "sid_table", "tool_cache")]
    with pytest.raises(ValueError, match="eval_role validation"):
        start(
            ROOT / "recipes" / "evaluate_frontier.py",
            *("--planners", str(outputs / "planner_free"), str(outputs / "grpo_planner")),
            *folders,
            f"--output_dir={tmp_path}",
        )


def test_the_recommender_is_trained_on_its_own_answers_and_delivered(outputs):
    found = metrics(outputs / "grpo_recommender")
    assert found["steps"] == 2 and found["group_duplicates/last"] == 0
    assert 0 < found["allowed_mass/last"] <= 1
    for when in ("before", "after"):
        low, mean, high = (found[f"validation/{when}_ndcg@10{end}"] for end in ("_lo", "", "_hi"))
        assert 0 <= low <= mean <= high <= 1
    folder = outputs / "grpo_recommender"
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "README.md", "curves.png"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "sid_table").is_dir() and not list(folder.glob("checkpoint-*"))


def test_beam_exact_scores_and_backbone_stand_in_one_set_of_numbers(outputs):
    found = metrics(outputs / "recommender_evaluation")
    assert found["n"] == 16 and found["beam/validity"] == found["exact/validity"] == 1.0
    for side in ("beam", "exact", "backbone"):
        assert 0 <= found[f"{side}/ndcg@10"] <= found[f"{side}/recall@10"] <= 1
        assert 0 < found[f"{side}/coverage@10"] <= 1
    assert found["exact/ndcg@10"] == pytest.approx(found["beam/ndcg@10"], abs=0.2)
    assert 0 <= found["beam_recall"] <= 1


def test_the_delivered_recommender_recommends_from_its_folder_alone(outputs):
    from typer.testing import CliRunner

    from recllm.cli import app

    history = "Film number 1 of Comedy; #5"
    result = CliRunner().invoke(
        app, ["recommend", "--model", str(outputs / "grpo_recommender"), "--history", history, "-k", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert "Film number" in result.stdout


def test_a_second_start_does_nothing(outputs, capsys):
    before = (outputs / "sasrec" / "run.json").stat().st_mtime_ns
    config = ROOT / "recipes" / "configs" / "train_backbone" / "smoke.yaml"
    argv = ("--config", str(config), "--dataset", str(outputs / "dataset"), "--output_dir", str(outputs / "sasrec"))
    start(ROOT / "recipes" / "train_backbone.py", *argv)
    assert "is complete, nothing to do" in capsys.readouterr().out
    assert (outputs / "sasrec" / "run.json").stat().st_mtime_ns == before
