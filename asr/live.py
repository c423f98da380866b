"""Sound that is still coming in through a pipe, block by block."""

from __future__ import annotations

import io
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from asr.errors import AsrError
from asr.sources import can_seek, check_rate

__all__ = ["open_stream", "until_interrupted"]

BLOCK_SECONDS = 0.1
"""Read at once."""

HEADER_BYTES = 36
"""Of a WAV file, to the end of its format."""

FORMAT_BYTES = 16
"""A format may be longer."""

TRAILING_CHUNKS = {b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"fact", b"iXML", b"smpl", b"inst", b"JUNK", b"PAD "}
"""What may stand behind the samples of a WAV file whose header does not tell that something does. Anything else there
is more sound: a header that was written to a pipe tells the length of the first block, or none."""

UNKNOWN_SIZE = 0xFFFFFFFF
"""What stands in the header of a WAV file for a size that was not known."""


def open_stream(stream: BinaryIO, pcm_rate: int | None = None) -> tuple[Iterator[Tensor], int] | BinaryIO:
    """Consecutive (samples,) blocks of a pipe, mono, each as soon as it is there, and their rate in Hz.

    pcm_rate: of 16-bit mono samples without a header; None expects a WAV file of 16 bits.
    Returns an open file with all that is in the stream where it is no pipe or holds no such WAV file.
    Ctrl-C ends the blocks as the end of the pipe does. Raises AsrError for a header that is damaged, a rate that cannot
    be, and, at its end, a stream without a sample.
    """
    if pcm_rate is not None:
        check_rate("standard input", pcm_rate)
        return _mono_blocks(_at_once(stream), pcm_rate, 1), pcm_rate
    if can_seek(stream):
        return stream
    header = stream.read(HEADER_BYTES)
    is_plain = header[20:22] == b"\x01\x00" and header[34:36] == b"\x10\x00"
    if header[:4] != b"RIFF" or header[8:16] != b"WAVEfmt " or not is_plain:
        file = io.BytesIO(header + stream.read())
        file.name = stream.name
        return file
    channels, rate = int.from_bytes(header[22:24], "little"), int.from_bytes(header[24:28], "little")
    check_rate("standard input", rate)
    format_bytes = int.from_bytes(header[16:20], "little")
    if format_bytes < FORMAT_BYTES:
        reason = f"its format has {format_bytes} bytes, and the shortest has {FORMAT_BYTES}"
        raise AsrError(f"{stream.name}: the WAV header is damaged: {reason}")
    found = _skip_to_samples(stream, format_bytes - FORMAT_BYTES)
    if channels == 0 or found is None:
        reason = "it is cut short" if found is None else "it has no channel"
        raise AsrError(f"{stream.name}: the WAV header is damaged: {reason}")
    begin, num_bytes = found
    file_bytes = 8 + int.from_bytes(header[4:8], "little")
    goes_on = begin + num_bytes + 8 < file_bytes < UNKNOWN_SIZE
    return _mono_blocks(_Samples(stream, num_bytes, chunks_follow=goes_on).read, rate, channels), rate


def until_interrupted(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The blocks until Ctrl-C, which ends the wait for the next one but not what is computed of those before.

    A second Ctrl-C ends that too, as it does where the blocks are at an end. To be used in the main thread.
    """
    waits = came = False

    def end(*_: Any) -> None:
        nonlocal came
        if waits or came:
            raise KeyboardInterrupt
        came = True

    remaining = iter(blocks)
    before = signal.signal(signal.SIGINT, end)
    try:
        while True:
            waits = True
            try:
                block = None if came else next(remaining, None)
            except KeyboardInterrupt:
                block = None
            finally:
                waits = False
            if block is None:
                return
            yield block
    finally:
        signal.signal(signal.SIGINT, before)


def _skip_to_samples(stream: BinaryIO, rest_of_format: int) -> tuple[int, int] | None:
    """Read all that stands before the samples; at which byte of the file they begin, and how many bytes of them the
    header tells. None where the stream ends before."""
    begin, size = HEADER_BYTES, rest_of_format
    while True:
        size += size % 2
        if _read_exactly(stream, size) is None or (chunk := _read_exactly(stream, 8)) is None:
            return None
        begin += size + len(chunk)
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            return begin, size


def _read_exactly(stream: BinaryIO, size: int) -> bytes | None:
    """So many bytes; None where the stream ends before."""
    content = stream.read(size)
    return content if len(content) == size else None


class _Samples:
    """Reads the samples of a WAV file that comes through a pipe, and not what may stand behind them."""

    def __init__(self, stream: BinaryIO, told_bytes: int, *, chunks_follow: bool) -> None:
        self.stream, self.read_some, self.chunks_follow = stream, _at_once(stream), chunks_follow
        self.told_bytes, self.is_behind = told_bytes, told_bytes == 0

    def read(self, size: int) -> bytes:
        """At least one byte and at most so many; none at the end."""
        if self.told_bytes > 0:
            content = self.read_some(min(size, self.told_bytes))
            self.told_bytes -= len(content)
            return content
        if self.is_behind:
            return self.read_some(size)
        self.is_behind = True
        following = self.stream.read(4)
        if not self.chunks_follow and following not in TRAILING_CHUNKS:
            return following
        self.stream.read()  # else who writes it would be told of a broken pipe
        return b""


def _at_once(stream: BinaryIO) -> Callable[[int], bytes]:
    """What reads what is there without waiting for more, which Ctrl-C would lose."""
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    return read


def _mono_blocks(read: Callable[[int], bytes], rate: int, channels: int) -> Iterator[Tensor]:
    frame_bytes = 2 * channels
    is_empty = True
    rest = b""
    try:
        while content := read(frame_bytes * round(BLOCK_SECONDS * rate)):
            content = rest + content
            whole = bytearray(content[: len(content) // frame_bytes * frame_bytes])
            rest = content[len(whole) :]
            if whole:
                is_empty = False
                yield torch.frombuffer(whole, dtype=torch.int16).view(-1, channels).float().mean(1) / 32768
    except KeyboardInterrupt:
        return
    if is_empty:
        raise AsrError("standard input: the stream holds no samples")
