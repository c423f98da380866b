"""Text files that are either whole or not there, and the same for the same text; compressed by their name."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

from asr.errors import AsrError

__all__ = ["new_text_file"]


@contextmanager
def new_text_file(path: Path) -> Iterator[TextIO]:
    """A text file that gets the name `path` when the block ends without an error, and is removed otherwise.

    path: compressed where it ends in .gz; a pipe or a device is written to as it is. What UTF-8 cannot write, bytes of
    file names in another encoding, is written as in Python. Raises AsrError for a full disk, a folder that cannot be
    written to, and a path that is a folder.
    """
    if not path.name or os.path.isdir(path):
        raise AsrError(f"{path}: is a folder; name a file in it")
    is_stream = os.path.exists(path) and not os.path.isfile(path)  # a pipe, a terminal
    target = path if is_stream else Path(os.path.realpath(path))  # a link stays one
    temporary = target if is_stream else target.with_name(_temporary_name(target.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file: Any = stack.enter_context(temporary.open("wb"))
            if path.suffix == ".gz":  # neither name nor time in its header: the same text makes the same bytes
                file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
            yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n"))
        if not is_stream:
            temporary.replace(target)
    except OSError as error:
        raise AsrError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from error
    finally:
        if not is_stream:
            with suppress(OSError):  # where there is no folder there is no file
                temporary.unlink()


def _temporary_name(name: str) -> str:
    """One that no other process writes, and short where `name` is as long as a disk allows."""
    return f".{name[:16]}-{crc32(os.fsencode(name)):08x}.{os.getpid()}.part"
