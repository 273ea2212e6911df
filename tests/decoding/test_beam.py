import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from recllm.decoding.beam import beam_items
from recllm.decoding.trie import ROOT, SidTrie

VOCABULARY = 60
FAMILIES = ("qwen3", "llama")


def make_model(family: str, seed: int = 0, tied: bool = True) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        # Wide weights, so that the scores of items differ clearly.
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
    }
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=4, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def make_trie(levels: int, items: int, seed: int = 0) -> tuple[SidTrie, list[tuple[int, ...]]]:
    """`items` random sids of `levels` codes; level l uses token ids from 20 + 8 l, in shuffled order of items.

    Low codes are drawn far more often, so that some prefixes have many children and some have one.
    """
    rng = np.random.default_rng(seed)
    sids: dict[tuple[int, ...], None] = {}
    while len(sids) < items:
        codes = np.minimum(rng.geometric(0.3, size=levels) - 1, 7)
        sids[tuple(int(20 + 8 * level + code) for level, code in enumerate(codes))] = None
    return SidTrie.from_sequences([np.array(sid) for sid in sids]), list(sids)


@torch.no_grad()
def grow(model, sids, prompt: list[int], live: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Every prefix of `live` by one code more: log-probabilities renormalised over the codes that may follow it.

    All of one length, so one forward without cache, mask or padding.
    """
    logits = model(torch.tensor([[*prompt, *prefix] for prefix in live])).logits[:, -1]
    grown = {}
    for logits_V, (prefix, score) in zip(logits, live.items(), strict=True):
        allowed = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
        steps = logits_V[allowed].log_softmax(0).tolist()
        grown |= {(*prefix, code): score + step for code, step in zip(allowed, steps, strict=True)}
    return grown


def textbook_beam(model, sids, prompt: list[int], beams: int) -> list[tuple[int, float]]:
    """(item, score) pairs, best first."""
    live = {(): 0.0}
    for _ in range(len(sids[0])):
        grown = grow(model, sids, prompt, live)
        live = dict(sorted(grown.items(), key=lambda pair: -pair[1])[:beams])
    return [(sids.index(sid), score) for sid, score in live.items()]


def every_item(model, sids, prompt: list[int]) -> list[float]:
    """Score of every item."""
    live = {(): 0.0}
    for _ in range(len(sids[0])):
        live = grow(model, sids, prompt, live)
    return [live[sid] for sid in sids]


def prompt_batch(seed: int, rows: int = 3, longest: int = 7) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    """Prompts of unequal length over text and sid tokens, and the left-padded batch of them."""
    rng = np.random.default_rng(seed)
    lengths = [longest, 1, *rng.integers(1, longest, size=rows)][:rows]
    prompts = [rng.integers(1, VOCABULARY, size=length).tolist() for length in lengths]
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return prompts, ids_BT, mask_BT


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_of_all_items_scores_every_item(family, levels):
    items = 6 if levels == 1 else 25
    model = make_model(family, seed=levels, tied=levels % 2 == 0)
    trie, sids = make_trie(levels, items, seed=levels)
    prompts, ids_BT, mask_BT = prompt_batch(levels)
    items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, items)
    assert items_BK.shape == scores_BK.shape == (3, items) and items_BK.dtype == torch.int64
    for row, prompt in enumerate(prompts):
        expected = every_item(model, sids, prompt)
        assert sorted(items_BK[row].tolist()) == list(range(items))
        found = scores_BK[row].tolist()
        assert found == sorted(found, reverse=True)
        assert found == pytest.approx([expected[item] for item in items_BK[row].tolist()], abs=1e-5)
        assert sum(np.exp(expected)) == pytest.approx(1.0), "the trie's items share all the probability"


@pytest.mark.parametrize(("levels", "beams"), [(2, 1), (2, 4), (3, 1), (3, 3), (3, 10), (4, 2), (4, 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrow_beam_is_the_textbook_one(family, levels, beams):
    model = make_model(family, seed=beams)
    trie, sids = make_trie(levels, 40, seed=beams)
    prompts, ids_BT, mask_BT = prompt_batch(beams)
    items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, beams)
    for row, prompt in enumerate(prompts):
        expected = textbook_beam(model, sids, prompt, beams)
        assert items_BK[row].tolist() == [item for item, _ in expected]
        assert scores_BK[row].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_is_its_prompts_one_by_one(family):
    model = make_model(family)
    trie, _ = make_trie(3, 40)
    prompts, ids_BT, mask_BT = prompt_batch(5, rows=6)
    items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, 8)
    for row, prompt in enumerate(prompts):
        alone = torch.tensor([prompt])
        items_1K, scores_1K = beam_items(model, alone, torch.ones_like(alone), trie, 8)
        assert torch.equal(items_1K[0], items_BK[row])
        torch.testing.assert_close(scores_1K[0], scores_BK[row], rtol=0, atol=1e-5)
    other = torch.where(mask_BT == 0, 33, ids_BT)
    assert torch.equal(beam_items(model, other, mask_BT, trie, 8)[1], scores_BK), "what fills the padding is not read"


def test_every_answer_is_an_item_of_the_catalogue():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels, items, beams = int(rng.integers(2, 5)), int(rng.integers(1, 60)), int(rng.integers(1, 20))
        model = make_model(FAMILIES[seed % 2], seed)
        trie, sids = make_trie(levels, min(items, 8**levels), seed)
        _, ids_BT, mask_BT = prompt_batch(seed)
        items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, beams)
        for row in items_BK.tolist():
            reached = [item for item in row if item >= 0]
            assert len(reached) == len(set(reached)) == min(beams, len(sids)), "as many items as asked for, each once"
        assert torch.equal(items_BK < 0, scores_BK.isneginf())
        assert not scores_BK.isnan().any() and (scores_BK <= 1e-6).all()


def test_a_catalogue_smaller_than_the_beam_is_padded():
    model = make_model("qwen3")
    trie, sids = make_trie(3, 5)
    prompts, ids_BT, mask_BT = prompt_batch(0)
    items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, 12)
    assert items_BK.shape == scores_BK.shape == (3, 12), "K columns, whatever the catalogue holds"
    assert (items_BK[:, 5:] == -1).all() and scores_BK[:, 5:].isneginf().all()
    for row, prompt in enumerate(prompts):
        expected = every_item(model, sids, prompt)
        assert items_BK[row, :5].tolist() == sorted(range(5), key=lambda item: -expected[item])


def test_unequal_numbers_of_children():
    # One first code leads to a single item, the other to many: its beams outnumber those of the first.
    sids = [(20, 28, 36), *((21, 28 + code, 36 + last) for code in range(6) for last in range(code + 1))]
    trie = SidTrie.from_sequences([np.array(sid) for sid in sids])
    assert trie.children(ROOT).tolist() == [20, 21]
    for family in FAMILIES:
        model = make_model(family, seed=3)
        prompts, ids_BT, mask_BT = prompt_batch(3, rows=5)
        for beams in (2, 5, len(sids)):
            items_BK, scores_BK = beam_items(model, ids_BT, mask_BT, trie, beams)
            for row, prompt in enumerate(prompts):
                expected = textbook_beam(model, sids, prompt, beams)
                assert items_BK[row].tolist() == [item for item, _ in expected]
                assert scores_BK[row].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


def test_weights_and_training_state_are_left_alone():
    model = make_model("llama")
    trie, _ = make_trie(2, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, ids_BT, mask_BT = prompt_batch(1)
    scores_BK = beam_items(model, ids_BT, mask_BT, trie, 4)[1]
    assert not scores_BK.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
