import numpy as np
import pytest
import torch

from recllm.backbones.losses import Objective
from recllm.backbones.optimizers import LazyAdam, make_optimizers, use_sparse_rows
from recllm.backbones.sasrec import SASRec

DENSE = {True: torch.optim.AdamW, False: torch.optim.Adam}


def run(kind, batches, decay, **extra) -> torch.Tensor:
    """A table's weights after a step a batch: rows are looked up, their squares summed."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(6, 3, sparse=kind is LazyAdam)
    optimizer = kind([table.weight], lr=0.1, weight_decay=decay, betas=(0.8, 0.95), **extra)
    for rows in batches:
        optimizer.zero_grad()
        (table(torch.tensor(rows)) ** 2).sum().backward()
        optimizer.step()
    return table.weight.detach()


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lazy_adam_is_dense_adam_where_every_step_touches_every_row(decoupled, decay):
    batches = [np.random.default_rng(step).permutation([*range(6), 2, 2, 5]).tolist() for step in range(7)]
    lazy_ND = run(LazyAdam, batches, decay, decoupled=decoupled)
    torch.testing.assert_close(lazy_ND, run(DENSE[decoupled], batches, decay))


def test_untouched_rows_stay_and_touched_ones_follow_the_papers_rule():
    """Row 1 is touched in steps 1 and 3 of 3: two updates of its moments, bias correction by the steps of all."""
    batches = [[0, 1], [0], [1, 0]]
    lazy_ND = run(LazyAdam, batches, 0.2)
    torch.manual_seed(0)
    start_ND = torch.nn.Embedding(6, 3).weight.detach().double()
    torch.testing.assert_close(lazy_ND[2:], start_ND[2:].float(), rtol=0, atol=0)
    value_D, first_D, second_D = start_ND[1], 0.0, 0.0
    for step in (1, 3):
        grad_D = 2 * value_D
        value_D = value_D * (1 - 0.1 * 0.2)
        first_D, second_D = 0.8 * first_D + 0.2 * grad_D, 0.95 * second_D + 0.05 * grad_D**2
        scale_D = (second_D / (1 - 0.95**step)) ** 0.5 + 1e-8
        value_D = value_D - 0.1 * (first_D / (1 - 0.8**step)) / scale_D
    torch.testing.assert_close(lazy_ND[1], value_D.float())
    dense_ND = run(torch.optim.AdamW, batches, 0.2)
    assert (dense_ND[1] - lazy_ND[1]).abs().max() > 1e-3, "the dense one moved it in step 2, too"


def test_a_models_tables_get_the_lazy_form_and_train():
    torch.manual_seed(0)
    model = SASRec(50, 5, 8, tie_embeddings=False, dropout=0.0)
    use_sparse_rows(model)
    dense, lazy = make_optimizers(model, "adamw", 0.05, 0.01)
    tables = {id(model.item_embedding.weight), id(model.output_embedding.weight)}
    assert {id(p) for group in lazy.param_groups for p in group["params"]} == tables
    assert sum(len(group["params"]) for group in dense.param_groups) == len(list(model.parameters())) - 2
    before_ND = model.item_embedding.weight.detach().clone()
    history_BT, target_BT = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]])
    losses = []
    for _ in range(30):
        loss = Objective(num_negatives=5)(model, history_BT, target_BT)
        for optimizer in (dense, lazy):
            optimizer.zero_grad()
        loss.backward()
        assert model.item_embedding.weight.grad.is_sparse and model.output_embedding.weight.grad.is_sparse
        for optimizer in (dense, lazy):
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    moved_N = (model.item_embedding.weight.detach() != before_ND).any(1)
    assert moved_N.nonzero()[:, 0].tolist() == [1, 2, 3, 4], "the rows of the history and no other"


def test_tied_and_normalised_tables_have_sparse_gradients_equal_to_the_dense_ones():
    grads = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = SASRec(50, 5, 8, l2_norm=True, temperature=0.1, dropout=0.0)
        if sparse:
            use_sparse_rows(model)
        torch.manual_seed(1)
        Objective(num_negatives=5)(model, torch.tensor([[1, 2, 0]]), torch.tensor([[2, 3, 0]])).backward()
        grads.append(model.item_embedding.weight.grad)
    assert grads[1].is_sparse
    torch.testing.assert_close(grads[1].to_dense(), grads[0])


def test_adam_and_adamw_are_torchs():
    model = torch.nn.Linear(2, 2)
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        (optimizer,) = make_optimizers(model, name, 0.1, 0.2, (0.9, 0.98))
        group = optimizer.param_groups[0]
        assert type(optimizer) is kind
        assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.9, 0.98))
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown; choose one of adam, adamw"):
        make_optimizers(model, "sgd", 0.1, 0.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_lazy_form_decays_as_the_name_says(name):
    """Where a step touches every row, a lazy table ends as torch's dense optimizer of that name."""
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"item_embedding": torch.nn.Embedding(4, 2, sparse=sparse)})
        (optimizer,) = make_optimizers(model, name, 0.1, 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            (model["item_embedding"](torch.arange(4)) ** 2).sum().backward()
            optimizer.step()
        ends.append(model["item_embedding"].weight.detach())
    torch.testing.assert_close(*ends)


def test_a_dense_gradient_is_refused():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.sum().backward()
    with pytest.raises(ValueError, match="LazyAdam takes sparse gradients"):
        LazyAdam([weight], lr=0.1).step()
