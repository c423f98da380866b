"""Any audio file to mono float32 at the model's rate, whole or in blocks.

Read are WAV, FLAC, OGG/Opus and MP3, known by their bytes and not by their names, from a path or a binary file object.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, gcd
from pathlib import Path
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor

from asr.errors import AsrError

__all__ = ["AudioFile", "AudioSource", "open_audio", "read_audio"]

AudioSource = str | Path | BinaryIO

READ_SECONDS = 60.0
"""How much of a file is decoded at once."""

RESAMPLE_LOBES = 6
"""Zero crossings of torchaudio's windowed sinc on either side; with the rates it fixes how far a sample reaches."""


class AudioFile:
    """An open recording: its length, and its samples as mono float32 in [-1, 1] at `sample_rate`."""

    def __init__(self, file: soundfile.SoundFile, name: str, sample_rate: int) -> None:
        self.file = file
        self.name = name
        self.sample_rate = sample_rate

    @property
    def duration_seconds(self) -> float:
        """As the header says."""
        return float(self.file.frames / self.file.samplerate)

    def read(self, start_seconds: float = 0.0, duration_seconds: float | None = None) -> Tensor:
        """The samples from `start_seconds` on, (samples,), for `duration_seconds` or to the end.

        Raises AsrError for audio that ends early, and for samples that are not finite numbers.
        """
        rate = self.file.samplerate
        start = round(start_seconds * rate)
        count = self.file.frames - start if duration_seconds is None else round(duration_seconds * rate)
        if not 0 <= start <= start + count <= self.file.frames:
            raise AsrError(
                f"{self.name}: {start_seconds:g} s + {count / rate:g} s is past its end at {self.duration_seconds:g} s"
            )
        return resample(self._read_native(start, count), rate, self.sample_rate)

    def blocks(self, block_seconds: float = READ_SECONDS) -> Iterator[Tensor]:
        """The whole recording as consecutive (samples,) tensors; concatenated they are what `read` returns."""
        rate, frames = self.file.samplerate, self.file.frames
        # Blocks begin where a sample of both rates falls, and are resampled with all that reaches into them.
        divisor = gcd(rate, self.sample_rate)
        grid = rate // divisor
        context = grid * ceil(2 * RESAMPLE_LOBES * max(1.0, rate / self.sample_rate) / grid) if grid > 1 else 0
        size = grid * max(1, round(block_seconds * rate / grid))
        for start in range(0, frames, size):
            before, after = min(context, start), min(context, max(0, frames - start - size))
            end = min(frames, start + size)
            samples = resample(self._read_native(start - before, before + end - start + after), rate, self.sample_rate)
            first = before // grid * (self.sample_rate // divisor)
            yield samples[first : first + ceil((end - start) * self.sample_rate / rate)]

    def _read_native(self, start: int, count: int) -> Tensor:
        """`count` mono samples from `start` on, at the file's own rate."""
        try:
            if self.file.tell() != start:
                self.file.seek(start)
            samples = self.file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AsrError(f"{self.name}: the audio is damaged: {_reason(error)}") from error
        if len(samples) < count:
            ends = (start + len(samples)) / self.file.samplerate
            raise AsrError(f"{self.name}: the audio is cut short: it ends at {ends:.2f} of {self.duration_seconds:.2f} s")
        mono = torch.from_numpy(samples).mean(dim=1)
        if not mono.isfinite().all():
            raise AsrError(f"{self.name}: the audio holds samples that are not finite numbers")
        return mono


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """`samples` (..., samples) taken at `rate` Hz, at `new_rate` Hz."""
    if rate == new_rate or samples.shape[-1] == 0:
        return samples
    return torchaudio.functional.resample(samples, rate, new_rate, lowpass_filter_width=RESAMPLE_LOBES)


@contextmanager
def open_audio(source: AudioSource, sample_rate: int) -> Iterator[AudioFile]:
    """An AudioFile, closed at the end; raises AsrError for what is not there, not audio, or empty.

    source: a path, or a binary file object; one that cannot seek (standard input) is read to its end first.
    sample_rate: Hz that the samples shall have.
    """
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "audio"))
    try:
        with soundfile.SoundFile(_seekable(source, name)) as file:
            if file.frames == 0:
                raise AsrError(f"{name}: the audio file holds no samples")
            yield AudioFile(file, name, sample_rate)
    except soundfile.LibsndfileError as error:
        raise AsrError(f"{name}: not audio that can be read (WAV, FLAC, OGG/Opus, MP3): {_reason(error)}") from error


def read_audio(
    source: AudioSource, sample_rate: int, *, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> Tensor:
    """Mono float32 samples (samples,) at `sample_rate` Hz; see `open_audio` and `AudioFile.read`."""
    with open_audio(source, sample_rate) as audio:
        return audio.read(start_seconds, duration_seconds)


def _seekable(source: AudioSource, name: str) -> str | BinaryIO:
    """What soundfile can open, checked so that the reason for a refusal is the true one."""
    if not isinstance(source, str | Path):
        return source if source.seekable() else io.BytesIO(source.read())
    path = Path(source)
    if path.is_dir():
        raise AsrError(f"{name}: is a folder, not an audio file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise AsrError(f"{name}: audio file cannot be opened: {error.strerror}") from error
    if empty:
        raise AsrError(f"{name}: the audio file is empty (0 bytes)")
    return str(path)


def _reason(error: soundfile.LibsndfileError) -> str:
    """libsndfile's own words, without the file's name and the last stop."""
    return str(error.error_string).rstrip(".")
