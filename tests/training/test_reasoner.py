"""GRPO for the reasoner on TRL's own trainer: what is drawn, what the loss sees of it, and that it learns."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recllm.data.catalog import Catalog
from recllm.data.interactions import Sequences
from recllm.data.prompts import THINK_CLOSE, reasoner_prompt
from recllm.data.splits import Examples, load_split, make_split
from recllm.recommender.hard import hard_examples
from recllm.recommender.prompts import prompt_examples, prompt_rows
from recllm.tools.answer import ToolAnswer
from recllm.training.reasoner import build_reasoner_trainer
from recllm.training.reasoner_rollout import draw_thoughts, read_thought

ROOT = Path(__file__).resolve().parents[2]
_FILE = ROOT / "tests" / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = worlds.make_table()
SETTINGS = worlds.GRPO_SETTINGS
WEIGHTS = {"valid": 0.1, "prefix": 1.0, "natural": 0.05, "category": 0.2, "rollout_beam": 0.5}
THINK = 5

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    worlds.write_dataset(root / "dataset")
    worlds.save_model(root / "lean", TABLE, template="lean")
    return root


@pytest.fixture(scope="module")
def rows(inputs):
    return prompt_rows(prompt_examples(load_split(inputs / "dataset"), "all"), TABLE, prompt=reasoner_prompt)


def make_trainer(inputs, rows, tmp_path, weights=WEIGHTS, **changes):
    from trl import GRPOConfig, ModelConfig

    args = GRPOConfig(output_dir=str(tmp_path / "out"), **{**SETTINGS, **changes})
    model_args = ModelConfig(model_name_or_path=str(inputs / "lean"))
    catalog = Catalog.load(inputs / "dataset")
    return build_reasoner_trainer(rows, catalog, TABLE, args, model_args, weights, THINK)


def test_two_steps_draw_a_thought_and_one_item_each_and_move_every_weight(inputs, rows, tmp_path):
    trainer = make_trainer(inputs, rows, tmp_path)
    # Under Qwen3's template this would write an empty thought for a model that is to think.
    assert "enable_thinking" not in trainer.chat_template_kwargs
    calls, inner = [], trainer.rollout_func
    trainer.rollout_func = lambda prompts, trainer: calls.append((prompts, inner(prompts, trainer))) or calls[-1][1]
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    tokenizer = trainer.processing_class
    close, eos = tokenizer.convert_tokens_to_ids(THINK_CLOSE), tokenizer.eos_token_id
    sids = {TABLE.text(item): item for item in range(len(TABLE))}
    assert len(calls) == 2
    for prompts, found in calls:
        assert all(prompts[i] == prompts[i - i % 4] for i in range(8))
        for i, ids in enumerate(found["completion_ids"]):
            thought, sid, end = ids[: -TABLE.levels - 1], ids[-TABLE.levels - 1 : -1], ids[-1]
            assert thought[-1] == close and close not in thought[:-1] and len(thought) <= THINK + 1
            assert found["thought_tokens"][i] == len(thought) and end == eos
            assert sids[tokenizer.decode(sid)] == found["drawn"][i]
            mask = [1] * (len(thought) - 1) + [int(found["closed"][i])] + [1] * TABLE.levels + [0]
            assert found["env_mask"][i] == mask and len(found["logprobs"][i]) == len(mask)
            rendered = tokenizer.apply_chat_template([prompts[i]], add_generation_prompt=True, return_dict=False)[0]
            assert found["prompt_ids"][i] == rendered
        assert len({tuple(ids) for ids in found["completion_ids"][:4]}) > 1, "members of a group differ"
    # A random model writes no thought between markers, so nothing was rewarded and only the KL could move it.
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 2 and all(0 <= entry["rewards/valid/mean"] <= 1 for entry in logged)
    assert set(before) == {name for name, _ in trainer.model.named_parameters()}


def test_a_reward_on_the_answer_moves_every_weight(inputs, rows, tmp_path):
    trainer = make_trainer(inputs, rows, tmp_path)
    trainer.reward_funcs[0] = lambda drawn, **columns: [float(item % 2) for item in drawn]
    trainer.reward_func_names[0] = "odd"
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    stuck = [name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])]
    assert stuck == []


def test_thoughts_follow_the_models_distribution(inputs):
    """The first token of many thoughts after one prompt against its probabilities."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "lean")
    model = AutoModelForCausalLM.from_pretrained(inputs / "lean").eval()
    prompt = tokenizer("a history of things", add_special_tokens=False)["input_ids"]
    torch.manual_seed(0)
    thoughts = draw_thoughts(model, tokenizer, [prompt] * 4000, 1, temperature=0.5)
    with torch.no_grad():
        logits_V = model(torch.tensor([prompt])).logits[0, -1].float() / 0.5
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(THINK_CLOSE)}
    top = [token for token in logits_V.topk(8).indices.tolist() if token not in ends][:5]
    drawn = [thought.tokens[0] for thought in thoughts]
    for token in top:
        share = float(logits_V.softmax(-1)[token])
        assert drawn.count(token) / 4000 == pytest.approx(share, abs=4 * np.sqrt(share / 4000))


@pytest.mark.parametrize(
    ("ids", "tokens", "closed"),
    [
        ([5, 6, 9, 7], [5, 6, 9], True),
        ([9, 5], [9], True),
        ([5, 6, 7], [5, 6, 7, 9], False),
        ([5, 1, 6, 9], [5, 9], False),
        ([0, 0], [9], False),
        ([], [9], False),
    ],
)
def test_where_a_thought_ends(ids, tokens, closed):
    found = read_thought(ids, close=9, ends={0, 1})
    assert (found.tokens, found.closed) == (tokens, closed)


class Fixed:
    """A retriever whose lists hold every second target at place 49, the others nowhere."""

    def answer(self, examples: Examples, k: int) -> ToolAnswer:
        items_EK = np.full((len(examples), k), -1, dtype=np.int32)
        items_EK[::2, 49] = examples.targets_E[::2]
        return ToolAnswer(items_EK, np.zeros(items_EK.shape, np.float32), np.ones(len(examples), np.int64))


def test_hard_samples_are_the_misses_of_half_a():
    histories = [[(7 * u + i) % 50 for i in range(8)] for u in range(40)]
    split = make_split(Sequences.from_lists(histories), "roles")
    hard, every = hard_examples(split, Fixed()), split.routing("A")
    assert list(zip(hard.user_E, hard.position_E, strict=True)) == [
        (every.user_E[e], every.position_E[e]) for e in range(1, len(every), 2)
    ]
    assert set(split.half_U[hard.user_E]) == {0}
    with pytest.raises(ValueError, match="roles"):
        hard_examples(make_split(Sequences.from_lists(histories), "leave_one_out"), Fixed())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"weights": {"prefix": 0.1, "category": 0.2}}, "outscore a hit"), ({"top_k": 5}, "top_k")],
)
def test_settings_that_train_on_something_else_are_refused(inputs, rows, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(inputs, rows, tmp_path, **changes)
