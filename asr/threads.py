"""How many threads a computation takes, which is one number for the whole process, lent and given back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock

import torch

__all__ = ["compute_alone_in_forks", "lent_threads"]

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

    The threads with which torch has computed here are not in the copy, which would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
