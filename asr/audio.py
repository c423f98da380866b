"""Any audio file to mono float32 at the model's rate, whole or in blocks.

Read are WAV, FLAC, OGG/Opus and MP3, known by their bytes and not by their names, from a path or a binary file object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor

from asr.containers import check_whole, with_whole_length
from asr.errors import AsrError
from asr.sources import KINDS, AudioSource, check_rate, name_of, open_source
from asr.streams import Identity, identity, is_on_disk
from asr.wav import count_told_frames

__all__ = ["AUDIO_EXTENSIONS", "AudioFile", "frame_powers", "open_audio", "read_audio", "resample"]

AUDIO_EXTENSIONS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
"""Of what is taken out of a folder, the best first; a file that is named is known by its content."""

BLOCK_SECONDS = 30.0
"""How much of a long file is decoded at once."""

BLOCK_FRAMES = 1_000_000
"""And of what is decoded and dropped."""

END_TOLERANCE_SECONDS = 0.05
"""How far past a file's end a manifest may reach: codecs round lengths."""

RESAMPLE_LOBES = 6
"""Zero crossings of torchaudio's windowed sinc on either side; with the rates it fixes how far a sample reaches."""

LARGEST_DENOMINATOR = 640
"""Of the ratio of two rates: exact for all that are in use (11025 : 16000 = 441 : 640). The resampler's table has a
row per unit, and fills the memory for 44099 : 16000, which is taken as 441 : 160."""

LEAD_IN_SECONDS = 0.5
"""Decoded and dropped before a segment: MP3 and Opus need what came before to decode a sample."""

LOUDEST_SAMPLE = 1e12
"""Far above 32-bit integers taken as floats; powers of much more would overflow."""

UNKNOWN_FRAMES = 2**63 - 1
"""What libsndfile reports for a stream whose header does not tell its length: FLAC that was written to a pipe."""


_counted: dict[Identity | None, int] = {}
"""The lengths of such files."""


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A SoundFile that seeks only when told to.

    The original seeks after every read, to where it is already, which makes MP3 and Opus forget what they decoded.
    """

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        """False for codecs that go forward only: GSM, some kinds of ADPCM, and DWVW, which says that it can."""
        return super().seekable() and not self.subtype.startswith("DWVW")


class AudioFile:
    """An open recording: its length, and its samples as mono float32 in [-1, 1] at `sample_rate`."""

    def __init__(self, file: _SequentialFile, name: str, sample_rate: int | None, frames: int) -> None:
        self.file, self.frames, self.position = file, frames, 0
        self.name = name
        self.sample_rate: int = sample_rate or file.samplerate

    @property
    def duration_seconds(self) -> float:
        """As the header says, or counted where it does not."""
        return float(self.frames / self.file.samplerate)

    def read(self, start_seconds: float = 0.0, duration_seconds: float | None = None) -> Tensor:
        """The samples from `start_seconds` on, (samples,), for `duration_seconds` or to the end.

        Raises AsrError for audio that ends early or does not fit into memory, and for samples that are not finite
        numbers, or absurd ones.
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
        grid, new_grid = _ratio(rate, self.sample_rate)
        reach = RESAMPLE_LOBES * max(1.0, grid / new_grid) + 1
        context = grid * ceil(reach / grid) if grid != new_grid else 0
        size = grid * max(1, round(block_seconds * rate / grid))
        samples, samples_end = torch.empty(0), first
        for start in range(first, last, size):
            before, end = min(context, start - first), min(last, start + size)
            unread = min(last, end + context) - samples_end
            held = samples[len(samples) - (samples_end - start + before) :]
            samples = torch.cat([held, self._read_native(samples_end, unread)])
            samples_end += unread
            skipped, kept = before * new_grid // grid, ceil((end - start) * new_grid / grid)
            yield resample(samples, rate, self.sample_rate)[skipped : skipped + kept]

    def _frames(self, start_seconds: float, duration_seconds: float | None) -> tuple[int, int]:
        """First frame and the one behind the last, at the file's own rate; raises AsrError where none is between."""
        rate, whole = self.file.samplerate, self.duration_seconds
        end_seconds = whole if duration_seconds is None else start_seconds + duration_seconds
        stretch = f"{self.name}: {start_seconds:g} to {end_seconds:g} s"
        if not 0 <= start_seconds < end_seconds <= whole + END_TOLERANCE_SECONDS:
            raise AsrError(f"{stretch} is not inside its {whole:g} s")
        start = round(start_seconds * rate)
        end = self.frames if duration_seconds is None else min(self.frames, start + round(duration_seconds * rate))
        if start >= end:
            raise AsrError(f"{stretch} holds none of its {self.frames} samples")
        return start, end

    def _read_native(self, start: int, count: int) -> Tensor:
        """`count` mono samples from `start` on, at the file's own rate."""
        try:
            self._go_to(start)
            samples = self.file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AsrError(f"{self.name}: the audio is damaged: {_reason(error)}") from error
        except MemoryError as error:  # a damaged header may claim years
            seconds = count / self.file.samplerate
            raise AsrError(f"{self.name}: {seconds:.0f} s of audio do not fit into the memory") from error
        self.position += len(samples)
        if len(samples) < count:
            ends = self.position / self.file.samplerate
            raise AsrError(
                f"{self.name}: the audio is cut short: it ends at {ends:.2f} of {self.duration_seconds:.2f} s"
            )
        mono = torch.from_numpy(samples).mean(dim=1)
        if not mono.isfinite().all():
            raise AsrError(f"{self.name}: the audio holds samples that are not finite numbers")
        if (mono.abs() > LOUDEST_SAMPLE).any():
            raise AsrError(f"{self.name}: the audio holds a sample of {mono.abs().max():.2g}; full scale is 1")
        return mono

    def _go_to(self, start: int) -> None:
        """Be at that frame, or at the end where the audio ends before it."""
        if self.position == start:
            return
        if self.file.can_seek():
            self.position = max(0, start - round(LEAD_IN_SECONDS * self.file.samplerate))
            self.file.seek(self.position)
        elif self.position > start:
            advice = "open it anew, or `ffmpeg -i FILE NEW.flac` makes a file of it that can be read in any order"
            raise AsrError(f"{self.name}: {self.file.subtype} can only be read forward; {advice}")
        while dropped := len(self.file.read(min(BLOCK_FRAMES, start - self.position), dtype="float32")):
            self.position += dropped


def resample(samples: Tensor, rate: int, new_rate: int) -> Tensor:
    """`samples` (..., samples) taken at `rate` Hz, at `new_rate` Hz."""
    if rate == new_rate or samples.shape[-1] == 0:
        return samples
    taken, made = _ratio(rate, new_rate)
    resampled: Tensor = torchaudio.functional.resample(samples, taken, made, lowpass_filter_width=RESAMPLE_LOBES)
    return resampled


def frame_powers(samples: Tensor, size: int) -> Tensor:
    """Mean square of each whole frame of `size` samples: (frames,) of (samples,)."""
    return samples[: len(samples) // size * size].view(-1, size).square().mean(1)


def _ratio(rate: int, new_rate: int) -> tuple[int, int]:
    """The two rates in lowest terms: so many samples become so many."""
    return Fraction(rate, new_rate).limit_denominator(LARGEST_DENOMINATOR).as_integer_ratio()


@contextmanager
def open_audio(source: AudioSource, sample_rate: int | None = None) -> Iterator[AudioFile]:
    """An AudioFile, closed at the end; raises AsrError for what is not there, not audio, or empty.

    source: a path, or a binary file object; one that cannot seek (standard input) is read to its end first.
    sample_rate: Hz that the samples shall have; None: those of the file.
    """
    name = name_of(source)
    with open_source(source) as original:
        check_whole(original, name)
        stream = with_whole_length(original)
        told = count_told_frames(stream)
        try:
            file = _SequentialFile(_descriptor_or_stream(stream), closefd=False)
            frames = file.frames if file.frames != UNKNOWN_FRAMES else _count_frames(file, identity(original))
            audio = AudioFile(file, name, sample_rate, max(frames, told))
        except soundfile.LibsndfileError as error:
            reason = f"not audio that can be read ({KINDS}): {_reason(error)}"
            advice = "`ffmpeg -i FILE NEW.flac` turns video and most else into it"
            if name == "<stdin>":
                advice += ", --pcm RATE reads 16-bit samples without a header"
            raise AsrError(f"{name}: {reason}; {advice}") from error
        with file:
            if audio.frames == 0:
                raise AsrError(f"{name}: the audio file holds no samples")
            check_rate(name, file.samplerate)
            yield audio


def _descriptor_or_stream(stream: BinaryIO) -> int | BinaryIO:
    """At its beginning; what is on the disk by its descriptor, for a name such as a.raw would be believed."""
    stream.seek(0)
    if not is_on_disk(stream):
        return stream
    os.lseek(stream.fileno(), 0, os.SEEK_SET)  # what was read of it before was read in blocks
    return stream.fileno()


def _count_frames(file: soundfile.SoundFile, key: Identity | None) -> int:
    """The length of an open file by decoding it; the file is at its beginning again.

    key: of a file on the disk, which is decoded once, for many utterances may be stretches of it.
    """
    if key in _counted:
        return _counted[key]
    frames = 0
    while count := len(file.read(BLOCK_FRAMES, dtype="float32")):
        frames += count
    file.seek(0)
    if key is not None:
        _counted[key] = frames
    return frames


def read_audio(
    source: AudioSource, sample_rate: int, *, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> Tensor:
    """Mono float32 samples (samples,) at `sample_rate` Hz; see `open_audio` and `AudioFile.read`."""
    with open_audio(source, sample_rate) as audio:
        return audio.read(start_seconds, duration_seconds)


def _reason(error: soundfile.LibsndfileError) -> str:
    """libsndfile's own words, without the file's name, the first word "Error" and the last stop."""
    return str(error.error_string).removeprefix("Error : ").rstrip(".")
