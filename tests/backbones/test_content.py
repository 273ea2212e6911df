"""Fixed item vectors in the embeddings of SASRec and HSTU."""

import re

import numpy as np
import pytest
import torch

from recllm.backbones.content import ContentFusion, item_states
from recllm.backbones.hstu import HSTU
from recllm.backbones.losses import Objective
from recllm.backbones.sasrec import SASRec

ITEMS, WIDTH, DIM = 9, 5, 8
BOTH = [SASRec, HSTU]


def made(kind, fusion: str, **options):
    torch.manual_seed(0)
    model = kind(ITEMS, 6, DIM, embedding_fusion=fusion, content_dim=WIDTH, **options).eval()
    model.fusion.learn_vectors(vectors())
    return model


def vectors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ITEMS, WIDTH)).astype(np.float32)


def test_by_hand():
    """One item, e = (1, 2), c = (3,), W = (1, -1), so W c = (3, -3); the gate sees e's first entry alone."""
    row_D, place = torch.tensor([1.0, 2.0]), torch.tensor(1)
    add, gate = (ContentFusion(1, 1, 2, kind) for kind in ("add", "gate"))
    with torch.no_grad():
        for fusion in (add, gate):
            fusion.learn_vectors(np.array([[3.0]], dtype=np.float32))
            fusion.project.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        gate.gate.weight.copy_(torch.tensor([[np.log(3.0), 0.0, 0.0, 0.0], [0.0] * 4]))
        gate.gate.bias.zero_()
        assert add(row_D, place).tolist() == [4.0, -1.0]
        # g = (3/4, 1/2)
        assert gate(row_D, place).tolist() == pytest.approx([0.75 * 1 + 0.25 * 3, 0.5 * 2 - 0.5 * 3])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("fusion", ["add", "gate"])
@pytest.mark.parametrize("tied", [True, False])
def test_input_and_tied_output_are_fused_for_all_items_and_for_some(kind, fusion, tied):
    model = made(kind, fusion, tie_embeddings=tied, l2_norm=False)
    with torch.no_grad():
        rows_ND = model.item_embedding.weight[1:]
        fused_ND = torch.stack([model.fusion(row_D, torch.tensor(i + 1)) for i, row_D in enumerate(rows_ND)])
        out_ND = fused_ND if tied else model.output_embedding.weight[1:]
        torch.testing.assert_close(model.item_vectors(), out_ND)
        torch.testing.assert_close(model.item_vectors(torch.tensor([4, 0, 4])), out_ND[[4, 0, 4]])
        torch.testing.assert_close(item_states(model, torch.tensor([[3, 9]]))[0], fused_ND[[2, 8]])
    other = made(kind, fusion, tie_embeddings=tied, l2_norm=False)
    other.fusion.learn_vectors(vectors(1))
    history_BT = torch.tensor([[1, 2, 3]])
    assert (model(history_BT) - other(history_BT)).abs().max() > 1e-3, "the history's vectors reach the states"


@pytest.mark.parametrize("kind", BOTH)
def test_vectors_stay_and_what_is_around_them_learns(kind):
    model = made(kind, "gate").train()
    Objective()(model, torch.tensor([[1, 2]]), torch.tensor([[2, 3]])).backward()
    assert all(part.weight.grad.abs().max() > 0 for part in (model.fusion.project, model.fusion.gate))
    assert "content_ND" not in dict(model.fusion.named_parameters())


@pytest.mark.parametrize("kind", BOTH)
def test_saved_models_bring_their_vectors(kind, tmp_path):
    model = made(kind, "add")
    model.save_pretrained(tmp_path)
    history_BT = torch.tensor([[5, 1, 0], [2, 7, 9]])
    again = kind.from_pretrained(str(tmp_path)).eval()
    assert torch.equal(again.score(history_BT), model.score(history_BT))


def test_without_a_fusion_nothing_is_there():
    assert SASRec(ITEMS, 6, DIM).fusion is None
    assert not [name for name in SASRec(ITEMS, 6, DIM).state_dict() if "fusion" in name]


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(ValueError, match="embedding_fusion 'mix' is unknown; choose one of none, add, gate"):
        SASRec(ITEMS, 6, DIM, embedding_fusion="mix", content_dim=2)
    with pytest.raises(ValueError, match="embedding_fusion add needs item vectors"):
        HSTU(ITEMS, 6, DIM, embedding_fusion="add")
    for wrong in (np.zeros((ITEMS + 1, WIDTH)), np.zeros((ITEMS, 2))):
        with pytest.raises(ValueError, match=re.escape(f"item vectors of shape {wrong.shape}, the model takes (9, 5)")):
            made(SASRec, "add").fusion.learn_vectors(wrong)
