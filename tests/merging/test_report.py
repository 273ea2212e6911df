"""The report: what it says is what was found, whatever names it is given, and its picture shows every point."""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recllm.data.markdown import code
from recllm.merging.analysis import analyse, flat_metrics
from recllm.merging.divergence import divergence
from recllm.merging.report import improvement_text, markdown, span, write_report, write_results
from recllm.merging.report_plot import plot_curve, said
from recllm.merging.results import from_sweep
from recllm.merging.results_csv import read_csv
from recllm.merging.space import Point
from recllm.metrics.bootstrap import Interval

sys.path.insert(0, str(Path(__file__).parent))
from sweeps import spectrum, write
from worlds import family

POINTS = [
    *(Point.of("linear", strength=s / 10) for s in range(1, 10)),
    *(Point.of("task_arithmetic", strength=s / 10) for s in (3, 5)),
    *(Point.of("ties", strength=s / 10, density=d) for d in (0.2, 0.5) for s in (2, 5, 8)),
    Point.of("karcher"),
    Point.of("slerp", strength=[0.0, 1.0]),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    parents = family(folder)
    results = from_sweep(write(folder / "sweep", POINTS, spectrum(200), parents))
    return analyse(results, budgets=[20, 2], divergence=divergence(parents))


def test_the_page_tells_what_was_found(found, tmp_path):
    write_report(found, tmp_path, "Merges of x")
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Merges of x\n\n17 merges of 4 methods and 2 parents, 200 questions of `toy` each")
    assert "`task_arithmetic strength=0.3` is `linear strength=0.3`" in text
    assert f"{len(found.front)} points that no other beats in both" in text
    for row in found.front:
        assert f"| `{row.key}` | {row.accuracy:.4f} [{row.accuracy_lo:.4f}, {row.accuracy_hi:.4f}] |" in text
    assert "| at most 2 tokens | none |" in text
    for choice in found.choices:
        if choice.row is not None:
            assert f"| `{choice.row.key}` | {span(choice.accuracy)} | {span(choice.tokens, 1)} |" in text
    for role in ("direct", "thinking"):
        mine = [one for one in found.comparisons if one.parent == role]
        good = [one for one in mine if one.improves]
        assert f"## Pareto improvements over the {role} parent\n\nOf {len(mine)} merges {len(good)} have" in text
        for one in sorted(good, key=lambda one: one.p)[:3]:
            assert f"{one.p:.4f} | {one.p_holm:.4f} |" in text
    low = found.phases["linear"].low
    assert f"| {low:.3f} |" in text
    assert "their sign conflicts" in text
    assert "![The curve](curve.png)" in text
    for name in ("curve.png", "curve.svg"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_results_are_written_for_others_and_can_be_read_again(found, tmp_path):
    write_report(found, tmp_path, "x")
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(found.results.rows)
    twins = {row["label"]: row["twin"] for row in rows if row["twin"]}
    assert set(twins) == {"task_arithmetic strength=0.3", "task_arithmetic strength=0.5"}
    assert {row["key"] for row in rows if row["front"] == "True"} == {row.key for row in found.front}
    by_key = {(one.row.key, one.parent): one for one in found.comparisons}
    for row in rows:
        for role in ("direct", "thinking"):
            one = by_key.get((row["key"], role))
            assert row[f"p_{role}"] == ("" if one is None else str(one.p))
    again = read_csv(tmp_path / "results.csv")
    assert [(row.method, row.strength, row.accuracy, row.tokens, row.n) for row in again.rows] == [
        (row.method, row.strength, row.accuracy, row.tokens, row.n) for row in found.results.rows
    ]


def test_metrics_are_flat_and_plain(found):
    metrics = json.loads(json.dumps(flat_metrics(found), allow_nan=False))
    assert (metrics["points"], metrics["twins"], metrics["methods"], metrics["n"]) == (19, 2, 4, 200)
    assert metrics["front"] == len(found.front)
    assert metrics["hypervolume"] == found.area.value
    assert metrics["over_thinking/tried"] == 17
    assert metrics["over_thinking/shown"] == sum(one.is_shown for one in found.comparisons if one.parent == "thinking")
    assert metrics["budget_20/is_held_out"] is True
    assert metrics["budget_2/key"] is None
    assert metrics["phase_low/ties density=0.2"] == found.phases["ties density=0.2"].low
    assert 0 < metrics["divergence/all/sigma"] < 1


def test_the_picture_has_every_point_the_parents_and_the_front(found, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    plain = Figure.savefig

    def keep(figure, *args, **options):
        drawn.append(figure)
        return plain(figure, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        plot_curve(found, tmp_path, found.results.rows[4])
    left, right = drawn[0].axes
    lines = {line.get_label(): line for line in left.lines}
    dots = {tuple(point) for bars in left.containers for point in bars[0].get_xydata()}
    assert dots == {(row.tokens, row.accuracy) for row in found.results.rows}
    assert {tuple(point) for point in lines["Pareto front"].get_xydata()} == {
        (r.tokens, r.accuracy) for r in found.front
    }
    for role, row in found.results.parents.items():
        assert lines[f"{role} parent"].get_xydata().tolist() == [[row.tokens, row.accuracy]]
    star = lines["this model"].get_xydata().tolist()
    assert star == [[found.results.rows[4].tokens, found.results.rows[4].accuracy]]
    shown = {text.get_text() for text in left.get_legend().get_texts()}
    assert {"linear", "ties (2 settings)", "task_arithmetic, the same line", "karcher", "slerp"} <= shown
    shares = {tuple(point) for line in right.lines[:-2] for point in line.get_xydata()}
    assert shares >= {(row.strength, row.think_share) for row in found.results.rows if row.method in ("linear", "ties")}
    assert [line.get_ydata()[0] for line in right.lines[-2:]] == [0.05, 0.95]


def test_equal_tables_give_equal_pictures(found, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        plot_curve(found, tmp_path / name)
    for file in ("curve.png", "curve.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


HOSTILE = [
    "$\\frac{",
    "_hidden",
    "a|b",
    "`x`",
    "<script>alert(1)</script>",
    "![x](http://e.com)",
    "=cmd()",
    "x" * 500,
    "%s{}",
]


def test_names_of_a_foreign_table_cannot_break_the_page_or_the_picture(tmp_path):
    path = tmp_path / "theirs.csv"
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["method", "strength", "accuracy", "tokens", "n"])
        out.writerows([name, 0.1 * i, 0.05 * i + 0.3, 10 * i + 1, 50] for i, name in enumerate(HOSTILE))
    found = analyse(read_csv(path))
    write_report(found, tmp_path, "x")
    text = (tmp_path / "report.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(tables) > 10
    for line in text.splitlines():
        assert "<script>" not in line.replace("`<script>alert(1)</script> strength=0.4`", "").replace(
            "`<script>alert(1)</script>`", ""
        )
    widths = {
        line.count("|") for line in text.split("## Pareto set")[1].split("##")[0].splitlines() if line[:2] == "| "
    }
    assert len(widths) == 1
    assert "the winner's accuracy is its luck, too" in text
    assert (tmp_path / "curve.svg").stat().st_size > 10_000
    assert said("_hidden") == "hidden"
    assert code("a|b`c\nd") == "`a\u00a6b'c d`"


def test_one_point_alone_makes_a_report(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("method,strength,accuracy,tokens,n\nkarcher,,0.5,0,1\n")
    found = analyse(read_csv(path))
    write_report(found, tmp_path, "One")
    text = (tmp_path / "report.md").read_text()
    assert "No parent was measured." in text
    assert "Area" not in text
    assert flat_metrics(found)["front"] == 1
    with pytest.raises(ValueError, match="a budget must be a positive number of tokens, got -3"):
        analyse(read_csv(path), [-3])


def test_what_is_said_of_improvements_depends_on_what_stands(found):
    one = replace(found.comparisons[-1], improves=True, p=0.001, p_holm=0.03)
    less = replace(one, p=0.01, p_holm=0.2)
    none = replace(one, improves=False, p=1.0, p_holm=1.0)
    cases = {
        (one, less, none): "Of 3 merges 2 have .* 1 of them stand at p <= 0.05 after Holm's correction for 34",
        (less, none): r"Of 2 merges 1 have .* None stands .* \(least corrected p 0.200\): chance is not ruled out",
        (none,): "Of 1 merges 0 have .* No improvement is claimed",
    }
    for mine, expected in cases.items():
        text = improvement_text(found, mine)
        assert re.search(expected, text), text
        assert "paired bootstrap over questions" in text
        assert "cannot be shown without a margin" in text
    text = improvement_text(replace(found, margin=0.01), [one])
    assert "no lower accuracy (less 0.01)" in text
    assert "without a margin" not in text


def test_numbers_with_their_intervals():
    assert span(Interval(0.5, 0.5, 0.5, 3), 1) == "0.5"
    assert span(Interval(-0.25, -0.5, 0.0, 3), 2, signed=True) == "-0.25 [-0.50, +0.00]"


def test_somebody_elses_text_is_no_markup_and_no_formula(tmp_path):
    table = tmp_path / "theirs.csv"
    table.write_text(
        'method,strength,accuracy,tokens,n,"x # [click](https://e) <img src=1>",label\n'
        "linear,0,0.5,10,100,1,=1+1\nlinear,0.5,0.6,20,100,1,mix\nlinear,1,0.7,30,100,1,end\n"
    )
    found = analyse(read_csv(table))
    text = markdown(found, "a # b [c](https://e) <i>")
    assert text.startswith("# a \\# b \\[c\\]\\(https\\:\\/\\/e\\) \\<i\\>\n")
    assert "`x # [click](https://e) <img src=1>`" in text
    write_results(found, tmp_path / "results.csv")
    cells = [row["label"] for row in csv.DictReader((tmp_path / "results.csv").open())]
    assert cells[0] == "'=1+1"
