"""The pair of recurrences against nn.GRU, the arithmetic it replaces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from asr.recurrence import bidirectional_gru


def make_pair(input_size: int, hidden_size: int, dtype: torch.dtype) -> tuple[nn.GRU, nn.GRU]:
    torch.manual_seed(0)
    first, second = (nn.GRU(input_size, hidden_size, dtype=dtype) for _ in range(2))
    return first, second


def outputs_and_gradients(use_pair: bool, cells: tuple[nn.GRU, nn.GRU], inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Both outputs, then the gradients of both inputs and of each cell's four parameters."""
    leaves = [*inputs, *cells[0].parameters(), *cells[1].parameters()]
    outputs = bidirectional_gru(*inputs, *cells) if use_pair else (cells[0](inputs[0])[0], cells[1](inputs[1])[0])
    loss = sum((output.sin() * torch.linspace(-1, 2, output.numel()).view_as(output)).sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("batch", "steps", "input_size", "hidden_size"),
    [(1, 1, 3, 2), (3, 1, 4, 5), (1, 9, 8, 4), (5, 40, 6, 7), (8, 30, 64, 32)],
)
def test_outputs_and_all_gradients_equal_those_of_nn_gru(
    batch: int, steps: int, input_size: int, hidden_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    cells = make_pair(input_size, hidden_size, dtype)
    first, second = (torch.randn(steps, batch, input_size, dtype=dtype, requires_grad=True) for _ in range(2))
    expected = outputs_and_gradients(False, cells, (first, second))
    actual = outputs_and_gradients(True, cells, (first, second))
    assert len(actual) == 2 + 2 + 2 * 4
    for left, right in zip(actual, expected, strict=True):
        assert left.shape == right.shape
        assert (left - right).abs().max() <= tolerance * max(1, right.abs().max())


def test_gradients_equal_finite_differences() -> None:
    cells = make_pair(3, 2, torch.float64)
    first, second = (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaves = [first, second, *cells[0].parameters(), *cells[1].parameters()]
    assert torch.autograd.gradcheck(lambda *_: bidirectional_gru(first, second, *cells), leaves)


def test_a_gradient_through_one_direction_alone_equals_that_of_nn_gru() -> None:
    cells = make_pair(3, 2, torch.float64)
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    _, backward = bidirectional_gru(inputs, inputs, *cells)
    (actual,) = torch.autograd.grad(backward.square().sum(), inputs)
    (expected,) = torch.autograd.grad(cells[1](inputs)[0].square().sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_a_second_backward_pass_through_a_kept_graph_gives_the_same_gradients() -> None:
    cells = make_pair(3, 2, torch.float64)
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = sum(output.square().sum() for output in bidirectional_gru(inputs, inputs, *cells))
    (first,) = torch.autograd.grad(loss, inputs, retain_graph=True)
    (second,) = torch.autograd.grad(loss, inputs)
    assert torch.equal(first, second)


def test_under_autocast_it_computes_in_half_precision_and_its_gradients_keep_their_direction() -> None:
    cells = make_pair(24, 16, torch.float32)
    inputs = torch.randn(2, 40, 5, 24).unbind()
    leaves = tuple(part.requires_grad_() for part in inputs)
    exact = outputs_and_gradients(True, cells, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        rough = outputs_and_gradients(True, cells, leaves)
    assert [part.dtype for part in rough] == 2 * [torch.bfloat16] + 10 * [torch.float32]
    for left, right in zip(rough, exact, strict=True):
        assert torch.cosine_similarity(left.float().flatten(), right.flatten(), dim=0) > 0.995
        assert not torch.equal(left.float(), right)
