"""The report on living needs: values that were worked out by hand, groups, choices on validation, the recipe."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from recllm.evaluation.needs import HEADLINES, answer_by_models, best_at, chosen_width, evaluate_needs
from recllm.evaluation.needs_cross import abroad, evaluate_abroad, popular_at_home
from recllm.evaluation.needs_report import aim_lines, needs_markdown
from recllm.evaluation.needs_values import NeedsBench, values
from recllm.needs.answers import NeedsAnswers
from recllm.needs.model import NeedsModel
from recllm.training.arguments import parse

ROOT = Path(__file__).resolve().parents[2]
_FILE = Path(__file__).with_name("needs_projects.py")
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="needs_projects"))
RECIPE = ROOT / "recipes" / "evaluate_needs.py"
SMOKE = ROOT / "recipes" / "configs" / "evaluate_needs" / "smoke.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A city with its patterns and a model, and the other city with its own."""
    root = tmp_path_factory.mktemp("needs")
    made = worlds.write_project(root)
    made.other = worlds.write_world(root / "other", city="hill")
    made.other_patterns = worlds.write_patterns(root / "other_patterns", made.other)
    return made


@pytest.fixture
def bench(project) -> NeedsBench:
    return project.bench


def ten(item: int, place: int, bench: NeedsBench) -> list[int]:
    """Ten services with the item at a place."""
    others = [other for other in bench.askable.items_C.tolist() if other != item][:9]
    return [*others[:place], item, *others[place:]]


def answers_at(bench: NeedsBench, rows: np.ndarray, place: int, needs: list[str], types: list[str]) -> NeedsAnswers:
    """Answers with the target at a place, and its category there among others."""
    services = np.array([ten(item, place, bench) for item in bench.targets(rows).tolist()])
    names = bench.places.categories
    categories = []
    for true in bench.categories(rows):
        others = [name for name in names if name != true][:9]
        categories.append([*others[:place], true, *others[place:]])
    return NeedsAnswers(needs, types, categories, services)


def test_the_reference_answer_has_every_value_at_its_best(bench):
    rows = bench.rows("test")
    needs, types = zip(*bench.references(rows), strict=True)
    known = np.array([need != "" for need in needs])
    assert known.any() and not known.all(), "a visit without a derived need shows what does not apply"
    spoken = [need or "something else entirely" for need in needs]
    found = values(bench, rows, answers_at(bench, rows, 0, spoken, list(types)))
    for key in ("hr@1", "hr@5", "ndcg@5", "ndcg@10", "category_hr@1", "category_ndcg@10"):
        assert (found[key] == 1).all(), key
    for key in ("need_similarity", "type_accuracy"):
        assert (found[key][known] == 1).all() and np.isnan(found[key][~known]).all(), key
    accidental = (bench.visits.frame["need"] == "").to_numpy()[rows]
    assert accidental.any() and (np.isnan(found["need_accuracy"]) == accidental).all()
    assert (found["need_accuracy"][known] == 1).all()
    assert (found["need_fault"] == 0).all()


def test_places_are_worth_what_the_textbook_says(bench):
    rows = bench.rows("test")
    needs = ["something else entirely"] * len(rows)
    found = values(bench, rows, answers_at(bench, rows, 3, needs, ["no type"] * len(rows)))
    expected = {"hr@1": 0, "hr@3": 0, "hr@5": 1, "ndcg@5": 1 / np.log2(5), "ndcg@10": 1 / np.log2(5)}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value) and found[f"category_{key}"] == pytest.approx(value), key
    late = values(bench, rows, answers_at(bench, rows, 6, needs, needs))
    assert (late["hr@5"] == 0).all() and late["ndcg@10"] == pytest.approx(1 / 3)
    assert np.nansum(found["type_accuracy"]) == 0


def test_a_need_that_gives_the_category_away_is_worth_nothing(bench):
    rows = bench.rows("test")
    needs = [f"visiting a nice {true} now" for true in bench.categories(rows)]
    found = values(bench, rows, answers_at(bench, rows, 0, needs, needs))
    assert (found["need_fault"] == 1).all() and (found["recoverability"] == 0).all()
    assert np.nansum(found["need_similarity"]) == 0
    near = [f"visiting a nice {true[:-1]} now" for true in bench.categories(rows)]
    assert values(bench, rows, answers_at(bench, rows, 0, near, near))["recoverability"].mean() > 0.5


def test_a_planted_need_is_that_of_the_derived_one_it_shares_most_visits_with(bench, project):
    rows = bench.rows("test")
    true = bench.visits.frame["need"][rows].to_numpy()
    described = json.loads((project.dataset / "dataset.json").read_text())["needs"]
    assert bench.planted_of == {text: name for name, text in described.items() if text in bench.planted_of}
    first = described[true[true != ""][0]]
    # Nearly its words: the nearest derived need counts.
    found = values(bench, rows, answers_at(bench, rows, 0, [first[:-4]] * len(rows), [""] * len(rows)))
    right = np.where(true == "", np.nan, true == bench.planted_of[first])
    assert np.array_equal(found["need_accuracy"], right, equal_nan=True) and np.nansum(right) > 0


def test_groups_are_those_of_looking_back(bench):
    rows = bench.rows("test")
    groups, items = bench.groups(rows), bench.visits.sequences.items_M
    fitted = items[bench.visits.rows("fit")]
    for e, row in enumerate(rows.tolist()):
        assert groups["new"][e] == (items[row] not in items[bench.visits.history(row)])
        more = sum(int((fitted == other).sum()) for other in set(fitted.tolist())
                   if (fitted == other).sum() > (fitted == items[row]).sum())  # fmt: skip
        if more >= 2 / 3 * len(fitted):
            assert groups["venue_tail"][e]
    parts = np.stack([groups[f"venue_{part}"] for part in ("head", "torso", "tail")])
    assert (parts.sum(0) == 1).all() and (groups["new"] == ~groups["repeat"]).all()
    head = {int(item) for item in items[rows[groups["venue_head"]]]}
    tail = {int(item) for item in items[rows[groups["venue_tail"]]]}
    assert min((fitted == item).sum() for item in head) >= max((fitted == item).sum() for item in tail)
    has = np.array([need != "" for need, _ in bench.references(rows)])
    parts = np.stack([groups[f"need_{part}"] for part in ("head", "torso", "tail") if f"need_{part}" in groups])
    assert np.array_equal(parts.any(0), has)


def test_fewer_rows_are_those_of_whole_users(bench):
    every, some = bench.rows("test"), bench.rows("test", 11)
    assert 0 < len(some) <= 11 and np.isin(some, every).all()
    users = set(bench.user_of(some).tolist())
    assert len(some) == sum(user in users for user in bench.user_of(every).tolist())
    with pytest.raises(ValueError, match="no target that may be answered"):
        bench.rows("test", 0)


@pytest.fixture(scope="module")
def metrics(project):
    """A model in all its roles and the baselines that need no folder."""
    one = [str(project.model)]
    models = {"joint": one, "two_models": one * 2, "no_clustering": one}
    return evaluate_needs(project.bench, models, {}, {"epochs": 2}, most=12)


def test_every_name_of_the_issue_is_in_the_metrics(metrics):
    for name in ("joint", "best_baseline", "two_models", "no_clustering", "popular_by_context", "own_history"):
        for key in HEADLINES:
            mean, lo, hi = (metrics[f"{name}/{key}{end}"] for end in ("", "_lo", "_hi"))
            assert 0 <= lo <= mean <= hi <= 1, (name, key)
    assert "graph/hr@5" in metrics and "graph/need_similarity" not in metrics
    assert metrics["n"] == metrics["n_new"] + metrics["n_repeat"] <= 12
    json.dumps(metrics, allow_nan=False)


def test_a_model_is_level_with_itself(metrics):
    for key in HEADLINES:
        assert metrics[f"over/no_clustering/{key}"] == metrics[f"over/no_clustering/{key}_hi"] == 0
        assert metrics.get(f"gain/no_clustering/{key}", 0.0) == 0
    best = metrics["best_baseline/name"]
    difference = metrics["joint/ndcg@5"] - metrics[f"{best}/ndcg@5"]
    assert metrics["over/best_baseline/ndcg@5"] == pytest.approx(difference)
    assert metrics["best_baseline/ndcg@5_lo"] == metrics[f"{best}/ndcg@5_lo"]


def test_the_best_baseline_is_chosen_on_validation(metrics):
    names = ("popular_by_context", "own_history", "graph")
    assert metrics["best_baseline/name"] == max(names, key=lambda name: metrics[f"validation/{name}/ndcg@5"])
    for key in HEADLINES:
        stating = [name for name in names if f"validation/{name}/{key}" in metrics]
        best = max(stating, key=lambda name: metrics[f"validation/{name}/{key}"])
        assert metrics[f"strongest/{key}_name"] == best and metrics[f"strongest/{key}"] == metrics[f"{best}/{key}"]


def test_how_many_categories_bring_services_is_chosen_on_validation(bench, project):
    one, rows = [str(project.model)], bench.rows("validation", 30)
    found = {width: values(bench, rows, answer_by_models(bench, one, rows, width))["ndcg@5"].mean() for width in (1, 5)}
    best = max(found, key=found.get)
    worst = min(found, key=found.get)
    assert found[worst] < found[best], "a world in which the choice does not matter shows nothing"
    assert chosen_width(bench, one, [worst, best], 30) == best
    metrics = evaluate_needs(bench, {"joint": one}, {}, {"epochs": 1}, 30, [worst, best])
    assert metrics["joint/chosen_categories"] == best
    tested = bench.rows("test", 30)
    there = values(bench, tested, answer_by_models(bench, one, tested, best))["ndcg@5"]
    assert metrics["joint/ndcg@5"] == there.mean()


def test_who_never_states_a_need_is_not_best_at_it():
    found = {
        "a": {"ndcg@5": np.array([1.0, 0.0])},
        "b": {"ndcg@5": np.zeros(2), "need_similarity": np.array([np.nan, 0.2])},
    }
    groups = {"new": np.array([False, True])}
    assert best_at("ndcg@5", found, groups) == "a" and best_at("need_similarity", found, groups) == "b"
    assert best_at("ndcg@5_new", found, groups) == "a", "the first of equals"
    assert best_at("ndcg@5_new", {**found, "c": {"ndcg@5": np.array([0.0, 0.5])}}, groups) == "c"
    assert best_at("ndcg@5", {**found, "c": {"ndcg@5": np.array([0.0, 0.5])}}, groups) == "a"
    assert best_at("hr@5", found, groups) is None


def test_the_second_model_is_told_what_the_first_one_says(bench, project, monkeypatch):
    asked = []
    real = NeedsModel.answer
    monkeypatch.setattr(NeedsModel, "answer", lambda self, chats, **options: asked.append(chats) or real(self, chats))
    rows = bench.rows("test")[:3]
    found = answer_by_models(bench, [str(project.model)] * 2, rows)
    said = [chat[0]["content"] for chat in asked[0]]
    assert all(
        f"Need: {need} ({kind})." in text for need, kind, text in zip(found.needs, found.types, said, strict=True)
    )
    with pytest.raises(ValueError, match="got 3 folders"):
        answer_by_models(bench, [str(project.model)] * 3, rows)


def test_in_another_city_needs_and_categories_are_graded(bench, project):
    there = abroad(bench, project.other, project.other_patterns)
    found = evaluate_abroad(bench, there, [str(project.model)], most=8)
    for name in ("joint", "popular_by_context"):
        for key in ("category_hr@5", "need_similarity", "need_accuracy", "recoverability"):
            assert 0 <= found[f"cross/{name}/{key}"] <= 1
    assert not any("/hr@" in key or "/ndcg@" in key for key in found)
    # Without patterns of its own there is no reference, and the planted needs still are.
    bare = evaluate_abroad(bench, abroad(bench, project.other, None), [str(project.model)], most=8)
    assert "cross/joint/need_similarity" not in bare
    assert bare["cross/joint/need_accuracy"] == found["cross/joint/need_accuracy"]
    rows = there.rows("test")
    home = popular_at_home(bench, there, rows)
    assert set(home.needs) <= set(bench.patterns.frame["need"]) and (home.services_EK == -1).all()


def test_the_aim_is_told_with_who_was_beaten(metrics):
    told = {**metrics, "gain/best_baseline/hr@5_new": 0.4, "gain/best_baseline/hr@5_new_lo": 0.1}
    told |= {"gain/best_baseline/hr@5_new_hi": 0.7}
    line = aim_lines(told)[0]
    assert f"({metrics['best_baseline/name']})" in line and "kept on average" in line and "+40% [+10%, +70%]" in line
    assert "missed" in aim_lines(told | {"gain/best_baseline/hr@5_new": 0.2})[0]
    assert aim_lines(told | {"gain/best_baseline/hr@5_new_lo": 0.3})[0].endswith("kept.")


def run(*argv: str) -> None:
    scope = runpy.run_path(str(RECIPE))
    scope["main"](*parse(scope["Arguments"], argv=argv))


def test_the_recipe_makes_a_report_once(project, tmp_path, capsys):
    argv = ["--config", str(SMOKE), "--dataset", str(project.dataset), "--patterns", str(project.patterns)]
    argv += ["--joint", str(project.model), "--two_models", str(project.model), str(project.model)]
    argv += ["--cross_dataset", str(project.other), "--output_dir", str(tmp_path / "report")]
    run(*argv)
    found = json.loads((tmp_path / "report/metrics.json").read_text())
    text = (tmp_path / "report/report.md").read_text()
    assert found["best_baseline/name"] in text and "In the other city" in text and "two_models" in text
    assert needs_markdown(found, "x").count("\n| joint |") >= 5
    assert (tmp_path / "report/needs.png").stat().st_size > 5_000
    capsys.readouterr()
    run(*argv)
    assert "nothing to do" in capsys.readouterr().out


def test_a_model_of_another_city_is_refused(project, tmp_path):
    there = worlds.load_bench(project.other, project.other_patterns, "tfidf")
    with pytest.raises(ValueError, match="item numbers of one mean nothing in the other"):
        evaluate_needs(there, {"joint": [str(project.model)]}, {}, {"epochs": 1}, most=10)


def test_patterns_without_a_need_leave_the_needs_out(bench):
    events = bench.patterns.events.with_columns(need=pl.lit(""), need_type=pl.lit(""), kept=pl.lit(False))
    silent = NeedsBench(bench.visits, bench.catalog, replace(bench.patterns, events=events), bench.encoder)
    found = evaluate_needs(silent, {}, {}, {"epochs": 1}, most=8)
    assert "own_history/hr@5" in found and not any("need_similarity" in key for key in found)
    assert "best_baseline/need_name" not in found and "Services" in needs_markdown(found, "x")
