"""Muon: the matrices of the hidden layers step in the direction of their orthogonalized momentum, the rest by AdamW.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the steps are scaled to the size of
AdamW's as in J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, so both share a learning rate.

torch.optim.Muon takes each parameter for one matrix; here the three gates of a GRU are three, equal shapes are computed
at once, and the weights that AdamW learns are in the same optimizer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

__all__ = ["Muon", "orthogonalize"]

NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of x, x³ and x⁵ in each iteration: together they take singular values from 0.02 to 1 near 1."""
STEP_SIZE = 0.2
"""Root mean square of the entries of an AdamW step, learning rate 1."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(matrices, rows, columns), the larger singular values of each brought near 1, by Newton-Schulz iterations.

    dtype: of the products and the result; bfloat16 is as good a direction for a step (Jordan et al.).
    """
    if matrices.shape[1] > matrices.shape[2]:
        upright: Tensor = orthogonalize(matrices.mT, dtype).mT
        return upright
    x: Tensor = (matrices / (1.01 * matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for a, b, c in NEWTON_SCHULZ:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


class Muon(Optimizer):
    """Groups with `blocks` above 0 get Muon, the others AdamW.

    blocks: matrices that stand one above the other in each parameter of the group (a GRU's gates: 3), each
    orthogonalized by itself.
    dtype: of the orthogonalization's products.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "blocks": 0}
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._step_muon if group["blocks"] else self._step_adamw)(parameters, group)
        return loss

    def _step_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)  # all matrices of a shape in one product
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["average"] = torch.zeros_like(parameter)
            average, gradient = state["average"], cast(Tensor, parameter.grad)
            average.lerp_(gradient, 1 - group["momentum"])
            ahead = torch.lerp(gradient, average, group["momentum"])  # Nesterov's
            blocks = ahead.view(group["blocks"], -1, parameter.shape[1])
            by_shape[blocks.shape].append((parameter, blocks))
        for (_, rows, columns), members in by_shape.items():
            updates = orthogonalize(torch.cat([blocks for _, blocks in members]), self.dtype)
            scale = -group["lr"] * STEP_SIZE * max(rows, columns) ** 0.5
            for (parameter, _), update in zip(members, updates.split(group["blocks"]), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=scale)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0)
                state["average"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["average"] for state in states],
            [state["square"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
