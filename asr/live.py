"""Sound that is still coming in through a pipe, block by block."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import BinaryIO

import torch
from torch import Tensor

from asr.audio import check_rate
from asr.errors import AsrError

__all__ = ["open_stream"]

BLOCK_SECONDS = 0.1
"""Read at once."""


def open_stream(stream: BinaryIO, pcm_rate: int | None = None) -> tuple[Iterator[Tensor], int] | None:
    """Consecutive (samples,) blocks of a pipe, mono, each as soon as it is there, and their rate in Hz.

    pcm_rate: of 16-bit mono samples without a header; None expects a WAV file of 16 bits.
    Returns None, and takes nothing from the stream, where it is no pipe or holds no such file.
    Raises AsrError for a header that is damaged, a rate that cannot be, and, at its end, a stream without a sample.
    """
    if pcm_rate is not None:
        check_rate("standard input", pcm_rate)
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
    check_rate("standard input", rate)
    return _mono_blocks(lambda size: file.readframes(size // (2 * channels)), rate, channels), rate


def _mono_blocks(read: Callable[[int], bytes], rate: int, channels: int) -> Iterator[Tensor]:
    frame_bytes = 2 * channels
    is_empty = True
    while content := read(frame_bytes * max(1, round(BLOCK_SECONDS * rate))):
        whole = bytearray(content[: len(content) // frame_bytes * frame_bytes])  # the last sample may be half there
        if whole:
            is_empty = False
            yield torch.frombuffer(whole, dtype=torch.int16).view(-1, channels).float().mean(1) / 32768
    if is_empty:
        raise AsrError("standard input: the stream holds no samples")
