"""Recordings that tests write."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
from torch import Tensor

RATE = 16000


def write(path: Path, samples: Tensor, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    """(samples,) or (samples, channels) as a WAV or FLAC file."""
    soundfile.write(path, samples.numpy(), rate, subtype=subtype, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def write_silence(path: Path, seconds: float = 1.0) -> Path:
    return write(path, torch.zeros(round(seconds * RATE)))
