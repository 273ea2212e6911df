"""The optimizers of the fit loop, and Adam that updates only the rows of a table that a batch touched."""

from __future__ import annotations

from collections.abc import Callable

import torch

OPTIMIZERS = ("adam", "adamw")


class LazyAdam(torch.optim.Optimizer):
    """Adam and AdamW for embedding tables with sparse gradients: rows without a gradient are left as they are.

    A row's moments, its value and its weight decay change only in steps that touch it; bias correction counts all
    steps, as in `torch.optim.SparseAdam`, which knows no weight decay. Where every step touches every row, this is
    `torch.optim.Adam` or `AdamW`. Elsewhere it is not: the dense ones go on moving a row by its momentum and decaying
    it while no batch holds it. What it saves is reading and writing the whole table three times a step.

    Args:
        decoupled: weight decay as in AdamW (true), or added to the gradient as in Adam.
    """

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of the touched rows.

        Raises:
            ValueError: a gradient is dense.
        """
        value = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not parameter.grad.is_sparse:
                    raise ValueError(
                        "LazyAdam takes sparse gradients; a loss over all items has none: use adam or adamw"
                    )
                self._update(parameter, group)
        return value

    def _update(self, parameter: torch.nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2), lr = state["step"].item(), group["betas"], group["lr"]
        grad = parameter.grad.coalesce()
        row_R, grad_RD = grad.indices()[0], grad.values()
        value_RD = parameter[row_R]
        if group["decoupled"]:
            value_RD = value_RD * (1 - lr * group["weight_decay"])
        else:
            grad_RD = grad_RD + group["weight_decay"] * value_RD
        first_RD = torch.lerp(state["exp_avg"][row_R], grad_RD, 1 - beta1)
        second_RD = state["exp_avg_sq"][row_R].mul_(beta2).addcmul_(grad_RD, grad_RD, value=1 - beta2)
        state["exp_avg"][row_R], state["exp_avg_sq"][row_R] = first_RD, second_RD
        scale_RD = second_RD.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        parameter[row_R] = value_RD.addcdiv(first_RD, scale_RD, value=-lr / (1 - beta1**step))


def make_optimizers(
    model: torch.nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[torch.optim.Optimizer]:
    """`adam` or `adamw` for the model; its embeddings with `sparse` set get the lazy form, see `LazyAdam`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    embeddings = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    lazy = {id(module.weight): module.weight for module in embeddings if module.sparse}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in lazy]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    made: list[torch.optim.Optimizer] = []
    if dense:
        made.append(kind(dense, lr=lr, weight_decay=weight_decay, betas=betas))
    if lazy:
        made.append(LazyAdam(list(lazy.values()), lr, betas, weight_decay=weight_decay, decoupled=name == "adamw"))
    return made


def use_sparse_rows(model: torch.nn.Module) -> None:
    """Let the gradients of the model's item tables hold only the rows that a batch touched."""
    for name in ("item_embedding", "output_embedding"):
        table = getattr(model, name, None)
        if table is not None:
            table.sparse = True
