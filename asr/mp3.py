"""MP3s that do not tell their length, or a wrong one.

libsndfile reads as much as the Xing header in the first frame tells; without one, as much as the file's size and the
first frame's size suggest, which is wrong where frames differ. Here the frames are counted, and where there are others
than that, a Xing header that tells their number is put in front.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, NamedTuple

from asr.streams import bytes_of, remembered, with_header

__all__ = ["begins_mp3", "with_told_length"]

LAYER_3 = 1
"""As a frame's header counts layers."""

BIT_RATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s of layer III by MPEG version and index (ISO/IEC 11172-3 and 13818-3, 2.4.2.3); 0 is a rate of one's own."""

SAMPLE_RATES = (44100, 48000, 32000)
"""Hz by index in MPEG 1; half of it in MPEG 2, a quarter in 2.5."""

SAME_BITS = 0xFFFE0C00
"""Of a frame's header what is the same in all of a file: sync word, version, layer and sample rate."""

USED_BITS = 0xFFFEFEC0
"""And the bit rate, the padding and the channels: what the size depends on."""

BIT_RATE_BITS, PADDING_BIT, NO_CHECKSUM_BIT = 0xF000, 0x200, 0x10000

XING_FRAMES, XING_BYTES = 1, 2
"""Flags of the fields that a Xing header may have."""

ID3V1_BYTES = 128
"""Of a tag at the end of a file."""


class _Frame(NamedTuple):
    """What the header of a layer III frame says."""

    kind: int
    """The bits that all frames of a file share."""
    size: int
    """Bytes, the header's four among them."""
    xing_offset: int
    """Bytes from its beginning to a Xing header's, behind the side information."""


def begins_mp3(begin: bytes) -> bool:
    """Whether a file that begins so may be one: with a tag, or a frame's sync word."""
    return begin[:2] == b"ID" or (len(begin) >= 2 and begin[0] == 0xFF and begin[1] >= 0xE0)


def with_told_length(stream: BinaryIO) -> BinaryIO:
    """The stream itself; where libsndfile would get its length wrong, one with a header in front that tells it."""
    missing = _missing_header(stream)
    return stream if missing is None else with_header(missing[0], stream, missing[1])


@remembered
def _missing_header(stream: BinaryIO) -> tuple[bytes, int] | None:
    """A frame that tells the length, and where the first of the others begins; None where all is well."""
    with bytes_of(stream) as data:
        start = _find_first_frame(data)
        count = 0 if start is None else _count_untold_frames(data, start)
        if start is None or count == 0:
            return None
        return _xing_frame(data[start : start + 4], count, len(data) - start), start


def _find_first_frame(data: bytes | mmap.mmap) -> int | None:
    """Where the first frame is that another of its kind follows, behind an ID3v2 tag."""
    position = 0
    if data[:3] == b"ID3":  # https://id3.org/id3v2.4.0-structure, 3.1: seven bits of the size in each byte
        position = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
    while position >= 0:
        frame = _frame_at(data, position)
        following = frame and _frame_at(data, position + frame.size)
        if frame and following and following.kind == frame.kind:
            return position
        position = data.find(b"\xff", position + 1)
    return None


def _frames(data: bytes | mmap.mmap, start: int) -> Iterator[_Frame]:
    """All whole frames of the kind of the first; past what is none, those that another follows."""
    first = _frame_at(data, start)
    kind = first and first.kind
    position, in_step = start, True
    while 0 <= position < len(data):
        frame = _frame_at(data, position)
        if frame and frame.kind == kind and (in_step or _frame_at(data, position + frame.size)):
            if position + frame.size <= len(data):
                yield frame
            position, in_step = position + frame.size, True
        else:
            position, in_step = data.find(b"\xff", position + 1), False


def _frame_at(data: bytes | mmap.mmap, position: int) -> _Frame | None:
    """The frame whose header is there; None for what is none."""
    return _parse_header(int.from_bytes(data[position : position + 4], "big") & USED_BITS)


@cache
def _parse_header(header: int) -> _Frame | None:
    """What the bits say (ISO/IEC 11172-3, 2.4.1.3); None for those that no frame of layer III has."""
    version, layer, rate, quarter = header >> 19 & 3, header >> 17 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != LAYER_3 or rate in (0, 15) or quarter == 3:
        return None
    is_first, is_mono = version == 3, header >> 6 & 3 == 3
    bit_rate = 1000 * BIT_RATES[1 if is_first else 2][rate]
    sample_rate = SAMPLE_RATES[quarter] // {3: 1, 2: 2, 0: 4}[version]
    size = (144 if is_first else 72) * bit_rate // sample_rate + bool(header & PADDING_BIT)
    side_information = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(header & SAME_BITS, size, 4 + side_information)


def _count_untold_frames(data: bytes | mmap.mmap, start: int) -> int:
    """The number of frames; 0 where libsndfile gets it right, or where a file is cut short of what it tells."""
    first = _frame_at(data, start)
    if first is None:
        return 0
    xing = start + first.xing_offset
    tag, flags, told_frames, told_bytes = struct.unpack(">4s3I", data[xing : xing + 16].ljust(16, b"\0"))
    size = len(data) - start - (ID3V1_BYTES if data[-ID3V1_BYTES:].startswith(b"TAG") else 0)
    tells = tag in (b"Xing", b"Info") and flags & XING_FRAMES
    if tells and flags & XING_BYTES and size <= told_bytes:
        return 0
    columns = (data[start + byte : start + size : first.size] for byte in range(3))
    if not tells and all(len(set(column)) == 1 for column in columns):
        return 0  # all frames are of one size
    count = sum(1 for _ in _frames(data, start))
    return 0 if tells and count <= told_frames + 1 else count  # the frame that tells is not among those that it tells


def _xing_frame(like: bytes, num_frames: int, num_bytes: int) -> bytes:
    """A frame without sound, with the header `like` but for its size, that tells how many follow it."""
    plain = int.from_bytes(like, "big") & ~(BIT_RATE_BITS | PADDING_BIT) | NO_CHECKSUM_BIT
    for header in (plain | rate << 12 for rate in range(1, 15)):
        frame = _parse_header(header & USED_BITS)
        if frame and frame.size >= frame.xing_offset + 16:
            fields = struct.pack(">4s3I", b"Xing", XING_FRAMES | XING_BYTES, num_frames, num_bytes + frame.size)
            return (header.to_bytes(4, "big").ljust(frame.xing_offset, b"\0") + fields).ljust(frame.size, b"\0")
    raise AssertionError("the largest frame has room for 52 bytes")
