"""Search spaces: what they take, what they refuse, what becomes of it on the recipe's command line."""

import dataclasses
import itertools
import json
import math
import runpy
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_spaces import part_space

from recllm.training.arguments import parse
from recllm.tuning.spaces.axes import Axis, When
from recllm.tuning.spaces.backbones import SPACES, SURFACE_EPOCHS, backbone_space, surface_space
from recllm.tuning.spaces.recipe import Argument, recipe_arguments, recipe_path
from recllm.tuning.spaces.space import Space
from recllm.tuning.trials.surface import Index

WHOLE = {name: backbone_space(name) for name in SPACES}
PARTS = {f"{name} part": part_space(name) for name in ("sasrec", "hstu")}
EVERY = {**WHOLE, **PARTS}


def number(name, kind="float"):
    return Argument(name, kind, (), False, None, f"about {name}")


def hand_made() -> Space:
    axes = (
        Axis(number("width", "int"), 2, (1, 2, 4)),
        Axis(number("lr"), 0.1, low=0.01, high=1.0, log=True),
        Axis(number("mode", "str"), "a", ("a", "b", "c"), ordered=False),
        Axis(number("depth", "int"), 3, low=1, high=5, when=(When("mode", ("b", "c")),), otherwise=0),
        Axis(number("share"), 0.5, low=0.0, high=1.0),
    )
    return Space("hand", "train_backbone", axes, {"epochs": 1})


@pytest.mark.parametrize("recipe", ["train_backbone", "train_generative"])
def test_arguments_are_those_of_the_recipes_dataclass(recipe):
    fields = dataclasses.fields(runpy.run_path(str(recipe_path(recipe)))["Arguments"])
    read = recipe_arguments(recipe)
    assert list(read) == [field.name for field in fields]
    for field in fields:
        default = None if field.default is dataclasses.MISSING else field.default
        assert (read[field.name].default, read[field.name].help) == (default, field.metadata["help"])
    if recipe == "train_backbone":
        assert read["pooling"].choices == ("last", "mean", "last_k_mean") and read["pooling"].kind == "str"
        assert (read["temperature"].kind, read["temperature"].optional) == ("float", True)
        assert (read["lr"].kind, read["lr"].optional, read["num_blocks"].kind) == ("float", False, "int")


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no_such_recipe\.py"):
        recipe_arguments("no_such_recipe")


def test_defaults_are_those_that_virtualmle_starts_from():
    sasrec, hstu = (WHOLE[name].arguments(WHOLE[name].default) for name in ("sasrec", "hstu"))
    common = {"hidden_dim": 128, "num_blocks": 1, "num_heads": 1, "lr": 3e-4, "max_len": 50, "epochs": 20}
    common |= {"num_negatives": 500, "patience": 3, "metric": "recall@10", "train_targets": "all_positions"}
    common |= {"prior_transition": 0.0, "prior_item_cf": 0.0, "prior_popularity": 0.0, "pooling": "last"}
    own = {"dropout": 0.2, "tie_embeddings": False, "l2_norm": False, "temperature": 1.0, "batch_size": 256}
    own |= {"optimizer": "adam", "weight_decay": 1e-5, "ffn": "gelu", "position": "learned", "backbone": "sasrec"}
    assert sasrec.items() >= (common | own).items()
    own = {"dropout": 0.5, "tie_embeddings": True, "l2_norm": True, "temperature": 0.05, "batch_size": 128}
    own |= {"optimizer": "adamw", "weight_decay": 0.0, "linear_dim": 16, "attention_dim": 16, "beta2": 0.98}
    assert hstu.items() >= (common | own | {"backbone": "hstu", "attn_dropout": 0.0}).items()


@pytest.mark.parametrize("name", EVERY)
def test_the_recipe_reads_what_a_configuration_says(name):
    space, rng = EVERY[name], np.random.default_rng(1)
    kind = runpy.run_path(str(recipe_path(space.recipe)), run_name="the_recipe")["Arguments"]
    sys.modules["the_recipe"] = type(sys)("the_recipe")  # where the parser looks up the types of its fields
    needed = [f"--{key}=x" for key in ("dataset", "output_dir", "sid_table") if key in recipe_arguments(space.recipe)]
    for config in [space.default, *(space.sample(rng) for _ in range(15))]:
        arguments = space.arguments(config)
        (found,) = parse(kind, argv=[*needed, *(f"--{key}={value}" for key, value in arguments.items())])
        assert {key: getattr(found, key) for key in arguments} == arguments


def test_zero_has_one_sign_and_any_depth_is_refused():
    space = hand_made()
    assert space.key({**space.default, "share": -0.0}) == space.key({**space.default, "share": 0.0})
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ValueError, match="share: a list is not legal"):
        space.change(space.default, "share", deep)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_drawn_is_legal_and_stays_what_it_is(name):
    space, rng, keys = EVERY[name], np.random.default_rng(0), set()
    for _ in range(300):
        config = space.sample(rng)
        assert space.check(config) == config == space.check(json.loads(json.dumps(config)))
        assert matches(space.schema(), config)
        keys.add(space.key(config))
    assert len(keys) > 290


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "key", ["dataset", "output_dir", "item_vectors", "retriever", "report_test", "seed", "backbone", "epochs", "config"]
)
def test_nothing_outside_the_space_can_be_said(name, key):
    space = EVERY[name]
    with pytest.raises(ValueError, match=f"'{key}' is no axis of {space.name}"):
        space.check({**space.default, key: "outputs/x"})
    with pytest.raises(ValueError, match=f"'{key}' is no axis"):
        space.change(space.default, key, "outputs/x")
    assert not matches(space.schema(), {**space.default, key: "outputs/x"})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hiden_dim": 64}, "'hiden_dim' is no axis of sasrec; did you mean hidden_dim?"),
        ({"hidden_dim": 65}, "hidden_dim: 65 is not legal; choose one of 16, 32, 64, 128, 256"),
        ({"hidden_dim": "64"}, "hidden_dim: '64' is not legal"),
        ({"hidden_dim": True}, "hidden_dim: True is not legal"),
        ({"hidden_dim": None}, "hidden_dim: None is not legal"),
        ({"lr": 0.5}, "lr: 0.5 is outside the range; float from 1e-05 to 0.03 .logarithmic."),
        ({"lr": math.nan}, "lr: nan is not legal"),
        ({"lr": math.inf}, "lr: inf is not legal"),
        ({"lr": 10**400}, "lr: 1000.*is not legal"),
        ({"dropout": -0.1}, "dropout: -0.1 is outside the range"),
        ({"pool_k": 3}, 'pool_k matters only where pooling is "last_k_mean"; leave it out'),
        ({"temperature": 0.1}, "temperature matters only where l2_norm is true"),
        ({"prior_norm": "sqrt"}, "prior_norm matters only where prior_transition is 0.05 or .* or prior_item_cf is"),
        ({"tie_embeddings": 1}, "tie_embeddings: 1 is not legal; choose one of false, true"),
        ({"pooling": ["last"]}, "pooling: .'last'. is not legal"),
        ({"pooling": "x" * 1000}, r"pooling: 'x+\.\.\. is not legal"),
    ],
)
def test_a_wrong_key_is_named(change, complaint):
    space = WHOLE["sasrec"]
    with pytest.raises(ValueError, match=complaint):
        space.check({**space.default, **change})


def test_a_missing_key_is_named_and_completed_on_request():
    space = WHOLE["sasrec"]
    partial = {key: value for key, value in space.default.items() if key != "lr"}
    with pytest.raises(ValueError, match="lr is missing; float from"):
        space.check(partial)
    assert space.complete(partial) == space.default == space.complete({})
    assert space.complete({"pooling": "last_k_mean"})["pool_k"] == 5
    with pytest.raises(ValueError, match="mapping"):
        space.check([("lr", 1)])


words = st.sampled_from(
    [*WHOLE["sasrec"].by_name, "dataset", "lr ", "../x", "", "__class__", "output_dir", "backbone"]
) | st.text(max_size=8)
things = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([16, 64, 0.2, 3e-4]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(words, things, max_size=6), st.booleans())
def test_fuzzed_configurations_are_legal_or_refused(changes, from_default):
    space = WHOLE["sasrec"]
    proposed = {**(space.default if from_default else {}), **changes}
    try:
        found = space.check(proposed)
    except ValueError as error:
        assert str(error) and len(str(error)) < 1000
        assert not matches(space.schema(), proposed)
    else:
        assert found.keys() == proposed.keys() and matches(space.schema(), proposed)
        told = space.arguments(found)
        assert told.keys() <= {*space.by_name, *space.fixed}


def test_changing_an_axis_brings_and_takes_what_depends_on_it():
    space = WHOLE["sasrec"]
    pooled = space.change(space.default, "pooling", "last_k_mean")
    assert pooled == {**space.default, "pooling": "last_k_mean", "pool_k": 5}
    assert list(pooled) == [axis.name for axis in space.axes if axis.name in pooled]
    assert space.change(space.change(pooled, "pool_k", 7), "pooling", "mean") == {**space.default, "pooling": "mean"}
    warm = space.change(space.default, "l2_norm", True)
    assert space.arguments(warm)["temperature"] == 0.1 and space.arguments(space.default)["temperature"] == 1.0
    with pytest.raises(ValueError, match="pool_k matters only where"):
        space.change(space.default, "pool_k", 3)


def test_units_reach_every_legal_value_evenly():
    space = hand_made()
    shares = (np.arange(1000) + 0.5) / 1000
    for axis in space.axes:
        values = [axis.from_unit(share) for share in shares]
        if axis.values:
            assert [values.count(value) for value in axis.values] == pytest.approx([1000 / len(axis.values)] * 3, abs=1)
        elif axis.kind == "int":
            assert [values.count(value) for value in range(1, 6)] == pytest.approx([200] * 5, abs=1)
    lr = space.by_name["lr"]
    assert [lr.from_unit(share) for share in (0, 0.25, 0.5, 0.999999)] == [0.01, 0.0316, 0.1, 1.0]
    assert [lr.unit(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("name", PARTS)
def test_the_sequence_is_even_and_has_no_repeats(name):
    space = EVERY[name]
    configs = list(itertools.islice(space.spread(7), 256))
    assert configs[:50] == list(itertools.islice(space.spread(7), 50))
    assert configs[:50] != list(itertools.islice(space.spread(8), 50))
    assert len({space.key(config) for config in configs}) == 256
    for axis in space.axes:
        if not axis.when:
            counts = [sum(config[axis.name] == value for config in configs) for value in axis.values]
            # A Sobol sequence of 2^8 points puts as many into each half; thirds and sixths differ by a few.
            assert counts == pytest.approx([256 / len(axis.values)] * len(axis.values), abs=4)


def test_a_space_that_is_used_up_ends():
    space = hand_made().narrowed(lr=(0.1, 1.0), share=(0.5,), depth=(3,))
    assert len(list(space.spread(0))) == 3 * 2 * 3


def test_distance_by_hand():
    space = hand_made()
    one = {"width": 1, "lr": 0.01, "mode": "a", "share": 0.25}
    other = {"width": 4, "lr": 0.1, "mode": "c", "depth": 2, "share": 0.5}
    # width 2 of 2 places, lr half the decades, mode differs, depth matters in one only, share a quarter
    assert space.distance(one, other) == pytest.approx((1 + 0.5 + 1 + 1 + 0.25) / 5)
    assert space.distance(other, {**other, "depth": 5, "mode": "b"}) == pytest.approx((0.75 + 1) / 5)


@pytest.mark.parametrize("name", EVERY)
def test_distance_is_a_metric_and_the_index_agrees(name):
    space, rng = EVERY[name], np.random.default_rng(3)
    configs = [space.sample(rng) for _ in range(40)]
    index = Index.of(space, configs)
    table = np.array([[space.distance(one, other) for other in configs] for one in configs])
    assert np.allclose(table, np.stack([index.distances(config) for config in configs]), atol=1e-12)
    assert np.allclose(table, table.T) and np.all(np.diag(table) == 0) and table.max() <= 1
    for a, b, c in rng.integers(0, 40, size=(300, 3)):
        assert table[a, c] <= table[a, b] + table[b, c] + 1e-12


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_surface_is_a_part_of_its_space(name):
    part, whole, rng = surface_space(name), WHOLE[name], np.random.default_rng(5)
    usual = {key: argument.default for key, argument in recipe_arguments("train_backbone").items()}
    asked, told = whole.arguments(whole.default), part.arguments(part.default)
    assert {**usual, **asked, "epochs": SURFACE_EPOCHS} == {**usual, **told}
    for config in (part.sample(rng) for _ in range(50)):
        settled = {key: value for key, value in part.fixed.items() if key in whole.default}
        assert whole.complete({**settled, **config}).items() >= config.items()


def test_narrowing_says_what_is_wrong():
    space = hand_made()
    for values, complaint in [
        ({"witdh": (1,)}, "did you mean width"),
        ({"width": (1, 3)}, "width: 3 is not legal"),
        ({"width": (1, 4)}, "its default 2 must be among"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            space.narrowed(**values)
    fixed = space.narrowed(mode=("a",))
    assert fixed.arguments(fixed.default) == {"epochs": 1, "mode": "a", "depth": 0, "width": 2, "lr": 0.1, "share": 0.5}
    always = space.narrowed(mode=("b",))
    assert always.default["depth"] == 3 and not always.by_name["depth"].when


def test_narrowing_leaves_out_what_nothing_can_switch_on():
    space = WHOLE["sasrec"].narrowed(pooling=("last", "mean"))
    assert "pool_k" not in space.by_name and "pool_k" not in space.schema()["properties"]
    assert space.default == WHOLE["sasrec"].default and space.arguments(space.default)["pooling"] == "last"
    kept = hand_made().narrowed(mode=("a", "c"))
    assert kept.by_name["depth"].when == (When("mode", ("c",)),)
    # Of two ways to switch the priors' axes on, one is left.
    priors = WHOLE["sasrec"].narrowed(prior_transition=(0.0,), prior_item_cf=(0.0, 0.2))
    assert priors.by_name["prior_norm"].when == (When("prior_item_cf", (0.2,)),)
    cold = WHOLE["sasrec"].narrowed(l2_norm=(False,))
    assert "temperature" not in cold.by_name and cold.fixed["temperature"] == 1.0
    assert not {"pool_k"} & {name for part in PARTS.values() for name in part.by_name}


def test_narrowing_follows_conditions_on_conditional_axes():
    glass = WHOLE["glass"]
    assert not {"gate", "neighbours", "threshold"} & glass.narrowed(retrieval=(False,)).by_name.keys()
    alone = glass.narrowed(neighbours=(0, 3), retrieval=(True,))
    assert alone.by_name["threshold"].when == (When("neighbours", (3,)),) and not alone.by_name["neighbours"].when
    # What the recipe does unasked still switches on what depends on it.
    fixed = glass.narrowed(neighbours=(3,))
    assert fixed.default["threshold"] == 5 and "threshold" not in fixed.change(fixed.default, "retrieval", False)


@pytest.mark.parametrize("name", EVERY)
def test_every_axis_of_a_narrowed_space_can_matter(name):
    rng = np.random.default_rng(11)
    for _ in range(20):
        asked = {}
        for axis in EVERY[name].axes:
            if axis.values and rng.random() < 0.4:
                others = [value for value in axis.values if value != axis.default and rng.random() < 0.3]
                asked[axis.name] = (axis.default, *others)
        space = EVERY[name].narrowed(**asked)
        reached = {name for _ in range(300) for name in space.sample(rng)}
        assert reached == space.by_name.keys()


@pytest.mark.parametrize("name", SPACES)
def test_the_key_after_a_change_is_that_of_what_it_makes(name):
    space, rng = SPACES[name](), np.random.default_rng(0)
    for _ in range(3):
        config = space.sample(rng)
        for axis in config:
            for value in space.by_name[axis].values:
                wanted = space.key(space.change(config, axis, value))
                assert [space.key_after(config, axis, value) for _ in range(2)] == [wanted] * 2


def test_neighbours_change_one_axis_with_values():
    space = hand_made()
    found = list(space.neighbours(space.default))
    assert [(c["width"], c["mode"]) for c in found] == [(1, "a"), (4, "a"), (2, "b"), (2, "c")]
    assert [c.get("depth") for c in found] == [None, None, 3, 3]


def test_a_space_that_contradicts_itself_is_refused():
    late = Axis(number("depth", "int"), 1, low=1, high=2, when=(When("mode", ("a",)),))
    mode = Axis(number("mode", "str"), "a", ("a", "b"), ordered=False)
    with pytest.raises(ValueError, match="depends on mode, which must stand before it"):
        Space("x", "train_backbone", (late, mode), {})
    with pytest.raises(ValueError, match="mode is there twice"):
        Space("x", "train_backbone", (mode,), {"mode": "a"})
    with pytest.raises(ValueError, match="there is no space 'x'"):
        backbone_space("x")
    with pytest.raises(ValueError, match="no surface of 'glass'"):
        surface_space("glass")


def matches(schema: dict, value: object) -> bool:
    """The part of JSON Schema that the spaces' schemas use, written down from its specification."""
    if schema is False:
        return False
    if "enum" in schema and not any(same(value, legal) for legal in schema["enum"]):
        return False
    number_ = isinstance(value, int | float) and not isinstance(value, bool)
    if schema.get("type") == "integer" and not (number_ and math.isfinite(value) and value == int(value)):
        return False
    if schema.get("type") == "number" and not (number_ and not math.isnan(value)):
        return False
    if number_ and not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if not all(key in value for key in schema.get("required", ())):
            return False
        if schema.get("additionalProperties") is False and not value.keys() <= known.keys():
            return False
        if not all(matches(known[key], value[key]) for key in value.keys() & known.keys()):
            return False
    if "anyOf" in schema and not any(matches(part, value) for part in schema["anyOf"]):
        return False
    for rule in schema.get("allOf", ()):
        branch = rule["then"] if matches(rule["if"], value) else rule["else"]
        if not matches(branch, value):
            return False
    return True


def same(value: object, legal: object) -> bool:
    return isinstance(value, bool) == isinstance(legal, bool) and value == legal
