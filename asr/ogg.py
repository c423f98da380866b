"""Ogg files that libsndfile takes for shorter ones: joined end to end, of which it reads the first, or cut short."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from asr.streams import read_at, remembered

__all__ = ["Pages", "look_at_pages"]

MARK = b"OggS"

HEADER_BYTES = 27
"""Of a page, to the sizes of its parts (RFC 3533, 6)."""

FIRST_PAGE, LAST_PAGE = 2, 4
"""A page's flags where it begins a stream, and where it ends one."""


class Pages(NamedTuple):
    """What the headers of all pages tell; of what is no Ogg file, what one whole recording has."""

    num_recordings: int = 1
    """Streams that begin after others have gone on belong to another recording (RFC 3533, 4)."""
    is_cut: bool = False
    """The last page reaches past the file's end."""
    is_finished: bool = True
    """Some page ends a stream. Of who records live the last one may not."""


@remembered
def look_at_pages(stream: BinaryIO) -> Pages:
    """Of a file, page by page, to its end or what is no page."""
    num_bytes = stream.seek(0, 2)
    num_recordings, begins, is_finished, position = 1, True, False, 0
    while (page := read_at(stream, position, HEADER_BYTES)).startswith(MARK) and len(page) == HEADER_BYTES:
        began_before, begins = begins, bool(page[5] & FIRST_PAGE)
        num_recordings += begins and not began_before
        is_finished = is_finished or bool(page[5] & LAST_PAGE)
        sizes = stream.read(page[26])
        position += len(page) + page[26] + sum(sizes)
    if position == 0:
        return Pages()
    is_cut = position > num_bytes or (page != b"" and page.startswith(MARK[: len(page)]))
    return Pages(num_recordings, is_cut, is_finished)
