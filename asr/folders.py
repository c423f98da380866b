"""Data as people have it, a manifest, a folder or the address of shards, to utterances.

Folders are known by what is in them: shards, as `asr shard` or lhotse writes them; Hugging Face's `metadata.csv` or
`.jsonl`; Kaldi's `wav.scp` and `text`; LibriSpeech's `*.trans.txt`, at any depth; or recordings with a text file of the
same name beside each.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from asr.audio import AUDIO_EXTENSIONS, open_audio
from asr.errors import AsrError
from asr.files import find_files
from asr.kaldi import is_kaldi_folder, read_kaldi
from asr.manifest import Utterance, read_manifest
from asr.shards import fetch_shards, is_shard_folder, read_shards

__all__ = ["find_audio", "read_data", "read_many"]

log = logging.getLogger(__name__)


def read_many(paths: Iterable[str | Path]) -> list[Utterance]:
    """The utterances of several manifests or folders, one after another; raises AsrError for one in place of a list."""
    if isinstance(paths, str | Path):
        raise AsrError(f"{paths}: is one manifest; give a list of them")  # its first letter may be /, the whole disk
    return [utterance for path in paths for utterance in read_data(path)]


def read_data(path: str | Path, faults: list[str] | None = None) -> list[Utterance]:
    """Every utterance of a manifest, of a folder, or of shards behind an HTTP address.

    Raises AsrError that lists each fault: a recording without a text, a line with fields missing, audio that cannot be
    read; and for a folder of no known kind.
    faults: gets them, if given, and texts without a recording too, which the log tells otherwise, and the utterances
    without a fault are returned.
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
    if is_kaldi_folder(folder):
        return _checked(folder, _read_kaldi(folder), faults)
    files = list(find_files(folder))
    if any(path.name.endswith(".trans.txt") for path in files):
        return _checked(folder, _read_librispeech(folder), faults)
    return _pairs(folder, files, faults)


def find_audio(folder: Path) -> list[Path]:
    """The recordings in a folder and below it, by name, and the folders there that cannot be entered.

    Pipes, sockets and devices are left out, which the log tells: to open one may wait for ever.
    """
    shut: list[Path] = []
    audio = [path for path in find_files(folder, shut) if path.suffix.lower() in AUDIO_EXTENSIONS]
    special = {path for path in audio if not os.path.isfile(path) and os.path.exists(path)}
    for path in sorted(special):
        log.warning("%s: is a pipe, a socket or a device, no file, and was left out", path)
    return sorted({*audio, *shut} - special)


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
    span: tuple[float, float | None] = (0.0, None),
) -> Utterance | _Fault:
    """An utterance of a recording from a start to an end, in seconds; None is its end, which its header tells."""
    manifest, line = place
    start, end = span
    if not text.strip():
        return _Fault(f"{manifest}:{line}: {name} has no text")
    try:
        if end is None:
            with open_audio(audio) as opened:
                end = opened.duration_seconds
    except AsrError as error:
        return _Fault(f"{manifest}:{line}: {error}")
    if start >= end:
        return _Fault(f"{manifest}:{line}: {name} begins at {start:g} s, behind the end of {audio}")
    return Utterance(name, str(audio), text.strip(), start, end - start, speaker, str(manifest), line)


def _pairs(folder: Path, files: Iterable[Path], faults: list[str] | None) -> list[Utterance]:
    """The utterances of recordings with a text beside each; files: all in the folder."""
    recordings = find_audio(folder)
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt" and path.is_file()}
    alone = _find_texts_alone(files, texts, recordings)
    if len(alone) == len(texts):
        kinds = "shards, metadata.csv, Kaldi's wav.scp and text, *.trans.txt, or recordings with a .txt beside each"
        raise AsrError("; ".join([f"{folder}: the folder holds no data of a known kind ({kinds})", *alone[:1]]))
    utterances = _checked(folder, _read_pairs(recordings, texts), faults)
    if faults is not None:
        faults += alone
    elif alone:
        log.warning("%s: %d texts without a recording are left out, such as %s", folder, len(alone), alone[0])
    return utterances


def _read_pairs(recordings: Iterable[Path], texts: dict[Path, Path]) -> Iterator[Utterance | _Fault]:
    """texts: by their paths without an ending."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for audio in recordings:
        beside[audio.with_suffix("")].append(audio)
    for stem, (audio, *others) in beside.items():
        yield from (_Fault(f"{other}: has the same text as {audio.name} beside it") for other in others)
        if stem not in texts:
            yield _Fault(f"{audio}: has no {stem.name}.txt beside it")
            continue
        text = texts[stem]
        try:
            yield _utterance(audio.stem, audio, text.read_text(encoding="utf-8-sig"), (text, 1))
        except UnicodeDecodeError:
            yield _Fault(f"{text}: is not UTF-8")
        except OSError as error:
            yield _Fault(f"{text}: cannot be opened: {error.strerror}")


def _find_texts_alone(files: Iterable[Path], texts: dict[Path, Path], recordings: Iterable[Path]) -> list[str]:
    """A line for each text without a recording that is read; first those that have another file beside them."""
    others = {path.with_suffix(""): path.name for path in files if path.suffix.lower() != ".txt"}
    alone = sorted(texts.keys() - {audio.with_suffix("") for audio in recordings})
    unread = [
        f"{texts[stem]}: has no recording beside it but {others[stem]}, which is not read; "
        "`ffmpeg -i FILE NEW.flac` turns it into one that is"
        for stem in alone
        if stem in others
    ]
    return unread + [f"{texts[stem]}: has no recording beside it" for stem in alone if stem not in others]


def _read_librispeech(folder: Path) -> Iterator[Utterance | _Fault]:
    from asr.corpora.chapters import find_transcripts, read_chapter

    problems: list[str] = []
    for transcript in find_transcripts(folder, problems):
        for line in read_chapter(transcript, problems):
            yield _utterance(line.utterance_id, line.audio, line.text, (line.file, line.number), line.speaker)
    yield from map(_Fault, problems)


def _read_kaldi(folder: Path) -> Iterator[Utterance | _Fault]:
    problems: list[str] = []
    for line in read_kaldi(folder, problems):
        place, span = (folder / "text", line.line), (line.start_seconds, line.end_seconds)
        yield _utterance(line.name, line.audio, line.text, place, line.speaker, span)
    yield from map(_Fault, problems)
