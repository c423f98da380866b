"""Recordings that tests write, and what a model hears in them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from asr.decoder import decode_greedy
from asr.model import CTCModel
from asr.transcript import Transcript
from asr.transcription import Failure, Recording, transcribe_recordings

RATE = 16000


def write(path: Path, samples: Tensor, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    """(samples,) or (samples, channels) as a WAV or FLAC file."""
    soundfile.write(path, samples.numpy(), rate, subtype=subtype, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def write_silence(path: Path, seconds: float = 1.0) -> Path:
    return write(path, torch.zeros(round(seconds * RATE)))


def encoded(samples: Tensor, format: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    """(samples,) or (samples, channels) as the content of a file of this format, such as MP3."""
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), rate, format=format, subtype=subtype)
    return file.getvalue()


def text_of(model: CTCModel, samples: Tensor) -> str:
    """What the model writes for (samples,) at its rate, without anything in between."""
    with torch.inference_mode():
        (tokens,) = decode_greedy(*model(samples[None], torch.tensor([len(samples)])))
    return model.vocabulary.decode(tokens.token_ids)


def results_of(
    model: CTCModel, recordings: list[Recording], batch_seconds: float = 160.0
) -> list[Transcript | Failure]:
    """All at once."""
    return list(transcribe_recordings(model, recordings, batch_seconds=batch_seconds))


def assert_same_result(left: Transcript | Failure, right: Transcript | Failure) -> None:
    """The same words at the same times; where two tokens are as probable, one may take a step from the other."""
    if isinstance(left, Failure) or isinstance(right, Failure):
        assert left == right
        return
    assert (left.name, left.text, left.duration_seconds) == (right.name, right.text, right.duration_seconds)
    for one, other in zip(left.words, right.words, strict=True):
        assert one.start_seconds == pytest.approx(other.start_seconds, abs=0.041)
        assert one.end_seconds == pytest.approx(other.end_seconds, abs=0.041)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
