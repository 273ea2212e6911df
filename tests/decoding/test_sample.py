"""Draws from the trie: distributions against enumeration, no item twice, what is recorded against plain forwards."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from recllm.decoding.sample import sample_items
from recllm.decoding.trie import SidTrie


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def small(worlds):
    """A model and five items behind one first code and another, whose probabilities differ clearly."""
    sids = [(20, 28), (20, 29), (20, 30), (21, 28), (21, 31)]
    model = worlds.make_model("qwen3", seed=5)
    return model, SidTrie.from_sequences([np.array(sid) for sid in sids]), sids


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_draw_without_replacement_has_its_distribution(small, temperature):
    """Ordered pairs against P(i) P(j) / (1 - P(i)), over 4,000 draws."""
    model, trie, sids = small
    prompt = [3, 4, 5]
    p = tempered(model, sids, prompt, temperature)
    assert p.max() < 0.9, "a distribution worth testing"
    draws = 4000
    found = sample_items(model, [prompt] * draws, trie, 2, temperature=temperature, generator=seeded(0)).items_BK
    counts = {}
    for pair in map(tuple, found.tolist()):
        counts[pair] = counts.get(pair, 0) + 1
    for first, second in permutations(range(5), 2):
        expected = p[first] * p[second] / (1 - p[first])
        noise = 4.5 * math.sqrt(expected * (1 - expected) / draws) + 1e-3
        assert counts.get((first, second), 0) / draws == pytest.approx(expected, abs=noise)


def tempered(model, sids, prompt, temperature) -> np.ndarray:
    """Probability of each item where every level's logits are divided by the temperature."""
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1]
        second = {a: model(torch.tensor([[*prompt, a]])).logits[0, -1] for a in {sid[0] for sid in sids}}
    starts = sorted(second)
    p_first = dict(zip(starts, (first[starts] / temperature).softmax(0).tolist(), strict=True))
    p = []
    for a, b in sids:
        allowed = sorted(sid[1] for sid in sids if sid[0] == a)
        p_second = (second[a][allowed] / temperature).softmax(0).tolist()
        p.append(p_first[a] * p_second[allowed.index(b)])
    return np.array(p)


def test_independent_draws_have_theirs(small):
    model, trie, sids = small
    p = tempered(model, sids, [3, 4, 5], 1.0)
    found = sample_items(model, [[3, 4, 5]] * 500, trie, 8, replacement=True, generator=seeded(1))
    share = np.bincount(found.items_BK.flatten().numpy(), minlength=5) / 4000
    assert share == pytest.approx(p, abs=0.035)
    assert (found.inclusion_BK == 1).all()
    rows = [len(set(row)) for row in found.items_BK.tolist()]
    assert min(rows) < 8, "eight draws of five items repeat"
    pairs = found.items_BK[:, :2].numpy()
    assert np.mean(pairs[:, 0] == pairs[:, 1]) == pytest.approx((p**2).sum(), abs=0.08), (
        "members do not copy each other"
    )


def test_no_item_comes_twice_and_all_are_valid(worlds):
    for seed in range(10):
        levels, count = 2 + seed % 3, 1 + seed
        model = worlds.make_model(("qwen3", "llama")[seed % 2], seed)
        trie, sids = worlds.make_trie(levels, 40, seed)
        found = sample_items(model, worlds.prompt_batch(seed, rows=4), trie, count, generator=seeded(seed))
        for row, tokens in zip(found.items_BK.tolist(), found.tokens_BKL.tolist(), strict=True):
            assert len(set(row)) == count
            assert [tuple(sid) for sid in tokens] == [sids[item] for item in row]


def test_all_items_can_be_drawn(small):
    model, trie, _ = small
    found = sample_items(model, [[1], [2, 3]], trie, 5, generator=seeded(0))
    assert [sorted(row) for row in found.items_BK.tolist()] == [[0, 1, 2, 3, 4]] * 2
    assert found.inclusion_BK.tolist() == [[1.0] * 5] * 2
    with pytest.raises(ValueError, match="6 different items are asked for, and the catalogue has 5"):
        sample_items(model, [[1]], trie, 6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_recorded_is_the_models_own(worlds, temperature):
    """Log-probabilities at temperature 1 and the mass on allowed tokens, whatever the temperature of the draw."""
    model = worlds.make_model("llama", seed=7)
    trie, sids = worlds.make_trie(3, 30, seed=7)
    prompts = worlds.prompt_batch(7)
    found = sample_items(model, prompts, trie, 6, temperature=temperature, generator=seeded(2))
    for row, prompt in enumerate(prompts):
        scores = worlds.every_item(model, sids, prompt)
        items = found.items_BK[row].tolist()
        assert found.logp_BKL[row].sum(1).tolist() == pytest.approx([scores[item] for item in items], abs=1e-4)
        for member, item in enumerate(items):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sids[item]]])).logits[0, len(prompt) - 1 : -1]
            for level in range(3):
                allowed = sorted({sid[level] for sid in sids if sid[:level] == sids[item][:level]})
                mass = float(logits[level].softmax(0)[allowed].sum())
                assert math.exp(found.allowed_BKL[row, member, level]) == pytest.approx(mass, abs=1e-5)
    lean = sample_items(model, prompts, trie, 6, temperature=temperature, generator=seeded(2), with_mass=False)
    assert torch.equal(lean.items_BK, found.items_BK) and lean.allowed_BKL.isnan().all()
    assert found.allowed_BKL.exp().max() < 1 and worlds.VOCABULARY > 24


def test_inclusion_weights_make_sums_unbiased(small):
    """sum over the draw of p f / inclusion estimates sum of p f (Horvitz-Thompson, equation 7 of the paper)."""
    model, trie, sids = small
    prompt, value = [9, 1], np.array([1.0, -2.0, 0.5, 3.0, 0.0])
    p = tempered(model, sids, prompt, 1.0)
    found = sample_items(model, [prompt] * 4000, trie, 2, generator=seeded(3))
    items = found.items_BK.numpy()
    assert ((found.inclusion_BK > 0) & (found.inclusion_BK <= 1)).all()
    estimates = (p[items] * value[items] / found.inclusion_BK.numpy()).sum(1)
    error = 4.5 * estimates.std() / math.sqrt(len(estimates))
    assert estimates.mean() == pytest.approx((p * value).sum(), abs=error)
    plain = (p[items] * value[items]).sum(1).mean()
    assert abs(plain - (p * value).sum()) > error, "without the weights the estimate is off"


def test_a_seed_is_a_draw(worlds):
    model = worlds.make_model("qwen3")
    trie, _ = worlds.make_trie(3, 40)
    prompts = worlds.prompt_batch(3)
    for replacement in (False, True):
        one, two, other = (
            sample_items(model, prompts, trie, 5, replacement=replacement, generator=seeded(seed)).items_BK
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, two) and not torch.equal(one, other)
