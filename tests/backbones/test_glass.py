import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recllm.backbones.generate import recommend, score_items, trie_of
from recllm.backbones.glass import GLASS, normalised
from recllm.backbones.glass_tier import cosines, nearest_codes, prototypes, tiers_of
from recllm.backbones.tiger import FIRST_CODE, TIGER
from recllm.data.histories import Prefixes
from recllm.data.long_history import LongHistory

worlds = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("generative_worlds.py"))))
ITEMS, SHAPE, SIZES, item_scores = worlds.ITEMS, worlds.SHAPE, worlds.SIZES, worlds.item_scores
make_glass, make_table, make_vectors = worlds.make_glass, worlds.make_table, worlds.make_vectors
random_histories = worlds.random_histories

pytestmark = pytest.mark.usefixtures("one_thread")
OFF = {"tier": False, "retrieval": False}


def pair(seed: int = 0, **parts) -> tuple[TIGER, GLASS]:
    """TIGER and GLASS with fresh weights of one seed."""
    table = make_table()
    torch.manual_seed(seed)
    tiger = TIGER.of_table(table, max_len=4, user_tokens=3, **SHAPE)
    torch.manual_seed(seed)
    options = {"short_len": 4, "user_tokens": 3, "retrieved": 5, "neighbours": 1, "threshold": 2} | SHAPE | parts
    return tiger, GLASS.of_table(table, make_vectors(), **options)


def test_without_its_parts_it_is_tiger_bit_for_bit_through_training():
    tiger, glass = pair(**OFF)
    histories = random_histories()
    names = [name.removeprefix("tiger.") for name, _ in glass.named_parameters()]
    assert names == [name for name, _ in tiger.named_parameters()]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (tiger, glass)]
    for step in range(3):
        losses = []
        for model, optimizer in zip((tiger, glass), optimizers, strict=True):
            torch.manual_seed(step)  # dropout
            loss = model.train().loss(*model.collate(histories))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == losses[1]
    for mine, theirs in zip(glass.parameters(), tiger.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(score_items(glass.eval().writing(histories)), score_items(tiger.eval().writing(histories)))


@pytest.mark.parametrize("gate", ["code", "paper"])
def test_a_closed_gate_is_tiger_bit_for_bit(gate):
    tiger, glass = pair(tier=False, gate=gate)
    tiger.eval(), glass.eval()
    histories = random_histories()
    for fusion in glass.fusions:
        fusion.gate.bias.data.fill_(-1e9)
    assert torch.equal(score_items(glass.writing(histories)), score_items(tiger.writing(histories)))
    mine, theirs = glass.logits(*glass.collate(histories)), tiger.logits(*tiger.collate(histories))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for fusion in glass.fusions:
        fusion.gate.bias.data.fill_(0.0)
    assert not torch.equal(score_items(glass.writing(histories)), score_items(tiger.writing(histories)))


@pytest.mark.parametrize("gate", ["code", "paper", "half"])
def test_first_code_logits_never_see_what_was_retrieved(gate):
    glass, histories = make_glass(gate=gate), random_histories((12, 20, 40))
    batch = glass.collate(histories)
    before = glass.logits(*batch)
    for items_Bn in (torch.full_like(batch[-1], -1), (batch[-1] + 7) % ITEMS):
        after = glass.logits(*batch[:-1], items_Bn)
        assert torch.equal(after[0], before[0])
        for level in (1, 2):
            assert (after[level] - before[level]).abs().max() > 1e-4


def test_attention_to_the_bag_is_attention_to_the_list_of_codes():
    glass, histories = make_glass(), random_histories((12, 20, 40))
    fusion = glass.fusions[0]
    items_BGn = torch.tensor([[[3, 5, 3, -1]], [[7, 3, 5, 9]], [[1, -1, -1, -1]]])
    normed_BGSD, read_BGSD = torch.randn(2, 3, 1, 2, 12, generator=torch.Generator().manual_seed(0))
    fused_BGSD = glass.fuses(items_BGn, first_closed=False)[0](normed_BGSD, read_BGSD)
    for row in range(3):
        listed = [item for item in items_BGn[row, 0].tolist() if item >= 0]
        codes_M = glass.token_NL[torch.tensor(listed) + 1].flatten()
        memory_MD = glass.projector(glass.tiger.embedding(codes_M))
        keys_MF, values_MF = fusion.attention.key(memory_MD), fusion.attention.value(memory_MD)
        for step in range(2):
            query_F = fusion.attention.query(normed_BGSD[row, 0, step])
            heads = []
            for head in range(2):
                part = slice(6 * head, 6 * head + 6)
                weight_M = torch.softmax(keys_MF[:, part] @ query_F[part], 0)
                heads.append(weight_M @ values_MF[:, part])
            found_D = fusion.attention.out(torch.cat(heads))
            gate_D = torch.sigmoid(fusion.gate(torch.cat([normed_BGSD[row, 0, step], found_D])))
            expected_D = (1 - gate_D) * read_BGSD[row, 0, step] + gate_D * found_D
            torch.testing.assert_close(fused_BGSD[row, 0, step], expected_D, atol=1e-5, rtol=1e-5)
    assert len(histories) == 3


def test_the_two_gates_and_the_half_by_hand():
    for gate, beside in [("code", 0), ("paper", 1), ("half", None)]:
        glass = make_glass(gate=gate)
        states = torch.randn(2, 1, 1, 1, 12, generator=torch.Generator().manual_seed(0))
        fuse = glass.fuses(torch.tensor([[[2, 4]]]), first_closed=False)[1]
        fused, fusion = fuse(*states), glass.fusions[1]
        found = fused_without_gate(glass, states)
        gate_D = 0.5 if beside is None else torch.sigmoid(fusion.gate(torch.cat([states[beside], found], -1)))
        torch.testing.assert_close(fused, (1 - gate_D) * states[1] + gate_D * found, atol=1e-5, rtol=1e-5)
        empty = glass.fuses(torch.tensor([[[-1, -1]]]), first_closed=False)[1](*states)
        assert torch.equal(empty, states[1]), "nothing retrieved, nothing mixed in"
    with pytest.raises(ValueError, match="gate must be one of code, paper, half"):
        make_glass(gate="none")


def fused_without_gate(glass: GLASS, states: torch.Tensor) -> torch.Tensor:
    """What the second layer's attention finds: Z = (Z_s + Z_r) / 2 solved for Z_r."""
    fusion = glass.fusions[1]
    kind, gate = fusion.kind, fusion.gate
    fusion.kind, fusion.gate = "half", None
    fused = glass.fuses(torch.tensor([[[2, 4]]]), first_closed=False)[1](*states)
    fusion.kind, fusion.gate = kind, gate
    return 2 * fused - states[1]


@pytest.mark.parametrize("options", [{}, {"tier": False}, {"neighbours": 0}, {"gate": "paper"}, {"retrieval": False}])
def test_every_score_is_the_brute_force_one(options):
    """Brute force retrieves for each item's own first code: so every beam has read its own code's history."""
    table, histories = make_table(), random_histories()
    glass = make_glass(table, **options)
    scores_BN = score_items(glass.writing(histories)).numpy()
    np.testing.assert_allclose(scores_BN, item_scores(glass, histories, table), atol=1e-4)
    wide_BT = torch.from_numpy(histories.padded())
    np.testing.assert_allclose(glass.score(wide_BT).numpy(), scores_BN, atol=1e-5)


def test_a_beam_reads_its_own_codes_history_and_no_other():
    """Changing the long-part items of one first code moves the later codes' scores of that code's items alone."""
    table = make_table()
    glass = make_glass(table, tier=False, neighbours=0)
    rng, first_N = np.random.default_rng(0), table.codes_NL[:, 0]
    code = int(np.bincount(first_N).argmax())
    long, short = rng.integers(0, ITEMS, size=60), rng.integers(0, ITEMS, size=4)
    changed = np.where(first_N[long] == code, np.flatnonzero(first_N == code)[0], long)
    both = Prefixes.of_lists([np.append(long, short), np.append(changed, short)])
    scores_BN = score_items(glass.writing(both))
    difference_N = (scores_BN[0] - scores_BN[1]).abs().numpy()
    assert difference_N[first_N == code].min() > 1e-4 and difference_N[first_N != code].max() < 1e-5


def test_neighbours_fill_up_below_the_threshold_only():
    table = make_table()
    histories = random_histories((12, 25, 60))
    alone = make_glass(table, tier=False, neighbours=0)
    filled = make_glass(table, tier=False, neighbours=2, threshold=4)
    first_N = table.codes_NL[:, 0]
    moved_BN = (score_items(alone.writing(histories)) - score_items(filled.writing(histories))).abs()
    for row, scores_N in enumerate(moved_BN):
        long = histories.before_last(4).subset(np.array([row]))
        count_K = np.bincount(first_N[long.flat()[0]], minlength=SIZES[0])
        few = count_K[first_N] < 4
        assert scores_N.numpy()[~few].max(initial=0) == 0
        if few.any():
            assert scores_N.numpy()[few].max() > 1e-5


def test_retrieved_embeddings_take_no_gradient():
    glass, histories = make_glass(tier=False), random_histories((20, 40))
    glass.requires_grad_(False)
    glass.tiger.embedding.weight.requires_grad_(True)
    items_B1n = torch.tensor([[[2, 4]], [[5, -1]]])
    for fuse in glass.fuses(items_B1n, first_closed=False):
        states = torch.ones(2, 1, 1, 12), torch.ones(2, 1, 1, 12)
        assert not fuse(*states).requires_grad
    batch = glass.collate(histories)
    glass.loss(*batch).backward()
    assert glass.tiger.embedding.weight.grad.abs().sum() > 0


def test_tiers_and_prototypes_by_hand():
    vectors_ND = np.array([[1, 0], [3, 0], [0, 2], [-1, 0.05]], dtype=np.float32)
    code_N = np.array([0, 0, 1, 1])
    prototype_KD = prototypes(vectors_ND, code_N, 3)
    np.testing.assert_allclose(prototype_KD, [[2, 0], [-0.5, 1.025], [0.75, 0.5125]], atol=1e-6)
    tiers = tiers_of(vectors_ND, prototype_KD)
    assert tiers.count == 4
    # Item 2 is at a right angle to code 0: cosine 0 opens the third tier, as a half-open histogram has it.
    assert tiers.tier_NK[:, 0].tolist() == [3, 3, 2, 0] and tiers.tier_NK[:, 1].tolist() == [0, 0, 3, 3]
    edges = np.array([-1.0, -0.1, 0.0, 0.1, 1.0])
    many_ND = make_vectors(200)
    centre_KD = make_vectors(6, seed=1)
    like_NK, tier_NK = cosines(many_ND, centre_KD), tiers_of(many_ND, centre_KD).tier_NK
    for code in range(6):
        expected, _ = np.histogram(like_NK[:, code], bins=edges)
        assert np.bincount(tier_NK[:, code], minlength=4).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="3 item vectors for 4 items"):
        prototypes(vectors_ND[:3], code_N, 3)


def test_nearest_codes_by_hand():
    centre_KD = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32)
    assert nearest_codes(centre_KD, np.array([0, 1, 2, 3]), 2).tolist() == [[1, 3], [0, 3], [3, 1], [2, 1]]
    # A code that no item has is nobody's neighbour, and still has neighbours itself.
    assert nearest_codes(centre_KD, np.array([0, 2, 3]), 1).tolist() == [[3], [0], [3], [2]]
    with pytest.raises(ValueError, match=r"3 neighbours .* 2 other codes"):
        nearest_codes(centre_KD, np.array([0, 2, 3]), 3)


def test_sid_tier_is_the_share_of_long_part_items_and_serves_the_first_code():
    table, histories = make_table(), random_histories((3, 4, 9, 30))
    glass = make_glass(table)
    tier_BX = glass.collate(histories)[3].numpy().reshape(4, SIZES[0], 4)
    vectors_ND = make_vectors() - make_vectors().mean(0)
    like_NK = cosines(vectors_ND, prototypes(vectors_ND, table.codes_NL[:, 0], SIZES[0]))
    for row, length in enumerate(histories.length_B):
        begin = histories.start_B[row]
        long = histories.items_M[begin : begin + max(length - 4, 0)]
        for code in range(SIZES[0]):
            counts, _ = np.histogram(like_NK[long, code], bins=[-1, -0.1, 0, 0.1, 1])
            np.testing.assert_allclose(tier_BX[row, code], counts / max(len(long), 1), atol=1e-6)
    batch = list(glass.collate(histories))
    before = glass.logits(*batch)[0]
    batch[3] = batch[3].roll(1, 0)
    assert (glass.logits(*batch)[0] - before).abs().max() > 1e-4
    assert normalised(np.zeros((1, 2, 4), dtype=int), np.array([0])).tolist() == [[0.0] * 8]


def test_a_direction_that_all_vectors_share_moves_no_tier_and_one_full_tier_is_told(caplog):
    """Text vectors share one: with it every cosine would be high and the histogram empty of news."""
    table, shifted_ND = make_table(), make_vectors() + 20 * np.eye(7, dtype=np.float32)[0]
    plain, shifted = (GLASS.of_table(table, vectors_ND, short_len=4) for vectors_ND in (make_vectors(), shifted_ND))
    assert (plain.tier_NK != shifted.tier_NK).float().mean() < 0.01, "but for rounding"
    assert torch.equal(plain.neighbour_KJ, shifted.neighbour_KJ)
    shares = np.bincount(plain.tier_NK.numpy().reshape(-1), minlength=4) / plain.tier_NK.numel()
    assert shares.max() < 0.5 and not caplog.records
    tiers_of(shifted_ND, prototypes(shifted_ND, table.codes_NL[:, 0], SIZES[0]))
    assert "100% of all cosines fall into one tier" in caplog.text


def test_answers_of_a_kept_index_after_appends_are_those_of_the_whole_history():
    glass, histories = make_glass(), random_histories((9, 33))
    whole = [histories.items_M[s : s + n] for s, n in zip(histories.start_B, histories.length_B, strict=True)]
    begun = Prefixes.of_lists([items[:6] for items in whole])
    index = LongHistory(begun, glass.code_N, SIZES[0], 4, glass.tiers)
    for user, items in enumerate(whole):
        for item in items[6:].tolist():
            index.append(user, item)
    kept = score_items(glass.answer(index, np.array([1, 0]), histories.user_B[::-1].copy()))
    torch.testing.assert_close(kept.flip(0), score_items(glass.writing(histories)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(3, 8, 8), (8, 3, 3), (6, 2, 2, 2)])
def test_a_resized_codebook_just_works(sizes):
    table, histories = make_table(20, sizes), random_histories((2, 9), items=20)
    glass = make_glass(table)
    np.testing.assert_allclose(
        score_items(glass.writing(histories)).numpy(), item_scores(glass, histories, table), atol=1e-4
    )


def test_every_parameter_learns():
    glass, histories = make_glass().train(), random_histories((12, 30, 40))
    optimizer = torch.optim.AdamW(glass.parameters(), lr=1e-2, weight_decay=0)
    before = {name: parameter.detach().clone() for name, parameter in glass.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        glass.loss(*glass.collate(histories)).backward()
        optimizer.step()
    assert [name for name, parameter in glass.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize("options", [{}, {"tier": False}, {"retrieval": False}, OFF])
def test_a_saved_model_loads_as_the_same_model(tmp_path, options):
    glass, histories = make_glass(**options), random_histories()
    glass.save_pretrained(tmp_path)
    again = GLASS.from_pretrained(str(tmp_path)).eval()
    assert torch.equal(score_items(again.writing(histories)), score_items(glass.writing(histories)))
    assert (again.max_len, again.short_len, again.num_items) == (1050, 4, ITEMS)
    if "retrieval" not in options:
        assert again.search.neighbour_KJ.tolist() == glass.search.neighbour_KJ.tolist()


def test_cost_is_that_of_the_short_part():
    glass = make_glass()
    assert glass.flops(10) == glass.flops(100_000) > glass.tiger.flops(10)
    assert make_glass(**OFF).flops(10) == glass.tiger.flops(10)


def test_narrow_beams_answer_with_items_only():
    table, histories = make_table(), random_histories()
    glass = make_glass(table)
    items_BK, scores_BK = recommend(glass.writing(histories), trie_of(glass.token_NL), 5, beams=6)
    assert (items_BK >= 0).all() and (scores_BK.diff(dim=1) <= 0).all()
    exact_BN = item_scores(glass, histories, table)
    np.testing.assert_allclose(scores_BK.numpy(), np.take_along_axis(exact_BN, items_BK.numpy(), 1), atol=1e-4)
    assert (glass.token_NL[1:, 0] - FIRST_CODE).tolist() == glass.code_N.tolist()


def test_parts_that_need_vectors_say_so():
    with pytest.raises(ValueError, match="need the item vectors"):
        GLASS.of_table(make_table(), None, **SHAPE)
    GLASS.of_table(make_table(), None, tier=False, neighbours=0, **SHAPE)
    with pytest.raises(ValueError, match="threshold must lie between 0 and the 5 items"):
        GLASS.of_table(make_table(), make_vectors(), retrieved=5, threshold=6, **SHAPE)
