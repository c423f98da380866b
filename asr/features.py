"""Waveforms to log-mel features, inside the model, on any device, a whole batch at once."""

from __future__ import annotations

from typing import TypeVar

import torch
import torchaudio
from torch import Tensor, nn

from asr.config import FrontendConfig

__all__ = ["Lengths", "LogMelFrontend", "mask_padding", "normalize_features", "valid_positions"]

Lengths = TypeVar("Lengths", int, Tensor)
"""One length, or (batch,) integers."""

LOG_FLOOR = 2.0**-24
"""Added to each mel energy before the logarithm, which stays finite in digital silence; far below speech."""

VARIANCE_FLOOR = 0.3
"""Added to each band's variance: what hardly moves (silence, the highs that an MP3 leaves out) stays near zero."""


class LogMelFrontend(nn.Module):
    """Log-mel energies, each band with mean 0 and deviation near 1 over the utterance."""

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.window_samples = round(config.sample_rate * config.window_ms / 1000)
        self.hop_samples = round(config.sample_rate * config.hop_ms / 1000)
        self.fft_samples = 2 ** (self.window_samples - 1).bit_length()
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=self.fft_samples,
            win_length=self.window_samples,
            hop_length=self.hop_samples,
            power=None,
            pad_mode="constant",  # reflected, an utterance's last frames would depend on its batch mates' padding
        )
        self.mel_scale = torchaudio.transforms.MelScale(
            n_mels=config.num_mels,
            sample_rate=config.sample_rate,
            n_stft=self.fft_samples // 2 + 1,
            mel_scale="slaney",
            norm="slaney",
        )
        # The window and the mel filters follow from the settings; a file of half-precision weights would round them.
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer, persistent=False)

    def output_lengths(self, sample_lengths: Lengths) -> Lengths:
        """Frames of utterances of so many samples: one centred on every hop, the first on sample 0."""
        return sample_lengths // self.hop_samples + 1

    def mel_energies(self, waveforms: Tensor) -> Tensor:
        """Energies of the mel bands, (batch, num_mels, frames), of waveforms (batch, samples)."""
        if waveforms.is_cpu and len(waveforms) > 1:  # one by one the spectra stay in the cache
            return torch.cat([self.mel_energies(waveform) for waveform in waveforms.split(1)])
        spectrum = self.spectrogram(waveforms)
        # torchaudio's own power spectrogram squares a square root, at several times the cost.
        energies: Tensor = self.mel_scale(spectrum.real.square() + spectrum.imag.square())
        return energies

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Log-mel energies before normalization, (batch, frames, num_mels), of waveforms (batch, samples)."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return (self.mel_energies(waveforms.float()) + LOG_FLOOR).log().transpose(1, 2)

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features and feature_lengths, zero past each length.

        waveforms: (batch, samples) in [-1, 1] at the model's rate, of any content past each sample_length.
        sample_lengths: (batch,) integers.
        returns: (batch, frames, num_mels), (batch,).
        """
        feature_lengths = self.output_lengths(sample_lengths)
        features = self.log_mel(mask_padding(waveforms, sample_lengths))
        return normalize_features(features, feature_lengths), feature_lengths


def valid_positions(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) booleans: True before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_padding(batch: Tensor, lengths: Tensor) -> Tensor:
    """`batch` (batch, positions, ...) with zeros past each length."""
    valid = valid_positions(lengths, batch.shape[1])
    return torch.where(valid.reshape(*valid.shape, *[1] * (batch.dim() - 2)), batch, 0.0)


def normalize_features(features: Tensor, feature_lengths: Tensor) -> Tensor:
    """Each band of each utterance with mean 0 and deviation near 1 over its valid frames, and zeros past them.

    features: (batch, frames, num_mels); feature_lengths: (batch,), each at least 1.
    """
    count = feature_lengths[:, None, None]
    # Sums in double precision: over another padding, those in single precision would round otherwise.
    total = mask_padding(features, feature_lengths).sum(1, keepdim=True, dtype=torch.float64)
    centred = mask_padding(features - (total / count).to(features.dtype), feature_lengths)
    variance = centred.square().sum(1, keepdim=True, dtype=torch.float64) / count
    return centred * (variance + VARIANCE_FLOOR).rsqrt().to(features.dtype)
