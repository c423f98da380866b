"""Files that are either whole or not there; of text, the same for the same text, and compressed by their name."""

from __future__ import annotations

import gzip
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from zlib import crc32

from asr.errors import AsrError

__all__ = ["check_new_file", "is_compressed", "new_file", "new_text_file", "temporary_folder"]


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets the name `path` when the block ends without an error, and is removed otherwise.

    path: a pipe or a device is written to as it is, a link stays one, and who may read a file stays as it was.
    Raises AsrError for a full disk, a folder that cannot be written to, and a path that is a folder.
    """
    _check_is_no_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") if _is_stream(path) else _replaced(Path(os.path.realpath(path))) as file:
            yield file
    except OSError as error:
        raise AsrError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from error


def check_new_file(path: Path) -> None:
    """Raise AsrError where `new_file` could not make one: told before hours of work, and not behind them."""
    _check_is_no_folder(path)
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (_is_stream(path) or (folder.is_dir() and os.access(folder, os.W_OK))):
        raise AsrError(f"{path}: cannot be written; choose another folder")


def _check_is_no_folder(path: Path) -> None:
    if not path.name or os.path.isdir(path):
        raise AsrError(f"{path}: is a folder; name a file in it")


def _is_stream(path: Path) -> bool:
    """A pipe, a terminal."""
    return os.path.exists(path) and not os.path.isfile(path)


@contextmanager
def _replaced(target: Path) -> Iterator[BinaryIO]:
    """A file beside `target` that takes its place when the block ends without an error, and is removed otherwise."""
    temporary = target.with_name(_temporary_name(target.name))
    try:
        temporary.unlink(missing_ok=True)  # of a killed process of this number, or a link of another user
        with temporary.open("xb") as file:
            if os.path.exists(target):
                with suppress(OSError):  # some disks know no rights
                    shutil.copymode(target, temporary)
            yield file
        temporary.replace(target)
    finally:
        with suppress(OSError):  # where there is no folder there is no file
            temporary.unlink()


@contextmanager
def new_text_file(path: Path) -> Iterator[TextIO]:
    """As `new_file`, for text; compressed where the path ends in .gz.

    What UTF-8 cannot write, bytes of file names in another encoding, is written as in Python.
    """
    with ExitStack() as stack:
        file: Any = stack.enter_context(new_file(path))
        if is_compressed(path):  # neither name nor time in its header: the same text makes the same bytes
            file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n"))


def is_compressed(path: str | Path) -> bool:
    """Whether its name says so: it ends in .gz, in either case."""
    return str(path).lower().endswith(".gz")


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, and whatever a process that was killed had left in it before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_name(name: str) -> str:
    """One that no other process writes, and short where `name` is as long as a disk allows."""
    return f".{name[:16]}-{crc32(os.fsencode(name)):08x}.{os.getpid()}.part"
