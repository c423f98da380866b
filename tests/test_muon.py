"""Muon: which directions it steps in, and that what it leaves to AdamW steps as torch's AdamW does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from asr.muon import STEP_SIZE, Muon, orthogonalize


def gradients_of(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_orthogonalizing_keeps_the_singular_vectors_and_evens_the_singular_values(shape: tuple[int, int]) -> None:
    left, _ = torch.linalg.qr(torch.randn(shape[0], 24))
    right, _ = torch.linalg.qr(torch.randn(shape[1], 24))
    values = torch.linspace(0.1, 1, 24)
    result = orthogonalize((left * values @ right.T)[None])[0]
    inner = left.T @ result @ right
    torch.testing.assert_close(left @ inner @ right.T, result, atol=1e-4, rtol=0)
    torch.testing.assert_close(inner, torch.eye(24), atol=0.2, rtol=0)


def test_orthogonalizing_does_not_depend_on_the_scale_or_on_the_neighbours() -> None:
    matrices = torch.randn(3, 16, 40)
    together = orthogonalize(matrices * torch.tensor([1.0, 1e-3, 1e3])[:, None, None])
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize(matrix[None])[0], result, atol=1e-3, rtol=0)


def test_a_zero_gradient_is_no_step() -> None:
    parameter = nn.Parameter(torch.randn(8, 8))
    before = parameter.detach().clone()
    parameter.grad = torch.zeros(8, 8)
    Muon([{"params": [parameter], "blocks": 1}], lr=0.1).step()
    torch.testing.assert_close(parameter.detach(), before)


def test_gates_that_stand_in_one_matrix_step_as_if_each_were_alone() -> None:
    torch.manual_seed(0)
    stacked = nn.Parameter(torch.randn(3 * 16, 40))
    alone = [nn.Parameter(gate.clone()) for gate in stacked.detach().chunk(3)]
    together = Muon([{"params": [stacked], "blocks": 3}], lr=0.01, weight_decay=0.1)
    apart = Muon([{"params": alone, "blocks": 1}], lr=0.01, weight_decay=0.1)
    for seed in range(4):
        gradients_of([stacked], seed)
        for gate, gradient in zip(alone, grad_of(stacked).chunk(3), strict=True):
            gate.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([gate.detach() for gate in alone]))


def grad_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_a_step_is_as_large_as_one_of_adamw() -> None:
    parameter = nn.Parameter(torch.zeros(64, 256))
    gradients_of([parameter], 0)
    Muon([{"params": [parameter], "blocks": 1}], lr=0.01).step()
    root_mean_square = parameter.detach().square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(0.01 * STEP_SIZE, rel=0.1)


def test_groups_without_blocks_step_as_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))]
    theirs = copy.deepcopy(ours)
    optimizers = [
        Muon([{"params": ours}], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
        torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
    ]
    for seed in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            gradients_of(parameters, seed)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_its_state_can_be_saved_and_loaded_between_steps() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))]

    def optimizer_of(members: list[nn.Parameter]) -> Muon:
        return Muon([{"params": members[:1], "blocks": 3}, {"params": members[1:]}], lr=0.01)

    first = optimizer_of(parameters)
    gradients_of(parameters, 0)
    first.step()
    resumed = copy.deepcopy(parameters)
    second = optimizer_of(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for members, optimizer in ((parameters, first), (resumed, second)):
        gradients_of(members, 1)
        optimizer.step()
    torch.testing.assert_close(parameters, resumed, rtol=0, atol=0)


def test_half_precision_gives_nearly_the_same_step() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 32, 48)
    exact, rough = orthogonalize(matrices), orthogonalize(matrices, torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(rough.float().flatten(), exact.flatten(), dim=0) > 0.999
    parameters = [nn.Parameter(torch.zeros(32, 48)) for _ in range(2)]
    for parameter, dtype in zip(parameters, (torch.float32, torch.bfloat16), strict=True):
        parameter.grad = matrices[0].clone()
        Muon([{"params": [parameter], "blocks": 1}], lr=0.01, dtype=dtype).step()
    assert parameters[1].dtype == torch.float32
    torch.testing.assert_close(*parameters, atol=1e-4, rtol=0)


def test_its_steps_follow_nesterovs_momentum_and_decay_the_weights() -> None:
    parameter = nn.Parameter(torch.randn(8, 20, generator=torch.Generator().manual_seed(9)))
    expected, average = parameter.detach().clone(), torch.zeros(8, 20)
    optimizer = Muon([{"params": [parameter], "blocks": 1}], lr=0.01, momentum=0.9, weight_decay=0.3)
    for seed in range(4):
        gradient = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
        average = 0.9 * average + 0.1 * gradient
        direction = orthogonalize((0.9 * average + 0.1 * gradient)[None])[0]
        expected = (1 - 0.01 * 0.3) * expected - 0.01 * STEP_SIZE * 20**0.5 * direction
        parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected)
