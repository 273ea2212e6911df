import math
import re

import pytest
import torch
import torch.nn.functional as F

from recllm.backbones.hstu import HSTU

ITEMS, LONGEST = 11, 7


def make(seed: int = 0, **changed) -> HSTU:
    """A small HSTU whose biases and weights are far enough from zero to be seen."""
    torch.manual_seed(seed)
    options = {"max_len": LONGEST, "hidden_dim": 12, "num_blocks": 2, "num_heads": 3, "linear_dim": 4} | changed
    model = HSTU(ITEMS, **({"attention_dim": 6, "time_bias": True} | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.5)
    return model


def histories(seed: int, rows: int = 6, width: int = LONGEST) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-aligned histories of 1 to `width` items and rising times, 0 at padding."""
    generator = torch.Generator().manual_seed(seed)
    history_BT = torch.randint(1, ITEMS + 1, (rows, width), generator=generator)
    gap_BT = 10 ** torch.randint(0, 8, (rows, width), generator=generator)
    real_BT = torch.arange(width)[None] < torch.randint(1, width + 1, (rows, 1), generator=generator)
    return history_BT * real_BT, (1_300_000_000 + gap_BT.cumsum(1)) * real_BT


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def naive(model: HSTU, items: list[int], times: list[int]) -> torch.Tensor:
    """The layers of the paper, place by place and head by head."""
    x_TD = torch.stack([model.item_embedding.weight[item] * math.sqrt(12) for item in items])
    x_TD = x_TD + model.position_embedding.weight[: len(items)]
    for block in model.blocks:
        mixed_TE = silu(block.uvqk(F.layer_norm(x_TD, (12,))))
        rows = []
        for i in range(len(items)):
            summed, gates = [], []
            for head in range(3):
                start = head * 20  # U 4, V 4, Q 6, K 6
                gates.append(mixed_TE[i, start : start + 4])
                query = mixed_TE[i, start + 8 : start + 14]
                total = torch.zeros(4)
                for j in range(i + 1):
                    key = mixed_TE[j, start + 14 : start + 20]
                    bucket = int(math.log(max(abs(times[i] - times[j]), 1)) / 0.301)
                    rab = block.position_bias.weight[0, i - j] + block.time_bias.weight[bucket]
                    total = total + silu(query @ key + rab) / LONGEST * mixed_TE[j, start + 4 : start + 8]
                summed.append(total)
            rows.append(F.layer_norm(torch.cat(summed), (12,)) * torch.cat(gates))
        x_TD = x_TD + block.out(torch.stack(rows))
    return x_TD / x_TD.norm(dim=1, keepdim=True) / 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_network_is_the_papers_loop(seed):
    model = make(seed)
    history_BT, time_BT = histories(seed, rows=3)
    user_BTD = model(history_BT, time_BT)
    for row in range(3):
        real = int((history_BT[row] > 0).sum())
        expected_TD = naive(model, history_BT[row, :real].tolist(), time_BT[row, :real].tolist())
        torch.testing.assert_close(user_BTD[row, :real], expected_TD, rtol=1e-3, atol=1e-3)


OPTIONS = [
    {},
    {"time_bias": False},
    {"position": "learned"},
    {"position": "rope"},
    {"position": "none"},
    {"pooling": "mean"},
    {"pooling": "last_k_mean", "pool_k": 2},
    {"share_blocks": True},
    {"l2_norm": False, "temperature": 1.0},
    {"tie_embeddings": False},
]


@pytest.mark.parametrize("changed", OPTIONS, ids=str)
def test_causal_and_blind_to_padding(changed):
    model = make(**changed)
    history_BT, time_BT = (part_BT.clone() for part_BT in histories(0))
    history_BT[history_BT == 0], time_BT[time_BT == 0] = 3, 2_000_000_000
    before_BTD = model(history_BT, time_BT)
    for place in range(1, LONGEST):
        items_BT, times_BT = history_BT.clone(), time_BT.clone()
        items_BT[:, place:] = items_BT[:, place:] % ITEMS + 1
        times_BT[:, place:] += 12_345
        after_BTD = model(items_BT, times_BT)
        torch.testing.assert_close(after_BTD[:, :place], before_BTD[:, :place])
        assert (after_BTD[:, place] - before_BTD[:, place]).abs().amax(1).min() > 1e-3
    history_BT, time_BT = histories(1)
    for row, scores_N in enumerate(model.score(history_BT, time_BT)):
        real = history_BT[row] > 0
        torch.testing.assert_close(model.score(history_BT[row, real][None], time_BT[row, real][None])[0], scores_N)


@pytest.mark.parametrize("changed", [*OPTIONS[1:], {"attention_dim": 2}, {"linear_dim": 8}], ids=str)
def test_every_option_changes_scores_and_survives_saving(changed, tmp_path):
    model, plain = make(**changed), make()
    state = model.state_dict()
    same = {name: tensor for name, tensor in plain.state_dict().items() if name in state}
    model.load_state_dict({n: t for n, t in same.items() if t.shape == state[n].shape}, strict=False)
    inputs = histories(2)
    scores_BN = model.score(*inputs)
    assert (scores_BN - plain.score(*inputs)).abs().max() > 1e-2
    model.save_pretrained(tmp_path)
    again = HSTU.from_pretrained(str(tmp_path)).eval()
    assert torch.equal(again.score(*inputs), scores_BN) and again.uses_time == model.uses_time


def test_times_matter_by_their_differences_only():
    model = make()
    history_BT, time_BT = histories(3)
    scores_BN = model.score(history_BT, time_BT)
    later_BT = torch.where(time_BT > 0, time_BT + 86_400 * 365, 0)
    assert torch.equal(model.score(history_BT, later_BT), scores_BN)
    stretched_BT = torch.where(time_BT > 0, 1_300_000_000 + (time_BT - 1_300_000_000) * 40, 0)
    assert (model.score(history_BT, stretched_BT) - scores_BN).abs().max() > 1e-2
    without = make(time_bias=False)
    assert torch.equal(without.score(history_BT), without.score(history_BT, time_BT)), "asked without times, too"
    with pytest.raises(ValueError, match="made with time_bias and needs time_BT"):
        model.score(history_BT)


def test_dropouts_act_in_training_and_where_they_say():
    history_BT, time_BT = histories(4)
    for changed in ({"dropout": 0.5}, {"dropout": 0.0, "attn_dropout": 0.5}):
        model = make(**changed)
        assert torch.equal(model(history_BT, time_BT), model(history_BT, time_BT))
        model.train()
        assert (model(history_BT, time_BT) - model(history_BT, time_BT)).abs().max() > 1e-3
    model = make(dropout=0.0).train()
    assert torch.equal(model(history_BT, time_BT), model(history_BT, time_BT))


def test_a_few_steps_move_every_parameter_and_lower_the_loss():
    torch.manual_seed(0)
    model = HSTU(ITEMS, LONGEST, 12, 2, 2, 4, 4, dropout=0.0, time_bias=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    history_BT, time_BT = histories(5, rows=32)
    target_BT = (history_BT % ITEMS + 1) * (history_BT > 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = model.loss(history_BT, target_BT, time_BT=time_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    for name, parameter in model.named_parameters():
        assert (parameter - before[name]).abs().max() > 1e-3, name
    assert model.item_embedding.weight.grad[0].abs().max() == 0, "padding is no item"


def test_flops_by_hand():
    model = HSTU(10, max_len=5, hidden_dim=4, num_blocks=2, num_heads=2, linear_dim=3, attention_dim=6)
    block = 4 * 2 * (3 + 3 + 6 + 6) + 2 * 3 * 4
    for length, tokens in [(3, 3), (0, 1), (99, 5)]:
        attention = 2 * 2 * tokens * tokens * (6 + 3)  # both heads' products Q K and A V
        assert model.flops(length) == 2 * (2 * block * tokens + attention) + 2 * 10 * 4
    assert HSTU(10, 5, 4, 2, 2, 3, 6, share_blocks=True).flops(3) == model.flops(3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"position": "rope", "attention_dim": 5}, "attention_dim 5 must be even"), ({"position": "x"}, "'x' is unknown")],
)
def test_bad_options_are_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**changed)
    with pytest.raises(ValueError, match="history of 8 items is longer than max_len 7"):
        make()(torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))
