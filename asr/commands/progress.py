"""How far a transcription is: the position in the audio of all files, and the time left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = ["audio_bar"]


@contextmanager
def audio_bar(paths: Iterable[str], *, shown: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error over the audio of some files; yields what moves it on by so many seconds of audio."""
    from tqdm import tqdm

    total = sum(map(_seconds, paths)) if shown else 0.0
    with tqdm(total=total, bar_format="{desc} |{bar}| {remaining} left", disable=not shown) as bar:

        def advance(seconds: float) -> None:
            bar.set_description_str(f"{_clock(min(total, bar.n + seconds))} of {_clock(total)}", refresh=False)
            bar.update(min(seconds, total - bar.n))

        advance(0.0)
        yield advance


def _seconds(path: str) -> float:
    """How long a file is by its header; 0 of what cannot be read, which is told later, or cannot be read twice."""
    from asr.audio import open_audio
    from asr.errors import AsrError

    if path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        return 0.0
    try:
        with open_audio(path) as audio:
            return audio.duration_seconds
    except AsrError:
        return 0.0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
