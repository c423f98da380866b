"""Open files that can seek: what tells one from others, all its bytes, and another header in front of them."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import BinaryIO, NamedTuple, TypeVar

__all__ = ["Identity", "bytes_of", "identity", "is_on_disk", "read_at", "remembered", "with_header"]

LARGE_BYTES = 1_000_000
"""Many utterances may be stretches of a file that is larger."""

BUFFER_BYTES = 2**16
"""Read at once from behind a header: libsndfile asks for few bytes at a time."""

Result = TypeVar("Result")


class Identity(NamedTuple):
    """What tells a file on the disk, and its content, from others."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int


def is_on_disk(stream: BinaryIO) -> bool:
    """Whether it is a file with a descriptor, and not bytes in memory or what a caller made."""
    return isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO)


def identity(stream: BinaryIO) -> Identity | None:
    """Of a file on the disk; None for any other."""
    if not is_on_disk(stream):
        return None
    status = os.fstat(stream.fileno())
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def bytes_of(stream: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """All of it; a file on the disk is not read before it is looked at."""
    if is_on_disk(stream):
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    else:
        stream.seek(0)
        yield stream.read()


def read_at(stream: BinaryIO, position: int, size: int) -> bytes:
    """So many bytes from there on, fewer at the end."""
    stream.seek(position)
    return stream.read(size)


def remembered(look: Callable[[BinaryIO], Result]) -> Callable[[BinaryIO], Result]:
    """A function that looks through all of an open file, but through a large one on the disk once."""
    found: dict[Identity, Result] = {}

    @wraps(look)
    def look_once(stream: BinaryIO) -> Result:
        key = identity(stream)
        if key is None or key.num_bytes <= LARGE_BYTES:
            return look(stream)
        if key not in found:
            found[key] = look(stream)
        return found[key]

    return look_once


def with_header(header: bytes, stream: BinaryIO, begin: int) -> BinaryIO:
    """The header, and behind it what is in the stream from byte `begin` on, as an open file that copies none of it."""
    return io.BufferedReader(_WithHeader(header, stream, begin), BUFFER_BYTES)


class _WithHeader(io.RawIOBase):
    def __init__(self, header: bytes, stream: BinaryIO, begin: int) -> None:
        self.header, self.stream, self.begin = header, stream, begin
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += len(self.header) + self.stream.seek(0, io.SEEK_END) - self.begin
        elif whence == io.SEEK_CUR:
            offset += self.position
        self.position = offset
        return offset

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        behind = self.position - len(self.header)
        if behind < 0:
            content = self.header[self.position : self.position + len(buffer)]
        else:
            content = read_at(self.stream, self.begin + behind, len(buffer))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
