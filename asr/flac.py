"""FLAC files joined end to end, of which libsndfile reads the first."""

from __future__ import annotations

import mmap
from typing import BinaryIO

from asr.streams import bytes_of, remembered

__all__ = ["count_flac_recordings"]

BEGINNINGS = b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"
"""With the header of the first block, of 34 bytes, which may be the only one (RFC 9639, 8.1)."""


@remembered
def count_flac_recordings(stream: BinaryIO) -> int:
    """How many recordings stand one behind another in a FLAC file."""
    with bytes_of(stream) as data:
        return max(1, sum(_count(data, beginning) for beginning in BEGINNINGS))


def _count(data: bytes | mmap.mmap, part: bytes) -> int:
    """How often it stands in the data."""
    count, position = 0, data.find(part)
    while position >= 0:
        count, position = count + 1, data.find(part, position + 1)
    return count
