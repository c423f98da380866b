"""What a training does to its recordings so that few hours go further; nothing else calls it.

Each function draws from the generator it is given, so a step's draws are a function of its seed.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from asr.audio import resample
from asr.config import AugmentConfig
from asr.features import mask_padding, valid_positions

__all__ = ["add_noise", "augment_features", "augment_waveforms", "change_gain", "change_speed", "mask_spans"]

SPEED_GRID_HZ = 100
"""Speeds are resampling ratios of this denominator: 0.9 is 90 Hz played as 100 Hz."""


def augment_waveforms(
    waveforms: Tensor, sample_lengths: Tensor, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Speed, drawn per batch, gain and noise, drawn per utterance: (batch, samples) and lengths in and out."""
    waveforms, sample_lengths = change_speed(waveforms, sample_lengths, config.speeds, generator)
    waveforms = change_gain(waveforms, config.gain_db, generator)
    low, high = config.noise_snr_db
    return add_noise(waveforms, sample_lengths, config.noise_probability, low, high, generator), sample_lengths


def augment_features(features: Tensor, feature_lengths: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """SpecAugment (Park et al., 2019) without time warping: bands and spans of frames become 0, the band's mean.

    features: (batch, frames, num_mels), normalized; feature_lengths: (batch,).
    """
    batch, frames, num_mels = features.shape
    widths = torch.full((batch,), config.frequency_mask_mels)
    bands = mask_spans(torch.full((batch,), num_mels), widths, num_mels, config.num_frequency_masks, generator)
    lengths = feature_lengths.cpu()
    widths = (lengths * config.time_mask_share).long()
    spans = mask_spans(lengths, widths, frames, config.num_time_masks, generator)
    masked = bands[:, None, :] | spans[:, :, None]
    return features.masked_fill(masked.to(features.device), 0.0)


def _draw(generator: Generator, *size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws on the CPU, so that they are the same whatever the device."""
    return low + (high - low) * torch.rand(*size, generator=generator)


def mask_spans(lengths: Tensor, max_widths: Tensor, size: int, count: int, generator: Generator) -> Tensor:
    """(batch, size) booleans: True inside `count` spans per row, each 0 to max_width wide and inside the length.

    lengths, max_widths: (batch,) integers on the CPU.
    """
    shape = (len(lengths), count, 1)
    widths = (_draw(generator, *shape) * (max_widths.clamp(max=lengths)[:, None, None] + 1)).long()
    starts = (_draw(generator, *shape) * (lengths[:, None, None] - widths + 1)).long()
    positions = torch.arange(size)
    return ((positions >= starts) & (positions < starts + widths)).any(dim=1)


def change_speed(
    waveforms: Tensor, sample_lengths: Tensor, speeds: list[float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """The batch resampled to one of `speeds` (Ko et al., 2015); the lengths change with it.

    One speed for the whole batch: drawn per utterance, they would pad utterances of like lengths by a tenth.
    """
    speed = speeds[int(torch.randint(len(speeds), (), generator=generator))]
    if speed == 1.0:
        return waveforms, sample_lengths
    ratio = round(speed * SPEED_GRID_HZ)
    lengths = -(-sample_lengths * SPEED_GRID_HZ // ratio)
    spoken = resample(waveforms, ratio, SPEED_GRID_HZ)[:, : int(lengths.max())]
    return mask_padding(spoken, lengths.to(waveforms.device)), lengths  # the filter rings past the end


def change_gain(waveforms: Tensor, gain_db: float, generator: Generator) -> Tensor:
    """Each utterance louder or quieter by up to `gain_db`."""
    drawn = _draw(generator, len(waveforms), 1, low=-gain_db, high=gain_db)
    return waveforms * (10 ** (drawn / 20)).to(waveforms)


def add_noise(
    waveforms: Tensor, sample_lengths: Tensor, probability: float, low_db: float, high_db: float, generator: Generator
) -> Tensor:
    """Coloured Gaussian noise added to a share of the utterances at a signal-to-noise ratio drawn per utterance.

    The noise's power falls with frequency as f^-c, c drawn between 0 (white) and 2 (brown).
    """
    batch, samples = waveforms.shape
    noisy = (_draw(generator, batch) < probability).nonzero()[:, 0]
    snr_db = _draw(generator, len(noisy), 1, low=low_db, high=high_db)
    colour = _draw(generator, len(noisy), 1, high=2.0)
    if len(noisy) == 0:
        return waveforms
    size = 2 ** (samples - 1).bit_length()  # a power of two, because a prime length would make the transform slow
    frequencies = torch.arange(1, size // 2 + 2, device=waveforms.device, dtype=torch.float32)
    spectrum = torch.fft.rfft(torch.randn(len(noisy), size, generator=generator).to(waveforms.device))
    coloured = torch.fft.irfft(spectrum * frequencies ** (-colour.to(waveforms.device) / 2), n=size)
    noise = coloured[:, :samples].to(waveforms)
    rows = noisy.to(waveforms.device)
    lengths = sample_lengths[noisy.to(sample_lengths.device)].to(waveforms.device)
    noise = mask_padding(noise, lengths)
    speech_power, noise_power = (_power(part, lengths) for part in (waveforms[rows], noise))
    scale = (speech_power / noise_power.clamp(min=1e-20) / (10 ** (snr_db / 10)).to(waveforms)).sqrt()
    return waveforms.index_add(0, rows, noise * scale)


def _power(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(batch, 1) mean square over each length."""
    valid = valid_positions(lengths, waveforms.shape[1])
    return (waveforms * valid).square().sum(1, keepdim=True) / lengths[:, None]
