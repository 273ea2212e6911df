"""Checkpoints: mergekit's in a process of its own, and streamed ones within bounded memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recllm.merging.checkpoint import Weights
from recllm.merging.deliver import check_tensors, deliver_into, deliver_point, stream
from recllm.merging.engine import MergeEngine
from recllm.merging.parents import describe, make_ready
from recllm.merging.preflight import preflight
from recllm.merging.space import Point
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER

sys.path.insert(0, str(Path(__file__).parent))
from worlds import family


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folders = family(tmp_path_factory.mktemp("family"))
    SidTable(np.array([[0, 1], [2, 3]]), (4, 4)).save(folders["direct"] / TABLE_FOLDER)
    return folders


def engine_of(parents) -> MergeEngine:
    return MergeEngine({role: Weights(folder) for role, folder in parents.items()})


# One of mergekit's that draws, one of ours that mergekit learns of in its own process.
@pytest.mark.parametrize(
    "point", [Point.of("dare_ties", strength=0.6, density=0.5, seed=11), Point.of("selective_average", density=0.2)]
)
def test_a_delivered_point_is_the_one_that_was_evaluated(parents, tmp_path, monkeypatch, point):
    monkeypatch.setenv("RANK", "1")  # as in a rank of an accelerate launch
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = deliver_point(point, parents, tmp_path / "chosen")
    written, expected = Weights(folder), dict(engine_of(parents).tensors(point))
    assert set(written) == set(expected)
    assert all(torch.equal(written.tensor(name), tensor) for name, tensor in expected.items())
    assert SidTable.load(folder / TABLE_FOLDER) == SidTable.load(parents["direct"] / TABLE_FOLDER)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert json.loads((folder / "point.json").read_text())["key"] == point.key
    assert point.method in (folder / "mergekit_config.yml").read_text()
    assert (folder / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["chosen"]


def test_specialist_adapters_over_one_base_are_merged(parents, tmp_path):
    """A planner's and a reasoner's LoRA: looked at by header, folded into their base, and merged by mergekit."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(parents["base"], base)
    SidTable(np.array([[0, 1], [2, 3]]), (4, 4)).save(base / TABLE_FOLDER)
    specialists = {"direct": ("planner", ["q_proj"]), "thinking": ("reasoner", ["q_proj", "up_proj"])}
    for seed, (name, modules) in enumerate(specialists.values(), 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
        tuned.save_pretrained(tmp_path / name)
    found = {role: describe(str(tmp_path / name)) for role, (name, _) in specialists.items()}
    found["base"] = describe(str(base))
    point = Point.of("ties", strength=0.5, density=0.5)
    assert preflight(found, [point], tmp_path, available_memory=8 << 30).warnings == ()
    ready = {role: make_ready(parent, tmp_path / "ready") for role, parent in found.items()}
    folder = deliver_point(point, ready, tmp_path / "both")
    written, expected = Weights(folder), dict(engine_of(ready).tensors(point))
    assert all(torch.equal(written.tensor(name), tensor) for name, tensor in expected.items())
    assert SidTable.load(folder / TABLE_FOLDER) == SidTable.load(base / TABLE_FOLDER)
    name = "model.layers.0.{}_proj.weight"
    planner, reasoner, origin = Weights(ready["direct"]), Weights(ready["thinking"]), Weights(base)
    both, one, neither = (name.format(part) for part in ("self_attn.q", "mlp.up", "mlp.down"))
    assert not torch.equal(planner.tensor(both), origin.tensor(both))
    assert torch.equal(planner.tensor(one), origin.tensor(one))
    assert not torch.equal(written.tensor(one), origin.tensor(one)), "what one of them learned is in the merge"
    assert torch.equal(reasoner.tensor(neither), origin.tensor(neither))
    assert torch.equal(written.tensor(neither), origin.tensor(neither))
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_point_is_delivered_into_a_run_once(parents, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of another point")
    written = []

    def write(point, parents, staging):
        written.append(point.key)
        staging.mkdir()
        (staging / "model.safetensors").write_text(point.key)
        (staging / TABLE_FOLDER).mkdir()
        return staging

    monkeypatch.setattr("recllm.merging.deliver.deliver_point", write)
    one, other = Point.of("linear", strength=0.5), Point.of("linear", strength=0.25)
    for point, mark in ((one, "a"), (one, "a"), (one, "b"), (other, "b")):
        deliver_into(point, parents, folder, mark)
        assert (folder / "model.safetensors").read_text() == point.key
    assert written == [one.key, one.key, other.key]
    left = {path.name for path in folder.iterdir()}
    assert left == {"mine.txt", "model.safetensors", TABLE_FOLDER, ".staging-point.json"}


def test_a_full_folder_is_left_alone_and_a_failed_merge_leaves_nothing(parents, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    point = Point.of("linear", strength=0.5)
    with pytest.raises(ValueError, match="full is not empty"):
        deliver_point(point, parents, tmp_path / "full")
    monkeypatch.setattr("recllm.merging.deliver.sys.executable", shutil.which("false"))  # a process that fails
    with pytest.raises(RuntimeError, match="mergekit could not write linear"):
        deliver_point(point, parents, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lost_tensor_is_noticed(parents):
    infos = Weights(parents["direct"]).infos
    check_tensors(parents["direct"], infos)
    with pytest.raises(RuntimeError, match=r"tensor lm_head\.weight was lost"):
        check_tensors(parents["direct"], {**infos, "lm_head.weight": infos["model.norm.weight"]})


@pytest.mark.parametrize("shard_bytes", [1 << 30, 30_000])
@pytest.mark.parametrize(
    "point",
    [
        Point.of("linear", strength=0.3),
        Point.of("della", strength=0.3, density=0.5),
        Point.of("ties", strength=0.5, density=0.3, dtype="float32"),
    ],
    ids=lambda point: point.label,
)
def test_a_streamed_checkpoint_holds_the_same_tensors_and_loads(parents, tmp_path, point, shard_bytes):
    from transformers import AutoModelForCausalLM

    engine = engine_of(parents)
    expected = dict(engine.tensors(point))
    folder = stream(engine, point, tmp_path / "out", shard_bytes)
    written = Weights(folder)
    assert all(torch.equal(written.tensor(name), tensor) for name, tensor in expected.items())
    files = list(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 30_000)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert (folder / "tokenizer.json").is_file()


MEASURE = """
import re, sys
from pathlib import Path
import torch
from recllm.merging.checkpoint import Weights
from recllm.merging.deliver import stream
from recllm.merging.engine import MergeEngine
from recllm.merging.space import Point

torch.set_num_threads(1)  # pieces are small, and threads wait for each other where the machine is busy

def peak():
    # Not ru_maxrss: a process inherits it from the one that started it, which may have been larger than this ever is.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def engine(root):
    return MergeEngine({role: Weights(root / role) for role in ("base", "direct", "thinking")}, cache_bytes=1 << 22)

large, tiny = Path(sys.argv[1]) / "large", Path(sys.argv[1]) / "tiny"
plain, drawn = Point.of("task_arithmetic", strength=0.4), Point.of("dare_linear", strength=0.4, density=0.5)
for point in (plain, drawn):  # the libraries' own pages are there before the measure begins
    stream(engine(tiny), point, tiny / point.key)
engine = engine(large)
before = peak()
for number, (point, release) in enumerate(((plain, True), (drawn, True), (plain, False))):
    stream(engine, point, large / str(number), shard_bytes=1 << 24, release=release)
    print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read where Linux tells it")
def test_peak_memory_of_streaming_does_not_grow_with_the_model(tmp_path):
    from safetensors.torch import save_file

    # Three parents of 48 MiB each, in tensors of 1 MiB; and tiny ones.
    for name, layers, rows in (("large", 48, 512), ("tiny", 2, 1)):
        for seed, role in enumerate(("base", "direct", "thinking")):
            (tmp_path / name / role).mkdir(parents=True)
            weight = torch.randn((rows, 1024), generator=torch.Generator().manual_seed(seed)).bfloat16()
            state = {f"model.layers.{layer}.mlp.weight": weight + layer for layer in range(layers)}
            save_file(state, tmp_path / name / role / "model.safetensors")
            (tmp_path / name / role / "config.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # MiB by which the peak of a fresh process grew, one point after the other.
    plain, drawn, kept = map(float, done.stdout.split())
    assert plain < 24
    assert drawn < 80  # whole-tensor temporaries of mergekit's, the same from the first tensor on, and the cache
    assert kept > plain + 48  # what the measure shows where the parents' pages are kept
