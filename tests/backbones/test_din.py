import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recllm.backbones.din import DIN

ITEMS, FEATURES = 15, 3


def make(seed: int = 0, **changed) -> DIN:
    torch.manual_seed(seed)
    options = {"embedding_dim": 6, "attention_hidden": 5, "max_len": 8, "dropout": 0.2} | changed
    model = DIN(ITEMS, FEATURES, **options).eval()
    # Slopes and running statistics of their own, or a swap of them would not be seen.
    with torch.no_grad():
        model.attend_out[0].weight.fill_(0.1)
        model.feature_norm.running_mean.uniform_(-1, 1)
        model.feature_norm.running_var.uniform_(0.5, 2)
    return model


def batch(seed: int, rows: int = 4, width: int = 8, candidates: int = 6):
    generator = torch.Generator().manual_seed(seed)
    history_BT = torch.randint(1, ITEMS + 1, (rows, width), generator=generator)
    length_B1 = torch.randint(1, width + 1, (rows, 1), generator=generator)
    history_BT = history_BT * (torch.arange(width)[None] >= width - length_B1)
    candidate_BM = torch.randint(1, ITEMS + 1, (rows, candidates), generator=generator)
    return history_BT, candidate_BM, torch.randn(rows, candidates, FEATURES, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_the_decomposed_attention_is_the_literal_network(seed):
    """The paper's first layer on [h, t, h - t, h * t], with weights chosen freely and folded into the three parts."""
    model = make(seed)
    width = model.attend_history.in_features
    literal = torch.nn.Linear(4 * width, 5)
    on_h, on_t, on_difference, on_product = literal.weight.detach().split(width, 1)
    with torch.no_grad():
        model.attend_history.weight.copy_(on_h + on_difference)
        model.attend_history.bias.copy_(literal.bias)
        model.attend_target.weight.copy_(on_t - on_difference)
        model.attend_product.weight.copy_(on_product)
    history_BT, candidate_BM, feature_BMF = batch(seed)
    logit_BM = model(history_BT, candidate_BM, feature_BMF)
    slope = model.attend_out[0].weight
    for row in range(len(history_BT)):
        items = [item for item in history_BT[row].tolist() if item]
        for place, candidate in enumerate(candidate_BM[row].tolist()):
            t_D = model.item_embedding.weight[candidate]
            user_D = torch.zeros(width)
            for item in items:
                h_D = model.item_embedding.weight[item]
                hidden = F.prelu(literal(torch.cat([h_D, t_D, h_D - t_D, h_D * t_D])), slope)
                user_D = user_D + model.attend_out[1](hidden) * h_D
            norm = model.feature_norm
            scaled_F = (feature_BMF[row, place] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            scaled_F = scaled_F * norm.weight + norm.bias
            expected = model.mlp(torch.cat([user_D / len(items) ** 0.5, t_D, scaled_F]))
            torch.testing.assert_close(logit_BM[row, place], expected[0], rtol=1e-4, atol=1e-5)


def test_permuting_candidates_permutes_logits():
    model = make()
    history_BT, candidate_BM, feature_BMF = batch(1)
    logit_BM = model(history_BT, candidate_BM, feature_BMF)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(model(history_BT, candidate_BM[:, order], feature_BMF[:, order]), logit_BM[:, order])
    alone_B1 = model(history_BT, candidate_BM[:, :1], feature_BMF[:, :1])
    torch.testing.assert_close(alone_B1, logit_BM[:, :1], msg="a candidate does not see the others")


def test_padding_in_the_history_has_no_effect():
    model = make()
    history_BT, candidate_BM, feature_BMF = batch(2)
    logit_BM = model(history_BT, candidate_BM, feature_BMF)
    wider_BT = F.pad(history_BT, (3, 2))
    torch.testing.assert_close(model(wider_BT, candidate_BM, feature_BMF), logit_BM)
    for row in range(len(history_BT)):
        real_1T = history_BT[row][history_BT[row] > 0][None]
        alone_1M = model(real_1T, candidate_BM[row : row + 1], feature_BMF[row : row + 1])
        torch.testing.assert_close(alone_1M[0], logit_BM[row])
    # DIN knows no order: only which items there are.
    torch.testing.assert_close(model(history_BT.flip(1), candidate_BM, feature_BMF), logit_BM)
    empty_1M = model(torch.zeros(1, 4, dtype=torch.long), candidate_BM[:1], feature_BMF[:1])
    assert torch.isfinite(empty_1M).all(), "an empty history is a history"


def test_losses_by_hand():
    model = make()
    history_BT, candidate_BM, feature_BMF = batch(3)
    label_BM = F.one_hot(torch.tensor([0, 5, 2, 3]), 6).bool()
    logit_BM = model(history_BT, candidate_BM, feature_BMF).detach().numpy().astype(np.float64)
    chance_BM = 1 / (1 + np.exp(-logit_BM))
    binary = -np.where(label_BM.numpy(), np.log(chance_BM), np.log(1 - chance_BM)).mean()
    assert model.loss(history_BT, candidate_BM, feature_BMF, label_BM).item() == pytest.approx(binary, rel=1e-4)
    share_BM = np.exp(logit_BM) / np.exp(logit_BM).sum(1, keepdims=True)
    listwise = -np.log(share_BM[label_BM.numpy()]).mean()
    loss = model.loss(history_BT, candidate_BM, feature_BMF, label_BM, listwise=True).item()
    assert loss == pytest.approx(listwise, rel=1e-4)


def test_flops_by_hand():
    model = DIN(num_items=9, num_features=2, embedding_dim=3, attention_hidden=5, max_len=4)
    mlp = 2 * ((2 * 3 + 2) * 64 + 64 * 16 + 16)
    for length, tokens in [(2, 2), (0, 1), (50, 4)]:
        for candidates in (1, 7):
            # The history's projection, the candidate's projection, and the candidate scaled by the product weights.
            projections = 2 * 3 * 5 * tokens + 2 * 3 * 5 * candidates + 2 * 3 * 5 * candidates
            # For each pair: the product, the weight's output layer, and the weighted sum of the history.
            pairs = candidates * tokens * (2 * 3 * 5 + 2 * 5 + 2 * 3)
            assert model.flops(length, candidates) == projections + pairs + mlp * candidates


def test_a_saved_model_loads_as_the_same_model(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    again = DIN.from_pretrained(str(tmp_path)).eval()
    inputs = batch(4)
    assert torch.equal(again(*inputs), model(*inputs))
    assert (again.max_len, again.num_items, again.num_features) == (8, ITEMS, FEATURES)
