"""The beam after each thought: by hand with a beam of ours, and with a model's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recllm.recommender.rollout_beam import RolloutBeam, best_match, thought_of
from recllm.sid.table import SidTable

_FILE = Path(__file__).parents[1] / "evaluation" / "recommender_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="recommender_worlds"))
TABLE = SidTable(np.array([[0, 0, 0], [0, 1, 2], [1, 1, 2], [1, 0, 0], [2, 1, 0]]), (3, 2, 3))


def test_best_match_by_hand():
    # Levels count one by one, not as a prefix: 2 has the last two codes of 1.
    assert best_match(TABLE, np.array([2]), 1) == pytest.approx(2 / 3)
    assert best_match(TABLE, np.array([3, 0]), 1) == pytest.approx(1 / 3)
    assert best_match(TABLE, np.array([3, 1, 0]), 1) == 1
    assert best_match(TABLE, np.array([3]), 1) == 0
    assert best_match(TABLE, np.array([-1, -1]), 1) == 0
    assert best_match(TABLE, np.array([3, -1]), 4) == pytest.approx(1 / 3), "-1 is not the last item"


def test_what_counts_as_a_thought():
    assert thought_of("user", "<think>war</think><a_0>") == "<think>war</think>"
    assert thought_of("user <think>\n", "war</think><a_0>") == "war</think>", "the template opened it"
    for text in ("<a_0>", "", "war</think><a_0>", "<think>war", "<think></think><a_0>", "<think>\n\n</think>\n<a_0>"):
        assert thought_of("user", text) is None


@pytest.fixture(scope="module")
def speaker():
    return worlds.make_model(worlds.make_table())


def test_contexts_are_prompt_and_thought_and_rows_stay_apart(speaker):
    _, tokenizer = speaker
    seen = []

    def recommend(contexts):
        seen.extend(contexts)
        return np.array([[3, 0], [1, 4]])

    prompts = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    texts = ["<think>war</think>" + TABLE.text(0), TABLE.text(1), "<think>peace</think>nonsense"]
    reward = RolloutBeam(tokenizer, TABLE, recommend)
    ids = [tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"] for text in texts]
    found = reward(prompts=prompts, completion_ids=ids, completions=None, target=[1, 1, 1], tool=["x"] * 3)
    assert found == [pytest.approx(1 / 3), None, 1.0]
    assert [tokenizer.decode(context) for context in seen] == [
        f"<|im_start|>user\n{name}<|im_end|>\n<|im_start|>assistant\n<think>{thought}</think>"
        for name, thought in (("one", "war"), ("three", "peace"))
    ]


def test_no_thought_asks_for_no_beam(speaker):
    def recommend(contexts):
        raise AssertionError("no context")

    prompt = [{"role": "user", "content": "one"}]
    ids = [speaker[1](TABLE.text(0), add_special_tokens=False)["input_ids"]]
    assert RolloutBeam(speaker[1], TABLE, recommend)(prompts=[prompt], completion_ids=ids, target=[0]) == [None]


def test_a_models_own_beam_depends_on_the_thought_and_leaves_its_mode(speaker):
    model, tokenizer = speaker
    table = worlds.make_table()
    model.train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    reward = RolloutBeam.over(model, tokenizer, table, beams=3)
    contexts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("war</think>", "zebra</think>")]
    items_BK = reward.recommend(contexts)
    assert items_BK.shape == (2, 3) and (items_BK[0] != items_BK[1]).any()
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    prompt = [{"role": "user", "content": "one"}]
    ids = [tokenizer(f"<think>{word}</think>", add_special_tokens=False)["input_ids"] for word in ("war", "zebra")]
    found = [reward(prompts=[prompt] * 2, completion_ids=ids, target=[target] * 2) for target in range(6)]
    assert all(0 <= value <= 1 for pair in found for value in pair) and any(one != other for one, other in found)
    model.eval()
