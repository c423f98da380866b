"""WAV files whose header tells another number of samples than there are: never finished, or cut short."""

from __future__ import annotations

import io
from typing import BinaryIO

from asr.streams import read_at, with_header

__all__ = ["count_told_frames", "with_all_samples"]

MOST_BYTES = 0xFFFFFFFF
"""Of a file, whose size has 32 bits; also what stands for one that is not known, which libsndfile takes as that."""

STREAM_BYTES = 0x7FFF0000
"""A WAV file whose header tells so many bytes of samples, or more, was written to a pipe before they were counted."""

PLAIN_CODECS = (1, 3, 6, 7, 0xFFFE)
"""PCM, floating point, A-law and µ-law of telephones, and any of them with a longer format: frames of one size."""

BLOCK_CODECS = (2, 0x11, 0x31)
"""ADPCM of Microsoft and IMA, and GSM: blocks of one size, of which the format tells how many frames are in each."""


def with_all_samples(stream: BinaryIO) -> BinaryIO:
    """The stream itself; of a file whose header was never finished, and tells too few samples, one that tells all."""
    num_bytes = stream.seek(0, io.SEEK_END)
    begin = _find_chunk(stream, b"data")
    if begin is None or num_bytes > MOST_BYTES:
        return stream
    told = _number_at(stream, begin - 4, 4)
    end = begin + told
    if told == MOST_BYTES or any(_is_chunk(stream, at, num_bytes) for at in (end, end + told % 2)):
        return stream
    header = bytearray(read_at(stream, 0, begin))
    header[4:8] = (num_bytes - 8).to_bytes(4, "little")
    header[-4:] = (num_bytes - begin).to_bytes(4, "little")
    return with_header(bytes(header), stream, begin)


def count_told_frames(stream: BinaryIO) -> int:
    """Of a file that is cut short, how many frames its header tells; 0 for any other."""
    form, begin = (_find_chunk(stream, name) for name in (b"fmt ", b"data"))
    if form is None or begin is None:
        return 0
    places = (form, 2), (form + 12, 2), (form + 18, 2), (begin - 4, 4)
    codec, block_bytes, block_frames, told = (_number_at(stream, *place) for place in places)
    if codec not in PLAIN_CODECS + BLOCK_CODECS or block_bytes == 0:
        return 0
    is_cut = stream.seek(0, io.SEEK_END) - begin < told - told % block_bytes < STREAM_BYTES
    return told // block_bytes * (block_frames if codec in BLOCK_CODECS else 1) if is_cut else 0


def _find_chunk(stream: BinaryIO, name: bytes) -> int | None:
    """Where the content of the chunk of that name begins, behind its size."""
    beginning, position = read_at(stream, 0, 12), 12
    if not (beginning.startswith(b"RIFF") and beginning.endswith(b"WAVE")):
        return None
    while len(chunk := read_at(stream, position, 8)) == 8:
        if chunk[:4] == name:
            return position + 8
        size = int.from_bytes(chunk[4:], "little")
        position += 8 + size + size % 2
    return None


def _number_at(stream: BinaryIO, position: int, size: int) -> int:
    return int.from_bytes(read_at(stream, position, size), "little")


def _is_chunk(stream: BinaryIO, position: int, num_bytes: int) -> bool:
    """Whether a file of so many bytes ends there, or another chunk of it that ends within the file begins."""
    chunk = read_at(stream, position, 8)
    is_name = all(0x20 <= byte < 0x7F for byte in chunk[:4])
    return len(chunk) < 8 or (is_name and position + 8 + int.from_bytes(chunk[4:], "little") <= num_bytes)
