"""Sound that is still coming in, cut at its pauses: each stretch can be recognised as soon as it ends.

Nothing is left out but what is quieter than anything that is said; so no word is lost, whatever is taken for a pause.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from typing import BinaryIO

import torch
from torch import Tensor

from asr.audio import check_rate
from asr.errors import AsrError

__all__ = ["cut_stream", "open_stream"]

BLOCK_SECONDS = 0.1
"""Read at once."""

FRAME_SECONDS = 0.02
"""Sound is loud or quiet frame by frame."""

PAUSE_SECONDS = 0.5
"""So long a quiet stretch behind speech ends an utterance."""

LONGEST_SECONDS = 20.0
"""An utterance without a pause is cut where it is quietest in its second half."""

RANGE_DB = 50.0
"""What lies further below the loudest frame counts as silence, and tells nothing of the background."""

QUIET_SHARE = 0.25
"""Quiet is what lies, in dB, in the lowest quarter between the background and the loudest frame."""

SHORTEST_SECONDS = 0.1
"""What is left at the end of a stream must be as long to be an utterance."""

SILENCE_POWER = 1e-8
"""Of a frame in which nothing is said (-80 dB)."""


def open_stream(stream: BinaryIO, pcm_rate: int | None = None) -> tuple[Iterator[Tensor], int] | None:
    """Consecutive (samples,) blocks of a pipe, mono, each as soon as it is there, and their rate in Hz.

    pcm_rate: of 16-bit mono samples without a header; None expects a WAV file of 16 bits.
    Returns None, and takes nothing from the stream, where it is no pipe or holds no such file.
    Raises AsrError for a header that is damaged and a rate that cannot be.
    """
    if pcm_rate is not None:
        return _mono_blocks(stream.read, pcm_rate, 1), pcm_rate
    if stream.seekable() or not isinstance(stream, BufferedReader):
        return None
    header = stream.peek(36)
    is_plain = header[20:22] == b"\x01\x00" and header[34:36] == b"\x10\x00"
    if header[:4] != b"RIFF" or header[8:16] != b"WAVEfmt " or not is_plain:
        return None
    try:
        file = wave.open(stream)  # noqa: SIM115 - the stream is the caller's to close
    except (wave.Error, EOFError) as error:
        raise AsrError(f"{stream.name}: the WAV header is damaged: {error or 'it is cut short'}") from error
    channels, rate = file.getnchannels(), file.getframerate()
    return _mono_blocks(lambda size: file.readframes(size // (2 * channels)), rate, channels), rate


def _mono_blocks(read: Callable[[int], bytes], rate: int, channels: int) -> Iterator[Tensor]:
    check_rate("standard input", rate)
    frame_bytes = 2 * channels
    while content := read(frame_bytes * max(1, round(BLOCK_SECONDS * rate))):
        whole = bytearray(content[: len(content) // frame_bytes * frame_bytes])  # the last sample may be half there
        if whole:
            yield torch.frombuffer(whole, dtype=torch.int16).view(-1, channels).float().mean(1) / 32768


def cut_stream(blocks: Iterable[Tensor], sample_rate: int) -> Iterator[Tensor]:
    """Consecutive (samples,) blocks as stretches of speech, each as soon as the pause behind it is long enough.

    Raises AsrError for a stream without a sample.
    """
    pending = torch.empty(0)
    for block in blocks:
        pending = torch.cat([pending, block])
        end = _find_end(pending, sample_rate)
        if end is not None:
            if _is_heard(pending[:end], sample_rate):
                yield pending[:end]
            pending = pending[end:]
    if len(pending) == 0:  # of what came there is always a rest
        raise AsrError("standard input: the stream holds no samples")
    if len(pending) >= SHORTEST_SECONDS * sample_rate and _is_heard(pending, sample_rate):
        yield pending


def _powers(samples: Tensor, sample_rate: int) -> tuple[Tensor, int]:
    """Mean square of each whole frame, and the samples of a frame."""
    size = max(1, round(FRAME_SECONDS * sample_rate))
    return samples[: len(samples) // size * size].view(-1, size).square().mean(1), size


def _is_heard(samples: Tensor, sample_rate: int) -> bool:
    powers, _ = _powers(samples, sample_rate)
    return bool((powers > SILENCE_POWER).any())


def _find_end(samples: Tensor, sample_rate: int) -> int | None:
    """Where an utterance ends that begins with `samples`; None while it goes on."""
    powers, size = _powers(samples, sample_rate)
    if len(powers) == 0:
        return None
    levels = 10 * powers.clamp(min=SILENCE_POWER).log10()
    loudest = float(levels.max())
    background = max(float(levels.quantile(0.05)), loudest - RANGE_DB)
    is_quiet = levels <= background + QUIET_SHARE * (loudest - background)
    pause = round(PAUSE_SECONDS / FRAME_SECONDS)
    tail = is_quiet[-pause:]
    if len(tail) == pause and bool(tail.all()) and not bool(is_quiet.all()):
        return (len(powers) - pause // 2) * size
    if len(samples) < LONGEST_SECONDS * sample_rate:
        return None
    half, width = len(powers) // 2, pause // 4
    smooth = powers[half:].unfold(0, width, 1).mean(1)
    return (half + int(smooth.argmin()) + width // 2) * size
