"""What libsndfile would read only in part: it is made to read all of it, or the file is refused."""

from __future__ import annotations

import logging
from typing import BinaryIO

from asr.errors import AsrError
from asr.flac import count_flac_recordings
from asr.mp3 import begins_mp3, with_told_length
from asr.ogg import Pages, look_at_pages
from asr.streams import Identity, identity, read_at
from asr.wav import with_all_samples

__all__ = ["check_whole", "with_whole_length"]

log = logging.getLogger(__name__)

_told: set[Identity | None] = set()
"""Files that were never finished and have been warned of."""


def check_whole(stream: BinaryIO, name: str) -> None:
    """Raise AsrError for joined Ogg and FLAC files, and for an Ogg file that is cut short; warn of an unfinished one.

    stream: any file that can seek; where it stands afterwards is open. name: of the recording.
    """
    begin = read_at(stream, 0, 4)
    pages = look_at_pages(stream) if begin == b"OggS" else Pages()
    num_recordings = count_flac_recordings(stream) if begin == b"fLaC" else pages.num_recordings
    if num_recordings > 1:
        only = f"only the first of {num_recordings} recordings that are joined in this file could be read"
        raise AsrError(f"{name}: {only}; save it anew as one, with `ffmpeg -i FILE NEW.flac` for example")
    if pages.is_cut:
        keep = "`ffmpeg -i FILE NEW.flac` saves what is there"
        raise AsrError(f"{name}: the audio is cut short: its last Ogg page reaches past the file's end; {keep}")
    key = identity(stream)
    if not pages.is_finished and (key is None or key not in _told):
        _told.add(key)
        log.warning("%s: the Ogg file was never finished, or is cut short; what is there is read", name)


def with_whole_length(stream: BinaryIO) -> BinaryIO:
    """The stream itself; for an MP3 or WAV whose length libsndfile would get wrong, one that tells it.

    stream: as above.
    """
    begin = read_at(stream, 0, 4)
    if begin == b"RIFF":
        return with_all_samples(stream)
    return with_told_length(stream) if begins_mp3(begin) else stream
