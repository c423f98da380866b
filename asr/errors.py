"""The one exception that people are meant to read."""

__all__ = ["AsrError"]


class AsrError(Exception):
    """Something the user can mend, said in one sentence: where, what (with the value), what to do.

    Commands print it without a traceback and exit with 1; everything else is a defect of ours.
    """
