"""What a recording comes from: a path, a tar file's member, an open file, a pipe or samples, as an open binary file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy
import soundfile
from torch import Tensor

from asr.errors import AsrError, reason_of
from asr.tarfiles import open_recording

__all__ = ["KINDS", "AudioSource", "can_seek", "check_rate", "name_of", "open_source", "samples_as_file"]

AudioSource = str | Path | BinaryIO

KINDS = "WAV, FLAC, OGG/Opus, MP3"
"""Of audio that can be read."""

LOWEST_RATE, HIGHEST_RATE = 1000, 768000
"""Hz; what claims another rate is not a recording of speech."""

MOST_CHANNELS = 1024
"""More are taken for samples that were given the other way round."""


def name_of(source: AudioSource) -> str:
    """A path or a file's name, as errors tell it."""
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "audio"))


@contextmanager
def open_source(source: AudioSource) -> Iterator[BinaryIO]:
    """An open file with something in it, at its beginning; what cannot seek is read to its end first.

    Raises AsrError for what is neither a path nor a file of bytes, not there, or empty.
    """
    _check_source(source)
    name = name_of(source)
    with ExitStack() as opened:
        try:
            stream = opened.enter_context(open_recording(source)) if isinstance(source, str | Path) else source
            if not can_seek(stream):
                stream = io.BytesIO(stream.read())
            if stream.seek(0, io.SEEK_END) == 0:
                raise AsrError(f"{name}: the audio file is empty (0 bytes)")
            stream.seek(0)
        except (OSError, ValueError) as error:  # a ValueError is a null byte in a path
            reason = reason_of(error)
            if isinstance(error, IsADirectoryError) and os.access(name, os.R_OK | os.X_OK):
                reason = (
                    f"a folder, and no file of it that is {KINDS}; `ffmpeg -i FILE NEW.flac` makes one of most else"
                )
            elif isinstance(error, IsADirectoryError):
                reason = "a folder that may not be entered"
            if name.startswith(("http://", "https://")):
                reason = f"addresses are not fetched; `curl -L {name} | asr transcribe -`"
            raise AsrError(f"{name}: audio file cannot be opened: {reason}") from error
        yield stream


def _check_source(source: object) -> None:
    """Raise AsrError for what is neither a path nor a file of bytes."""
    is_file = hasattr(source, "seekable") and not isinstance(source, io.TextIOBase)
    if not (isinstance(source, str | Path) or is_file):
        told = 'give a str or Path, a file opened with "rb", or io.BytesIO around bytes'
        raise AsrError(f"{type(source).__name__}: is no recording that can be opened; {told}")


def can_seek(stream: BinaryIO) -> bool:
    """Whether it is no pipe; on Windows Python before 3.16 takes those too for files with an end to seek."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (AttributeError, OSError):  # it has no descriptor
        is_pipe = False
    return not is_pipe and stream.seekable()


def check_rate(name: str, sample_rate: float) -> None:
    """Raise AsrError for a rate that is not one of recorded speech; name: of the audio."""
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        allowed = f"{LOWEST_RATE} to {HIGHEST_RATE} Hz can be read"
        raise AsrError(f"{name}: a sample rate of {sample_rate} Hz is out of range; {allowed}")


def samples_as_file(samples: Tensor | numpy.ndarray, sample_rate: int | None) -> io.BytesIO:
    """Samples as an open WAV file, so that they take the way that every recording takes.

    samples: floating point in [-1, 1], (samples,) or (samples, channels); sample_rate: Hz.
    Raises AsrError for samples of another kind or shape, and without a rate.
    """
    if sample_rate is None:
        raise AsrError("samples were given without their rate; set sample_rate=")
    if isinstance(samples, Tensor):
        samples = (samples.float() if samples.is_floating_point() else samples).detach().cpu().numpy()
    if samples.dtype.kind != "f":
        raise AsrError(f"samples must be floating point in [-1, 1], not {samples.dtype}; divide 16-bit ones by 32768")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= MOST_CHANNELS):
        hint = "; give their .T" if samples.ndim == 2 and samples.shape[1] > 0 else ""
        raise AsrError(f"samples of shape {tuple(samples.shape)} must be (samples,) or (samples, channels){hint}")
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AsrError(f"sample_rate={sample_rate} must be {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    file = io.BytesIO()
    kind = {"format": "RF64", "subtype": "FLOAT"}  # a plain WAV file ends at 4 GB
    with numpy.errstate(over="ignore"):  # what is too large is told where it is read
        samples = samples.astype(numpy.float32)
    soundfile.write(file, samples, round(sample_rate), **kind)
    return file
