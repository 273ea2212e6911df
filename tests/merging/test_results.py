"""Tables of points: from a sweep, finished or not, and from CSV files of every kind of disorder."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from recllm.merging.results import from_sweep, with_twins
from recllm.merging.results_csv import read_csv, read_results, wilson
from recllm.merging.space import Point

sys.path.insert(0, str(Path(__file__).parent))
from sweeps import ENDS, spectrum, write

HEAD = "method,strength,accuracy,tokens,n"
TIES = Point.of("ties", strength=0.5, density=0.5)


def table(tmp_path, *rows: str, head: str = HEAD, encoding: str = "utf-8"):
    path = tmp_path / "theirs.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding=encoding)
    return path


def test_a_sweep_is_read_as_it_was_measured(tmp_path):
    later = Point.of("slerp", strength=0.25)
    folder = write(tmp_path / "sweep", [TIES, Point.of("karcher")], spectrum(), unfinished=[later])
    results = from_sweep(folder)
    assert [row.key for row in results.rows] == [*(point.key for point in ENDS), TIES.key, Point.of("karcher").key]
    assert results.notes == ("4 of 5 points are finished; the rest is missing",)
    assert (results.planned, results.evaluator, results.paired) == (5, "toy", True)
    expected = spectrum()(TIES)
    row = results.row(TIES.key)
    assert np.array_equal(row.value_Q, expected.value_Q)
    assert np.array_equal(row.tokens_Q, expected.tokens_Q)
    assert (row.accuracy, row.n, row.density) == (pytest.approx(expected.value_QS.mean()), 60, 0.5)
    assert (row.label, row.setting, row.strength) == ("ties density=0.5 strength=0.5", "density=0.5", 0.5)
    assert results.row(Point.of("karcher").key).strength is None
    assert [row.key for row in results.merges] == [TIES.key, Point.of("karcher").key]
    assert results.row(TIES.key[:6]).key == TIES.key
    for key in ("zz", ""):
        with pytest.raises(ValueError, match="points with the key"):
            results.row(key)


def test_points_that_cannot_be_compared_are_named(tmp_path):
    folder = write(tmp_path / "sweep", [TIES], lambda point: spectrum(60 if point in ENDS else 50)(point))
    with pytest.raises(ValueError, match=f"point {TIES.key} was asked 50 questions and .* 60"):
        from_sweep(folder)
    ledger = folder / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines[0]["questions"] = 7
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=f"line of point {ENDS[0].key} tells 7 questions"):
        from_sweep(folder)
    ledger.write_text("")
    with pytest.raises(ValueError, match="no point is finished"):
        from_sweep(folder)


@pytest.mark.parametrize("dialect", ["plain", "bom", "semicolons", "tabs", "quoted", "crlf", "case"])
def test_dialects_of_csv(tmp_path, dialect):
    rows = [HEAD, "linear,0,0.31,14,200", "linear,0.5,0.52,40,200", "linear,1,0.8,90.5,200", ""]
    text = "\n".join(rows)
    text = {
        "semicolons": text.replace(",", ";"),
        "tabs": text.replace(",", "\t"),
        "quoted": text.replace("linear", '"linear"').replace("0.52", '"0.52"'),
        "crlf": text.replace("\n", "\r\n"),
        "case": text.replace("method", " Method ").replace("tokens", "Tokens"),
    }.get(dialect, text)
    path = tmp_path / "theirs.csv"
    path.write_bytes(text.encode("utf-8-sig" if dialect == "bom" else "utf-8"))
    results = read_csv(path)
    assert [(row.method, row.strength, row.accuracy, row.tokens, row.n) for row in results.rows] == [
        ("linear", 0.0, 0.31, 14.0, 200),
        ("linear", 0.5, 0.52, 40.0, 200),
        ("linear", 1.0, 0.8, 90.5, 200),
    ]
    assert {role: row.strength for role, row in results.parents.items()} == {"direct": 0.0, "thinking": 1.0}
    assert not results.paired
    assert any("unpaired" in note for note in results.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["linear,0.5,nan,10,50"], r"line 2: accuracy is 'nan'; write a number"),
        (["linear,0.5,inf,10,50"], "line 2: accuracy is 'inf'"),
        (["linear,0.5,,10,50"], "line 2: accuracy is ''"),
        (["linear,0.5,43.3,10,50", "linear,0.6,101,10,50"], "line 3: accuracy is 101; it must lie between 0 and 100"),
        (["linear,0.5,-0.1,10,50"], "line 2: accuracy is -0.1; it must lie between 0 and 1"),
        (["linear,20,0.5,10,50"], "line 2: strength is 20; it must lie between 0 and 1"),
        (["linear,0.5,0.5,-3,50"], "line 2: tokens is -3"),
        (['linear,0.5,0.5,"15,097",50'], "line 2: tokens is '15,097'; .* without separators of thousands"),
        (["linear,0.5,0.5,1_000,50"], "line 2: tokens is '1_000'"),
        (["linear,0.5,0.5,10,0"], "line 2: n is 0"),
        (["linear,0.5,0.5,10,3.5"], "line 2: n is 3.5"),
        ([",0.5,0.5,10,50"], "line 2: method is empty"),
        (["linear,0.5,0.5,10"], "line 2: 4 cells, the header has 5"),
        (["linear,0.5,0.5,10,50,7"], "line 2: 6 cells, the header has 5"),
        (
            ["linear,0.5,0.5,10,50", "linear,0.50,0.6,10,50"],
            "line 3: linear strength=0.5 is there twice, first in line 2",
        ),
        (["linear,0.5,0.5,10,50", "linear,0.6,43.3,10,50"], "accuracy holds values above 1 and 0.5: .* accuracy_scale"),
        ([], "has no rows"),
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(table(tmp_path, *rows))
    assert "theirs.csv" in str(caught.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no column tokens, n; it has method, strength, accuracy and needs method"):
        read_csv(table(tmp_path, "linear,0.5,0.5", head="method,strength,accuracy"))
    with pytest.raises(ValueError, match="column n is there twice"):
        read_csv(table(tmp_path, "linear,0.5,0.5,1,1,1", head=HEAD + ",N"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_csv(table(tmp_path, "l\u00efnear,0.5,0.5,1,1", encoding="latin-1"))
    with pytest.raises(ValueError, match="is no file"):
        read_csv(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="accuracy_scale must be"):
        read_csv(table(tmp_path, "linear,0.5,0.5,1,1"), "permille")
    (tmp_path / "theirs.csv").write_text(HEAD + '\nlinear,0.5,"0.5,1,1\n')
    with pytest.raises(ValueError, match="mend the quotes"):
        read_csv(tmp_path / "theirs.csv")
    for sweep, csv in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="either the folder of a sweep"):
            read_results(sweep, csv)


def test_scales_are_recognised_and_told_or_taken_from_the_option(tmp_path):
    head = HEAD + ",think_share"
    path = table(tmp_path, "linear,0,46.6,10,30,0", "linear,0.4,55.8,12,30,1.4", "linear,1,80.4,90,30,99.9", head=head)
    results = read_csv(path)
    assert [row.accuracy for row in results.rows] == [pytest.approx(x) for x in (0.466, 0.558, 0.804)]
    assert [row.think_share for row in results.rows] == [pytest.approx(x) for x in (0, 0.014, 0.999)]
    assert "accuracy was taken for percent, as its values say" in results.notes
    with pytest.raises(ValueError, match=r"accuracy is 46\.6; it must lie between 0 and 1"):
        read_csv(path, "fraction")
    path = table(tmp_path, "linear,0,0.5,10,30,", "linear,1,0.9,90,30,0.5", head=head)
    results = read_csv(path, "percent")
    assert [row.accuracy for row in results.rows] == [pytest.approx(x) for x in (0.005, 0.009)]
    assert [row.think_share for row in results.rows] == [None, 0.5]


def test_equal_rows_are_kept_once_and_foreign_columns_left_out_and_both_are_told(tmp_path):
    rows = ["ties,0.5,0.5,10,50,AIME"] * 2 + ["ties,0.6,0.5,10,60,AIME"]
    results = read_csv(table(tmp_path, *rows, head=HEAD + ",benchmark"))
    assert [row.strength for row in results.rows] == [0.5, 0.6]
    assert "line 3 repeats line 2 and was left out" in results.notes
    assert "columns that are not read: `benchmark`" in results.notes
    assert any("different n" in note for note in results.notes)


def test_parents_of_a_foreign_table_are_found_by_name_else_by_strength(tmp_path):
    rows = ["Instruct,,0.4,10,50", "Thinking,,0.8,90,50", "slerp,0.5,0.6,40,50", "dare,0,0.1,5,50", "dare,1,0.2,50,50"]
    results = read_csv(table(tmp_path, *rows))
    assert {role: row.method for role, row in results.parents.items()} == {"direct": "Instruct", "thinking": "Thinking"}
    lines = {str(line): [row.method for row in found] for line, found in results.series().items()}
    assert lines["slerp"] == ["Instruct", "slerp", "Thinking"]
    assert lines["dare"] == ["dare", "dare"]
    results = read_csv(table(tmp_path, *rows[3:], "weighted average,1,0.7,80,50", "weighted average,0,0.3,9,50"))
    assert {row.method for row in results.parents.values()} == {"weighted average"}


def test_linear_and_task_arithmetic_of_one_strength_are_one_point(tmp_path):
    rows = [f"{name},{s},0.5,10,50" for name in ("linear", "task_arithmetic") for s in (0, 0.5, 1)]
    results = read_csv(table(tmp_path, *rows, "task_arithmetic,0.7,0.5,10,50"))
    assert [row.label for row in results.distinct] == [
        *(f"linear strength={s}" for s in ("0", "0.5", "1")),
        "task_arithmetic strength=0.7",
    ]


def test_intervals_of_a_csv_are_wilsons():
    for right, n in ((0, 30), (25, 30), (30, 30), (7, 1319)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(1.0, 5)[1] == 1.0


def test_parents_are_never_twins_whatever_the_order_of_the_grid(tmp_path):
    mixes = [Point.of("task_arithmetic", strength=strength) for strength in (0.0, 0.5, 1.0)]
    points = [*mixes, ENDS[0], Point.of("linear", strength=0.5), ENDS[1]]
    known = {row.key: replace(row, twin=None) for row in from_sweep(write(tmp_path, points, spectrum(40))).rows}
    rows = with_twins(
        (known[point.key] for point in points), {p.key: p.line for p in points}, [end.key for end in ENDS]
    )
    assert [(row.label, row.twin) for row in rows if row.twin] == [
        ("task_arithmetic strength=0.0", ENDS[0].key),
        ("task_arithmetic strength=1.0", ENDS[1].key),
        ("linear strength=0.5", mixes[1].key),
    ]
