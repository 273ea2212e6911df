"""The parents of a delivery are those that were swept, made ready where the sweep made them ready."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recllm.merging.checkpoint import Weights
from recllm.merging.ledger import SWEEP_FILE, ready_folder
from recllm.merging.pick import ready_parents
from recllm.merging.space import Space
from recllm.merging.sweep import plan_sweep, run_sweep

sys.path.insert(0, str(Path(__file__).parent))
from toy_evaluator import Toy
from worlds import model_family

NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def parents(tmp_path):
    return model_family(tmp_path / "family")


def sweep(parents, folder, **options):
    return run_sweep(
        plan_sweep(folder, {role: str(path) for role, path in parents.items()}, Space.of([]), Toy({}), **options)
    )


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_adapters_whose_names_look_alike_are_delivered_as_they_were_swept(parents, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    given = {"direct": tmp_path / "tuned 1", "thinking": tmp_path / "tuned_1", "base": parents["base"]}
    for seed, role in enumerate(("direct", "thinking")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(parents["base"], dtype=torch.bfloat16)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        tuned.save_pretrained(given[role])
    found = sweep(given, tmp_path / "sweep")
    before = contents(tmp_path / "sweep")
    ready = ready_parents(found, found.points, tmp_path / "out", 1)
    assert {role: str(path) for role, path in ready.items()} == {
        role: entry["folder"] for role, entry in found.parents.items()
    }
    assert contents(tmp_path / "sweep") == before, "the sweep is the delivery's input"
    assert not torch.equal(Weights(ready["direct"]).tensor(NAME), Weights(ready["thinking"]).tensor(NAME))
    assert "pickled" not in (tmp_path / "sweep" / SWEEP_FILE).read_text()


def test_a_pickled_parent_is_delivered_as_long_as_it_or_what_was_made_of_it_is_there(parents, tmp_path):
    folder = parents["thinking"]
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    found = sweep(parents, tmp_path / "sweep", pickle_weights=True)
    assert [role for role, entry in found.parents.items() if entry.get("pickled")] == ["thinking"]
    ready = ready_parents(found, found.points, tmp_path / "out", 1)["thinking"]
    assert ready.parent == ready_folder(found.folder, found.parents["thinking"]["fingerprint"])
    assert torch.equal(Weights(ready).tensor(NAME), state[NAME])
    shutil.rmtree(ready)  # to have the disk back
    assert ready_parents(found, found.points, tmp_path / "out", 1)["thinking"] == ready
    shutil.rmtree(folder)
    assert ready_parents(found, found.points, tmp_path / "out", 1)["thinking"] == ready
    told = json.loads((ready / ".source.json").read_text())
    (ready / ".source.json").write_text(json.dumps({**told, "fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match=r"the thinking parent of the sweep is not there.*--thinking PATH"):
        ready_parents(found, found.points, tmp_path / "out", 1)
