"""Features to encodings: two strided convolutions, then residual bidirectional recurrent layers.

An utterance's encodings are the same whatever it is batched with: everything past its length is zero before every
convolution, and the backward direction reads it from its own last step (a length-aware flip), so neither direction
meets padding before the utterance's end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asr.config import EncoderConfig
from asr.features import Lengths, mask_padding, valid_positions
from asr.recurrence import bidirectional_gru
from asr.vocabulary import BLANK_ID

__all__ = ["BiGRUEncoder", "BidirectionalLayer", "ConvSubsampling", "PhonemeReader", "flip_valid"]

LEAST_HEARD, HEARD_SCALE = -10.0, 3.0
"""Where phonemes are read, nats: the log-probability below which all are alike, and what is 1 there."""

SURELY_NONE = -0.05
"""Log-probability of the blank above which no phoneme is heard in a step."""

CELLS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class ConvSubsampling(nn.Module):
    """Two 3×3 convolutions of stride 2 over time and mel bands, then a projection: four frames to one step."""

    kernel_size, stride, padding = 3, 2, 1

    def __init__(self, num_mels: int, channels: int, output_size: int) -> None:
        super().__init__()
        arguments = (self.kernel_size, self.stride, self.padding)
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(1, channels, *arguments), nn.Conv2d(channels, channels, *arguments)]
        )
        for convolution in self.convolutions:  # a third faster on the CPU, and ready to flatten
            convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        bands = self.output_lengths(num_mels)
        self.projection = nn.Linear(channels * bands, output_size)

    @property
    def subsampling_factor(self) -> int:
        """Frames per step."""
        return int(self.stride ** len(self.convolutions))

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Steps of so many frames (and bands of so many mel bands)."""
        for _ in self.convolutions:
            lengths = self._output_lengths_of_one(lengths)
        return lengths

    def _output_lengths_of_one(self, lengths: Lengths) -> Lengths:
        return (lengths + 2 * self.padding - self.kernel_size) // self.stride + 1

    def forward(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, num_mels) → (batch, steps, output_size), and the lengths."""
        images, lengths = mask_padding(features, feature_lengths)[:, None], feature_lengths
        for convolution in self.convolutions:
            images, lengths = convolution(images), self._output_lengths_of_one(lengths)
            # A convolution's bias makes its padding nonzero, and the next one would read it.
            _zero_padding(images, lengths)
            images = torch.relu(images)
        return self.projection(images.permute(0, 2, 3, 1).flatten(2)), lengths


@torch.no_grad()
def _zero_padding(images: Tensor, lengths: Tensor) -> None:
    """Zero the padding in place, hidden from autograd: safe only because a ReLU follows, whose gradient at 0 is 0.

    images: (batch, channels, steps, bands). Multiplying is four times as fast as masked_fill.
    """
    images.mul_(valid_positions(lengths, images.shape[2])[:, None, :, None].to(images.dtype))


def flip_valid(encodings: Tensor, lengths: Tensor) -> Tensor:
    """Each utterance of (steps, batch, size) reversed within its length; the padding stays behind it."""
    steps, batch, _ = encodings.shape
    positions = torch.arange(steps, device=encodings.device)[:, None]
    mirrored = lengths - 1 - positions
    source = torch.where(mirrored >= 0, mirrored, positions)
    rows = source * batch + torch.arange(batch, device=encodings.device)
    flipped: Tensor = _Swap.apply(encodings, rows.flatten())  # type: ignore[no-untyped-call]
    return flipped


class _Swap(torch.autograd.Function):
    """Rows of (steps, batch, size) exchanged in pairs: it undoes itself, so its gradient is the same exchange."""

    @staticmethod
    def forward(ctx: Any, encodings: Tensor, rows: Tensor) -> Tensor:
        """rows: for each step of each utterance, the row of the flattened encodings that takes its place."""
        ctx.save_for_backward(rows)
        return encodings.flatten(0, 1).index_select(0, rows).view(encodings.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _Swap.apply(gradient, rows), None  # type: ignore[no-untyped-call]


class UtteranceDropout(nn.Dropout1d):
    """Dropout of (steps, batch, size) that zeroes the same units at all steps of an utterance (Gal, Ghahramani, 2016).

    On a CPU it also costs nothing, where drawing for every step took a twentieth of the training.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(1, 2, 0)).permute(2, 0, 1)


class BidirectionalLayer(nn.Module):
    """x + dropout([forward; backward](LayerNorm(x))): (steps, batch, 2 × hidden_size) in and out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = 2 * config.hidden_size
        cell = CELLS[config.cell]
        self.norm = nn.LayerNorm(size)
        self.forward_cell = cell(size, config.hidden_size)
        self.backward_cell = cell(size, config.hidden_size)
        self.dropout = UtteranceDropout(config.dropout)

    def forward(self, encodings: Tensor, encoding_lengths: Tensor) -> Tensor:
        inputs = self.norm(encodings)
        forward, backward = self._recur(inputs, flip_valid(inputs, encoding_lengths))
        both = torch.cat([forward, flip_valid(backward, encoding_lengths)], dim=2)
        joined: Tensor = encodings + self.dropout(both)
        return joined

    def _recur(self, inputs: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """Both directions; on the CPU our own GRU pair, which is faster there and computes the same."""
        if inputs.device.type == "cpu" and isinstance(self.forward_cell, nn.GRU):
            return bidirectional_gru(inputs, flipped, self.forward_cell, self.backward_cell)
        return self.forward_cell(inputs)[0], self.backward_cell(flipped)[0]


class BiGRUEncoder(nn.Module):
    """Convolutional subsampling and a stack of residual bidirectional layers.

    nn.GRU's update gate z is the share of the old state that is kept, h' = (1 - z) ⊙ h̃ + z ⊙ h: the complement of the z
    of the other common form, h' = (1 - z) ⊙ h + z ⊙ h̃ (Chung et al., 2014). Its reset gate acts after the recurrent
    product, h̃ = tanh(W x + b + r ⊙ (U h + c)), where Cho et al. (2014) print it before.
    """

    def __init__(self, config: EncoderConfig, num_mels: int) -> None:
        super().__init__()
        self.output_size = 2 * config.hidden_size
        self.num_lower_layers = config.phoneme_layer or config.num_layers
        self.subsampling = ConvSubsampling(num_mels, config.conv_channels, self.output_size)
        self.dropout = UtteranceDropout(config.dropout)
        self.layers = nn.ModuleList([BidirectionalLayer(config) for _ in range(config.num_layers)])
        self.norm = nn.Identity() if config.reader_layers else nn.LayerNorm(self.output_size)

    def forward(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodings and their lengths.

        features: (batch, frames, num_mels); feature_lengths: (batch,).
        returns: (batch, steps, 2 × hidden_size), (batch,); what stands past a length is undefined.
        """
        middle, encoding_lengths = self.lower_layers(features, feature_lengths)
        return self.upper_layers(middle, encoding_lengths), encoding_lengths

    def lower_layers(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out of the layers up to the one that hears phonemes, (steps, batch, 2 × hidden_size), and the
        lengths.
        """
        projected, encoding_lengths = self.subsampling(features, feature_lengths)
        # Steps first: a recurrent cell reads all utterances' first steps, then all second ones.
        encodings = self.dropout(projected.transpose(0, 1).contiguous())
        for layer in self.layers[: self.num_lower_layers]:
            encodings = layer(encodings, encoding_lengths)
        return encodings, encoding_lengths

    def upper_layers(self, middle: Tensor, encoding_lengths: Tensor) -> Tensor:
        """The encodings, (batch, steps, 2 × hidden_size), from what `lower_layers` returns."""
        encodings = middle
        for layer in self.layers[self.num_lower_layers :]:
            encodings = layer(encodings, encoding_lengths)
        normal: Tensor = self.norm(encodings)
        return normal.transpose(0, 1)


class PhonemeReader(nn.Module):
    """What phonemes were heard, and nothing else of the sound, to encodings.

    Steps in which none is heard are not read: how long a silence is says little of the words.
    """

    def __init__(self, config: EncoderConfig, num_phonemes: int) -> None:
        super().__init__()
        size = 2 * config.reader_size
        self.projection = nn.Linear(num_phonemes, size)
        sizes = replace(config, hidden_size=config.reader_size)
        self.layers = nn.ModuleList([BidirectionalLayer(sizes) for _ in range(config.reader_layers)])
        self.norm = nn.LayerNorm(size)

    def forward(self, phonemes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodings of the steps in which a phoneme is heard: (batch, heard, size); which steps these are, (batch,
        heard), and how many, (batch,). Past these both are undefined.

        phonemes: (steps, batch, phonemes) log-probabilities; lengths: (batch,) steps.
        """
        is_heard = (phonemes[:, :, BLANK_ID] < SURELY_NONE) & valid_positions(lengths, len(phonemes)).T
        counts = is_heard.sum(0)
        # The steps that are heard first, in their order.
        places = (~is_heard).to(torch.uint8).sort(dim=0, stable=True).indices[: max(1, int(counts.max()))]
        heard = phonemes.gather(0, places[:, :, None].expand(-1, -1, phonemes.shape[2]))
        encodings = self.projection((heard - LEAST_HEARD).clamp(min=0) / HEARD_SCALE)
        for layer in self.layers:
            encodings = layer(encodings, counts)
        return self.norm(encodings).transpose(0, 1), places.T, counts
