"""Data as people have it, a manifest, a folder or the address of shards, to utterances.

Folders are known by what is in them: shards, as `asr shard` or lhotse writes them; Hugging Face's `metadata.csv` or
`.jsonl`; Kaldi's `wav.scp` and `text`; LibriSpeech's `*.trans.txt`, at any depth; or recordings with a text file of the
same name beside each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from asr.audio import open_audio
from asr.errors import AsrError
from asr.manifest import Utterance, read_manifest
from asr.shards import fetch_shards, is_shard_folder, read_shards

__all__ = ["AUDIO_EXTENSIONS", "find_audio", "read_data", "read_many"]

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Of what is taken out of a folder; a file that is named is known by its content."""


def read_many(paths: Iterable[str | Path]) -> list[Utterance]:
    """The utterances of several manifests or folders, one after another."""
    return [utterance for path in paths for utterance in read_data(path)]


def read_data(path: str | Path, faults: list[str] | None = None) -> list[Utterance]:
    """Every utterance of a manifest, of a folder, or of shards behind an HTTP address.

    Raises AsrError that lists each fault: a recording without a text, a line with fields missing, audio that cannot be
    read; and for a folder of no known kind.
    faults: gets them, if given, and texts without a recording too, and the utterances without a fault are returned.
    """
    if str(path).startswith(("http://", "https://")):
        return fetch_shards(str(path))
    if path == "":  # which a Path takes for the folder it is in
        raise AsrError("the name of the data is empty")
    folder = Path(path)
    if not folder.is_dir():
        return read_manifest(path, faults)
    if is_shard_folder(folder):
        return read_shards(folder)
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file():
            return read_manifest(folder / name, faults)
    if (folder / "wav.scp").is_file() and (folder / "text").is_file():
        return _checked(folder, _read_kaldi(folder), faults)
    if any(path.name.endswith(".trans.txt") for path in _find_files(folder)):
        return _checked(folder, _read_librispeech(folder), faults)
    if any(audio.with_suffix(".txt").is_file() for audio in find_audio(folder)):
        utterances = _checked(folder, _read_pairs(folder), faults)
        if faults is not None:
            faults += [f"{text}: has no recording beside it" for text in _find_texts_alone(folder)]
        return utterances
    kinds = "shards, metadata.csv, Kaldi's wav.scp and text, *.trans.txt, or recordings with a .txt beside each"
    raise AsrError(f"{path}: the folder holds no data of a known kind ({kinds})")


def find_audio(folder: Path) -> list[Path]:
    """The recordings in a folder and below it, by name, and the folders there that cannot be entered."""
    shut: list[Path] = []
    audio = [path for path in _find_files(folder, shut) if path.suffix.lower() in AUDIO_EXTENSIONS]
    return sorted(audio + shut)


def _find_files(folder: Path, shut: list[Path] | None = None) -> Iterator[Path]:
    """All files in a folder and below it, through links too, but for what a Mac writes beside each (`._NAME`).

    shut: gets the folders that cannot be entered.
    """

    def add(error: OSError) -> None:
        if shut is not None:
            shut.append(Path(error.filename))

    entered: set[str] = set()  # a link may lead back
    for place, folders, names in os.walk(folder, followlinks=True, onerror=add):
        folders.sort()
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("._"))


class _Fault(str):
    """What is wrong at a place, as a sentence that names it."""


def _checked(folder: Path, items: Iterable[Utterance | _Fault], faults: list[str] | None) -> list[Utterance]:
    utterances, found = [], []
    for item in items:
        if isinstance(item, Utterance):
            utterances.append(item)
        else:
            found.append(item)
    if found and (faults is None or not utterances):
        raise AsrError.of_many(found, "faults")
    if faults is not None:
        faults += found
    if not utterances:
        raise AsrError(f"{folder}: the folder holds no utterance")
    return utterances


def _utterance(
    name: str,
    audio: Path,
    text: str,
    place: tuple[Path, int],
    speaker: str = "",
    span: tuple[float, float] | None = None,
) -> Utterance | _Fault:
    """An utterance of a whole recording, whose header tells its duration, or of a span of it (start, end; seconds)."""
    manifest, line = place
    if not text.strip():
        return _Fault(f"{manifest}:{line}: {name} has no text")
    try:
        if span is None:
            with open_audio(audio, 16000) as opened:
                span = 0.0, opened.duration_seconds
    except AsrError as error:
        return _Fault(f"{manifest}:{line}: {error}")
    start, end = span
    return Utterance(name, str(audio), text.strip(), start, end - start, speaker, str(manifest), line)


def _read_pairs(folder: Path) -> Iterator[Utterance | _Fault]:
    for audio in find_audio(folder):
        text = audio.with_suffix(".txt")
        if not text.is_file():
            yield _Fault(f"{audio}: has no {text.name} beside it")
            continue
        try:
            yield _utterance(audio.stem, audio, text.read_text(encoding="utf-8-sig"), (text, 1))
        except UnicodeDecodeError:
            yield _Fault(f"{text}: is not UTF-8")


def _find_texts_alone(folder: Path) -> list[Path]:
    heard = {audio.with_suffix(".txt") for audio in find_audio(folder)}
    return sorted(path for path in _find_files(folder) if path.suffix == ".txt" and path not in heard)


def _read_librispeech(folder: Path) -> Iterator[Utterance | _Fault]:
    from asr.corpora.chapters import read_chapter

    for transcript in sorted(path for path in _find_files(folder) if path.name.endswith(".trans.txt")):
        problems: list[str] = []
        for line in read_chapter(transcript, problems):
            number = int(line.where.rpartition(":")[2])
            yield _utterance(line.utterance_id, line.audio, line.text, (transcript, number), line.speaker)
        yield from map(_Fault, problems)


def _read_kaldi(folder: Path) -> Iterator[Utterance | _Fault]:
    recordings = {name: rest for name, rest, _ in _table(folder / "wav.scp")}
    speakers = {name: rest for name, rest, _ in _table(folder / "utt2spk")}
    spans = {name: (rest.split(), line) for name, rest, line in _table(folder / "segments")}
    for name, text, line in _table(folder / "text"):
        place = folder / "text", line
        fields, segment_line = spans.get(name, ([name], 0))
        where = f"{folder / 'segments'}:{segment_line}: " if segment_line else f"{place[0]}:{line}: "
        written = recordings.get(fields[0], "") if fields else ""
        if not fields:
            yield _Fault(f"{where}{name} must have a recording, a start and a later end in seconds")
        elif not written:
            yield _Fault(f"{where}{name} has no recording in wav.scp")
        elif written.endswith("|"):
            yield _Fault(
                f"{where}{fields[0]} is a command in wav.scp, and commands are not run; write its output to a file"
            )
        elif segment_line and not _is_span(fields[1:]):
            yield _Fault(f"{where}{name} must have a recording, a start and a later end in seconds")
        else:
            audio = folder / written if (folder / written).exists() else Path(written)
            span = (float(fields[1]), float(fields[2])) if segment_line else None
            yield _utterance(name, audio, text, place, speakers.get(name, ""), span)


def _is_span(fields: list[str]) -> bool:
    try:
        start, end = map(float, fields)
    except ValueError:
        return False
    return 0 <= start < end < float("inf")


def _table(path: Path) -> Iterator[tuple[str, str, int]]:
    """First field, rest and number of each line of one of Kaldi's files; none where there is no file."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # and at no other sign
    except UnicodeDecodeError as error:
        raise AsrError(f"{path}: is not UTF-8") from error
    for number, line in enumerate(lines, start=1):
        name, rest = [*line.split(maxsplit=1), "", ""][:2]
        if name:
            yield name, rest.strip(), number
