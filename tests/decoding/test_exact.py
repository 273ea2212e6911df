"""Exact scores against one plain forward an item, and against a beam as wide as the catalogue."""

import numpy as np
import pytest
import torch

import recllm.decoding.exact as exact
from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.trie import SidTrie

FAMILIES = ("qwen3", "llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_every_item_gets_the_score_of_a_plain_forward(worlds, family, levels, monkeypatch):
    # Chunks that cut through the levels, so that what was rewound is really gone.
    monkeypatch.setattr(exact, "_CHUNK", 3)
    model = worlds.make_model(family, seed=levels)
    trie, sids = worlds.make_trie(levels, 7 if levels == 1 else 30, seed=levels)
    prompts = worlds.prompt_batch(levels, rows=5)
    scores_BN = exact.score_items(model, prompts, trie, normalisation="trie", batch_size=2)
    for row, prompt in enumerate(prompts):
        assert scores_BN[row].tolist() == pytest.approx(worlds.every_item(model, sids, prompt), abs=1e-4)


@pytest.mark.parametrize("normalisation", ["trie", "level", "full_vocab"])
def test_a_beam_over_all_items_agrees(worlds, normalisation):
    model = worlds.make_model("qwen3", seed=9)
    trie, _ = worlds.make_trie(3, 40, seed=9)
    prompts = worlds.prompt_batch(9)
    scores_BN = exact.score_items(model, prompts, trie, normalisation=normalisation)
    items_BK, scores_BK = recommend_by_beam(model, prompts, trie, 40, normalisation=normalisation)
    torch.testing.assert_close(scores_BN.gather(1, items_BK), scores_BK, atol=1e-4, rtol=0)


def test_items_behind_one_sid_share_its_score(worlds):
    sids = [(20, 28), (20, 29), (20, 28), (21, 30)]
    trie = SidTrie.from_sequences([np.array(sid) for sid in sids], shared=True)
    scores_BN = exact.score_items(worlds.make_model("llama"), worlds.prompt_batch(0), trie, normalisation="trie")
    assert torch.equal(scores_BN[:, 0], scores_BN[:, 2]) and not torch.equal(scores_BN[:, 0], scores_BN[:, 1])
    assert scores_BN[:, [0, 1, 3]].exp().sum(1).tolist() == pytest.approx([1.0] * 3)
