import numpy as np
import pytest
import torch

from recllm.decoding.beam import recommend_by_beam
from recllm.decoding.trie import ROOT, SidTrie

FAMILIES = ("qwen3", "llama")


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_of_all_items_scores_every_item(worlds, family, levels):
    items = 6 if levels == 1 else 25
    model = worlds.make_model(family, seed=levels, tied=levels % 2 == 0)
    trie, sids = worlds.make_trie(levels, items, seed=levels)
    prompts = worlds.prompt_batch(levels)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, items)
    assert items_BK.shape == scores_BK.shape == (3, items) and items_BK.dtype == torch.int64
    for row, prompt in enumerate(prompts):
        expected = worlds.every_item(model, sids, prompt)
        assert sorted(items_BK[row].tolist()) == list(range(items))
        found = scores_BK[row].tolist()
        assert found == sorted(found, reverse=True)
        assert found == pytest.approx([expected[item] for item in items_BK[row].tolist()], abs=1e-5)
        assert sum(np.exp(expected)) == pytest.approx(1.0), "the trie's items share all the probability"


@pytest.mark.parametrize(("levels", "beams"), [(2, 1), (2, 4), (3, 1), (3, 3), (3, 10), (4, 2), (4, 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrow_beam_is_the_textbook_one(worlds, family, levels, beams):
    model = worlds.make_model(family, seed=beams)
    trie, sids = worlds.make_trie(levels, 40, seed=beams)
    prompts = worlds.prompt_batch(beams)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, beams)
    for row, prompt in enumerate(prompts):
        expected = worlds.textbook_beam(model, sids, prompt, beams)
        assert items_BK[row].tolist() == [item for item, _ in expected]
        assert scores_BK[row].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_prompts_one_by_one(worlds, family):
    model = worlds.make_model(family)
    trie, _ = worlds.make_trie(3, 40)
    prompts = worlds.prompt_batch(5, rows=6)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, 8)
    for row, prompt in enumerate(prompts):
        items_1K, scores_1K = worlds.beam_items(model, [prompt], trie, 8)
        assert torch.equal(items_1K[0], items_BK[row])
        torch.testing.assert_close(scores_1K[0], scores_BK[row], rtol=0, atol=1e-5)
    few = worlds.beam_items(model, prompts, trie, 8, batch_size=2)
    assert torch.equal(few[0], items_BK), "how prompts are put in batches is nobody's business"


def test_every_answer_is_an_item_of_the_catalogue(worlds):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels, items, beams = int(rng.integers(2, 5)), int(rng.integers(1, 60)), int(rng.integers(1, 20))
        model = worlds.make_model(FAMILIES[seed % 2], seed)
        trie, sids = worlds.make_trie(levels, min(items, 8**levels), seed)
        prompts = worlds.prompt_batch(seed)
        items_BK, scores_BK = worlds.beam_items(model, prompts, trie, beams)
        for row in items_BK.tolist():
            reached = [item for item in row if item >= 0]
            assert len(reached) == len(set(reached)) == min(beams, len(sids)), "as many items as asked for, each once"
        assert torch.equal(items_BK < 0, scores_BK.isneginf())
        assert not scores_BK.isnan().any() and (scores_BK <= 1e-6).all()


def test_a_catalogue_smaller_than_the_beam_is_padded(worlds):
    model = worlds.make_model("qwen3")
    trie, sids = worlds.make_trie(3, 5)
    prompts = worlds.prompt_batch(0)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, 12)
    assert items_BK.shape == scores_BK.shape == (3, 12), "K columns, whatever the catalogue holds"
    assert (items_BK[:, 5:] == -1).all() and scores_BK[:, 5:].isneginf().all()
    for row, prompt in enumerate(prompts):
        expected = worlds.every_item(model, sids, prompt)
        assert items_BK[row, :5].tolist() == sorted(range(5), key=lambda item: -expected[item])


def test_unequal_numbers_of_children(worlds):
    # One first code leads to a single item, the other to many: its beams outnumber those of the first.
    sids = [(20, 28, 36), *((21, 28 + code, 36 + last) for code in range(6) for last in range(code + 1))]
    trie = SidTrie.from_sequences([np.array(sid) for sid in sids])
    assert trie.children(ROOT).tolist() == [20, 21]
    for family in FAMILIES:
        model = worlds.make_model(family, seed=3)
        prompts = worlds.prompt_batch(3, rows=5)
        for beams in (2, 5, len(sids)):
            items_BK, scores_BK = worlds.beam_items(model, prompts, trie, beams)
            for row, prompt in enumerate(prompts):
                expected = worlds.textbook_beam(model, sids, prompt, beams)
                assert items_BK[row].tolist() == [item for item, _ in expected]
                assert scores_BK[row].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


def test_weights_and_training_state_are_left_alone(worlds):
    model = worlds.make_model("llama")
    trie, _ = worlds.make_trie(2, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prompts = worlds.prompt_batch(1)
    scores_BK = worlds.beam_items(model, prompts, trie, 4)[1]
    assert not scores_BK.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def score_by_hand(model, sid, prompt: list[int], over) -> float:
    """Summed log-probabilities of one sid's tokens, each normalised over the tokens that `over(level)` names."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sid]])).logits[0, len(prompt) - 1 :]
    return sum(float(logits[level, token] - logits[level, over(level)].logsumexp(0)) for level, token in enumerate(sid))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_normalisation_is_the_one_it_is_named_after(worlds, family):
    model = worlds.make_model(family, seed=4)
    trie, sids = worlds.make_trie(3, 30, seed=4)
    used = [sorted({sid[level] for sid in sids}) for level in range(3)]
    spaces = {"level": lambda level: used[level], "full_vocab": lambda level: list(range(worlds.VOCABULARY))}
    prompts = worlds.prompt_batch(4)
    for normalisation, over in spaces.items():
        items_BK, scores_BK = recommend_by_beam(model, prompts, trie, 30, normalisation=normalisation)
        for row, prompt in enumerate(prompts):
            expected = [score_by_hand(model, sids[item], prompt, over) for item in items_BK[row].tolist()]
            assert scores_BK[row].tolist() == pytest.approx(expected, abs=1e-4)
    by_default = recommend_by_beam(model, prompts, trie, 30)
    assert torch.equal(by_default[1], recommend_by_beam(model, prompts, trie, 30, normalisation="level")[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 4, 9])
def test_full_vocab_is_beam_search_under_a_prefix_constraint(worlds, family, beams):
    """The same sids in the same order, with the same scores, as `generate` with its own constraint, end included."""
    model, end = worlds.make_model(family, seed=beams), 2
    trie, sids = worlds.make_trie(3, 40, seed=beams)

    def allowed(length: int):
        def tokens(_, ids):
            node = trie.walk(ids[length:].tolist())
            return trie.children(node).tolist() or [end]

        return tokens

    prompts = worlds.prompt_batch(beams, rows=4)
    items_BK, scores_BK = recommend_by_beam(model, prompts, trie, beams, normalisation="full_vocab", eos_token_id=end)
    for row, prompt in enumerate(prompts):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=4,
            eos_token_id=end,
            pad_token_id=0,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=allowed(len(prompt)),
            return_dict_in_generate=True,
            output_scores=True,
        )
        theirs = [sids.index(tuple(ids[len(prompt) : len(prompt) + 3].tolist())) for ids in out.sequences]
        assert items_BK[row].tolist() == theirs
        if beams > 1:
            assert scores_BK[row].tolist() == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_excluded_items_take_no_place(worlds, family):
    model = worlds.make_model(family, seed=6)
    trie, _sids = worlds.make_trie(3, 30, seed=6)
    prompts = worlds.prompt_batch(6)
    everything = worlds.beam_items(model, prompts, trie, 30)[0]
    seen = [row[:7].numpy() for row in everything]
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, 30, exclude=seen)
    for row in range(len(prompts)):
        assert items_BK[row, :23].tolist() == everything[row, 7:].tolist()
        assert (items_BK[row, 23:] == -1).all() and scores_BK[row, 23:].isneginf().all()
    # A narrow beam spends its last level on what may be answered.
    few = worlds.beam_items(model, prompts, trie, 2, beams=30, exclude=seen)[0]
    assert few.tolist() == everything[:, 7:9].tolist()
    assert worlds.beam_items(model, prompts, trie, 4, exclude=[np.array([], dtype=int)] * 3)[0].tolist() == (
        worlds.beam_items(model, prompts, trie, 4)[0].tolist()
    )


def test_items_behind_one_sid_come_by_priority_with_its_score(worlds):
    sids = [(20, 28), (20, 29), (20, 28), (21, 30), (20, 28), (20, 29)]
    trie = SidTrie.from_sequences(
        [np.array(sid) for sid in sids], shared=True, priority_N=np.array([1.0, 5.0, 7.0, 0.0, 1.0, 5.0])
    )
    behind = {(20, 28): [2, 0, 4], (20, 29): [1, 5], (21, 30): [3]}
    model = worlds.make_model("qwen3", seed=1)
    prompts = worlds.prompt_batch(1)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, 6, beams=6)
    alone = SidTrie.from_sequences([np.array(sid) for sid in behind])
    for row, prompt in enumerate(prompts):
        order, scores = worlds.beam_items(model, [prompt], alone, 3)
        expected = [item for place in order[0].tolist() for item in list(behind.values())[place]]
        assert items_BK[row].tolist() == expected
        assert scores_BK[row].tolist() == pytest.approx(
            [
                float(score)
                for place, score in zip(order[0].tolist(), scores[0], strict=True)
                for _ in list(behind.values())[place]
            ],
            abs=1e-5,
        )
    left = worlds.beam_items(model, prompts, trie, 6, beams=6, exclude=[np.array([2, 1, 5])] * 3)[0]
    assert all(
        [item for item in row if item >= 0] == [i for i in all_ if i not in (2, 1, 5)]
        for row, all_ in zip(left.tolist(), items_BK.tolist(), strict=True)
    )


def test_bfloat16_ranks_as_its_own_full_forward(worlds):
    model = worlds.make_model("llama", seed=2).to(torch.bfloat16)
    trie, sids = worlds.make_trie(3, 25, seed=2)
    prompts = worlds.prompt_batch(2)
    items_BK, scores_BK = worlds.beam_items(model, prompts, trie, 25)
    for row, prompt in enumerate(prompts):
        expected = worlds.every_item(model.float(), sids, prompt)
        model.to(torch.bfloat16)
        assert scores_BK[row].tolist() == pytest.approx([expected[item] for item in items_BK[row].tolist()], abs=0.15)


def test_what_cannot_be_searched_is_refused(worlds):
    model = worlds.make_model("qwen3")
    trie, _ = worlds.make_trie(2, 6)
    ragged = SidTrie.from_sequences([np.array([20]), np.array([21, 28])])
    cases = [
        ("different lengths", {"trie": ragged}, [[1]]),
        ("at least one token", {}, [[1], []]),
        ("k must be", {"k": 0}, [[1]]),
        ("normalisation must be one of", {"normalisation": "softmax"}, [[1]]),
        ("belongs to normalisation", {"eos_token_id": 2}, [[1]]),
    ]
    for message, changed, prompts in cases:
        options = {"trie": trie, "k": 2} | changed
        with pytest.raises(ValueError, match=message):
            recommend_by_beam(model, prompts, options.pop("trie"), options.pop("k"), **options)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        recommend_by_beam(model, [[1]], trie, 2)


def test_the_cache_is_written_in_place(worlds):
    """No key or value moves once it is written: the views of all levels share one storage."""
    from recllm.decoding.shared import SharedPrompt

    model = worlds.make_model("llama")
    with torch.no_grad():
        shared = SharedPrompt(model, worlds.prompt_batch(1), room=8)
        before = [buffer.data_ptr() for layer in shared.cache.layers for buffer in layer._buffers]
        first = torch.tensor([[20, 21]] * 3)
        shared.extend(first, torch.zeros_like(first))
        mark, keys = shared.mark(), shared.cache.layers[0].keys.clone()
        again = shared.extend(torch.tensor([[28, 29]] * 3), first - 20)
        shared.rewind(mark)
        assert torch.equal(shared.cache.layers[0]._buffers[0][:, :, : keys.shape[2]], keys)
        torch.testing.assert_close(shared.extend(torch.tensor([[28, 29]] * 3), first - 20), again)
        after = [buffer.data_ptr() for layer in shared.cache.layers for buffer in layer._buffers]
    assert before == after
