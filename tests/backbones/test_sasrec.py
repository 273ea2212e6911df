import json
import re

import numpy as np
import pytest
import torch

from recllm.backbones.base import last_position, matmul_parameters
from recllm.backbones.sasrec import SASRec

ITEMS = 11


def make(seed: int = 0, **changed) -> SASRec:
    torch.manual_seed(seed)
    options = {"max_len": 7, "hidden_dim": 12, "num_blocks": 2, "num_heads": 3, "dropout": 0.3} | changed
    return SASRec(ITEMS, **options)


def random_histories(seed: int, rows: int = 6, width: int = 7) -> torch.Tensor:
    """Left-aligned histories of 1 to `width` items."""
    generator = torch.Generator().manual_seed(seed)
    history_BT = torch.randint(1, ITEMS + 1, (rows, width), generator=generator)
    length_B = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return history_BT * (torch.arange(width)[None] < length_B)


@pytest.mark.parametrize("seed", range(3))
def test_later_items_never_change_earlier_states(seed):
    model = make(seed).eval()
    history_BT = torch.randint(1, ITEMS + 1, (4, 7), generator=torch.Generator().manual_seed(seed))
    before_BTD = model(history_BT)
    for place in range(7):
        changed_BT = history_BT.clone()
        changed_BT[:, place:] = changed_BT[:, place:] % ITEMS + 1
        after_BTD = model(changed_BT)
        torch.testing.assert_close(after_BTD[:, :place], before_BTD[:, :place])
        assert (after_BTD[:, place] - before_BTD[:, place]).abs().amax(1).min() > 1e-4, "the item itself must count"


def test_every_earlier_item_and_its_place_count():
    model = make(num_blocks=1).eval()  # two causal blocks would tell places apart without any embedding of them
    history_BT = torch.tensor([[1, 2, 3, 4, 5]])
    last_D = model(history_BT)[0, -1]
    for place in range(4):
        changed_BT = history_BT.clone()
        changed_BT[0, place] = 9
        assert (model(changed_BT)[0, -1] - last_D).abs().max() > 1e-5
    assert (model(history_BT[:, [1, 0, 2, 3, 4]])[0, -1] - last_D).abs().max() > 1e-5


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_padding_after_the_end_never_changes_scores(tie_embeddings):
    model = make(tie_embeddings=tie_embeddings).eval()
    history_BT = random_histories(1)
    scores_BN = model.score(history_BT)
    assert scores_BN.shape == (6, ITEMS)
    for row_T, scores_N in zip(history_BT, scores_BN, strict=True):
        alone = model.score(row_T[row_T > 0][None])
        torch.testing.assert_close(alone[0], scores_N)
        hidden_D = model(row_T[row_T > 0][None])[0, -1]
        torch.testing.assert_close(scores_N, model.item_vectors() @ hidden_D)


def test_last_position_of_left_aligned_histories():
    assert last_position(torch.tensor([[4, 2, 0], [1, 0, 0], [7, 7, 7], [0, 0, 0]])).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_saved_model_loads_as_the_same_model(tmp_path, tie_embeddings):
    model = make(tie_embeddings=tie_embeddings).eval()
    model.save_pretrained(tmp_path)
    again = SASRec.from_pretrained(str(tmp_path)).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    history_BT = random_histories(2)
    assert torch.equal(again.score(history_BT), model.score(history_BT))
    assert (again.max_len, again.num_items) == (7, ITEMS)


def test_flops_by_hand():
    model = SASRec(num_items=10, max_len=5, hidden_dim=4, num_blocks=2, num_heads=2)
    # A block multiplies each token with qkv 4 x 12, out 4 x 4, up 4 x 16 and down 16 x 4.
    block = 48 + 16 + 64 + 64
    assert matmul_parameters(model.blocks) == 2 * block
    table = 2 * 10 * 4
    for length, tokens in [(3, 3), (0, 1), (1, 1), (5, 5), (99, 5)]:
        # Queries times keys, then weights times values: 2 x tokens x tokens x width each, in two blocks.
        attention = 2 * (2 * tokens * tokens * 4 + 2 * tokens * tokens * 4)
        assert model.flops(length) == 2 * 2 * block * tokens + attention + table
    assert SASRec(10, 5, 4, 2, 2, tie_embeddings=False).flops(3) == model.flops(3)


def log_softmax(logits: list[float]) -> list[float]:
    total = np.log(np.sum(np.exp(np.array(logits) - max(logits)))) + max(logits)
    return [logit - total for logit in logits]


def targets_of(history_BT: torch.Tensor) -> torch.Tensor:
    target_BT = (history_BT * 3 + 1) % ITEMS + 1
    target_BT[0] = 0  # a row without any target
    return target_BT * (history_BT > 0)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_full_cross_entropy_is_the_brute_force_mean(tie_embeddings):
    model = make(tie_embeddings=tie_embeddings).eval()
    history_BT = random_histories(4)
    target_BT = targets_of(history_BT)
    vectors_ND, hidden_BTD = model.item_vectors().detach().numpy(), model(history_BT).detach().numpy()
    losses = [
        -log_softmax([float(hidden_BTD[row, place] @ vector_D) for vector_D in vectors_ND])[target - 1]
        for row, targets in enumerate(target_BT.tolist())
        for place, target in enumerate(targets)
        if target
    ]
    assert model.loss(history_BT, target_BT).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("num_negatives", [1, 4, 30])
def test_sampled_loss_by_hand(num_negatives, monkeypatch):
    model = make().eval()
    history_BT = random_histories(5)
    target_BT = targets_of(history_BT)
    drawn = []
    randint = torch.randint

    def remember(*args, **kwargs):
        drawn.append(randint(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", remember)
    torch.manual_seed(7)
    loss = model.loss(history_BT, target_BT, num_negatives).item()
    (negative_S,) = drawn
    assert len(negative_S) == num_negatives and negative_S.min() >= 0 and negative_S.max() < ITEMS
    if num_negatives == 30:
        assert set((target_BT[target_BT > 0] - 1).tolist()) & set(negative_S.tolist()), "some negative is a target"
    vectors_ND, hidden_BTD = model.item_vectors().detach().numpy(), model(history_BT).detach().numpy()
    losses = []
    for row, targets in enumerate(target_BT.tolist()):
        for place, target in enumerate(targets):
            if target:
                others = [item for item in negative_S.tolist() if item != target - 1]
                logits = [float(hidden_BTD[row, place] @ vectors_ND[item]) for item in [target - 1, *others]]
                losses.append(-log_softmax(logits)[0])
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_padding_gets_no_gradient_and_the_last_items_row_does():
    model = make()
    history_BT, target_BT = torch.tensor([[1, 2, 0]]), torch.tensor([[2, ITEMS, 0]])
    model.loss(history_BT, target_BT).backward()
    gradient_ND = model.item_embedding.weight.grad
    assert gradient_ND[0].abs().max() == 0
    assert gradient_ND[ITEMS].abs().max() > 0


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"hidden_dim 10 .* num_heads 3"):
        SASRec(ITEMS, hidden_dim=10, num_heads=3)
    with pytest.raises(ValueError, match="history of 8 items is longer than max_len 7"):
        make()(torch.ones(1, 8, dtype=torch.long))


OPTIONS = [
    {"ffn": "swiglu"},
    {"position": "relative_bias"},
    {"position": "rope"},
    {"position": "none"},
    {"position": "learned+relative_bias+rope"},
    {"pooling": "mean"},
    {"pooling": "last_k_mean", "pool_k": 2},
    {"share_blocks": True},
    {"l2_norm": True, "temperature": 0.1},
    {"tie_embeddings": False},
]


def warmed(**changed) -> SASRec:
    """A model whose zero-initialised biases have left zero."""
    model = make(**changed).eval()
    with torch.no_grad():
        for block in model.blocks:
            if block.bias is not None:
                block.bias.weight.copy_(
                    torch.randn(block.bias.weight.shape, generator=torch.Generator().manual_seed(1))
                )
    return model


@pytest.mark.parametrize("changed", OPTIONS, ids=str)
def test_every_option_stays_causal_and_blind_to_padding(changed):
    model = warmed(**changed)
    history_BT = torch.randint(1, ITEMS + 1, (4, 6), generator=torch.Generator().manual_seed(0))
    before_BTD = model(history_BT)
    for place in range(1, 6):
        changed_BT = history_BT.clone()
        changed_BT[:, place:] = changed_BT[:, place:] % ITEMS + 1
        torch.testing.assert_close(model(changed_BT)[:, :place], before_BTD[:, :place])
        assert (model(changed_BT)[:, place] - before_BTD[:, place]).abs().max() > 1e-4
    mixed_BT = random_histories(1)
    for row_T, scores_N in zip(mixed_BT, model.score(mixed_BT), strict=True):
        torch.testing.assert_close(model.score(row_T[row_T > 0][None])[0], scores_N)


@pytest.mark.parametrize("changed", OPTIONS, ids=str)
def test_every_option_changes_scores_and_survives_saving(changed, tmp_path):
    model, plain = warmed(**changed), make().eval()
    shared = {name: tensor for name, tensor in plain.state_dict().items() if name in model.state_dict()}
    shared = {name: tensor for name, tensor in shared.items() if tensor.shape == model.state_dict()[name].shape}
    model.load_state_dict(shared, strict=False)
    history_BT = random_histories(2)
    scores_BN = model.score(history_BT)
    assert (scores_BN - plain.score(history_BT)).abs().max() > 1e-3, "same weights, other network"
    model.save_pretrained(tmp_path)
    assert torch.equal(SASRec.from_pretrained(str(tmp_path)).eval().score(history_BT), scores_BN)


def test_a_config_from_before_the_options_loads_as_the_same_network(tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    old = ("num_items", "max_len", "hidden_dim", "num_blocks", "num_heads", "dropout", "tie_embeddings")
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) > set(old)
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in old}))
    history_BT = random_histories(3)
    assert torch.equal(SASRec.from_pretrained(str(tmp_path)).eval().score(history_BT), model.score(history_BT))


def test_a_shared_block_is_one_block_applied_again():
    shared, apart = make(share_blocks=True).eval(), make().eval()
    assert len(shared.blocks) == 1 and len(apart.blocks) == 2
    state = {name: tensor for name, tensor in shared.state_dict().items() if not name.startswith("blocks.")}
    for name, tensor in shared.blocks[0].state_dict().items():
        state |= {f"blocks.0.{name}": tensor, f"blocks.1.{name}": tensor}
    apart.load_state_dict(state)
    history_BT = random_histories(4)
    assert torch.equal(shared.score(history_BT), apart.score(history_BT))
    assert shared.flops(5) == apart.flops(5), "sharing saves memory, not work"


def test_vectors_of_length_one_give_cosines_over_the_temperature():
    model = make(l2_norm=True, temperature=0.25).eval()
    history_BT = random_histories(5)
    plain = make().eval()
    plain.load_state_dict(model.state_dict())
    user_BD = plain(history_BT)[torch.arange(6), last_position(history_BT)]
    expected_BN = torch.nn.functional.cosine_similarity(user_BD[:, None], plain.item_vectors()[None], dim=-1) / 0.25
    torch.testing.assert_close(model.score(history_BT), expected_BN)
    items = torch.tensor([3, 0, 3])
    torch.testing.assert_close(model.item_vectors(items), model.item_vectors()[items])


def test_swiglu_costs_what_gelu_costs():
    swiglu = SASRec(10, 5, 48, ffn="swiglu")
    assert matmul_parameters(swiglu.blocks) == matmul_parameters(SASRec(10, 5, 48).blocks)
    x_TD = torch.randn(3, 48)
    gate, value = swiglu.blocks[0].ffn.up(x_TD).split(128, 1)
    expected = swiglu.eval().blocks[0].ffn.down(gate * torch.sigmoid(gate) * value)
    torch.testing.assert_close(swiglu.blocks[0].ffn(x_TD), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ffn": "relu"}, "ffn 'relu' is unknown; choose one of gelu, swiglu"),
        ({"position": "sinus"}, "position 'sinus': 'sinus' is unknown"),
        ({"position": "learned+"}, "'' is unknown"),
        ({"position": "rope", "hidden_dim": 9}, "hidden_dim / num_heads 3 must be even"),
        ({"pooling": "max"}, "pooling 'max' is unknown"),
        ({"pool_k": 0}, "pool_k must be at least 1"),
    ],
)
def test_unknown_options_are_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**changed)
