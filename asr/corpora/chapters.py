"""LibriSpeech's folders, one per chapter: lines of transcript and the audio beside them, checked."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from asr.audio import AUDIO_EXTENSIONS, open_audio
from asr.errors import AsrError
from asr.files import find_files

__all__ = ["Header", "TranscriptLine", "find_transcripts", "read_chapter", "with_headers"]

TRANSCRIPT_ENDING = ".trans.txt"

HEADERS_AT_ONCE = 1024


class TranscriptLine(NamedTuple):
    """A line of a transcript file and its audio."""

    utterance_id: str
    speaker: str
    text: str
    audio: Path
    file: Path
    number: int
    """Of the line in the file."""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"


class Header(NamedTuple):
    """How much is in an audio file."""

    sample_rate: int
    num_samples: int


def find_transcripts(folder: Path, problems: list[str]) -> list[Path]:
    """The transcript files in a folder and below it, in the order of the utterance ids in them.

    problems: gets the folders that cannot be entered, and those with audio without a transcript file.
    """
    shut: list[Path] = []
    files = list(find_files(folder, shut))
    transcripts = [path for path in files if path.name.endswith(TRANSCRIPT_ENDING)]
    heard = {path.parent for path in files if path.suffix.lower() in AUDIO_EXTENSIONS}
    problems += [f"{path}: the folder cannot be entered" for path in shut]
    untold = sorted(heard - {path.parent for path in transcripts})
    problems += [f"{path}: holds audio and no *{TRANSCRIPT_ENDING}" for path in untold]
    # The hyphen sorts before every digit, so the ids of 103-124 come before those of 103-1240, like the file names.
    return sorted(transcripts, key=lambda path: path.name.removesuffix(TRANSCRIPT_ENDING))


def read_chapter(transcript_file: Path, problems: list[str]) -> list[TranscriptLine]:
    """The utterances of one chapter that have text and audio, by id; what is amiss is added to `problems`."""
    # 84-121123-0000 GO DO YOU HEAR
    # 84-121123-0001 BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH AN EXTRAORDINARY WEIGHT
    try:
        chapter = _Chapter.of(transcript_file)
        lines = transcript_file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except (AsrError, OSError) as error:
        problems.append(str(error))
        return []
    utterances = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                utterances.append(chapter.utterance(line, transcript_file, number))
        except AsrError as error:
            problems.append(str(error))
    problems.extend(f"{audio}: has no line in {transcript_file}" for audio in chapter.unclaimed_audio.values())
    return sorted(utterances)


@dataclass(frozen=True)
class _Chapter:
    """A folder <speaker>/<chapter> and how far its transcripts have been read."""

    speaker: str
    prefix: str
    unclaimed_audio: dict[str, Path]
    lines_by_id: dict[str, str]

    @classmethod
    def of(cls, transcript_file: Path) -> _Chapter:
        folder = Path(os.path.abspath(transcript_file.parent))  # which may be given as . or ..
        chapter, speaker = folder.name, folder.parent.name
        if transcript_file.name != f"{speaker}-{chapter}.trans.txt":
            raise AsrError(f"{transcript_file}: the name must be {speaker}-{chapter}.trans.txt, after its two folders")
        return cls(speaker, f"{speaker}-{chapter}-", _audio_files(transcript_file.parent), {})

    def utterance(self, line: bytes, file: Path, number: int) -> TranscriptLine:
        """The utterance of one line of the transcript file."""
        where = f"{file}:{number}"
        utterance_id, text = _parse(line, where)
        if not utterance_id.startswith(self.prefix):
            raise AsrError(f"{where}: id {utterance_id!r} must begin with {self.prefix!r}, its speaker and chapter")
        if utterance_id in self.lines_by_id:
            raise AsrError(f"{where}: {utterance_id} is already in {self.lines_by_id[utterance_id]}")
        self.lines_by_id[utterance_id] = where
        audio = self.unclaimed_audio.pop(utterance_id, None)
        if not text:
            raise AsrError(f"{where}: {utterance_id} has no transcript")
        if audio is None:
            raise AsrError(f"{where}: audio file not found: {utterance_id} with one of {', '.join(AUDIO_EXTENSIONS)}")
        return TranscriptLine(utterance_id, self.speaker, text, audio, file, number)


def _audio_files(folder: Path) -> dict[str, Path]:
    """The audio files of a folder by stem; of two with the same stem, the one whose suffix is listed first."""
    files = (path for path in folder.iterdir() if not path.name.startswith("._"))  # which a Mac writes
    audio = [path for path in files if path.suffix.lower() in AUDIO_EXTENSIONS]
    audio.sort(key=lambda path: (path.stem, -AUDIO_EXTENSIONS.index(path.suffix.lower())))
    return {path.stem: path for path in audio}


def _parse(line: bytes, where: str) -> tuple[str, str]:
    """Utterance id and text of a line that is not blank."""
    try:
        utterance_id, *text = line.decode("utf-8").split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise AsrError(f"{where}: not UTF-8 ({error}); save the file as UTF-8") from error
    return utterance_id, text[0].rstrip() if text else ""


def with_headers(
    utterances: Iterable[TranscriptLine], num_threads: int, problems: list[str]
) -> Iterator[tuple[TranscriptLine, Header]]:
    """The utterances with their audio headers, in order; unusable files are added to `problems`."""
    utterances = iter(utterances)
    with ThreadPoolExecutor(num_threads) as executor:
        # In pieces: map over everything at once would hold all 281,241 utterances in memory.
        while piece := list(islice(utterances, HEADERS_AT_ONCE)):
            for utterance, header in zip(piece, executor.map(_read_header, piece), strict=True):
                if isinstance(header, AsrError):
                    problems.append(str(header))
                else:
                    yield utterance, header


def _read_header(utterance: TranscriptLine) -> Header | AsrError:
    # Returned, not raised: a raised error would end the executor's map at the first bad file.
    try:
        with open_audio(utterance.audio) as audio:
            num_samples, sample_rate, num_channels = audio.frames, audio.file.samplerate, audio.file.channels
    except AsrError as error:
        return AsrError(f"{utterance.where}: {error}")
    if num_channels != 1:
        where = f"{utterance.where}: {utterance.audio}"
        return AsrError(f"{where}: has {num_channels} channels, but LibriSpeech is mono; mix them into one")
    return Header(sample_rate, num_samples)
