"""The encoder against its equations, and that every stage of it is exact under padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asr.config import EncoderConfig
from asr.encoder import BidirectionalLayer, BiGRUEncoder, ConvSubsampling, UtteranceDropout, flip_valid

CONFIG = EncoderConfig(num_layers=2, hidden_size=6, conv_channels=3, dropout=0.0)
NUM_MELS = 13
FRAMES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17]
"""Lengths in frames around every boundary of the two strides."""


def make_encoder(cell: str = "gru") -> BiGRUEncoder:
    torch.manual_seed(0)
    return BiGRUEncoder(dataclasses.replace(CONFIG, cell=cell), NUM_MELS).double()


def make_layer(cell: str = "gru") -> BidirectionalLayer:
    torch.manual_seed(0)
    return BidirectionalLayer(dataclasses.replace(CONFIG, cell=cell)).double()


def garbage_batch(lengths: list[int], size: int) -> Tensor:
    """(batch, longest + 3, size): random everywhere, large past each length."""
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(len(lengths), max(lengths) + 3, size, generator=generator, dtype=torch.float64)
    for row, length in zip(batch, lengths):
        row[length:] *= 1000
    return batch


def gru_by_the_equations(inputs: Tensor, cell: nn.GRU) -> Tensor:
    """(steps, input_size) → (steps, hidden_size), gate by gate and step by step.

    The two places where PyTorch leaves DESIGN.md's h̃ = tanh(W·[r⊙h, x]), h' = (1-z)⊙h + z⊙h̃: its update gate is the
    complement (z keeps the old state), and its reset gate multiplies U h + c, after the recurrent product, not h.
    """
    w_r, w_z, w_n = cell.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = cell.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = cell.bias_ih_l0.chunk(3)
    c_r, c_z, c_n = cell.bias_hh_l0.chunk(3)
    state = torch.zeros(cell.hidden_size, dtype=torch.float64)
    states = []
    for x in inputs:
        reset = 1 / (1 + torch.exp(-(w_r @ x + b_r + u_r @ state + c_r)))
        update = 1 / (1 + torch.exp(-(w_z @ x + b_z + u_z @ state + c_z)))
        candidate = torch.tanh(w_n @ x + b_n + reset * (u_n @ state + c_n))
        state = (1 - update) * candidate + update * state
        states.append(state)
    return torch.stack(states)


def two_grus(first: Tensor, second: Tensor, first_cell: nn.GRU, second_cell: nn.GRU) -> tuple[Tensor, Tensor]:
    """What the layers compute on a GPU, in the place of what they compute on a CPU."""
    return first_cell(first)[0], second_cell(second)[0]


@pytest.fixture(params=["our recurrence", "nn.GRU"])
def recurrence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The layers' way on a CPU, and the one that they take on a GPU."""
    if request.param == "nn.GRU":
        monkeypatch.setattr("asr.encoder.bidirectional_gru", two_grus)
    return str(request.param)


@pytest.mark.usefixtures("recurrence")
def test_a_bidirectional_gru_layer_equals_the_equations_written_out() -> None:
    layer = make_layer()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.uniform_(-1, 1)
    lengths = [9, 1, 2, 5]
    batch = garbage_batch(lengths, 12)
    with torch.no_grad():
        outputs = layer(batch.transpose(0, 1), torch.tensor(lengths)).transpose(0, 1)
        for row, length, output in zip(batch, lengths, outputs):
            inputs = row[:length]
            deviation = inputs.var(1, unbiased=False, keepdim=True).add(layer.norm.eps).sqrt()
            normed = (inputs - inputs.mean(1, keepdim=True)) / deviation * layer.norm.weight + layer.norm.bias
            forward = gru_by_the_equations(normed, layer.forward_cell)
            backward = gru_by_the_equations(normed.flip(0), layer.backward_cell).flip(0)
            expected = inputs + torch.cat([forward, backward], 1)
            torch.testing.assert_close(output[:length], expected, atol=1e-12, rtol=1e-12)


def test_our_recurrence_and_nn_gru_give_the_same_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    features, lengths = garbage_batch(FRAMES, NUM_MELS), torch.tensor(FRAMES)
    ours, steps = encoder(features, lengths)
    monkeypatch.setattr("asr.encoder.bidirectional_gru", two_grus)
    theirs, _ = encoder(features, lengths)
    assert not torch.equal(ours, theirs), "two ways to compute it"
    for left, right, length in zip(ours.detach(), theirs.detach(), steps.tolist()):
        torch.testing.assert_close(left[:length], right[:length], atol=1e-12, rtol=0)


@pytest.mark.parametrize("frames", range(1, 41))
def test_subsampling_lengths_equal_the_steps_that_come_out(frames: int) -> None:
    subsampling = ConvSubsampling(NUM_MELS, 2, 4)
    encodings, lengths = subsampling(torch.zeros(1, frames, NUM_MELS), torch.tensor([frames]))
    assert encodings.shape == (1, int(lengths), 4)
    assert int(lengths) == -(-frames // subsampling.subsampling_factor)


def test_padding_never_reaches_the_subsampling() -> None:
    torch.manual_seed(0)
    subsampling = ConvSubsampling(NUM_MELS, 3, 12).double()
    batch = garbage_batch(FRAMES, NUM_MELS)
    together, steps = subsampling(batch, torch.tensor(FRAMES))
    for row, length, output, step in zip(batch, FRAMES, together, steps.tolist()):
        alone, _ = subsampling(row[None, :length], torch.tensor([length]))
        torch.testing.assert_close(output[:step], alone[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_padding_never_reaches_a_bidirectional_layer(cell: str, grad: bool) -> None:
    layer = make_layer(cell)
    batch = garbage_batch(FRAMES, 12)
    with torch.set_grad_enabled(grad):
        together = layer(batch.transpose(0, 1), torch.tensor(FRAMES)).transpose(0, 1)
        for row, length, output in zip(batch, FRAMES, together):
            alone = layer(row[:length, None], torch.tensor([length]))[:, 0]
            torch.testing.assert_close(output[:length], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_padding_never_reaches_the_encoder(cell: str, grad: bool) -> None:
    encoder = make_encoder(cell)
    batch = garbage_batch(FRAMES, NUM_MELS)
    with torch.set_grad_enabled(grad):
        together, steps = encoder(batch, torch.tensor(FRAMES))
        for row, length, output, step in zip(batch, FRAMES, together, steps.tolist()):
            alone, alone_steps = encoder(row[None, :length], torch.tensor([length]))
            assert alone_steps.tolist() == [step]
            torch.testing.assert_close(output[:step], alone[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_both_directions_reach_every_step(cell: str) -> None:
    """Else the exactness above would be that of a layer that does not listen."""
    layer = make_layer(cell)
    inputs = garbage_batch([6], 12)[:, :6].requires_grad_()
    outputs = layer(inputs.transpose(0, 1), torch.tensor([6])).transpose(0, 1)
    (by_last,) = torch.autograd.grad(outputs[0, -1].square().sum(), inputs, retain_graph=True)
    (by_first,) = torch.autograd.grad(outputs[0, 0].square().sum(), inputs)
    assert by_last[0].abs().sum(1).min() > 0
    assert by_first[0].abs().sum(1).min() > 0


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), padding=st.integers(0, 4))
def test_flip_valid_reverses_each_utterance_and_leaves_its_padding_in_place(lengths: list[int], padding: int) -> None:
    size = max(lengths) + padding
    batch = torch.arange(len(lengths) * size * 2).reshape(len(lengths), size, 2)
    steps_first = flip_valid(batch.transpose(0, 1), torch.tensor(lengths))
    assert torch.equal(flip_valid(steps_first, torch.tensor(lengths)), batch.transpose(0, 1))
    flipped = steps_first.transpose(0, 1)
    for row, turned, length in zip(batch, flipped, lengths):
        assert torch.equal(turned[:length], row[:length].flip(0))
        assert torch.equal(turned[length:], row[length:])


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_gradients_are_those_of_each_utterance_alone_and_none_reach_padding(cell: str) -> None:
    encoder = make_encoder(cell)
    lengths = [17, 1, 4, 5, 9]
    batch = garbage_batch(lengths, NUM_MELS).requires_grad_()
    parameters = list(encoder.parameters())
    together, steps = encoder(batch, torch.tensor(lengths))
    loss = sum(row[:step].sin().sum() for row, step in zip(together, steps.tolist()))
    by_features, *by_parameters = torch.autograd.grad(loss, [batch, *parameters])
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for row, length, gradient in zip(batch.detach(), lengths, by_features):
        alone = row[None, :length].clone().requires_grad_()
        outputs, _ = encoder(alone, torch.tensor([length]))
        expected, *parts = torch.autograd.grad(outputs.sin().sum(), [alone, *parameters])
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(gradient[:length], expected[0], atol=1e-11, rtol=1e-9)
        assert not gradient[length:].any()
        sums = [total + part for total, part in zip(sums, parts)]
    for actual, total in zip(by_parameters, sums):
        torch.testing.assert_close(actual, total, atol=1e-11, rtol=1e-9)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = BiGRUEncoder(dataclasses.replace(CONFIG, dropout=0.5), NUM_MELS)
    features, lengths = torch.randn(1, 20, NUM_MELS), torch.tensor([20])
    assert not torch.equal(encoder(features, lengths)[0], encoder(features, lengths)[0])
    encoder.eval()
    assert torch.equal(encoder(features, lengths)[0], encoder(features, lengths)[0])


def test_dropout_zeroes_the_same_units_at_all_steps_of_an_utterance_and_others_in_the_next() -> None:
    torch.manual_seed(0)
    kept = UtteranceDropout(0.5)(torch.ones(7, 3, 40)) != 0
    assert torch.equal(kept, kept[:1].expand(7, -1, -1))
    assert len({tuple(row) for row in kept[0].tolist()}) == 3


def test_a_layer_drops_of_what_it_adds_and_keeps_what_it_was_given() -> None:
    torch.manual_seed(0)
    layer, inputs = BidirectionalLayer(EncoderConfig(hidden_size=20, dropout=0.5)), torch.randn(7, 3, 40)
    dropped = (layer(inputs, torch.tensor([7, 7, 7])) == inputs).all(0)
    assert dropped.any(1).all()
    assert not dropped.all(1).any()
