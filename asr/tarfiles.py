"""Recordings inside tar files: `shards/recording.000003.tar/84-121123-0001` is read as a file of its own.

A recording's name there is that of its member without the extension, as in lhotse's Shar layout.
"""

from __future__ import annotations

import errno
import os
import re
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_recording", "open_recording", "split_path"]

NO_AUDIO = (".json", ".nodata", ".nometa")
"""Extensions of what Shar keeps beside the recordings."""


def open_recording(path: str | Path) -> BinaryIO:
    """A file, or one inside a tar file, open for reading; raises OSError where it is not there."""
    inside = split_path(str(path))
    if inside is None:
        return Path(path).open("rb")
    archive, name = inside
    try:
        offset, size = _members(archive)[name]
    except KeyError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    with open(archive, "rb") as file:
        file.seek(offset)
        return BytesIO(file.read(size))


def is_recording(path: str | Path) -> bool:
    """Whether `open_recording` finds a file there."""
    inside = split_path(str(path))
    if inside is None:
        return os.path.isfile(path)
    try:
        return inside[1] in _members(inside[0])
    except OSError:
        return False


def split_path(path: str) -> tuple[str, str] | None:
    """The tar file and the recording's name in it; None for a path that leads into no tar file."""
    for mark in re.finditer(r"\.tar/", path):
        archive = path[: mark.end() - 1]
        if os.path.isfile(archive):
            return archive, path[mark.end() :]
    return None


def _members(archive: str) -> dict[str, tuple[int, int]]:
    """Name to offset and size of each recording that is whole, bytes; of a damaged file those before the damage."""
    status = os.stat(archive)
    return _members_of_version(archive, status.st_mtime_ns, status.st_size)


@cache
def _members_of_version(archive: str, changed: int, archive_size: int) -> dict[str, tuple[int, int]]:
    members = {}
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                if member.size < 0:  # older Pythons go back by it, and round for ever
                    break
                name, extension = os.path.splitext(member.name)
                is_whole = member.offset_data + member.size <= archive_size
                if member.isfile() and is_whole and extension not in NO_AUDIO:
                    members[name] = member.offset_data, member.size
    except (tarfile.ReadError, ValueError, OverflowError):  # cut short or overwritten: nothing behind can be found
        pass
    return members
