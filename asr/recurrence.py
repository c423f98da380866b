"""The recurrent pair of a bidirectional layer, faster on a CPU than two nn.GRUs, above all in training.

autograd records nn.GRU step by step, so the gradient of its recurrent weights costs one thin product per step. Here
only the chain h → h' is walked step by step, both directions together; every other product takes all steps at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["bidirectional_gru"]

Pair = tuple[Tensor, Tensor]
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

BLOCK_STEPS = 16
"""The slopes of so many steps are computed just before the backward walk comes by: then they are still in the cache."""


def bidirectional_gru(
    inputs_forward: Tensor, inputs_backward: Tensor, forward_cell: nn.GRU, backward_cell: nn.GRU
) -> Pair:
    """What `forward_cell(inputs_forward)[0]` and `backward_cell(inputs_backward)[0]` return, with the same gradients.

    inputs_forward, inputs_backward: (steps, batch, input_size), the second already reversed in time.
    forward_cell, backward_cell: one layer, one direction, with biases, both of the same sizes.
    returns: two tensors (steps, batch, hidden_size), in the order of their inputs; under autocast in its type.
    """
    parameters = [getattr(cell, name) for name in PARAMETERS for cell in (forward_cell, backward_cell)]
    arguments = [inputs_forward.contiguous(), inputs_backward.contiguous(), *parameters]
    if torch.is_autocast_enabled("cpu"):
        arguments = [argument.to(torch.get_autocast_dtype("cpu")) for argument in arguments]
    with torch.autocast("cpu", enabled=False):
        pair: Pair = _GRUPair.apply(*arguments)  # type: ignore[no-untyped-call]
    return pair


class _GRUPair(torch.autograd.Function):
    """nn.GRU's h' = (1 - z) ⊙ n + z ⊙ h, n = tanh(W x + b + r ⊙ m), m = U h + c, and its gradient through time.

    A row of `gates` is (m, r, z, n). The recurrent product feeds its first three quarters and the input product its
    last three, so in the backward pass the gradient of either product is one slice of such rows.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Pair:
        """Pairs of inputs (steps, batch, input_size), W, U, b and c → two tensors (steps, batch, hidden_size)."""
        inputs, input_weights, recurrent_weights, input_biases, recurrent_biases = _pairs(arguments)
        gates = _project(inputs, input_weights, input_biases, recurrent_biases)
        recurrent = torch.stack([_roll_thirds(weight, 1) for weight in recurrent_weights])
        states = _walk_forward(gates, recurrent)
        ctx.save_for_backward(*inputs, *input_weights, recurrent, gates, states)
        return states[0, 1:], states[1, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *state_gradients: Tensor) -> tuple[Tensor, ...]:
        """Two tensors (steps, batch, hidden_size) → the gradients of forward's arguments, in their order."""
        *arguments, recurrent, gates, states = ctx.saved_tensors
        inputs, input_weights = _pairs(arguments)
        rows = _walk_backward(torch.stack(state_gradients), recurrent, gates, states).flatten(1, 2)
        previous = states[:, :-1].flatten(1, 2)
        size = previous.shape[2]
        of_input, of_recurrent, sums = rows[:, :, size:], rows[:, :, : 3 * size], rows.sum(1)
        both = range(2)
        return (
            *[(of_input[i] @ input_weights[i]).view_as(inputs[i]) for i in both],
            *[of_input[i].T @ inputs[i].flatten(0, 1) for i in both],
            *[_roll_thirds(of_recurrent[i].T @ previous[i], -1) for i in both],
            *[sums[i, size:] for i in both],
            *[_roll_thirds(sums[i, : 3 * size], -1) for i in both],
        )


def _pairs(tensors: tuple[Tensor, ...] | list[Tensor]) -> list[Pair]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _roll_thirds(parameter: Tensor, thirds: int) -> Tensor:
    """By one third: nn.GRU's rows (r, z, n) into the order of `gates`, (m, r, z); by -1: back."""
    return parameter.roll(thirds * (parameter.shape[0] // 3), 0)


def _project(inputs: Pair, input_weights: Pair, input_biases: Pair, recurrent_biases: Pair) -> Tensor:
    """W x and all biases, for every step: (2, steps, batch, 4 × hidden_size)."""
    size = recurrent_biases[0].shape[0] // 3
    gates = inputs[0].new_empty(2, *inputs[0].shape[:2], 4 * size)
    for i, rows in enumerate(gates.flatten(1, 2)):
        rows[:, :size] = recurrent_biases[i][2 * size :]
        bias = torch.cat([input_biases[i][: 2 * size] + recurrent_biases[i][: 2 * size], input_biases[i][2 * size :]])
        torch.addmm(bias, inputs[i].flatten(0, 1), input_weights[i].T, out=rows[:, size:])
    return gates


def _walk_forward(gates: Tensor, recurrent: Tensor) -> Tensor:
    """Turns what `_project` returns into the gates, in place, and returns the states before and after every step.

    recurrent: (2, 3 × hidden_size, hidden_size), rows as in `gates`; returns: (2, 1 + steps, batch, hidden_size).
    """
    directions, steps, batch, width = gates.shape
    size = width // 4
    states = gates.new_zeros(directions, 1 + steps, batch, size)
    transposed = recurrent.transpose(1, 2).contiguous()
    # Only into a contiguous result does bmm hand both directions to the matrix library in one call.
    product = gates.new_empty(directions, batch, 3 * size)
    # A row of gates:   |  m  |  r  |  z  |  n  |
    #   fed             [-----------------]         the recurrent product is added here,
    #   sigmoids              [-----------]         then these two become gates, in place
    parts = gates[..., : 3 * size], gates[..., size : 3 * size], *gates.split(size, 3)
    state, *later_states = states.unbind(1)
    for later, fed, sigmoids, m, r, z, n in zip(later_states, *(part.unbind(1) for part in parts), strict=True):
        fed.add_(torch.bmm(state, transposed, out=product))
        sigmoids.sigmoid_()
        n.addcmul_(r, m).tanh_()
        state = torch.lerp(n, state, z, out=later)
    return states


def _walk_backward(state_gradients: Tensor, recurrent: Tensor, gates: Tensor, states: Tensor) -> Tensor:
    """The gradients of m and of what enters the nonlinearities r, z and n: (2, steps, batch, 4 × hidden_size)."""
    size = states.shape[3]
    rows = torch.empty_like(gates)
    gradient = torch.zeros_like(states[:, 0])
    blocks = [tensor.split(BLOCK_STEPS, 1) for tensor in (state_gradients, gates, states[:, :-1], rows)]
    for arriving_steps, gate_steps, previous_steps, row_steps in reversed(list(zip(*blocks, strict=True))):
        _fill_slopes(gate_steps, previous_steps, row_steps)
        z_steps = gate_steps[..., 2 * size : 3 * size]
        parts = arriving_steps, z_steps, row_steps.unflatten(3, (4, size)), row_steps[..., : 3 * size]
        for arriving, z, row, fed in zip(*(reversed(part.unbind(1)) for part in parts), strict=True):
            gradient.add_(arriving)
            row.mul_(gradient.unsqueeze(2))
            gradient.mul_(z).baddbmm_(fed, recurrent)
    return rows


def _fill_slopes(gates: Tensor, previous: Tensor, slopes: Tensor) -> None:
    """Into `slopes` the derivatives of h' by m and by what enters r, z and n, each of the shape of `gates`.

    previous: h at every step, (2, steps, batch, hidden_size).
    """
    m, r, z, n = gates.chunk(4, 3)
    by_m, by_r, by_z, by_n = slopes.chunk(4, 3)
    torch.mul(n, n, out=by_n).neg_().add_(1)
    by_n.addcmul_(by_n, z, value=-1)
    torch.mul(by_n, r, out=by_m)
    torch.addcmul(by_m, by_m, r, value=-1, out=by_r).mul_(m)
    torch.sub(previous, n, out=by_z).mul_(z).addcmul_(by_z, z, value=-1)
