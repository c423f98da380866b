"""Archives, unpacked so that nothing leaves the folder and nothing half looks whole."""

from __future__ import annotations

import platform
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asr.corpora.download import bytes_bar
from asr.errors import AsrError
from asr.newfiles import temporary_folder

__all__ = ["check_can_unpack", "unpack"]


def unpack(archive: str | Path, directory: str | Path, *, progress: bool = True) -> None:
    """Unpack a .tar.gz so that each of its folders appears in `directory` only once it is whole.

    Members are extracted into a temporary folder inside `directory`, then moved: a folder that was not there before
    appears in one step, an existing one is added to.

    archive: path of the .tar.gz.
    directory: made if missing.
    progress: show a bar on stderr.

    Raises AsrError if the archive is damaged, if it would write or link outside `directory` or make a device, or if
    the disk is full. Nothing of it is left then.
    """
    archive, directory = Path(archive), Path(directory)
    check_can_unpack(archive)
    try:
        with temporary_folder(directory / f".unpacking-{archive.name}") as temporary:
            _extract(archive, temporary, progress)
            _move_into(temporary, directory)
    except (tarfile.TarError, EOFError, ValueError, zlib.error, OSError) as error:  # a ValueError is in a header
        raise AsrError(f"{archive}: cannot be unpacked into {directory}: {error}") from error


def check_can_unpack(archive: Path) -> None:
    """Raise AsrError where this Python has nothing to unpack an archive with that others made."""
    if not hasattr(tarfile, "data_filter"):
        raise AsrError(
            f"{archive}: Python {platform.python_version()} cannot unpack it safely; use 3.10.12, 3.11.4 or newer"
        )


def _extract(archive: Path, folder: Path, progress: bool) -> None:
    size = archive.stat().st_size
    with (
        open(archive, "rb") as file,
        bytes_bar(f"unpacking {archive.name}", size, progress) as bar,
        tarfile.open(fileobj=file, mode="r:gz") as tar,
    ):
        tar.extractall(folder, members=_counted(tar, file, bar), filter="data")


def _counted(tar: tarfile.TarFile, file: Any, bar: tqdm[Any]) -> Iterator[tarfile.TarInfo]:
    """The members of `tar`, with `bar` moved to the byte of `file` that has been read."""
    for member in tar:
        bar.update(file.tell() - bar.n)
        yield member


def _move_into(source: Path, directory: Path) -> None:
    """Move what lies in `source` into `directory`, merging with the folders that exist there."""
    for entry in sorted(source.iterdir()):
        destination = directory / entry.name
        if entry.is_dir() and not entry.is_symlink() and destination.is_dir():
            _move_into(entry, destination)
        else:
            # shutil and not os: LibriSpeech/ may be a link to another disk.
            shutil.move(entry, destination)
