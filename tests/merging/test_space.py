"""Grids become checked, distinct points; masks become filters; mergekit YAML goes out and comes back."""

import itertools
import random
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.merging.layout import Layout, compress
from recllm.merging.mergekit_yaml import from_mergekit, to_mergekit
from recllm.merging.methods import METHODS, gradient, place_values
from recllm.merging.space import Point, Space, engine_order, expand

sys.path.insert(0, str(Path(__file__).parent))
from worlds import tensors

LAYOUT = Layout(tensors(layers=12))
PLACES = {"direct": "me/direct", "thinking": "me/thinking", "base": "me/base"}


def read(tmp_path: Path, text: str) -> Space:
    (tmp_path / "grid.yaml").write_text(text)
    return Space.read(tmp_path / "grid.yaml")


def test_a_grid_is_the_product_of_its_axes_in_order(tmp_path):
    space = read(
        tmp_path,
        """
grid:
  - method: linear
    strength: {from: 0, to: 1, steps: 11}
  - method: ties
    strength: [0.3, 0.5]
    density: [0.2, 0.5, 0.8]
""",
    )
    assert [point.strength for point in space.points[:11]] == [step / 10 for step in range(11)]
    ties = [(point.axes["strength"], point.axes["density"]) for point in space.points[11:]]
    assert ties == [(0.3, 0.2), (0.3, 0.5), (0.3, 0.8), (0.5, 0.2), (0.5, 0.5), (0.5, 0.8)]
    assert space.repeats == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Point.of("linear", strength=0.3), Point.of("linear", strength=0.1 + 0.2)),
        (Point.of("linear", strength=0), Point.of("slerp", strength=0.0)),
        (Point.of("linear", strength=1), Point.of("slerp", strength=1)),
        (Point.of("ties", strength=0.5, density=1.0), Point.of("della", strength=0.5, density=1, seed=4)),
        (Point.of("task_arithmetic", strength=0.5), Point.of("dare_linear", strength=0.5, density=1, seed=9)),
        (
            Point.of("dare_ties", strength=0.5, density=1),
            Point.of("breadcrumbs_ties", strength=0.5, density=1, gamma=0.2),
        ),
        (
            Point.of("ties", strength=0.5, density=0.5),
            Point.of("ties", density=0.5, strength=0.5, scale=1, base="base"),
        ),
        (Point.of("linear", strength=0.5), Point.of("linear", strength=[0.5, 0.5])),
        (Point.of("linear", strength=0.5), Point.of("linear", strength={"mlp": 0.5, "rest": 0.5}, depth=[0, 1])),
        (Point.of("linear", strength=0.5), Point.of("linear", strength=0.5, modules="all")),
        (
            Point.of("linear", strength=0.5, modules=["mlp", "attention"]),
            Point.of("linear", strength=0.5, modules=["attention", "mlp", "mlp"]),
        ),
        (
            Point.of("dare_linear", strength=0.5, density=0.5),
            Point.of("dare_linear", strength=0.5, density=0.5, seed=0),
        ),
    ],
    ids=lambda point: point.label,
)
def test_identical_points_are_recognised(one, other):
    assert one == other
    assert one.key == other.key
    assert len(Space.of([one, other]).points) == 1
    assert Space.of([one, other]).repeats == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Point.of("linear", strength=0.3), Point.of("task_arithmetic", strength=0.3)),
        (Point.of("linear", strength=0.3), Point.of("linear", strength=0.3, modules="mlp")),
        (Point.of("linear", strength=0.0), Point.of("task_arithmetic", strength=0.0)),
        (Point.of("ties", strength=0.3, density=0.5), Point.of("ties", strength=0.3, density=0.5, base="direct")),
        (Point.of("ties", strength=0.3, density=0.5), Point.of("ties", strength=0.3, density=0.5, dtype="float32")),
        (Point.of("dare_ties", strength=0.3, density=0.5), Point.of("dare_ties", strength=0.3, density=0.5, seed=1)),
        (Point.of("della", strength=0.3, density=1.0), Point.of("della_linear", strength=0.3, density=1.0)),
    ],
    ids=lambda point: point.label,
)
def test_points_that_round_differently_both_run(one, other):
    assert one.key != other.key
    assert len(Space.of([one, other]).points) == 2


def test_points_on_one_line_are_listed_for_the_table():
    line, same = Point.of("linear", strength=0.3), Point.of("task_arithmetic", strength=0.3, base="direct")
    others = [Point.of("slerp", strength=0.3), Point.of("task_arithmetic", strength=0.3, scale=1.2)]
    others += [Point.of("linear", strength=0.3, modules="mlp"), Point.of("linear", strength=0.4)]
    assert Space.of([line, same, *others]).lines() == {0.3: [line, same]}


def test_the_key_does_not_depend_on_the_process():
    assert Point.of("ties", strength=0.5, density=0.2).key == "a94a3d42675036d8"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"method": "tise", "strength": 0.5}, "'tise' is unknown; did you mean 'ties'"),
        ({"method": "ties", "strength": 0.5, "densty": 0.5}, "no axis 'densty'; did you mean 'density'"),
        ({"method": "linear", "strength": 0.5, "density": 0.5}, "linear has no axis 'density'"),
        ({"method": "ties", "strength": 0.5}, "ties needs density"),
        ({"method": "linear"}, "linear needs strength"),
        ({"method": "linear", "strength": 1.5}, r"strength must lie in \[0, 1\]"),
        ({"method": "linear", "strength": float("nan")}, "must be a number"),
        ({"method": "linear", "strength": True}, "must be a number"),
        ({"method": "linear", "strength": "0.5"}, "must be a number"),
        ({"method": "linear", "strength": []}, "empty list"),
        ({"method": "linear", "strength": [[0.5]]}, "at least two numbers"),
        ({"method": "ties", "strength": 0.5, "density": 0.0}, r"density must lie in \(0, 1\]"),
        ({"method": "della", "strength": 0.5, "density": 0.1}, "density 0.1 with epsilon 0.15 leaves"),
        ({"method": "dare_ties", "strength": 0.5, "density": 0.5, "seed": -1}, "seed must be a whole number"),
        ({"method": "ties", "strength": 0.5, "density": 0.5, "seed": 1}, "ties has no axis 'seed'"),
        ({"method": "linear", "strength": 0.5, "modules": "mpl"}, "'mpl' is unknown; did you mean 'mlp'"),
        ({"method": "linear", "strength": {"atention": 0.5}}, "'atention' is unknown; did you mean 'attention'"),
        ({"method": "linear", "strength": 0.5, "depth": [0.3, 1]}, r"pair \[from, to\]"),
        ({"method": "linear", "strength": 0.5, "depth": [[0.9, 0.3]]}, "0.9 lies behind 0.3"),
        ({"method": "karcher", "modules": "mlp"}, "karcher has no setting that leaves a tensor alone"),
        ({"method": "slerp", "strength": 0.5, "base": "base"}, "base must be direct"),
        ({"method": "linear", "strength": 0.5, "dtype": "int8"}, "dtype must be one of"),
        ({"method": "ties", "strength": 0.5, "density": 0.5, "normalize": "yes"}, "must be true or false"),
        ({"method": "linear", "strength": {"from": 0, "to": 1, "steps": 1}}, "steps must be at least 2"),
        ({"mehod": "linear"}, "needs a method"),
        ({"method": "passthrough"}, "'passthrough' is unknown"),
    ],
    ids=str,
)
def test_a_bad_entry_is_named_with_its_file_and_row(tmp_path, axes, message):
    grid = [{"method": "linear", "strength": 0.5}, axes]
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, yaml.safe_dump({"grid": grid}))
    assert f"{tmp_path / 'grid.yaml'}: entry 2 of the grid" in str(caught.value)


@pytest.mark.parametrize("text", ["", "grid: []", "grid: {}", "points: []", "grid: [a\n", "- 1", "grid: [1]"])
def test_a_file_that_is_no_grid_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"grid\.yaml"):
        read(tmp_path, text)


def test_a_grid_without_end_is_refused_before_it_is_built():
    entry = {"method": "ties", "strength": {"from": 0, "to": 1, "steps": 1000}, "scale": list(range(1, 90))}
    with pytest.raises(ValueError, match="more than 100000 points"):
        Space.of(expand({**entry, "density": [0.1, 0.2, 0.3]}))


def test_the_order_for_the_engine_keeps_draws_and_selections_together():
    points = [
        Point.of(method, strength=strength, density=density)
        for strength in (0.1, 0.5, 0.9)
        for density in (0.2, 0.8)
        for method in ("ties", "dare_ties")
    ]
    random.Random(0).shuffle(points)
    ordered = engine_order(points)
    groups = [(point.method, point.axes["density"]) for point in ordered]
    assert sorted(point.key for point in ordered) == sorted(point.key for point in points)
    assert sum(one != other for one, other in itertools.pairwise(groups)) == 3


def test_modules_and_depths_are_read_from_names():
    names = {
        "model.embed_tokens.weight": ("embeddings", 0.0),
        "lm_head.weight": ("embeddings", 1.0),
        "model.norm.weight": ("norms", 1.0),
        "model.layers.0.self_attn.q_norm.weight": ("norms", 0.0),
        "model.layers.1.self_attn.q_proj.weight": ("attention", 0.5),
        "model.layers.1.mlp.gate_proj.weight": ("mlp", 0.5),
        "model.layers.1.mlp.gate.weight": ("router", 0.5),
        "model.layers.2.mlp.experts.7.up_proj.weight": ("mlp", 1.0),
        "model.layers.2.post_attention_layernorm.weight": ("norms", 1.0),
        "transformer.h.2.attn.c_attn.weight": ("attention", 1.0),
        "something.else": ("other", 1.0),
    }
    found = {name: (place.module, place.depth) for name, place in Layout(names).places.items()}
    assert found == names


def test_a_mask_leaves_everything_else_at_the_direct_parent():
    point = Point.of("ties", strength=0.8, density=0.2, modules=["mlp"], depth=[1 / 3, 1])
    strengths = place_values(point.axes, LAYOUT, "strength", 0.0)
    densities = place_values(point.axes, LAYOUT, "density", 1.0)
    for name, place in LAYOUT.places.items():
        inside = ".mlp." in name and place.layer >= 4
        assert (strengths[name], densities[name]) == ((0.8, 0.2) if inside else (0.0, 1.0)), name


def test_a_gradient_is_interpolated_over_the_depth():
    assert [gradient([0, 1, 0.5], depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.75, 0.5]
    by_module = {"mlp": [0.0, 1.0], "rest": 0.25}
    values = place_values(Point.of("linear", strength=by_module).axes, LAYOUT, "strength", 0.0)
    assert values["model.layers.11.mlp.up_proj.weight"] == 1.0
    assert values["model.layers.0.mlp.up_proj.weight"] == 0.0
    assert values["model.layers.5.self_attn.q_proj.weight"] == 0.25


def first_filter(setting, name: str) -> float:
    """How mergekit reads a setting: the first filter that is part of the name."""
    if not isinstance(setting, list):
        return setting
    return next(entry["value"] for entry in setting if entry.get("filter", "") in name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_filters_give_every_tensor_its_value(data):
    names = sorted(data.draw(st.sampled_from([tensors(12), tensors(3, tied=False), tensors(1)])))
    values = {name: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for name in names}
    setting = compress(values)
    assert {name: first_filter(setting, name) for name in names} == values


def test_filters_of_a_mask_are_few():
    values = place_values({"strength": 0.8, "modules": ["mlp"]}, LAYOUT, "strength", 0.0)
    assert compress(values) == [{"filter": ".mlp.", "value": 0.8}, {"value": 0.0}]


def test_a_name_within_another_is_refused_where_values_differ():
    with pytest.raises(ValueError, match=r"tensor a\.weight"):
        compress({"a.weight": 1.0, "x.a.weight": 0.0, "y.a.weight": 0.0})


EXPORTED = [
    Point.of("linear", strength=0.3),
    Point.of("slerp", strength=0.3),
    Point.of("nuslerp", strength=0.3, base="base", nuslerp_flatten=False),
    Point.of("multislerp", strength=0.25),
    Point.of("nearswap", threshold=0.001),
    Point.of("karcher", max_iter=20),
    Point.of("model_stock"),
    Point.of("sce", density=0.3),
    Point.of("ram", epsilon=0.1),
    Point.of("ramplus_tl", r=0.2, alpha=0.1),
    Point.of("arcee_fusion"),
    Point.of("task_arithmetic", strength=0.5, scale=1.4),
    Point.of("task_arithmetic", strength=0.5, base="direct"),
    Point.of("ties", strength=0.5, density=0.2, scale=0.5, dtype="float32"),
    Point.of("ties", strength=0.5, density=0.2, base="direct"),
    Point.of("dare_linear", strength=0.5, density=0.2),
    Point.of("dare_ties", strength=0.5, density=0.2, rescale=False),
    Point.of("breadcrumbs", strength=0.5, density=0.2, gamma=0.05),
    Point.of("breadcrumbs_ties", strength=0.5, density=0.2),
    Point.of("della", strength=0.5, density=0.4, epsilon=0.2),
    Point.of("della_linear", strength=0.5, density=0.4),
    Point.of("lore", strength=0.5, penalty=0.3),
    Point.of("selective_overwrite", density=0.1),
    Point.of("selective_average", density=0.1, strength=0.3),
    Point.of("selective_surgical", density=0.1),
]


@pytest.mark.parametrize("point", EXPORTED, ids=lambda point: point.label)
def test_a_point_comes_back_from_its_mergekit_yaml(point):
    again, parents = from_mergekit(to_mergekit(point, LAYOUT, PLACES, "bfloat16"))
    assert again == point
    assert parents.items() <= PLACES.items()


def test_every_method_is_exported_above():
    assert {point.method for point in EXPORTED} == set(METHODS)


def test_what_no_axis_says_is_kept_as_it_is():
    text = """
models:
  - model: a/one
    parameters: {weight: [0.1, 0.9], density: 0.4}
  - model: a/two
    parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.7}], density: 0.6}
merge_method: dare_ties
base_model: a/zero
"""
    point, parents = from_mergekit(text)
    assert parents == {"direct": "a/one", "thinking": "a/two", "base": "a/zero"}
    assert (point.method, point.seed, point.strength) == ("dare_ties", 0, None)
    assert point.recipe(LAYOUT)["models"][1]["parameters"]["weight"][0] == {"filter": "mlp", "value": 0.3}
    assert from_mergekit(to_mergekit(point, LAYOUT, parents))[0] == point


def test_slices_over_whole_models_are_models():
    text = """
slices:
  - sources:
      - {model: a/one, layer_range: [0, 12]}
      - {model: a/two, layer_range: [0, 12]}
merge_method: slerp
base_model: a/one
parameters: {t: 0.4}
"""
    assert from_mergekit(text)[0] == Point.of("slerp", strength=0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("models: []", "no merge_method"),
        ("{merge_method: passthrough, models: [{model: a}]}", "'passthrough' cannot be swept"),
        ("{merge_method: linear, models: [{model: a}, {model: b}], tokenizer: {source: union}}", "tokenizer cannot be"),
        ("{merge_method: linear, models: [{model: a}, {model: b}, {model: c}]}", "3 models beside the base"),
        ("{merge_method: linear, models: [a, b]}", "entries with a model"),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [2, 4]}]}]}", "do not begin at 0"),
        ("{merge_method: linear, slices: [{sources: []}, {sources: []}]}", "not slices put together"),
    ],
)
def test_a_merge_that_is_no_point_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_mergekit(text, "theirs.yml")


def test_a_grid_takes_mergekit_files_in(tmp_path):
    point = Point.of("ties", strength=0.5, density=0.2)
    (tmp_path / "theirs.yml").write_text(to_mergekit(point, LAYOUT, PLACES))
    text = "grid: [{mergekit: theirs.yml}, {method: ties, strength: 0.5, density: [0.2, 0.3]}]"
    space = read(tmp_path, text)
    assert space.points == (point, Point.of("ties", strength=0.5, density=0.3))
    assert space.repeats == 1


def test_exported_paths_are_absolute_and_a_missing_parent_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "direct").mkdir(parents=True)
    text = to_mergekit(Point.of("slerp", strength=0.5), LAYOUT, {"direct": "runs/direct", "thinking": "owner/model"})
    config = yaml.safe_load(text)
    assert config["base_model"] == str(tmp_path / "runs" / "direct")
    assert config["models"][1]["model"] == "owner/model"
    with pytest.raises(ValueError, match="needs the parent 'base'"):
        to_mergekit(Point.of("ties", strength=0.5, density=0.5), LAYOUT, {"direct": "a/b", "thinking": "c/d"})
