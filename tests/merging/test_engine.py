"""The fast path against mergekit itself, tensor by tensor; formulas against plain torch; draws, cache, live model."""

import sys
from pathlib import Path

import pytest
import torch

from recllm.merging.checkpoint import Weights
from recllm.merging.draws import ByteCache, Stream
from recllm.merging.engine import MergeEngine
from recllm.merging.kernels import TaskVector, slerp_factors, task_vectors
from recllm.merging.mergekit_yaml import to_mergekit
from recllm.merging.methods import METHODS
from recllm.merging.own import low_rank
from recllm.merging.selection import Band, select
from recllm.merging.space import Point

sys.path.insert(0, str(Path(__file__).parent))
from worlds import by_mergekit, family, ulps, write_parent

TASK = ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")
POINTS = [
    *(Point.of("linear", strength=strength) for strength in (0.0, 0.1, 0.35, 0.7, 1.0)),
    Point.of("linear", strength={"mlp": [0.2, 0.9], "rest": 0.4}),
    Point.of("slerp", strength=0.3),
    Point.of("slerp", strength=[0.0, 1.0], modules=["mlp", "attention"], depth=[0.5, 1]),
    Point.of("nuslerp", strength=0.3, base="base"),
    Point.of("multislerp", strength=0.3),
    Point.of("nearswap", threshold=0.01),
    Point.of("karcher"),
    Point.of("model_stock", filter_wise=True),
    Point.of("sce", density=0.5),
    Point.of("ram"),
    Point.of("ramplus_tl", r=0.2),
    Point.of("arcee_fusion", seed=1),
    Point.of("task_arithmetic", strength=0.3, scale=1.4),
    Point.of("task_arithmetic", strength=0.3, normalize=True),
    Point.of("task_arithmetic", strength=0.3, base="direct"),
    *(Point.of(method, strength=0.3, density=0.5) for method in TASK),
    *(Point.of(method, strength=0.7, density=0.6, modules="mlp", depth=[0.5, 1]) for method in TASK),
    Point.of("ties", strength=0.7, density=0.2, base="direct", scale=0.5),
    Point.of("ties", strength=0.7, density=0.4, dtype="float32"),
    Point.of("ties", strength=0.7, density=0.4, rescale=True),
    Point.of("ties", strength=0.5, density=1.0),
    Point.of("dare_ties", strength=0.7, density=0.4, dtype="float32", seed=5),
    Point.of("della", strength=0.7, density=0.4, rescale=False, seed=2),
    Point.of("lore", strength=0.3),
    Point.of("lore", strength=0.8, modules="attention"),
    Point.of("selective_overwrite", density=0.1),
    Point.of("selective_average", density=0.1, strength=0.3),
    Point.of("selective_surgical", density=0.1, depth=[0, 0.4]),
]
EXACT = ("linear",)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    return family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def engine(parents):
    return MergeEngine({role: Weights(folder) for role, folder in parents.items()}, POINTS)


def merged(engine: MergeEngine, point: Point) -> dict[str, torch.Tensor]:
    return dict(engine.tensors(point))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.label)
def test_every_point_is_what_mergekit_writes(engine, parents, point, tmp_path):
    expected = by_mergekit(to_mergekit(point, engine.layout, parents, "bfloat16"), tmp_path, point.seed)
    found = merged(engine, point)
    assert set(found) == set(expected) == set(engine.layout.places)
    worst = {name: ulps(found[name], expected[name]) for name in found}
    assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
    assert max(worst.values()) <= (0 if point.method in EXACT else 1), worst


def test_the_points_above_cover_every_method():
    assert {point.method for point in POINTS} == set(METHODS)


def test_a_second_pass_over_the_same_points_gives_the_same_tensors(engine):
    for point in (Point.of("dare_ties", strength=0.3, density=0.5), Point.of("ties", strength=0.3, density=0.5)):
        first, second = merged(engine, point), merged(engine, point)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_any_cache_the_draws_are_the_same(engine, parents):
    bare = MergeEngine({role: Weights(folder) for role, folder in parents.items()}, cache_bytes=0, workers=1)
    for strength in (0.3, 0.8):
        point = Point.of("della", strength=strength, density=0.5)
        one, other = merged(engine, point), merged(bare, point)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_masks_of_a_random_method_depend_on_the_seed_and_not_on_the_strength(engine):
    def dropped(**axes) -> torch.Tensor:
        # Against the base, an entry that both parents lost shows as no change at all.
        state = merged(engine, Point.of("dare_linear", density=0.3, **axes))
        return torch.cat([(state[n] == engine.parents["base"].tensor(n)).flatten() for n in state if "norm" not in n])

    one, same, other = dropped(strength=0.4), dropped(strength=0.6), dropped(strength=0.4, seed=1)
    assert (one != same).float().mean() < 0.02  # a change too small for bfloat16 hides some
    assert 0.3 < (one != other).float().mean() < 0.6
    # Both parents lose an entry with probability 0.7 ** 2; 5 sigma of the binomial, and the rounding above it.
    assert abs(one.float().mean() - 0.49) < 5 * (0.49 * 0.51 / len(one)) ** 0.5 + 0.02


def test_the_callers_generator_is_left_alone(engine):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    merged(engine, Point.of("dare_linear", strength=0.4, density=0.5, seed=9))
    assert torch.equal(torch.rand(4), expected)


def test_draws_out_of_order_are_refused_and_repeats_repeat():
    stream = Stream(0)
    with pytest.raises(ValueError, match="tensor 1 is drawn before tensor 0"):
        stream.draw(1, lambda: torch.rand(2))
    first, second = (stream.draw(index, lambda: torch.rand(2)) for index in (0, 1))
    assert torch.equal(stream.draw(0, lambda: torch.rand(2)), first)
    assert torch.equal(stream.draw(1, lambda: torch.rand(2)), second)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4), torch.cat([first, second]))


def test_the_cache_keeps_within_its_limit():
    cache, made = ByteCache(3 * 40), []

    def get(key: int, size: int = 10) -> None:
        cache.get(key, lambda: made.append(key) or torch.zeros(size))

    for key in (0, 1, 2, 0, 3, 0, 1):  # 3 drives out 1, the least recent
        get(key)
        assert cache.used <= 120
    assert made == [0, 1, 2, 3, 1]
    get(9, size=1000)
    assert cache.used <= 120


def test_weights_land_in_a_live_model_in_place(parents, engine):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parents["direct"], dtype=torch.bfloat16)
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    point = Point.of("linear", strength=0.35)
    engine.write_into(point, model.state_dict())
    expected = merged(engine, point)
    state = model.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == pointers
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert torch.equal(model.lm_head.weight, expected["model.embed_tokens.weight"])  # tied, written once


def test_a_float32_model_takes_the_rounded_tensors(engine):
    point = Point.of("ties", strength=0.3, density=0.5)
    expected = merged(engine, point)
    targets = {name: torch.empty_like(tensor, dtype=torch.float32) for name, tensor in expected.items()}
    engine.write_into(point, targets)
    assert all(torch.equal(targets[name], tensor.float()) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "tensor model.norm.weight.*missing"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight.*\(3,\)"),
        (lambda state: state.update(extra=torch.zeros(3)), "tensor extra: the live model has it, the parents do not"),
    ],
)
def test_a_live_model_that_does_not_fit_is_named(engine, change, message):
    state = {name: torch.zeros(info.shape) for name, info in engine.parents["direct"].infos.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        engine.write_into(Point.of("linear", strength=0.5), state)


def test_a_point_without_its_parent_is_refused(parents):
    pair = {role: Weights(parents[role]) for role in ("direct", "thinking")}
    with pytest.raises(ValueError, match="needs the parent 'base'"):
        merged(MergeEngine(pair), Point.of("ties", strength=0.5, density=0.5))


def test_integer_buffers_are_copied_where_they_agree_and_refused_where_not(tmp_path):
    from safetensors.torch import save_file

    for role, value in (("direct", 1), ("thinking", 1), ("base", 2)):
        (tmp_path / role).mkdir()
        state = {"weight": torch.ones(4), "steps": torch.tensor([value, 5])}
        save_file(state, tmp_path / role / "model.safetensors")
    both = {role: Weights(tmp_path / role) for role in ("direct", "thinking", "base")}
    found = merged(MergeEngine(both), Point.of("linear", strength=0.5))
    assert found["steps"].tolist() == [1, 5]
    assert found["steps"].dtype == torch.int64
    with pytest.raises(ValueError, match="steps"):
        merged(MergeEngine(both), Point.of("task_arithmetic", strength=0.5))


def test_parents_in_float32_are_read_and_never_written(tmp_path):
    # Nothing is converted here, so an operation in place would hit the mapped file.
    wide = family(tmp_path, dtype=torch.float32)
    before = {role: (folder / "model.safetensors").read_bytes() for role, folder in wide.items()}
    engine = MergeEngine({role: Weights(folder) for role, folder in wide.items()})
    for point in POINTS:
        if "dtype" not in point.axes:
            assert all(tensor.isfinite().all() for tensor in merged(engine, point).values()), point.label
    assert before == {role: (folder / "model.safetensors").read_bytes() for role, folder in wide.items()}


def test_linear_is_task_arithmetic_for_any_base(parents, tmp_path):
    wide = family(tmp_path, dtype=torch.float32)
    engine = MergeEngine({role: Weights(folder) for role, folder in wide.items()})
    for strength in (0.2, 0.5, 0.9):
        line = merged(engine, Point.of("linear", strength=strength))
        for base in ("base", "direct"):
            other = merged(engine, Point.of("task_arithmetic", strength=strength, base=base))
            assert max(float((line[name] - other[name]).abs().max()) for name in line) < 5e-7


@pytest.mark.parametrize("method", ["dare_linear", "breadcrumbs", "della_linear", "breadcrumbs_ties", "della"])
def test_what_counts_as_the_same_at_density_1_is_the_same_to_the_bit(engine, method):
    # A mask over all but one module keeps the point from being renamed, so both codes really run.
    masked = {"modules": ["attention", "mlp", "embeddings", "norms", "router"], "strength": 0.3, "density": 1.0}
    point, renamed = Point.of(method, **masked), Point.of(method, strength=0.3, density=1.0)
    assert point.method == method != renamed.method
    one, other = merged(engine, point), merged(engine, renamed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.0), (0.0, 0.0), (0.5, -0.5)])
@pytest.mark.parametrize("normalize", [True, False])
def test_electing_signs_is_the_papers_rule(weights, normalize):
    # Small integers, so that zeros, equal and opposite entries abound and nothing is rounded.
    generator = torch.Generator().manual_seed(2)
    base, *parents = (torch.randint(-3, 4, (4000,), generator=generator).float() for _ in range(3))
    vectors = [TaskVector(parent, weight) for parent, weight in zip(parents, weights, strict=True)]
    pieces = task_vectors(base, vectors, True, normalize, 1.0, torch.float32)
    found = torch.cat([piece for _, piece in pieces])
    for entry in range(400):
        deltas = [w * float(parent[entry] - base[entry]) for parent, w in zip(parents, weights, strict=True)]
        elected = 1 if sum(deltas) >= 0 else -1
        kept = [(delta, w) for delta, w in zip(deltas, weights, strict=True) if delta * elected > 0]
        share = (sum(w for _, w in kept) or 1) if normalize else 1
        assert float(found[entry]) == pytest.approx(float(base[entry]) + sum(d for d, _ in kept) / share, abs=1e-5)


def test_slerp_keeps_the_length_and_the_angle_of_unit_vectors():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    cosine = torch.dot(one, other)
    for t in (0.0, 0.25, 0.5, 1.0):
        first, second = slerp_factors(cosine, t)
        mixed = first * one + second * other
        assert float(mixed.norm()) == pytest.approx(1.0, abs=1e-6)
        assert float(torch.acos(mixed[0].clamp(-1, 1))) == pytest.approx(t * float(torch.acos(cosine)), abs=1e-6)
    assert [float(factor) for factor in slerp_factors(torch.tensor(0.9999), 0.3)] == pytest.approx([0.7, 0.3])


def test_lore_for_two_parents_is_where_coordinate_descent_ends():
    generator = torch.Generator().manual_seed(0)
    direct, thinking = (torch.randn(12, 9, generator=generator).double() for _ in range(2))
    threshold = 0.1 * float(torch.linalg.svdvals((thinking - direct) / 2)[0])

    def shrink(matrix: torch.Tensor) -> torch.Tensor:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ torch.diag((values - threshold).clamp(min=0)) @ right

    deltas = [torch.zeros_like(direct), torch.zeros_like(direct)]
    for _ in range(25):
        base = (direct - deltas[0] + thinking - deltas[1]) / 2
        deltas = [shrink(direct - base), shrink(thinking - base)]
    assert torch.allclose(base, (direct + thinking) / 2)
    assert torch.allclose(low_rank((thinking - direct) / 2, 0.1), deltas[1])
    assert torch.allclose(deltas[0], -deltas[1])


def test_low_rank_of_a_vector_only_shortens_it():
    vector = torch.tensor([3.0, 4.0])
    assert torch.allclose(low_rank(vector, 0.2), vector * 0.8)
    assert torch.equal(low_rank(vector, 0.0), vector)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["top", "middle", "first"])
def test_a_selection_is_the_sort_it_came_from(kind, dtype):
    # Rounded hard, so that most entries tie with others.
    values = (torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 8).round().to(dtype)
    bands = [Band(kind, density, 0.05) for density in (0.001, 0.3, 0.9)]
    magnitudes = values.abs().float()
    for band, chosen in select(values, bands).items():
        order = torch.argsort(magnitudes, descending=kind != "middle", stable=kind == "first")
        count = int(band.density * 5000)
        begin = max(0, 5000 - count - 250) if kind == "middle" else 0
        expected = torch.zeros(5000, dtype=torch.bool)
        expected[order[begin : begin + count]] = True
        parts = [slice(start, min(start + 700, 5000)) for start in range(0, 5000, 700)]
        assert torch.equal(torch.cat([chosen.mask(values[part], part) for part in parts]), expected)
        assert torch.equal(torch.cat([chosen.apply(values[part], part) for part in parts]), values * expected)


def test_selective_merges_touch_exactly_the_share_that_changed_most(engine):
    name = "model.layers.0.mlp.up_proj.weight"
    direct, thinking = (engine.parents[role].tensor(name) for role in ("direct", "thinking"))
    found = merged(engine, Point.of("selective_surgical", density=0.05))[name]
    changed = found != direct
    assert int(changed.sum()) == int(0.05 * direct.numel())
    assert torch.equal(found[changed], thinking[changed])
    gap = (thinking - direct).abs()
    assert gap[changed].min() >= gap[~changed].max()
    mean = merged(engine, Point.of("selective_average", density=0.05))[name]
    assert torch.equal(mean != direct, changed)


def test_sharded_and_unaligned_parents_read_the_same(parents, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    state = load_file(parents["direct"] / "model.safetensors")
    names, placed = sorted(state), {}
    for shard in range(3):
        part = {name: state[name] for name in names[shard::3]}
        save_file(part, tmp_path / f"model-{shard}.safetensors")
        placed |= dict.fromkeys(part, f"model-{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    weights = Weights(tmp_path)
    assert list(weights) == names
    assert all(torch.equal(weights.tensor(name), state[name]) for name in names)
    odd = write_parent(tmp_path / "odd", 1)
    raw = (odd / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    (odd / "model.safetensors").write_bytes(shifted)
    assert all(torch.equal(Weights(odd).tensor(name), state[name]) for name in names)
