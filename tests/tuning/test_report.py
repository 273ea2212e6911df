"""A study's report: tables against hand-made histories, and the command on real study folders."""

import json
from dataclasses import replace

import pytest
from part_spaces import part_space
from typer.testing import CliRunner

from recllm import cli
from recllm.provenance import write_json
from recllm.tuning.baselines.suggesters import suggester
from recllm.tuning.reports.report import compare, markdown, write_report
from recllm.tuning.reports.report_plot import plot_curves
from recllm.tuning.reports.stored import Stored, load_study
from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.study.agent import Agent
from recllm.tuning.study.choosers import ModelChooser, SamplerChooser, SurfaceTrials
from recllm.tuning.study.proposal import Proposal
from recllm.tuning.study.reflection import LearnedRule, Reflection
from recllm.tuning.study.study import Study
from recllm.tuning.study.trial import History, Trial
from recllm.tuning.trials.runner import OBJECTIVE, Outcome
from recllm.tuning.trials.surface import METRICS, Surface, surface_row, write_surface

SPACE, MEASURED = part_space("sasrec"), surface_space("sasrec")
BAD = "<script>alert(1)</script> | [a](http://b.c) ![x](y) `z`\n# head"


def outcome(config, score):
    metrics = {OBJECTIVE: score} if score is not None else {}
    return Outcome("ok" if metrics else "timeout", SPACE.key(config), config, 0, metrics, 9, cpu_seconds=2.0)


def stored(scores, proposer="tuner:x", **told):
    """A study that changes lr, lr, dropout, ... of its best; a score of None is a failure."""
    history, steps = History(SPACE, epsilon=0.001), iter([("lr", 1e-3), ("lr", 3e-3), ("dropout", 0.4), ("lr", 1e-4)])
    for number, score in enumerate(scores):
        if not number:
            trial = Trial(0, "default", outcome(SPACE.default, score))
        else:
            name, value = next(steps)
            proposal = Proposal(BAD, name, value, "up", "none")
            rule = LearnedRule(BAD, name, value, "helps" if number < 3 else "hurts", 0.8)
            looked = Reflection("confirmed", 0.0, "why", "what", None, rule, "next")
            config = SPACE.change(history.present, name, value)
            source = "random" if number == 3 else "model"
            trial = Trial(number, source, outcome(config, score), proposal, history.best.number, (), looked)
        history = history.with_trial(replace(trial, kept=history.keeps(trial.outcome)))
    known = {"space": "sasrec", "schema": 1, "fixed": 2, "inputs": {"dataset": "f"}, "dataset": "toy", "budget": 9}
    known |= {"proposer": proposer, "memory": False, "reflect": True} | told
    return Stored(None, known, history, {})


def cells(page, first):
    """The row of a table that begins with a cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return next(row[1:] for row in rows if row[0] == first)


def test_targets_and_medians_by_hand():
    studies = [stored([0.10, 0.12, None, 0.16]), stored([0.10, 0.11, 0.20]), stored([0.10, 0.09, 0.13], "random")]
    found = compare(studies, None)
    assert found.scores == {"tuner:x": [[0.10, 0.12, 0.0, 0.16], [0.10, 0.11, 0.20]], "random": [[0.10, 0.09, 0.13]]}
    # the default .10, lr 1e-3 at most .12, lr 3e-3 at most .20, dropout .4 with lr 1e-3 .16
    assert "the 4 configurations" in found.measured
    assert found.targets["best 2%"] == found.targets["best 10%"] == 0.20
    assert found.targets["95% of the best score"] == pytest.approx(0.19)
    page = markdown(studies[0], found)
    # in three trials, the length of the shortest study, one of two reached .20 (at 3), the other did not (4)
    assert cells(page, "`tuner:x`")[:4] == ["2", "more than 3", "more than 3", "more than 3"]
    assert cells(page, "`random`")[-1] == "0.1300"
    assert cells(page, "`tuner:x`")[-1] == "0.1600"


def test_a_page_says_what_was_found_by_whom_and_what_was_learned():
    study = stored([0.10, 0.12, None, 0.16, 0.15], memory=True, reflect=False)
    page = markdown(study, compare([study], None))
    assert page.startswith("# `sasrec` on `toy`, tuned by `tuner:x, with memory, no reflection`\n")
    assert (
        "5 of 9 trials, 10 processor seconds. Validation NDCG@10 0.1600 against the default's 0.1000, +60.0%;" in page
    )
    assert "a change below 0.0010 counts as noise. Failed: 1 timeout." in page
    assert cells(page, "`tuner:x, with memory, no reflection`") == ["1", "4", "4", "4", "4", "4", "4", "0.1600"]
    assert cells(page, "lr") == ["`0.0003`", "`0.001`"] and cells(page, "dropout") == ["`0.2`", "`0.4`"]
    assert cells(page, "model") == ["3", "1", "60%"] and cells(page, "random") == ["1", "1", "20%"]
    assert cells(page, "the model's own of those it was asked for") == ["", "", "75%"]
    dimensions = page.partition("## Dimensions")[2]
    assert cells(dimensions, "lr") == ["4", "3", "1", "+20"] and cells(dimensions, "dropout") == [
        "2",
        "1",
        "1",
        "+40",
    ]
    assert cells(dimensions, "hidden_dim") == ["1", "0", "0", ""]
    assert cells(page, "`lr = 0.001`")[:3] == ["helps", "1", "0.80"]
    assert cells(page, "2")[:5] == ["1", "model", "`lr 0.001 to 0.003`", "timeout", ""]
    assert cells(page, "3")[:5] == ["1", "random", "`dropout 0.2 to 0.4`", "0.1600", "yes"]


def test_what_a_model_says_cannot_leave_its_cell():
    study = stored([0.10, 0.12], proposer=BAD)
    page = markdown(study, compare([study], None))
    assert "<script>" not in page.replace("`" + page.split("`")[5] + "`", "") and "\n# head" not in page
    assert "](http" not in page.replace("\\]\\(http", "").replace(page.split("`")[5], "")
    wide = {line.count("|") - line.count("\\|") for line in page.partition("## Trials\n")[2].splitlines() if line}
    assert wide == {9}


def test_the_test_stands_beside_the_defaults():
    record = {"outcomes": [1, 2, 3], "summary": {"test/ndcg@10": 0.13, "test/ndcg@10_std": 0.001, "seeds": 3, "ok": 3}}
    default = {"outcomes": [1, 2, 3], "summary": {"test/ndcg@10": 0.10, "test/ndcg@10_std": 0.002, "seeds": 3, "ok": 3}}
    study = stored([0.10, 0.12])
    page = markdown(replace(study, tests={"best": record, "default": default}), compare([study], None))
    assert cells(page, "best") == ["3", "0.1300, std 0.0010"] and cells(page, "gain") == ["", "+30.0%"]
    begun = {"outcomes": [1]}
    page = markdown(replace(study, tests={"best": begun, "default": default}), compare([study], None))
    assert cells(page, "best") == ["1", "not read to the end"] and "| gain" not in page
    assert "## Test" not in markdown(study, compare([study], None))


def test_equal_curves_make_equal_pictures_and_others_do_not(tmp_path):
    many = {"a": [[0.1, 0.2, 0.15], [0.1, 0.1, 0.3]], "b $x$": [[0.1, 0.12]]}
    for name, scores in (("one", many), ("two", many), ("three", {**many, "b $x$": [[0.1, 0.25]]})):
        plot_curves(scores, 0.1, tmp_path / f"{name}.png")
    one, two, three = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three"))
    assert one[:4] == b"\x89PNG" and one == two != three


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    rows, best = [], MEASURED.change(MEASURED.default, "dropout", 0.5)
    for place, config in enumerate([MEASURED.default, *MEASURED.neighbours(MEASURED.default)]):
        score = 0.05 * (1 - MEASURED.distance(config, best))
        metrics = {f"{role}/{name}": score for role in ("validation", "test") for name in METRICS}
        told = Outcome("ok", MEASURED.key(config), config, 0, metrics, 9)
        rows.append(surface_row(told, "spread" if place else "default"))
    limits = dict.fromkeys(("parameters", "cpu_seconds", "wall_seconds", "memory_gib"))
    told = {
        "backbone": "sasrec",
        "dataset": "toy",
        "limits": limits,
        "fixed": dict(MEASURED.fixed),
        "data_fingerprint": "f",
    }
    path = tmp_path_factory.mktemp("surface") / "sasrec-toy.parquet"
    write_surface(path, rows, told)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory, surface):
    root, trials = tmp_path_factory.mktemp("studies"), SurfaceTrials(Surface.load(surface))
    from recllm.tuning.reports.contest import Dice

    for name, seed in (("dice", 0), ("random", 0), ("random2", 1)):
        chooser = ModelChooser(Dice()) if name == "dice" else SamplerChooser(suggester("random", seed))
        facts = {"dataset": "toy", "inputs": {"dataset": "f"}}
        Study(root / name, Agent(MEASURED, {"users": 40.0}, 7, seed), chooser, trials, epsilon=0.001, facts=facts).run()
    return root


def test_a_study_is_read_as_it_was_run(folders, surface):
    study = load_study(folders / "dice")
    assert study.label == "dice" and study.history.epsilon == 0.001 and len(study.history.trials) == 7
    assert [trial.source for trial in study.history.trials] == ["default", *["random"] * 6]
    trials = SurfaceTrials(Surface.load(surface))
    assert all(trial.outcome.score == trials(trial.config, 0).score for trial in study.history.trials)


def test_the_command_writes_and_prints_the_report(folders, surface, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    call = lambda *words: CliRunner().invoke(cli.app, ["report", *map(str, words)])  # noqa: E731
    names = [folders / name for name in ("dice", "random", "random2")]
    done = call(*names, "--output_dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Trials to a target" in done.output and "dice" in done.output
    page = (tmp_path / "report.md").read_text()
    assert cells(page, "`random`")[0] == "2" and (tmp_path / "best_so_far.png").stat().st_size > 5000
    done = call(names[0], "--surface", surface, "--output_dir", tmp_path / "surface")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "surface/report.md").read_text()
    assert cells(page, "`random on the surface`")[0] == "20" == cells(page, "`tpe on the surface`")[0]
    target = Surface.load(surface).target(0.02)
    assert f"best 2% ({target:.4f})" in page
    assert call(names[0]).exit_code == 0 and (folders / "dice/report.md").is_file()


def test_what_cannot_be_compared_is_refused(folders, surface, tmp_path):
    study = load_study(folders / "dice")
    other = replace(study, told={**study.told, "inputs": {"dataset": "g"}})
    with pytest.raises(ValueError, match="differ in inputs"):
        write_report([study, other], tmp_path)
    with pytest.raises(ValueError, match="measured on other data"):
        write_report([other], tmp_path, Surface.load(surface))
    with pytest.raises(ValueError, match="is no study"):
        load_study(tmp_path)
    told = json.loads((folders / "dice/study.json").read_text())
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "journal.log").write_bytes((folders / "dice/journal.log").read_bytes())
    write_json(copied / "study.json", told | {"fixed": {"epochs": 1}})
    with pytest.raises(ValueError, match="another space sasrec"):
        load_study(copied)
    (copied / "journal.log").write_bytes(b"")
    write_json(copied / "study.json", told)
    with pytest.raises(ValueError, match="no finished trial"):
        load_study(copied)
