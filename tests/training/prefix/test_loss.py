"""TRL's trainer with prompts read once against the same trainer as it is: one loss, one gradient, one reward curve."""

import copy
import itertools
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recllm.training.overrides import OverrideError
from recllm.training.prefix.generation import generate_shared
from recllm.training.prefix.share import share_prefixes
from recllm.training.tiny_lm import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
_FILE = Path(__file__).with_name("packing_worlds.py")
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="packing_worlds"))
PROMPTS = ["aab", "abcabcabcabc", "b", "cabbage", "a" * 20, "aab c"]
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
RELATIVE = 1e-4
TWO_AT_A_TIME = {"gradient_accumulation_steps": 2, "max_steps": 5}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a"], vocab_size=256)


def reward(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]


def turns(prompts, trainer):
    """Episodes of several turns: what the model said, what a tool answered (masked), and what it said then."""
    generator = torch.Generator().manual_seed(trainer.state.global_step)

    def draw(most):
        return torch.randint(97, 123, (int(torch.randint(1, most, (1,), generator=generator)),), generator=generator)

    parts = [[draw(4).tolist(), draw(6).tolist(), draw(3).tolist()] for _ in prompts]
    return {
        "prompt_ids": trainer.processing_class(prompts)["input_ids"],
        "completion_ids": [[*a, *b, *c] for a, b, c in parts],
        "env_mask": [[1] * len(a) + [0] * len(b) + [1] * len(c) for a, b, c in parts],
        "logprobs": None,
    }


def make_trainer(tokenizer, folder, family="llama", attention="sdpa", lora=False, rollout=False, **changes):
    """A GRPOTrainer over six prompts of unequal length, on a model whose weights depend on the family alone.

    Where there is a reference model and no LoRA, it is loaded from a folder, as TRL does.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    model = worlds.make_model(family, attention)
    model.resize_token_embeddings(len(tokenizer))
    model.init_weights()
    torch.manual_seed(5)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if changes.get("beta") and not lora:
        model.save_pretrained(folder / "start")
        model = type(model).from_pretrained(folder / "start", attn_implementation=attention)
    settings = {
        **{"output_dir": str(folder), "per_device_train_batch_size": 12, "num_generations": 4, "max_steps": 3},
        **{"max_completion_length": 7, "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "logging_steps": 1},
        # Where a gradient is all rounding, Adam would go a whole step in a random direction.
        "adam_epsilon": 1e-3,
        **{"gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
    }
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**settings | changes),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA) if lora else None,
        rollout_func=turns if rollout else None,
    )


def ragged(trainer, seed=0):
    """Random rows: prompts of unequal length, four completions each of unequal length, some of them empty."""
    prompt, prompt_mask, completion, mask = worlds.random_rows(seed, prompts=4)[2]
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt_mask,
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": torch.randn(len(prompt), generator=generator),
        "tool_mask": (torch.rand(mask.shape, generator=generator) < 0.8).long(),
        "num_items_in_batch": mask.sum(),
    }


def loss_and_gradients(trainer, inputs):
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    grads = {name: w.grad.clone() for name, w in trainer.model.named_parameters() if w.grad is not None}
    return loss.detach(), grads


def relative_error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize(
    ("family", "attention", "lora"),
    [("llama", "sdpa", False), ("qwen3", "sdpa", True), ("qwen3", "eager", False), ("llama", "eager", True)],
)
def test_loss_log_probs_and_gradients_are_the_stock_trainers(tokenizer, tmp_path, family, attention, lora):
    trainer = make_trainer(tokenizer, tmp_path, family, attention, lora, temperature=0.7)
    sharing = None
    for seed in range(3):
        inputs = ragged(trainer, seed)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        call = (trainer.model, ids, mask, inputs["completion_ids"].shape[1])
        if sharing is not None:  # back to stock
            del trainer._get_per_token_logps_and_entropies, trainer._prepare_inputs
        wanted = trainer._get_per_token_logps_and_entropies(*call, compute_entropy=True)
        loss, grads = loss_and_gradients(trainer, inputs)
        sharing = share_prefixes(trainer)
        shared_loss, shared_grads = loss_and_gradients(trainer, inputs)
        assert relative_error(shared_loss, loss) < RELATIVE and loss.abs() > 1e-3
        assert shared_grads.keys() == grads.keys() and len(grads) > 5
        for name, grad in grads.items():
            assert relative_error(shared_grads[name], grad) < RELATIVE, name
        for batch_size in (None, 1, 5, 100):
            found = trainer._get_per_token_logps_and_entropies(*call, batch_size=batch_size, compute_entropy=True)
            for ours, theirs in zip(found[:2], wanted[:2], strict=True):
                told = inputs["completion_mask"].bool()
                torch.testing.assert_close(ours[told], theirs[told], rtol=RELATIVE, atol=1e-5)
                assert not ours[~told].any()
        assert sharing.shared["loss"] == 5 and not sharing.reasons


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.1, "lora": True},
        {
            "per_device_train_batch_size": 4,
            "num_iterations": 2,
            "steps_per_generation": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
        },
        {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "loss_type": "grpo"},
        {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "temperature": 0.8},
        {"importance_sampling_level": "sequence", "loss_type": "dr_grpo"},
        {"gradient_checkpointing": True, "pad_to_multiple_of": 8, "cast_lm_head_to_fp32": True},
        {"per_device_train_batch_size": 4, "loss_type": "cispo", "steps_per_generation": 6, **TWO_AT_A_TIME},
        # At .5 the threshold is one of several equal entropies, and the last bit decides who stays.
        {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "top_entropy_quantile": 0.4},
        {"rollout": True, "beta": 0.1},
    ],
    ids=[
        *("plain", "reference", "iterations", "accumulation", "warpers", "sequence", "checkpointing", "buffer"),
        *("quantile", "tool turns"),
    ],
)
def test_the_same_seed_gives_the_same_rewards_and_the_same_weights(tokenizer, tmp_path, changes):
    ends = {}
    for shared in (False, True):
        trainer = make_trainer(tokenizer, tmp_path, family="qwen3", **changes)
        if shared:
            sharing = share_prefixes(trainer)
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "reward" in entry]
        ends[shared] = (
            [entry["reward"] for entry in history],
            [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
            {name: weight.detach() for name, weight in trainer.model.named_parameters()},
        )
    assert sharing.shared["loss"] and sharing.share() == 1
    assert bool(sharing.reasons) == ("top_entropy_quantile" in changes), "the quantile is of a micro-batch"
    assert bool(sharing.shared["generation"]) == ("rollout" not in changes)
    assert ends[True][0] == ends[False][0] and len(set(ends[True][0])) > 1
    assert ends[True][1] == pytest.approx(ends[False][1], rel=1e-3) and min(ends[True][1]) > 0
    for name, weight in ends[False][2].items():
        assert relative_error(ends[True][2][name], weight) < 1e-3, name


@pytest.mark.parametrize(
    "asked",
    [{}, {"top_k": 20, "temperature": 0.8}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 5.0}],
    ids=["plain", "top_k", "top_p", "min_p", "penalty"],
)
def test_generation_draws_what_transformers_draws(tokenizer, tmp_path, asked, monkeypatch):
    """Token for token from one seed, with completions that end early, prompts in any order, and a cache that grows."""
    monkeypatch.setattr("recllm.decoding.shared._COLUMNS", 5)
    trainer = make_trainer(tokenizer, tmp_path, max_completion_length=30, **asked)
    model, config = trainer.model, trainer.generation_config
    config.eos_token_id = list(range(0, 256, 10))  # one draw in ten ends a completion
    from recllm.training.prefix.packing import group_rows

    for seed in range(3):
        rows = [PROMPTS[i] for i in torch.randint(0, 4, (11,), generator=torch.Generator().manual_seed(seed)).tolist()]
        batch = tokenizer(rows, padding=True, padding_side="left", return_tensors="pt")
        inputs = (batch["input_ids"], batch["attention_mask"])
        torch.manual_seed(seed)
        wanted = model.generate(*inputs[:1], attention_mask=inputs[1], generation_config=config)
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        found = generate_shared(model, *inputs, config, group_rows(*inputs))
        assert torch.equal(found, wanted) and torch.equal(torch.random.get_rng_state(), state)
    ended = (wanted[:, inputs[0].shape[1] :] == tokenizer.pad_token_id).any(1)
    assert ended.any() and not ended.all(), "the test is to cover rows that end before others"


def test_bfloat16_stays_as_close_as_its_rounding(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, bf16=True)
    inputs = ragged(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    call, told = (trainer.model, ids, mask, inputs["completion_ids"].shape[1]), inputs["completion_mask"].bool()
    with torch.no_grad():
        wanted = trainer._get_per_token_logps_and_entropies(*call)[0][told]
        sharing = share_prefixes(trainer)
        found = trainer._get_per_token_logps_and_entropies(*call)[0][told]
    assert sharing.shared["loss"] == 1
    # A bfloat16 has 8 bits: a part in 256 of numbers of this size.
    assert (found - wanted).abs().max() < 8 * wanted.abs().max() / 256 and (found - wanted).abs().mean() < 0.05


def test_flex_attention_takes_the_same_blocks(tokenizer, tmp_path):
    """On the CPU flex attention has a forward only."""
    trainer = make_trainer(tokenizer, tmp_path)
    inputs = ragged(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    call = (trainer.model, ids, mask, inputs["completion_ids"].shape[1])
    share_prefixes(trainer)
    with torch.no_grad():
        wanted = trainer._get_per_token_logps_and_entropies(*call)[0]
        trainer.model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(trainer._get_per_token_logps_and_entropies(*call)[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_buffer_is_regrouped_within_optimizer_steps_only(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=6
    )
    stock = make_trainer(
        tokenizer, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=6
    )
    share_prefixes(trainer)
    buffers = []
    for each in (stock, trainer):
        torch.manual_seed(3)
        each.current_gradient_accumulation_steps = 2
        rows = [each.train_dataset[i // 4] for i in range(24)]
        first = each._prepare_inputs(copy.deepcopy(rows))
        assert first is each._buffered_inputs[0]
        buffers.append(each._buffered_inputs)

    def told(part, i):
        row = {name: part[name][i].tolist() for name in ("prompt_ids", "completion_ids", "completion_mask")}
        return repr((row, round(float(part["advantages"][i]), 5)))

    for window in range(3):
        parts = [buffer[2 * window : 2 * window + 2] for buffer in buffers]
        before, after = ([told(part, i) for part in some for i in range(len(part["prompt_ids"]))] for some in parts)
        assert sorted(before) == sorted(after), "an optimizer step sees the rows that it saw"
        prompts = [row.split("completion_ids")[0] for row in after]
        assert sum(a != b for a, b in itertools.pairwise(prompts)) == len(set(prompts)) - 1
    assert [told(part, 0) for part in buffers[0]] != [told(part, 0) for part in buffers[1]]


def test_what_cannot_be_shared_runs_as_trl_wrote_it_and_says_why(tokenizer, tmp_path, caplog):
    changes = {"max_steps": 1, "generation_kwargs": {"min_new_tokens": 2}, "loss_type": "bnpo"}
    trainer = make_trainer(tokenizer, tmp_path, family="qwen3", **changes)
    sharing = share_prefixes(trainer)
    trainer.model.config.layer_types, trainer.model.config.sliding_window = ["sliding_attention"] * 2, 8
    trainer.model.model.has_sliding_layers = True
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert sharing.shared.total() == 0
    assert set(sharing.reasons) == {
        "the loss: qwen3 has layers of limited attention",
        "generation: the generation config sets min_new_tokens",
        "micro-batches: a term is reckoned within each, so their rows stay as they were drawn",
    }
    told = [record.message for record in caplog.records if "prompts are not shared in" in record.message]
    assert len(told) == 3, "each reason once"


def test_rows_without_a_common_prompt_generate_as_transformers_does(tokenizer, tmp_path):
    from recllm.training.prefix.generation import sharing_prefill
    from recllm.training.prefix.share import Sharing

    trainer, sharing = make_trainer(tokenizer, tmp_path), Sharing()
    batch = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    torch.manual_seed(0)
    wanted = trainer.model.generate(**batch, generation_config=trainer.generation_config)
    torch.manual_seed(0)
    with sharing_prefill(trainer, sharing):
        found = trainer.model.generate(**batch, generation_config=trainer.generation_config)
    assert torch.equal(found, wanted) and sharing.reasons.total() == 1 and not sharing.shared
    assert "generate" not in vars(trainer.model), "the model is left as it was"


@pytest.mark.parametrize("window", [8, 100])
def test_a_window_without_layer_types_is_kept(tokenizer, tmp_path, window):
    """Mistral and others say how far they look in one number; a block mask would let them see everything."""
    from transformers import MistralConfig, MistralForCausalLM

    trainer = make_trainer(tokenizer, tmp_path)
    shape = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    mistral = MistralForCausalLM(MistralConfig(sliding_window=window, **shape, **heads))
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(mistral, outputs=("log_probs", "entropy"))
    inputs = ragged(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    call, told = (mistral, ids, mask, inputs["completion_ids"].shape[1]), inputs["completion_mask"].bool()
    wanted = trainer._get_per_token_logps_and_entropies(*call)[0]
    sharing = share_prefixes(trainer)
    found = trainer._get_per_token_logps_and_entropies(*call)[0]
    torch.testing.assert_close(found[told], wanted[told], rtol=1e-4, atol=1e-4)
    assert sharing.shared["loss"] == (window == 100)
    reason = "the loss: mistral sees 8 tokens at a time, and sequences have up to 15"
    assert list(sharing.reasons) == ([] if window == 100 else [reason])


def test_dropout_is_told(tokenizer, tmp_path, caplog):
    trainer = make_trainer(tokenizer, tmp_path)
    share_prefixes(trainer)
    assert "dropout" not in caplog.text
    trainer = make_trainer(tokenizer, tmp_path)
    trainer.model.model.layers[0].self_attn.attention_dropout = 0.1
    share_prefixes(trainer)
    assert "dropout is on" in caplog.text


def test_a_model_that_knows_no_block_mask_is_found_out_before_the_first_loss(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    inner = trainer.model.model
    forward = inner.forward

    def blind(*args, attention_mask=None, **kwargs):
        plain = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        return forward(*args, attention_mask=plain, **kwargs)

    inner.forward = blind
    inputs = ragged(trainer)
    wanted, grads = loss_and_gradients(trainer, inputs)
    sharing = share_prefixes(trainer)
    found, same = loss_and_gradients(trainer, inputs)
    assert torch.equal(found, wanted) and all(torch.equal(same[name], grad) for name, grad in grads.items())
    assert not sharing.shared and "log-probabilities differ by up to" in next(iter(sharing.reasons))


@pytest.mark.parametrize("short", [False, True])
def test_a_batch_whose_completions_are_all_masked_teaches_nothing(tokenizer, tmp_path, short):
    """As `mask_truncated_completions` leaves it where every completion was cut off."""
    trainer = make_trainer(tokenizer, tmp_path)
    inputs = ragged(trainer)
    if short:
        inputs |= {"prompt_ids": inputs["prompt_ids"][:, -1:], "prompt_mask": inputs["prompt_mask"][:, -1:]}
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    stock, _ = loss_and_gradients(trainer, inputs)
    sharing = share_prefixes(trainer)
    loss, grads = loss_and_gradients(trainer, inputs)
    assert loss == stock == 0 and sharing.shared["loss"] == 1
    assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("name", ["_get_per_token_logps_and_entropies", "_prepare_inputs"])
def test_another_signature_stops_the_run_before_it_begins(tokenizer, tmp_path, name):
    trainer = make_trainer(tokenizer, tmp_path)
    changed = type("GRPOTrainer", (type(trainer),), {name: lambda self, other: None})
    trainer.__class__ = changed
    with pytest.raises(OverrideError, match=rf"{name} was expected to take .*takes \(other\).*shared_prefix: false"):
        share_prefixes(trainer)
