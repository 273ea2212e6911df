"""GRPO for the recommender on TRL's own trainer: what is drawn, what the loss sees of it, and that it learns."""

import inspect
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recllm.data.splits import load_split, make_split
from recllm.recommender.prompts import prompt_examples, prompt_rows
from recllm.training.callbacks import OUTSIDE, ZERO_VARIANCE, Alarm
from recllm.training.recommender import (
    Groups,
    build_recommender_trainer,
    check_settings,
    gain_metrics,
    graded_examples,
)
from recllm.training.recommender_rollout import GroupRollout, answer_end, group_prompts

ROOT = Path(__file__).resolve().parents[2]
_FILE = ROOT / "tests" / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = worlds.make_table()
SETTINGS = worlds.GRPO_SETTINGS
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
WEIGHTS = {"exact": 1.0, "rank": 1.0, "prefix": 0.5}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folders `dataset`, and a model of each template: `stream` (no end) and `lean` (ends in the eos token)."""
    root = tmp_path_factory.mktemp("inputs")
    worlds.write_dataset(root / "dataset")
    for template in ("stream", "lean"):
        worlds.save_model(root / template, TABLE, template=template)
    return root


@pytest.fixture(scope="module")
def rows(inputs):
    return prompt_rows(prompt_examples(load_split(inputs / "dataset"), "all"), TABLE)


def make_trainer(inputs, rows, tmp_path, template="stream", groups=Groups(), weights=WEIGHTS, lora=None, **changes):  # noqa: B008
    from trl import GRPOConfig, ModelConfig

    args = GRPOConfig(output_dir=str(tmp_path / "out"), **{**SETTINGS, **changes})
    model_args = ModelConfig(model_name_or_path=str(inputs / template), **(lora or {}))
    return build_recommender_trainer(rows, TABLE, args, model_args, weights, groups)


class Spy:
    """A rollout function that keeps what it was given and what it gave."""

    def __init__(self, inner):
        self.inner, self.calls = inner, []

    def __call__(self, prompts, trainer):
        found = self.inner(prompts, trainer)
        self.calls.append((prompts, {name: list(values) for name, values in found.items()}))
        return found


def spied(trainer) -> Spy:
    trainer.rollout_func = Spy(trainer.rollout_func)
    return trainer.rollout_func


@pytest.mark.parametrize("template", ["stream", "lean"])
def test_two_steps_move_every_weight_and_draw_only_items(inputs, rows, tmp_path, template):
    trainer = make_trainer(inputs, rows, tmp_path, template)
    assert trainer.chat_template_kwargs["enable_thinking"] is False
    spy = spied(trainer)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    stuck = [name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])]
    assert stuck == []
    tokenizer, end = trainer.processing_class, {"stream": 0, "lean": 1}[template]
    sids = {TABLE.text(item): item for item in range(len(TABLE))}
    assert len(spy.calls) == 2
    for prompts, found in spy.calls:
        assert all(prompts[i] == prompts[i - i % 4] for i in range(8))
        for start in (0, 4):
            drawn = found["drawn"][start : start + 4]
            assert len(set(drawn)) == 4, "no item twice in a group"
            assert len(set(found["group"][start : start + 4])) == 1
            assert sorted(found["place"][start : start + 4]) == [0, 1, 2, 3]
            order = sorted(range(start, start + 4), key=lambda i: found["place"][i])
            assert found["logp"] == found["logp"] and sorted((found["logp"][i] for i in order), reverse=True) == [
                found["logp"][i] for i in order
            ]
        for i, ids in enumerate(found["completion_ids"]):
            assert len(ids) == 3 + end == len(found["logprobs"][i]) == len(found["env_mask"][i])
            assert ids[3:] == [tokenizer.eos_token_id] * end and found["env_mask"][i] == [1, 1, 1] + [0] * end
            assert sids[tokenizer.decode(ids, skip_special_tokens=True)] == found["drawn"][i]
            assert found["logp"][i] == pytest.approx(sum(found["logprobs"][i]), abs=1e-5)
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["group_duplicates"] for entry in logged] == [0, 0]
    assert all(0 < entry["allowed_mass"] <= 1 for entry in logged)
    assert all(entry["rewards/exact/mean"] == pytest.approx(entry["group_hit_rate"]) for entry in logged)
    assert all(entry["completions/mean_length"] == 3 for entry in logged), "a masked end is no token of the answer"


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("template", ["stream", "lean"])
def test_the_draw_sees_the_distribution_that_the_loss_sees(inputs, rows, tmp_path, template, lora):
    """Log-probability over the trie plus log of the allowed mass is TRL's own over the vocabulary, also after steps."""
    trainer = make_trainer(inputs, rows, tmp_path, template, lora=lora, temperature=1.0)
    spy = spied(trainer)
    trainer.train()
    if lora:
        moved = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
        assert any("lora_B" in name for name in moved) and any("token_adapter" in name for name in moved)
    trainer.model.train()
    inner, batch = spy.inner, [rows[i // 4] for i in range(8)]
    found = inner([row["prompt"] for row in batch], trainer)
    for i in range(8):
        ids = torch.tensor([found["prompt_ids"][i] + found["completion_ids"][i]])
        count = len(found["completion_ids"][i])
        with torch.no_grad():
            logps = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), count)[0][0]
        ours = torch.tensor(found["logprobs"][i][:3]) + torch.tensor(found["allowed"][i])
        torch.testing.assert_close(logps[:3], ours, rtol=0, atol=2e-5)


def test_independent_draws_repeat_themselves_and_say_so(inputs, rows, tmp_path):
    trainer = make_trainer(inputs, rows, tmp_path, groups=Groups("independent"), num_generations=8, temperature=0.3)
    spy = spied(trainer)
    trainer.train()
    repeats = [8 - len(set(found["drawn"])) for _, found in spy.calls]
    logged = [entry["group_duplicates"] for entry in trainer.state.log_history if "group_duplicates" in entry]
    assert sum(repeats) > 0 and logged == pytest.approx([count / 8 for count in repeats])
    assert all(value == 1 for _, found in spy.calls for value in found["inclusion"])


def draws(inputs, rows, tmp_path, **changes):
    trainer = make_trainer(inputs, rows, tmp_path, **changes)
    spy = spied(trainer)
    trainer.train()
    return [found["drawn"] for _, found in spy.calls]


def test_the_seed_decides_the_draw_and_every_draw_differs(inputs, rows, tmp_path):
    options = {"max_steps": 2, "learning_rate": 0.0, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    first = draws(inputs, rows.select([0]), tmp_path / "a", seed=1, **options)
    assert first == draws(inputs, rows.select([0]), tmp_path / "b", seed=1, **options)
    assert first != draws(inputs, rows.select([0]), tmp_path / "c", seed=2, **options)
    assert len(first) == 4 and len({tuple(drawn[:4]) for drawn in first}) == 4


def test_a_resumed_run_draws_what_the_uninterrupted_one_drew(inputs, rows, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_only_model": False}
    trainer = make_trainer(inputs, rows, tmp_path, **options)
    whole = spied(trainer)
    trainer.train()
    again = make_trainer(inputs, rows, tmp_path, **options)
    resumed = spied(again)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert [found for _, found in resumed.calls] == [found for _, found in whole.calls[2:]]
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_a_small_memorisation_task_is_learnt(inputs, rows, tmp_path):
    """Two prompts with one target each: the share of hits among independent draws rises from chance to certainty."""
    task = rows.select([0, 20])
    trainer = make_trainer(
        inputs, task, tmp_path, "stream", num_generations=8, max_steps=20, learning_rate=2e-2,
        per_device_train_batch_size=16, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    probe = GroupRollout(trainer.rollout_func.trie, [], "independent", seed=5)
    trainer.num_generations = 32
    found = probe([task[0]["prompt"]] * 32 + [task[1]["prompt"]] * 32, trainer)
    hits = [np.mean([item == task[side]["target"] for item in found["drawn"][32 * side :][:32]]) for side in (0, 1)]
    assert min(hits) > 0.8
    logged = [entry["group_hit_rate"] for entry in trainer.state.log_history if "group_hit_rate" in entry]
    assert np.mean(logged[-6:]) > np.mean(logged[:6])


def test_evaluation_takes_prompts_in_any_order(inputs, rows, tmp_path):
    trainer = make_trainer(inputs, rows, tmp_path)
    trainer.model.eval()
    prompts = [rows[i]["prompt"] for i in (0, 9, 0, 17, 9, 0, 17)]
    found = trainer.rollout_func(prompts, trainer)
    assert not trainer.model.training
    for number in range(3):
        members = [i for i, row in enumerate((0, 9, 0, 17, 9, 0, 17)) if row == (0, 9, 17)[number]]
        assert len({found["group"][i] for i in members}) == 1
        assert len({found["drawn"][i] for i in members}) == len(members)
        assert {tuple(found["prompt_ids"][i]) for i in members} == {tuple(found["prompt_ids"][members[0]])}
    assert len(set(found["group"])) == 3


def test_the_mass_is_recorded_for_a_few_groups(inputs, rows, tmp_path):
    trainer = make_trainer(inputs, rows, tmp_path)
    found = trainer.rollout_func([rows[i // 4]["prompt"] for i in range(28)], trainer)
    recorded = [bool(np.isfinite(allowed).all()) for allowed in found["allowed"]]
    assert recorded == [True] * 16 + [False] * 12
    assert all(len(set(found["drawn"][start : start + 4])) == 4 for start in range(0, 28, 4))


def test_trls_own_evaluation_loop_works(inputs, rows, tmp_path):
    trainer = make_trainer(
        inputs, rows, tmp_path, per_device_eval_batch_size=8, num_generations_eval=2
    )  # fmt: skip
    trainer.eval_dataset = rows.select(range(5))
    found = trainer.evaluate()
    assert math.isfinite(found["eval_loss"]) and found["eval_group_duplicates"] == 0


def test_groups_of_prompts_by_hand():
    assert group_prompts(["a", "a", "b", "b"], 2, strict=True) == [[0, 1], [2, 3]]
    assert group_prompts(["a", "a", "a", "a"], 2, strict=True) == [[0, 1], [2, 3]], "one prompt twice: two groups"
    assert group_prompts(["a", "b", "a"], 2, strict=False) == [[1], [0, 2]]
    for broken in (["a", "b", "a", "b"], ["a", "a", "b"], ["a", "b", "b", "a"]):
        with pytest.raises(RuntimeError, match="num_generations=2"):
            group_prompts(broken, 2, strict=True)


def settings(**changes):
    from trl import GRPOConfig

    return GRPOConfig(output_dir="unused", **{**SETTINGS, **changes})


def test_a_group_that_would_straddle_processes_is_refused():
    check_settings(settings(), Groups(), 30)
    args = settings()
    # What two processes with 2 completions each would come to: TRL's own check sees the 4 of both.
    args.per_device_train_batch_size, args.steps_per_generation = 2, 1
    with pytest.raises(ValueError, match=r"per_device_train_batch_size=2 x steps_per_generation=1 = 2 .*"
                                         r"num_generations=4 .* multiple of 4"):  # fmt: skip
        check_settings(args, Groups(), 30)
    args.steps_per_generation = 2
    check_settings(args, Groups(), 30)


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        ({"num_generations": 8}, Groups(), "catalogue has 7 sids"),
        ({"top_p": 0.9}, Groups(), "top_p: 0.9 has no effect"),
        ({"top_k": 5}, Groups(), "top_k: 5 has no effect"),
        ({"min_p": 0.1}, Groups(), "min_p"),
        ({"repetition_penalty": 1.1}, Groups(), "repetition_penalty"),
        ({"off_policy_mask_threshold": 0.5}, Groups(), "off_policy_mask_threshold"),
        ({}, Groups("independent", True), "independent answers weigh the same"),
        ({"temperature": 0.7}, Groups(inclusion_weights=True), "temperature: 0.7"),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_refused(changes, groups, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings(**changes), groups, 7)


@pytest.mark.parametrize("weights", [{}, {"exact": 0.0}, {"exact": 1.0, "rank": -1.0}])
def test_weights_must_reward_something(inputs, rows, tmp_path, weights):
    with pytest.raises(ValueError, match="weights of at least 0"):
        make_trainer(inputs, rows, tmp_path, weights=weights)


def test_an_unknown_draw_is_refused(inputs, rows, tmp_path):
    with pytest.raises(ValueError, match="draw must be one of"):
        make_trainer(inputs, rows, tmp_path, groups=Groups("beam"))


def test_truncation_masking_needs_an_end(inputs, rows, tmp_path):
    make_trainer(inputs, rows, tmp_path, "lean", mask_truncated_completions=True)
    with pytest.raises(ValueError, match="mask every answer"):
        make_trainer(inputs, rows, tmp_path, "stream", mask_truncated_completions=True)


def test_the_end_is_read_from_the_template(inputs):
    stream, lean = (AutoTokenizer.from_pretrained(inputs / name) for name in ("stream", "lean"))
    assert answer_end(stream, TABLE.text(3)) == []
    assert answer_end(lean, TABLE.text(3)) == [lean.eos_token_id]
    lean.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(ValueError, match="does not write the answer"):
        answer_end(lean, TABLE.text(3))


def test_inclusion_weights_reach_the_loss(inputs, rows, tmp_path):
    from recllm.training.recommender_trainer import InclusionWeightedTrainer, weighted_advantages

    trainer = make_trainer(inputs, rows, tmp_path, groups=Groups(inclusion_weights=True))
    assert type(trainer) is InclusionWeightedTrainer
    trainer.model.train()
    batch = [dict(rows[i // 4]) for i in range(8)]
    spy = spied(trainer)
    output = trainer._generate_and_score_completions(batch)
    plain = torch.tensor(list(trainer._logs["advantages"]))
    found = spy.calls[0][1]
    for start in (0, 4):
        ratio = torch.tensor(found["logp"][start : start + 4]).exp() / torch.tensor(
            found["inclusion"][start : start + 4]
        )
        weights = 4 * ratio / ratio.sum()
        centred = plain[start : start + 4] - (weights * plain[start : start + 4]).mean()
        torch.testing.assert_close(output["advantages"][start : start + 4], weights * centred, rtol=1e-4, atol=1e-5)
    trainer.train()
    with pytest.raises(RuntimeError, match="advantages of shape"):
        weighted_advantages(torch.zeros(8, 3), batch)


def test_another_trl_is_refused():
    from recllm.training.recommender_trainer import check_override

    check_override()

    class Moved:
        def _generate_and_score_completions(self, inputs, model):
            pass

    for other in (Moved, type("Gone", (), {})):
        with pytest.raises(RuntimeError, match=r"inclusion_weights overrides .* trl>=1\.16,<1\.17"):
            check_override(other)


def test_rollout_functions_are_called_as_trl_documents(inputs, rows, tmp_path):
    assert list(inspect.signature(GroupRollout.__call__).parameters) == ["self", "prompts", "trainer"]


def test_alarms_say_it_once(caplog):
    alarm, state = Alarm(ZERO_VARIANCE, OUTSIDE), SimpleNamespace(global_step=3)
    for _ in range(3):
        alarm.on_log(None, state, None, logs={"frac_reward_zero_std": 0.9, "allowed_mass": 0.2})
    alarm.on_log(None, state, None, logs={"frac_reward_zero_std": 0.5, "allowed_mass": 0.9})
    alarm.on_log(None, state, None, logs={"frac_reward_zero_std": None})
    assert alarm.raised == {"zero_variance": 3, "outside": 3}
    assert len(caplog.records) == 2 and "90% of the groups" in caplog.text and "0.20 only" in caplog.text


def pairs(examples) -> set[tuple[int, int]]:
    return set(zip(examples.user_E.tolist(), examples.position_E.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["leave_one_out", "roles"])
def test_prompts_hold_no_target_of_validation_test_or_half_b(kind):
    sequences = make_split_sequences()
    split = make_split(sequences, kind)
    held_out = pairs(split.validation) | pairs(split.test)
    if kind == "roles":
        held_out |= pairs(split.routing("B"))
        assert pairs(split.routing("A")) == pairs(prompt_examples(split, "last"))
    for source in ("last", "all"):
        found = prompt_examples(split, source)
        assert len(pairs(found)) == len(found) > 0 and not pairs(found) & held_out
        assert found.position_E.min() >= 1
    fitting = {(u, p) for u, length in enumerate(split.fit_length_U) for p in range(1, length)}
    extra = pairs(split.routing("A")) if kind == "roles" else set()
    assert pairs(prompt_examples(split, "all")) == fitting | extra
    if kind == "leave_one_out":
        assert pairs(prompt_examples(split, "last")) == {(u, n - 1) for u, n in enumerate(split.fit_length_U) if n > 1}


def make_split_sequences():
    from recllm.data.interactions import Sequences

    return Sequences.from_lists([*worlds.histories(), [1], [2, 3], [4, 5, 6], []])


def test_rows_carry_their_own_target(inputs):
    from recllm.data.interactions import Sequences

    # Two users with one history and different targets: a lookup by prompt would give both the same.
    split = make_split(Sequences.from_lists([[1, 2, 3, 8, 9], [1, 2, 4, 8, 9]]), "leave_one_out")
    found = prompt_rows(prompt_examples(split, "last"), TABLE)
    assert found["target"] == [3, 4] and found[0]["prompt"] == found[1]["prompt"]
    assert found[0]["prompt"][0]["content"].endswith(TABLE.text(1) + TABLE.text(2))
    examples = prompt_examples(load_split(inputs / "dataset"), "all")
    kept = prompt_rows(examples, TABLE, limit=7, seed=3)
    assert len(kept) == 7 and kept.to_list() == prompt_rows(examples, TABLE, limit=7, seed=3).to_list()
    assert kept["user"] == sorted(kept["user"]) and kept["target"] != prompt_rows(examples, TABLE, 7, seed=4)["target"]
    with pytest.raises(ValueError, match="last or all"):
        prompt_examples(split, "first")
    with pytest.raises(ValueError, match="do not belong together"):
        prompt_rows(examples, worlds.make_table(items=10))
    with pytest.raises(ValueError, match="at least 1"):
        prompt_rows(examples, TABLE, limit=0)


def test_graded_users_are_not_those_that_weights_are_chosen_by(inputs):
    everyone = load_split(inputs / "dataset").validation
    watch = SimpleNamespace(examples=everyone.subset(np.arange(10)))
    found = graded_examples(inputs / "dataset", 8, [watch])
    assert len(found) == 8 and not set(found.user_E.tolist()) & set(range(10))
    assert len(graded_examples(inputs / "dataset", 20, [watch])) == 20, "too few others: all compete"
    assert len(graded_examples(inputs / "dataset", None, [watch])) == len(everyone)


def test_the_gain_is_paired():
    before = np.array([0.0, 1.0, 0.5, 0.0])
    found = gain_metrics(before, before + 0.25)
    assert found["validation/gain_ndcg@10"] == found["validation/gain_ndcg@10_lo"] == pytest.approx(0.25)
    assert found["validation/after_ndcg@10"] - found["validation/before_ndcg@10"] == pytest.approx(0.25)
    assert found["validation/graded_users"] == 4


def test_the_recipe_delivers(inputs, tmp_path):
    from recllm.training.arguments import parse

    scope = runpy.run_path(str(ROOT / "recipes" / "grpo_recommender.py"))
    config = ROOT / "recipes" / "configs" / "grpo_recommender" / "smoke.yaml"
    argv = ["--config", str(config), f"--model_name_or_path={inputs / 'stream'}", f"--dataset={inputs / 'dataset'}"]
    argv += [f"--output_dir={tmp_path}", "--validation_steps=1", "--validation_users=6", "--use_cpu=true"]
    scope["main"](*parse(scope["Arguments"], *scope["TRL_CONFIGS"], argv=argv))
    for name in ("model.safetensors", "tokenizer.json", "README.md", "curves.png", "run.json", "sid_table"):
        assert (tmp_path / name).exists(), name
    assert not list(tmp_path.glob("checkpoint-*"))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["steps"] == 2 and found["group_duplicates/last"] == 0
    low, mean, high = (found[f"validation/gain_ndcg@10{end}"] for end in ("_lo", "", "_hi"))
    assert low <= mean <= high
    assert found["validation/after_ndcg@10"] - found["validation/before_ndcg@10"] == pytest.approx(mean)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.sid_table_hash == TABLE.hash
