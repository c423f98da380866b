"""A folder as Kaldi lays it out: `wav.scp` and `text`, and where there are any, `segments` and `utt2spk`."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

from asr.errors import AsrError

__all__ = ["KaldiUtterance", "is_kaldi_folder", "read_kaldi"]


class KaldiUtterance(NamedTuple):
    """A line of `text`, and what the other files say of it."""

    name: str
    text: str
    line: int
    """Of `text`."""

    speaker: str
    audio: Path
    start_seconds: float
    end_seconds: float | None
    """In the recording; None is its end."""


class _Line(NamedTuple):
    """A line of one of the files: its first field, and the rest."""

    file: Path
    number: int
    name: str
    rest: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"


def is_kaldi_folder(folder: Path) -> bool:
    """Whether the files that every such folder has are in it."""
    return (folder / "wav.scp").is_file() and (folder / "text").is_file()


def read_kaldi(folder: Path, problems: list[str]) -> Iterator[KaldiUtterance]:
    """The utterances of `text` that have a recording, in its order; what is amiss is added to `problems`.

    Recordings, or where there are segments these, without a line in `text` are amiss too. Raises AsrError for a file
    that cannot be read.
    """
    # wav.scp    1272-128104 audio/1272-128104.flac
    # segments   1272-128104-0000 1272-128104 0.00 5.85
    # utt2spk    1272-128104-0000 1272
    # text       1272-128104-0000 MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES
    names = "wav.scp", "segments", "utt2spk", "text"
    recordings, segments, speakers, texts = (_by_name(folder / name, problems) for name in names)
    untold = dict.fromkeys(segments or recordings)
    for line in texts.values():
        untold.pop(line.name, None)
        segment = segments.get(line.name)
        try:
            recording, start, end = _parse_segment(segment) if segment else (line.name, 0.0, None)
            audio = _find_audio(recording, recordings, told_in=segment or line)
        except AsrError as error:
            problems.append(str(error))
            continue
        speaker = speakers[line.name].rest if line.name in speakers else ""
        yield KaldiUtterance(line.name, line.rest, line.number, speaker, audio, start, end)
    problems += [f"{folder / 'text'}: has no line for {name}" for name in untold]


def _parse_segment(segment: _Line) -> tuple[str, float, float | None]:
    """Recording, start and end, which -1 stands for where it is the recording's."""
    try:
        recording, *edges = segment.rest.split()
        start, end = map(float, edges)
    except ValueError:
        recording, start, end = "", inf, inf
    if not (0 <= start < inf and (start < end < inf or end == -1)):
        rule = "must have a recording, a start and a later end in seconds, nothing else"
        raise AsrError(f"{segment.where}: {segment.name} {rule}")
    return recording, start, None if end == -1 else end


def _find_audio(recording: str, recordings: dict[str, _Line], told_in: _Line) -> Path:
    """The file that `wav.scp` names: in the folder, or else where the program runs."""
    if recording not in recordings or not recordings[recording].rest:
        raise AsrError(f"{told_in.where}: {told_in.name} has no recording in wav.scp")
    folder, written = recordings[recording].file.parent, recordings[recording].rest
    if written.endswith("|"):
        reason = "is a command in wav.scp, and commands are not run; write its output to a file"
        raise AsrError(f"{told_in.where}: {recording} {reason}")
    return folder / written if (folder / written).exists() else Path(written)


def _by_name(path: Path, problems: list[str]) -> dict[str, _Line]:
    """The lines by their first field; one whose field an earlier line has is left out, and added to `problems`."""
    lines: dict[str, _Line] = {}
    for line in _read_lines(path):
        first = lines.setdefault(line.name, line)
        if first is not line:
            problems.append(f"{line.where}: {line.name} is already in line {first.number}")
    return lines


def _read_lines(path: Path) -> Iterator[_Line]:
    """The lines that are not blank; none where there is no file."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # and at no other sign
    except UnicodeDecodeError as error:
        raise AsrError(f"{path}: is not UTF-8") from error
    except OSError as error:
        raise AsrError(f"{path}: cannot be opened: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        name, rest = [*line.split(maxsplit=1), "", ""][:2]
        if name:
            yield _Line(path, number, name, rest.strip())
