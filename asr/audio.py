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

BLOCK_SECONDS = 30.0
"""How much of a long file is decoded at once."""

END_TOLERANCE_SECONDS = 0.05
"""How far past a file's end a manifest may reach: codecs round lengths."""

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
        start, end = self._frames(start_seconds, duration_seconds)
        return resample(self._read_native(start, end - start), self.file.samplerate, self.sample_rate)

    def blocks(
        self, start_seconds: float = 0.0, duration_seconds: float | None = None, block_seconds: float = BLOCK_SECONDS
    ) -> Iterator[Tensor]:
        """What `read` returns, as consecutive (samples,) tensors of about `block_seconds`."""
        rate = self.file.samplerate
        first, last = self._frames(start_seconds, duration_seconds)
        # Blocks begin where samples of both rates fall together, and are resampled with all that reaches into them.
        grid = rate // gcd(rate, self.sample_rate)
        reach = RESAMPLE_LOBES * max(1.0, rate / self.sample_rate) + 1
        context = grid * ceil(reach / grid) if rate != self.sample_rate else 0
        size = grid * max(1, round(block_seconds * rate / grid))
        for start in range(first, last, size):
            before = min(context, start - first)
            end = min(last, start + size)
            samples = self._read_native(start - before, min(last, end + context) - start + before)
            skipped = before * self.sample_rate // rate
            kept = ceil((end - start) * self.sample_rate / rate)
            yield resample(samples, rate, self.sample_rate)[skipped : skipped + kept]

    def _frames(self, start_seconds: float, duration_seconds: float | None) -> tuple[int, int]:
        """First frame and the one behind the last, at the file's own rate; raises AsrError past the file's end."""
        rate = self.file.samplerate
        start = round(start_seconds * rate)
        end = self.file.frames if duration_seconds is None else start + round(duration_seconds * rate)
        if not 0 <= start < end <= self.file.frames + END_TOLERANCE_SECONDS * rate:
            raise AsrError(
                f"{self.name}: {start_seconds:g} to {end / rate:g} s is not inside its {self.duration_seconds:g} s"
            )
        return start, min(end, self.file.frames)

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
            raise AsrError(
                f"{self.name}: the audio is cut short: it ends at {ends:.2f} of {self.duration_seconds:.2f} s"
            )
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
