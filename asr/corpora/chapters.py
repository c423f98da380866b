"""LibriSpeech's folders, one per chapter: lines of transcript and the audio beside them, checked."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from asr.audio import open_audio
from asr.errors import AsrError

__all__ = ["Header", "TranscriptLine", "read_chapter", "with_headers"]

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
"""The best comes first, should there be two."""

HEADERS_AT_ONCE = 1024

ANY_RATE = 16000
"""Hz; no sample is read."""


class TranscriptLine(NamedTuple):
    """A line of a transcript file and its audio."""

    utterance_id: str
    speaker: str
    text: str
    audio: Path
    where: str


class Header(NamedTuple):
    """How much is in an audio file."""

    num_samples: int
    sample_rate: int


def read_chapter(transcript_file: Path, problems: list[str]) -> list[TranscriptLine]:
    """Return the utterances of one chapter that have text and audio, by id; what is amiss is added to `problems`."""
    # 84-121123-0000 GO DO YOU HEAR
    # 84-121123-0001 BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH AN EXTRAORDINARY WEIGHT
    try:
        chapter = _Chapter.of(transcript_file)
        lines = transcript_file.read_bytes().splitlines()
    except (AsrError, OSError) as error:
        problems.append(str(error))
        return []
    utterances = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                utterances.append(chapter.utterance(line, f"{transcript_file}:{number}"))
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
    def of(cls, transcript_file: Path) -> "_Chapter":
        chapter, speaker = transcript_file.parent.name, transcript_file.parent.parent.name
        if transcript_file.name != f"{speaker}-{chapter}.trans.txt":
            raise AsrError(f"{transcript_file}: the name must be {speaker}-{chapter}.trans.txt, after its two folders")
        return cls(speaker, f"{speaker}-{chapter}-", _audio_files(transcript_file.parent), {})

    def utterance(self, line: bytes, where: str) -> TranscriptLine:
        """Return the utterance of one line of the transcript file; `where` is the file and the line number."""
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
            raise AsrError(f"{where}: audio file not found: {utterance_id} with one of {', '.join(AUDIO_SUFFIXES)}")
        return TranscriptLine(utterance_id, self.speaker, text, audio, where)


def _audio_files(folder: Path) -> dict[str, Path]:
    """Return the audio files of a folder by stem; of two with the same stem, the one whose suffix is listed first."""
    audio = [path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES]
    audio.sort(key=lambda path: (path.stem, -AUDIO_SUFFIXES.index(path.suffix.lower())))
    return {path.stem: path for path in audio}


def _parse(line: bytes, where: str) -> tuple[str, str]:
    """Return utterance id and text of a line that is not blank."""
    try:
        utterance_id, *text = line.decode("utf-8").split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise AsrError(f"{where}: not UTF-8 ({error}); save the file as UTF-8") from error
    return utterance_id, text[0].rstrip() if text else ""


def with_headers(
    utterances: Iterable[TranscriptLine], num_threads: int, problems: list[str]
) -> Iterator[tuple[TranscriptLine, Header]]:
    """Yield the utterances with their audio headers, in order; unusable files are added to `problems`."""
    utterances = iter(utterances)
    with ThreadPoolExecutor(num_threads) as executor:
        # In pieces: map over everything at once would hold all 281,241 utterances in memory.
        while piece := list(islice(utterances, HEADERS_AT_ONCE)):
            for utterance, header in zip(piece, executor.map(_header_or_error, piece), strict=True):
                if isinstance(header, AsrError):
                    problems.append(str(header))
                else:
                    yield utterance, header


def _header_or_error(utterance: TranscriptLine) -> Header | AsrError:
    # Returned, not raised: a raised error would end the executor's map at the first bad file.
    try:
        return _read_header(utterance)
    except AsrError as error:
        return error


def _read_header(utterance: TranscriptLine) -> Header:
    at = f"{utterance.where}: {utterance.audio}"
    try:
        with open_audio(utterance.audio, ANY_RATE) as audio:
            num_samples, sample_rate, num_channels = audio.frames, audio.file.samplerate, audio.file.channels
    except AsrError as error:
        raise AsrError(f"{utterance.where}: {error}") from error
    if num_channels != 1:
        raise AsrError(f"{at}: has {num_channels} channels, but LibriSpeech is mono; mix them into one")
    return Header(num_samples, sample_rate)
