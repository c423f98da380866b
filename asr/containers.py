"""What libsndfile would read only in part: an MP3 or WAV that does not tell its length, and files joined end to end.

Of an MP3 libsndfile reads as much as the Xing header in its first frame tells; without one, as much as the file's size
and the first frame's size suggest, which is wrong where frames differ. Here the frames are counted, and where there are
others than that, a Xing header that tells their number is put in front. The header of a WAV file that was never
finished tells no samples, or too few. Of chained Ogg files and joined FLAC files libsndfile reads the first part.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO, FileIO
from typing import BinaryIO, NamedTuple

__all__ = ["count_joined_recordings", "count_told_frames", "identity", "with_whole_length"]

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

OGG_HEADER_BYTES, OGG_FIRST_PAGE = 27, 2
"""Of a page; its flag where it begins a stream (RFC 3533, 6)."""


FLAC_BEGINNINGS = b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"
"""With the header of the first block, of 34 bytes, which may be the only one (RFC 9639, 8.1)."""

LARGE_BYTES = 1_000_000
_flac_counts: dict[tuple[int, ...] | None, int] = {}
"""Of the large files that were looked through, by what tells one on the disk from others."""

RIFF_MOST_BYTES = 0xFFFFFFFF
"""Of a file, whose size has 32 bits; also what stands for one that is not known, which libsndfile takes as that."""


STREAM_BYTES = 0x7FFF0000
"""A WAV file whose header tells so many bytes of samples, or more, was written to a pipe before they were counted."""

PLAIN_CODECS = (1, 3, 0xFFFE)
"""PCM, floating point, and either with a longer format: frames of one size."""


class _Frame(NamedTuple):
    """What the header of a layer III frame says."""

    kind: int
    """The bits that all frames of a file share."""
    size: int
    """Bytes, the header's four among them."""
    xing_offset: int
    """Bytes from its beginning to a Xing header's, behind the side information."""


def with_whole_length(stream: BinaryIO) -> BinaryIO:
    """The stream itself; for an MP3 or WAV whose length libsndfile would get wrong, a copy that tells it.

    stream: any file that can seek, at its beginning, where it is left.
    """
    begin = stream.read(2)
    stream.seek(0)
    if begin == b"RI":
        return _with_all_samples(stream)
    if begin != b"ID" and not (len(begin) == 2 and begin[0] == 0xFF and begin[1] >= 0xE0):
        return stream
    with _bytes_of(stream) as data:
        start = _find_first_frame(data)
        count = 0 if start is None else _count_untold_frames(data, start)
        if start is None or count == 0:
            return stream
        return BytesIO(_xing_frame(data[start : start + 4], count, len(data) - start) + data[start:])


def _with_all_samples(stream: BinaryIO) -> BinaryIO:
    """Of a WAV file."""
    with _bytes_of(stream) as data:
        place = _find_samples(data)
        if place is None or len(data) > RIFF_MOST_BYTES:
            return stream
        told = int.from_bytes(data[place - 4 : place], "little")
        end = place + told
        if told == RIFF_MOST_BYTES or any(_is_chunk(data, at) for at in (end, end + told % 2)):
            return stream
        sizes = (size.to_bytes(4, "little") for size in (len(data) - 8, len(data) - place))
        return BytesIO(next(sizes).join((data[:4], data[8 : place - 4])) + next(sizes) + data[place:])


def count_told_frames(stream: BinaryIO) -> int:
    """Of a WAV file that is cut short, how many frames its header tells; 0 for any other file. stream: as above."""
    begin = stream.read(4)
    stream.seek(0)
    if begin != b"RIFF":
        return 0
    with _bytes_of(stream) as data:
        form, samples = _find_chunk(data, b"fmt "), _find_samples(data)
        if form is None or samples is None:
            return 0
        codec, frame_bytes = (int.from_bytes(data[at : at + 2], "little") for at in (form, form + 12))
        told = int.from_bytes(data[samples - 4 : samples], "little")
        is_cut = len(data) - samples < told - told % max(1, frame_bytes) < STREAM_BYTES
        return told // frame_bytes if is_cut and codec in PLAIN_CODECS and frame_bytes > 0 else 0


def _find_samples(data: bytes | mmap.mmap) -> int | None:
    """Where the samples of a WAV file begin, behind the size of their chunk."""
    return _find_chunk(data, b"data")


def _find_chunk(data: bytes | mmap.mmap, name: bytes) -> int | None:
    """Where the content of a WAV file's chunk of that name begins, behind its size."""
    position = 12
    while data[8:12] == b"WAVE" and position + 8 <= len(data):
        if data[position : position + 4] == name:
            return position + 8
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return None


def _is_chunk(data: bytes | mmap.mmap, position: int) -> bool:
    """Whether a WAV file ends there, or another chunk of it that ends within the file begins."""
    name, size = data[position : position + 4], data[position + 4 : position + 8]
    is_name = len(size) == 4 and all(0x20 <= byte < 0x7F for byte in name)
    return len(size) < 4 or (is_name and position + 8 + int.from_bytes(size, "little") <= len(data))


def count_joined_recordings(stream: BinaryIO) -> int:
    """How many recordings stand one behind another in an Ogg or FLAC file; 1 for any other file.

    Those of an Ogg file (RFC 3533, 4) are streams that begin after others have gone on. stream: as above.
    """
    begin = stream.read(4)
    stream.seek(0)
    return _count_flac_recordings(stream) if begin == b"fLaC" else _count_ogg_recordings(stream)


def _count_flac_recordings(stream: BinaryIO) -> int:
    """All of the file is looked through, so a large one, of which many utterances may be stretches, once."""
    key = identity(stream)
    if key in _flac_counts:
        return _flac_counts[key]
    with _bytes_of(stream) as data:
        count = max(1, sum(_count(data, beginning) for beginning in FLAC_BEGINNINGS))
        if key and len(data) > LARGE_BYTES:
            _flac_counts[key] = count
    return count


def identity(stream: BinaryIO) -> tuple[int, ...] | None:
    """What tells a file on the disk, and its content, from others; None for what is none."""
    if not (isinstance(stream, BufferedReader) and isinstance(stream.raw, FileIO)):
        return None
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _count(data: bytes | mmap.mmap, part: bytes) -> int:
    """How often it stands in the data."""
    count, position = 0, data.find(part)
    while position >= 0:
        count, position = count + 1, data.find(part, position + 1)
    return count


def _count_ogg_recordings(stream: BinaryIO) -> int:
    count, begins, position = 1, True, 0
    while len(page := stream.read(OGG_HEADER_BYTES)) == OGG_HEADER_BYTES and page.startswith(b"OggS"):
        began_before, begins = begins, bool(page[5] & OGG_FIRST_PAGE)
        count += begins and not began_before
        sizes = stream.read(page[26])
        position += len(page) + len(sizes) + sum(sizes)
        stream.seek(position)
    stream.seek(0)
    return count


@contextmanager
def _bytes_of(stream: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """All of it; a file on the disk is not read before it is looked at."""
    if isinstance(stream, BufferedReader) and isinstance(stream.raw, FileIO):
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    else:
        yield stream.read()
        stream.seek(0)


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
