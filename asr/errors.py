"""The one exception that people are meant to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["MOST_PROBLEMS", "AsrError", "DamagedError", "errors_told", "printable", "reason_of"]

MOST_PROBLEMS = 20
"""That an error of many lists before it only counts them."""


_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


def printable(text: str, kept: str = "") -> str:
    """The text with control characters, but those to keep, as Python writes them: a terminal would obey them."""
    return text.translate({code: shown for code, shown in _CONTROLS.items() if chr(code) not in kept})


class AsrError(Exception):
    """Something the user can mend, said in one sentence: where, what (with the value), what to do.

    Commands print it without a traceback and exit with 1; everything else is a defect of ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, kept="\n\t"))  # names of files and what servers answer may be in it

    @classmethod
    def of_many(cls, problems: Sequence[str], kind: str) -> AsrError:
        """A page of problems, each a sentence; `kind` names those that are only counted."""
        more = len(problems) - MOST_PROBLEMS
        return cls("\n".join([*problems[:MOST_PROBLEMS], *([f"... and {more} more {kind}"] if more > 0 else [])]))


class DamagedError(AsrError):
    """A file that is empty, cut short or overwritten; others of its kind may still be good."""


@contextmanager
def errors_told() -> Iterator[None]:
    """For a program of its own: an AsrError is printed without a traceback, and ends it with exit code 1."""
    try:
        yield
    except AsrError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def reason_of(error: Exception) -> str:
    """The operating system's own words where it refused, else the error's."""
    return str(getattr(error, "strerror", None) or error)
