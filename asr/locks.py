"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

from asr.errors import AsrError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, *, wait_seconds: float = inf) -> Iterator[None]:
    """No other process is inside with the same path, where the disk can lock files; those of some networks cannot.

    path: of a file that is made, and stays. wait_seconds: for a process that is inside; then AsrError is raised.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait_seconds == inf else wait_seconds)
    except NotImplementedError:
        pass
    except Timeout as error:
        raise AsrError(f"{path.parent}: another process is writing there; wait for it") from error
    try:
        yield
    finally:
        lock.release()
