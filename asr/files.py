"""The files in a folder and below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find_files"]


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
