"""How many threads a computation takes, which is one number for the whole process, lent and given back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock

import torch

__all__ = ["compute_alone_in_forks", "lent_threads"]

LONGEST_WAIT = 0.5
"""Seconds that a fork is held up by threads that do not come to rest."""

_TASKS = Path("/proc/self/task")
"""Linux's list of this process's threads."""

_lock = Lock()
_borrowers = 0
_number = 1
"""Of threads, before the first of the present borrowers."""


@contextmanager
def lent_threads() -> Iterator[int]:
    """The number of threads, which the block may change: it is as before when the last of several such blocks ends."""
    global _borrowers, _number
    with _lock:
        if _borrowers == 0:
            _number = torch.get_num_threads()
        _borrowers += 1
    try:
        yield _number
    finally:
        with _lock:
            _borrowers -= 1
            if _borrowers == 0:  # else threads that start later would have as few as the last block set
                torch.set_num_threads(_number)


@cache
def compute_alone_in_forks() -> None:
    """Have copies of this process, such as Linux's multiprocessing makes, compute on one thread.

    The threads with which torch has computed here are not in the copy, which would wait for them for ever. So would it
    for a lock that one of them holds at that moment, as those do that are just ending: the copy is made when all rest.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_await_rest, after_in_child=partial(torch.set_num_threads, 1))


def _await_rest() -> None:
    """Wait until no other thread of this process computes, but not for long: some never rest."""
    own, end = str(threading.get_native_id()), time.monotonic() + LONGEST_WAIT
    while _TASKS.exists() and time.monotonic() < end:
        if all(_rests(task) for task in _TASKS.iterdir() if task.name != own):
            return
        time.sleep(0.001)


def _rests(task: Path) -> bool:
    """Whether a thread sleeps, or is no more; `task` is its folder in `_TASKS`."""
    try:
        return (task / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"
    except OSError:
        return True
