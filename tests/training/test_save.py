import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recllm.sid.table import SidTable
from recllm.sid.vocabulary import TABLE_FOLDER, check_table, extend
from recllm.training.safety.checkpoint import STAGING, Staging
from recllm.training.save import check_reload, deliver, merged, newest_checkpoint, remove_checkpoints
from recllm.training.tiny_lm import build_model, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text of the data set"], 270)


def make_model(tokenizer, tied: bool) -> torch.nn.Module:
    if tied:
        return build_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=32, seed=0).eval()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, tie_word_embeddings=False, **shape)).eval()


IDS_BT = torch.tensor([[5, 17, 200, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_delivered_model_is_the_one_in_memory(tokenizer, tmp_path, tied, dtype):
    model = make_model(tokenizer, tied).to(dtype)
    model.generation_config.eos_token_id = 7
    deliver(model, tokenizer, tmp_path / "out", source="somewhere/else")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert again.dtype == dtype
    names = dict(model.state_dict())
    assert names.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in names.items())
    heads = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (heads[0] is heads[1]) is tied
    if dtype == torch.float32:  # a cast in memory also rounds the rotary frequencies, which no file holds
        with torch.no_grad():
            assert torch.equal(again(IDS_BT).logits, model(IDS_BT).logits)
    assert again.generation_config.eos_token_id == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    assert not (tmp_path / "out" / TABLE_FOLDER).exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_sid_table_travels_with_the_model(tmp_path):
    words = train_tokenizer(["some text of the data set"], 270)
    model, table = make_model(words, tied=True), SidTable(np.array([[0, 1], [1, 0]]), (2, 2))
    extend(model, words, table, ["some", "text"])
    table.save(tmp_path / "source" / TABLE_FOLDER)
    for _ in range(2):  # a run that was cut off delivers again
        deliver(model, words, tmp_path / "out", source=str(tmp_path / "source"))
    assert SidTable.load(tmp_path / "out" / TABLE_FOLDER) == table
    check_table(tmp_path / "out", table)


def test_an_adapter_is_folded_in(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = make_model(tokenizer, tied=True)
    with torch.no_grad():
        plain = model(IDS_BT).logits.clone()
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])).eval()
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        wanted = adapted(IDS_BT).logits.clone()
    assert (wanted - plain).abs().max() > 0.01
    whole = merged(adapted)
    assert type(whole).__name__ == "Qwen3ForCausalLM"
    deliver(whole, tokenizer, tmp_path / "out", source="")
    assert not [path for path in (tmp_path / "out").iterdir() if "adapter" in path.name]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not [name for name in again.state_dict() if "lora" in name]
    with torch.no_grad():
        torch.testing.assert_close(again(IDS_BT).logits, wanted, rtol=1e-4, atol=1e-5)
    assert merged(again) is again, "a model without an adapter is left as it is"


@pytest.mark.parametrize("tied", [True, False])
def test_a_lost_or_changed_tensor_stops_the_run(tokenizer, tmp_path, tied):
    model = make_model(tokenizer, tied)
    deliver(model, tokenizer, tmp_path, source="")
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    # Embeddings, a projection, and norms, whose fresh value equals an untrained one and is therefore no proof.
    names = [name for name, tensor in whole.items() if tensor.dim() > 1]
    assert len(names) >= 8
    for name in names:
        save_file({key: tensor for key, tensor in whole.items() if key != name}, path, metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match="tensor"):
            check_reload(model, tmp_path)
        changed = {key: tensor.clone() for key, tensor in whole.items()}
        changed[name].view(-1)[-1] += 1e-3
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match=f"tensor {name} read back differs" if not tied else "read back differs"):
            check_reload(model, tmp_path)
    save_file(whole, path, metadata={"format": "pt"})
    check_reload(model, tmp_path)


def checkpoint(folder: Path, step: int, state: str | None = None) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"x")
    if state is not None:
        (path / "trainer_state.json").write_text(state)


def test_the_newest_complete_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "not there") is None
    whole = json.dumps({"global_step": 1, "log_history": []})
    checkpoint(tmp_path, 100)
    assert newest_checkpoint(tmp_path) is None, "the only one was torn"
    for step in (9, 10, 20):
        checkpoint(tmp_path, step, whole)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20"), "by number, not by name; 100 is torn"


def test_a_checkpoint_torn_in_its_last_file_is_ignored(tmp_path):
    whole = json.dumps({"global_step": 1, "log_history": []})
    checkpoint(tmp_path, 1, whole)
    for step, text in [(2, ""), (3, whole[:20])]:
        checkpoint(tmp_path, step, text)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_folders_that_only_look_like_checkpoints_are_ignored(tmp_path):
    checkpoint(tmp_path, 4, "{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_where_one_has_a_manifest_only_manifests_count(tmp_path, caplog):
    checkpoint(tmp_path, 9, "{}")
    staging = Staging.open(tmp_path, 5)
    (staging.path / "trainer_state.json").write_text("{}")
    staging.commit()
    staging.discard()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert "checkpoint-9 is passed over: it has no manifest" in caplog.text
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{ }")
    assert newest_checkpoint(tmp_path) is None, "a damaged one is no reason to take one of unknown origin"


def test_checkpoints_go_and_nothing_else_does(tmp_path):
    checkpoint(tmp_path, 3, "{}")
    checkpoint(tmp_path, 12)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "sid_table").mkdir()
    (tmp_path / "checkpoints-best").mkdir()
    (tmp_path / STAGING / "checkpoint-13").mkdir(parents=True)
    remove_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "sid_table"]
