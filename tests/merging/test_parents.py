"""Parents are judged by header before anything is written; errors name the tensor or field."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recllm.merging.checkpoint import Weights, read_header, read_headers
from recllm.merging.parents import describe, holds, make_ready, source_fingerprint
from recllm.merging.preflight import preflight, report
from recllm.merging.space import Point
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
from fake_hub import TOKEN, FakeHub
from worlds import WORDS, family

GIB = 1 << 30


@pytest.fixture
def folders(tmp_path):
    return family(tmp_path)


def look(folders, **options) -> dict:
    return {role: describe(str(folder), **options) for role, folder in folders.items()}


def check(folders, points=(), **options):
    return preflight(look(folders), points, **{"available_memory": 8 * GIB, "output": folders["direct"], **options})


def edit(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop(name, None)
    save_file({**state, **({} if tensor is None else {name: tensor})}, folder / "model.safetensors")


def test_a_good_family_passes_in_no_time_and_writes_nothing(folders, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    began = time.perf_counter()
    found = check(folders, [Point.of("ties", strength=0.5, density=0.5)], checkpoints=3)
    assert time.perf_counter() - began < 2
    assert sorted(tmp_path.rglob("*")) == before
    size = sum(tensor.numel() * 2 for tensor in load_file(folders["direct"] / "model.safetensors").values())
    assert found.model_bytes == size
    assert 3 * size <= found.disk_bytes < 3.2 * size
    assert not found.streams
    assert found.warnings == ()
    assert report(found)["model_bytes"] == size


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda d: edit(d, architectures=["Qwen3ForCausalLM"]),
            r"thinking\): architectures in config.json is \['Qwen3",
        ),
        (lambda d: edit(d, vocab_size=WORDS + 1), r"thinking\): vocab_size in config.json is 102, of .* 101"),
        (lambda d: edit(d, num_attention_heads=2), "num_attention_heads"),
        (lambda d: edit(d, tie_word_embeddings=False), "ties its embeddings .* does not: .*lm_head.weight"),
        (lambda d: edit(d, quantization_config={"bits": 4}), "quantization_config"),
        (
            lambda d: change(d, "model.norm.weight", None),
            "tensor model.norm.weight is in .*direct but not in .*thinking",
        ),
        (
            lambda d: change(d, "extra.weight", torch.zeros(1)),
            "tensor extra.weight is in .*thinking but not in .*direct",
        ),
        (lambda d: change(d, "model.norm.weight", torch.zeros(7)), r"tensor model.norm.weight has shape \[7\] in"),
        (lambda d: change(d, "model.norm.weight", torch.zeros(48).int()), "tensor model.norm.weight is I32"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), r"thinking\) has another tokenizer"),
        (lambda d: (d / "model.safetensors").write_bytes(b"12"), "model.safetensors is no safetensors file"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
    ],
)
def test_a_difference_is_named_with_parent_and_field_or_tensor(folders, spoil, message):
    spoil(folders["thinking"])
    with pytest.raises(ValueError, match=message):
        check(folders)


def test_a_torn_checkpoint_is_named(folders):
    path = folders["thinking"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor .* ends beyond the file"):
        describe(str(folders["thinking"]))


def test_headers_are_untrusted(tmp_path):
    for content in (b"", b"\xff" * 8 + b"{}", (9).to_bytes(8, "little") + b"{not json", b"\0" * 16):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read_header(tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(ValueError, match="which is not there"):
        read_headers(tmp_path)


def test_sid_tables_must_be_the_same_one(folders):
    tables = [SidTable(np.array(codes), (4, 4)) for codes in ([[0, 1], [2, 3]], [[0, 1], [3, 3]])]
    tables[0].save(folders["direct"] / TABLE_FOLDER)
    with pytest.raises(ValueError, match=r"thinking\) speaks SID table none"):
        check(folders)
    tables[0].save(folders["thinking"] / TABLE_FOLDER)
    assert "no SID table" in check(folders).warnings[0]  # the base's rows are untrained: said, not refused
    shutil.rmtree(folders["thinking"] / TABLE_FOLDER)
    tables[1].save(folders["thinking"] / TABLE_FOLDER)
    with pytest.raises(ValueError, match="a SID token would mean another item"):
        check(folders)


def test_disk_and_memory_are_counted(folders):
    with pytest.raises(ValueError, match=r"checkpoint\(s\) of .* need .* of disk"):
        check(folders, checkpoints=10**9)
    ties = [Point.of("ties", strength=0.5, density=0.5)]
    with pytest.raises(ValueError, match=r"tensor model.embed_tokens.weight needs .* or methods that sort"):
        check(folders, ties, available_memory=1000)
    size, largest = look(folders)["direct"].bytes, WORDS * 48
    assert check(folders).memory_bytes == size + 4 * largest
    assert (check(folders, ties).memory_bytes, check(folders, ties).workers) == (size + 96 * largest, 2)
    short = check(folders, ties, available_memory=size + 50 * largest)
    assert (short.memory_bytes, short.workers) == (size + 48 * largest, 1)
    tight = check(folders, available_memory=4 * largest + size // 2)
    assert tight.streams
    assert "stream the points" in tight.warnings[0]
    assert check(folders, available_memory=4 * largest + 4 * size - 1).streams
    assert not check(folders, available_memory=4 * largest + 4 * size).streams


def test_a_point_must_find_its_parents(folders):
    del folders["base"]
    with pytest.raises(ValueError, match=r"ties .* needs the parent 'base'"):
        check(folders, [Point.of("ties", strength=0.5, density=0.5)])
    assert check(folders, [Point.of("ties", strength=0.5, density=0.5, base="direct")]).model_bytes
    del folders["thinking"]
    with pytest.raises(ValueError, match="no parent 'thinking'"):
        check(folders)


def test_pickled_weights_are_refused_unless_asked_for(folders, tmp_path):
    state = load_file(folders["direct"] / "model.safetensors")
    (folders["direct"] / "model.safetensors").unlink()
    torch.save(state, folders["direct"] / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*can run code.*pickle_weights: true"):
        describe(str(folders["direct"]))
    parent = describe(str(folders["direct"]), pickle_weights=True)
    assert parent.pickled
    ready = make_ready(parent, tmp_path / "work")
    weights = Weights(ready)
    assert set(weights) == set(state)
    assert all(torch.equal(weights.tensor(name), tensor) for name, tensor in state.items())
    assert (ready / "tokenizer.json").is_file()


def test_a_pickle_that_is_code_does_not_run_even_when_asked_for(folders, tmp_path):
    target = tmp_path / "ran"
    # A protocol-0 pickle that calls os.mkdir(target), written by hand.
    (folders["direct"] / "model.safetensors").unlink()
    (folders["direct"] / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(V{target}\ntR.".encode())
    parent = describe(str(folders["direct"]), pickle_weights=True)
    with pytest.raises(Exception, match=r"(?i)pickle|weights|unpickl"):
        make_ready(parent, tmp_path / "work")
    assert not target.exists()


def adapter(folders, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.bfloat16)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_a_parent(folders, tmp_path):
    folder = adapter(folders, tmp_path)
    parent = describe(str(folder))
    assert parent.base == str(folders["base"])
    found = {**look(folders), "thinking": parent}
    assert preflight(found, output=tmp_path, available_memory=8 * GIB).disk_bytes > parent.bytes * 2
    ready = make_ready(parent, tmp_path / "work")
    merged, base, pairs = Weights(ready), Weights(folders["base"]), load_file(folder / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    down, up = (pairs[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{half}.weight"] for half in "AB")
    expected = base.tensor(name).float() + up.float() @ down.float() * (8 / 2)
    assert torch.allclose(merged.tensor(name).float(), expected, atol=0.01, rtol=0.01)
    assert not torch.equal(merged.tensor(name), base.tensor(name))
    assert set(merged) == set(base)
    written = (ready / "model.safetensors").stat().st_mtime_ns
    assert make_ready(parent, tmp_path / "work") == ready
    assert (ready / "model.safetensors").stat().st_mtime_ns == written


def test_an_adapter_that_does_not_fit_is_named(folders, tmp_path):
    folder = adapter(folders, tmp_path)
    weights = folder / "adapter_model.safetensors"
    good = load_file(weights)
    name = next(iter(good))
    save_file({**good, name: torch.zeros(2, 7)}, weights)
    with pytest.raises(ValueError, match=r"lora_A.weight has shape \[2, 7\], .*q_proj.weight of the base \[48, 48\]"):
        describe(str(folder))
    save_file({name.replace("q_proj", "z_proj"): good[name]}, weights)
    with pytest.raises(ValueError, match=r"z_proj.weight, which the base .* does not have"):
        describe(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(ValueError, match="only LORA"):
        describe(str(folder))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with FakeHub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def test_a_hub_id_is_a_parent(folders, tmp_path, hub):
    files = {path.name: path.read_bytes() for path in folders["thinking"].iterdir()}
    hub.add_repo("models/tester/thinking", files=files)
    parent = describe("tester/thinking")
    assert parent.tensors.keys() == Weights(folders["thinking"]).infos.keys()
    local = describe(str(folders["thinking"]))
    assert (parent.tokenizer, parent.bytes, parent.config) == (local.tokenizer, local.bytes, local.config)
    assert preflight({**look(folders), "thinking": parent}, output=tmp_path, available_memory=8 * GIB).warnings == ()
    assert not list((tmp_path / "hf").rglob("*.safetensors")), "looking at a parent must not download its weights"
    ready = Weights(make_ready(parent, tmp_path / "work"))
    expected = Weights(folders["thinking"])
    assert all(torch.equal(ready.tensor(name), expected.tensor(name)) for name in expected)


def test_a_hub_parent_is_the_same_whatever_else_the_cache_has(folders, hub):
    from huggingface_hub import HfApi

    files = {path.name: path.read_bytes() for path in folders["thinking"].iterdir()}
    hub.add_repo("models/tester/thinking", files={**files, "README.md": b"of it", "onnx/model.onnx": b"not asked for"})
    before = source_fingerprint(describe("tester/thinking"))
    snapshot = Path(HfApi().snapshot_download("tester/thinking"))
    assert (snapshot / "onnx" / "model.onnx").is_file()
    assert source_fingerprint(describe("tester/thinking")) == before
    assert holds(snapshot, before) and not holds(folders["thinking"], "0" * 64)
    hub.add_repo("models/tester/other", files={**files, "config.json": files["config.json"] + b" "})
    assert source_fingerprint(describe("tester/other")) != before


def test_nothing_at_an_address_is_said(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        describe(str(tmp_path / "nothing" / "here"))
