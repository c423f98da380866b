"""The files in a folder and below it, and where a path really leads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

__all__ = ["find_files", "real_path"]


def real_path(path: str) -> str:
    """As `os.path.realpath`, quickly where many files lie in a folder."""
    folder, name = os.path.split(os.path.join(os.getcwd(), path))
    is_plain = name.strip(".") and not os.path.islink(path)
    return os.path.join(_real_folder(folder), name) if is_plain else os.path.realpath(path)


@lru_cache
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def find_files(folder: Path, shut: list[Path] | None = None) -> Iterator[Path]:
    """All of them by name, through links too, but for what a Mac writes beside each (`._NAME`).

    shut: gets the folders that cannot be entered.
    """

    def add(error: OSError) -> None:
        if shut is not None:
            shut.append(Path(error.filename))

    entered: set[str] = set()  # a link may lead back
    for place, folders, names in os.walk(folder, followlinks=True, onerror=add):
        folders.sort()
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("._"))
