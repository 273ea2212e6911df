"""What each way of fine-tuning moves, by name and row, on tiny models with tied and untied embeddings."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import ModelConfig, SFTConfig

from recllm.data import prompts
from recllm.sid.table import SidTable
from recllm.sid.vocabulary import extend, save_extended
from recllm.training import sft
from recllm.training.chat import set_chat_template
from recllm.training.save import deliver, whole
from recllm.training.tiny_lm import train_tokenizer

TABLE = SidTable(np.array([[0, 1], [1, 0], [2, 2], [1, 1]]), (3, 3))
TITLES = ["red soap", "blue soap", "soft brush", "brush"]
FAMILIES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "down_proj"]}
LORA_MOVES = {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[(name, tied) for name in FAMILIES for tied in (True, False)], ids=str)
def checkpoint(request, tmp_path_factory):
    """A tiny model that knows its sids, and whether its embeddings are tied."""
    family, tied = request.param
    tokenizer = train_tokenizer(TITLES, 270)
    set_chat_template(tokenizer, "lean")
    torch.manual_seed(0)
    config, model_class = FAMILIES[family]
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    model = model_class(config(vocab_size=300, tie_word_embeddings=tied, **SHAPE, **heads))
    extend(model, tokenizer, TABLE, TITLES)
    folder = tmp_path_factory.mktemp(family)
    save_extended(folder, model, tokenizer, TABLE)
    return folder, tied


def chats() -> Dataset:
    asked = [[*prompts.title_of_prompt(TABLE.text(i)), prompts.assistant(TITLES[i])] for i in range(4)]
    told = [[*prompts.sid_of_prompt(TITLES[i]), prompts.assistant(TABLE.text(i))] for i in range(4)]
    return Dataset.from_list([{"messages": messages, "task": "x"} for messages in asked + told])


def build(folder, out, trainable="all", steps=2, **model_args):
    args = SFTConfig(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, save_strategy="no",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        logging_steps=1, weight_decay=0.1,
    )  # fmt: skip
    return sft.build_sft_trainer(
        chats(), args, ModelConfig(str(folder), dtype="float32", **model_args), trainable=trainable
    )


def moved(before: dict, after: dict) -> dict[str, list[int]]:
    """Names of the tensors that differ, each with the rows that do."""
    assert before.keys() == after.keys()
    rows = {name: (tensor != after[name]).reshape(len(tensor), -1).any(1) for name, tensor in before.items()}
    return {name: torch.where(row)[0].tolist() for name, row in rows.items() if row.any()}


def trained(folder, out, **how) -> tuple[dict[str, list[int]], torch.nn.Module, list[int]]:
    """What moved, the delivered model and the sid rows."""
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    trainer = build(folder, out, **how)
    trainer.train()
    model = whole(trainer)
    deliver(model, trainer.processing_class, out, str(folder))  # reads back and compares every tensor
    again = AutoModelForCausalLM.from_pretrained(out)
    return moved(before, again.state_dict()), again, sft.sid_row_ids(trainer.processing_class, folder)


def check_tie(model, tied: bool) -> None:
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert model.config.tie_word_embeddings is tied


def test_sid_rows_move_and_nothing_else(checkpoint, tmp_path):
    folder, tied = checkpoint
    found, model, rows = trained(folder, tmp_path, trainable="sid_rows")
    assert len(rows) == 6 and type(model).__name__ in ("Qwen3ForCausalLM", "LlamaForCausalLM")
    # The code that no item carries moves, too: as an answer that is wrong everywhere.
    assert found == dict.fromkeys(EMBEDDINGS, rows)
    check_tie(model, tied)


def test_lora_trains_the_sid_rows_besides(checkpoint, tmp_path):
    folder, tied = checkpoint
    found, model, rows = trained(folder, tmp_path, steps=3, **LORA)
    assert found.keys() == {*EMBEDDINGS, *LORA_MOVES}
    assert all(found[name] == rows for name in EMBEDDINGS)
    assert not [name for name in model.state_dict() if "lora" in name or "token_adapter" in name]
    check_tie(model, tied)


def test_all_moves_every_tensor(checkpoint, tmp_path):
    folder, tied = checkpoint
    found, model, _ = trained(folder, tmp_path)
    assert found.keys() == model.state_dict().keys()
    check_tie(model, tied)


def test_the_rows_get_the_gradient_of_the_whole_model(checkpoint, tmp_path):
    """TRL multiplies with the head's weight itself: a head whose adapter it passed over would teach nothing."""
    folder, tied = checkpoint
    trainer = build(folder, tmp_path, trainable="sid_rows")
    training = [(name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert len(training) == (1 if tied else 2) and all("trainable_tokens_delta" in name for name, _ in training)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    wanted = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    rows = sft.sid_row_ids(trainer.processing_class, folder)
    for name, weight in training:
        whole_weight = (plain.lm_head if "lm_head" in name else plain.model.embed_tokens).weight
        torch.testing.assert_close(weight.grad, whole_weight.grad[rows], rtol=1e-4, atol=1e-6)
        assert (weight.grad.abs().sum(1) > 0).any()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(checkpoint, tmp_path):
    folder, _ = checkpoint
    trainer = build(folder, tmp_path, trainable="sid_rows", steps=2)
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
    trainer.train()
    uninterrupted = whole(trainer).state_dict()
    trainer = build(folder, tmp_path, trainable="sid_rows", steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2
    assert moved(uninterrupted, whole(trainer).state_dict()) == {}


def test_without_a_table_lora_is_plain(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TITLES, 270)
    set_chat_template(tokenizer, "lean")
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, num_key_value_heads=1, head_dim=8, **SHAPE))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert sft.sid_row_ids(tokenizer, tmp_path / "base") == []
    config = sft.peft_config(model, [], ModelConfig(**LORA))
    assert config.trainable_token_indices is None and config.target_modules == {"q_proj", "down_proj"}
    assert sft.peft_config(model, [], ModelConfig()) is None
    assert sft.peft_config(model, [1], ModelConfig()) is None, "all weights train: there is nothing for PEFT to do"


def test_what_cannot_be_is_refused():
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, num_key_value_heads=1, head_dim=8, **SHAPE))
    for rows, how, trainable, complaint in [
        ([1], {}, "head", "trainable must be one of all, sid_rows"),
        ([], {}, "sid_rows", "no sid_table"),
        ([1], LORA, "sid_rows", "use_peft trains other weights"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            sft.peft_config(model, rows, ModelConfig(**how), trainable)
    biased = PhiForCausalLM(PhiConfig(vocab_size=300, num_key_value_heads=1, **SHAPE))
    with pytest.raises(ValueError, match="bias"):
        sft.peft_config(biased, [1], ModelConfig(), "sid_rows")


def test_validation_is_off_or_complete(monkeypatch):
    assert sft.validation_watches(None, "x", 0, 10, 0) == []
    assert sft.validation_watches("data", "x", 0, 10, 0) == []
    with pytest.raises(ValueError, match="needs validation_dataset"):
        sft.validation_watches(None, "x", 5, 10, 0)
    import recllm.training.validation as validation

    monkeypatch.setattr(validation, "ValidationNDCG", lambda **asked: asked)
    asked = {"dataset": "data", "sid_table": "model/sid_table", "steps": 5, "users": 10, "patience": 2}
    asked["at_start"] = False
    assert sft.validation_watches("data", "model/sid_table", 5, 10, 2) == [asked]
