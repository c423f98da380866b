"""One function side by side in copies of this process: for what holds Python's lock while it computes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

import torch

from asr.errors import AsrError

__all__ = ["Forks"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Forks(Generic[Argument, Result]):
    """Copies of this process as it is now, which share its memory and end with it.

    They begin at once, before other threads compute, whose locks a copy would keep for ever. Where a process cannot be
    copied (Windows, macOS), with one process, and where this process is itself a copy of the one that began them, all
    is computed here.
    """

    def __init__(self, function: Callable[[Argument], Result], processes: int) -> None:
        self._function, self._owner = function, os.getpid()
        self._executor: ProcessPoolExecutor | None = None
        if processes > 1 and sys.platform == "linux":
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(processes, context, _begin, (function,))
            self._executor.submit(os.getpid).result()  # the first task starts them all

    def map(self, arguments: Iterable[Argument]) -> Iterator[Result]:
        """The function's results, in the order of the arguments; a single one is computed here."""
        waiting = list(arguments)
        is_copy = os.getpid() != self._owner  # without the thread that hands out the work: it would wait for ever
        if self._executor is None or is_copy or len(waiting) < 2:
            return map(self._function, waiting)
        return self._results(self._executor.map(_call, waiting))

    def _results(self, results: Iterator[Result]) -> Iterator[Result]:
        try:
            yield from results
        except BrokenProcessPool as error:
            raise AsrError("a process that computed beside this one was ended; was the memory full?") from error


_function: Callable[[Any], Any]
"""Of a copy."""


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to all processes: this one ends at once and says nothing
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(argument: Any) -> Any:
    return _function(argument)
