"""Shards: some hundred recordings in one tar file beside their transcripts, in lhotse's Shar layout.

A folder of a million small files is slow to list, to copy and to read from a network disk. Shards are read in any
order, as single files are, so batches, draws and resuming are those of the manifest that they were made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import string
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from unicodedata import category

from asr.audio import open_audio, read_audio
from asr.cuts import make_cut
from asr.errors import AsrError, DamagedError
from asr.locks import locked
from asr.manifest import Utterance, read_manifest
from asr.newfiles import new_file, new_text_file, temporary_folder
from asr.tarfiles import is_recording, open_recording

__all__ = ["fetch_shards", "is_shard_folder", "read_shards", "write_shards"]

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".json"
"""Beside the folder `shards` lies `shards.json`, its files with their sizes and checksums for those who read over HTTP;
lhotse takes every file in the folder for data."""

FILE_NAME = re.compile(r"(cuts\.\d{6}\.jsonl\.gz|recording\.\d{6}\.tar)")

SHARD_SIZE = 1000
"""Recordings in a shard: about 400 MB of LibriSpeech."""

HIGHEST_FLAC_RATE, HIGHEST_ODD_RATE = 655350, 65535
"""Hz; libFLAC writes no more, and above the second only tens (RFC 9639, 9.1.2)."""

NO_NAME = ("Cc", "Cs")
"""Kinds of characters that no id may hold: controls, and what was not UTF-8."""

WHOLE_SECONDS = 0.01
"""An utterance that leaves out less of its recording is all of it."""

INDEX_TIMEOUT_SECONDS, MOST_INDEX_BYTES = 60.0, 50_000_000


def write_shards(utterances: Iterable[Utterance], folder: str | Path, shard_size: int = SHARD_SIZE) -> int:
    """Write utterances to a new folder, and its index beside it; returns how many shards there are.

    A mono recording that is an utterance keeps its bytes; any other utterance becomes FLAC, mono, of 16 bits and the
    same rate, or WAV of floats where it goes beyond full scale. lhotse's CutSet.from_shar reads them too. The folder
    appears when it is complete.
    Raises AsrError that lists each recording that cannot be read; for a folder or an index that is there already, and
    a full disk.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.name:
        raise AsrError(f"{folder}: name a new folder")
    index, temporary = folder.with_name(folder.name + INDEX_SUFFIX), folder.with_name(f".{folder.name}.part")
    if index.exists() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise AsrError(f"{index if index.exists() else folder}: is there already; name a new folder")
    if folder.is_symlink() or os.path.ismount(folder):  # which the finished folder could not take the place of
        raise AsrError(f"{folder}: is a link or a disk; name a new folder in it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone_with(temporary):
            _write_parts(utterances, temporary, shard_size)
            listing = json.dumps(_index(temporary), indent=1) + "\n"
            if folder.is_dir():
                folder.rmdir()  # it is empty, and Windows replaces none
            with new_text_file(index) as file:
                file.write(listing)
                file.flush()
                temporary.replace(folder)
    except OSError as error:
        raise AsrError(f"{folder}: cannot be written ({error.strerror}); make room or choose another folder") from error
    return len(list(folder.glob("recording.*.tar")))


@contextmanager
def _alone_with(folder: Path) -> Iterator[None]:
    """A temporary folder that no other process has; raises AsrError where one has."""
    lock = folder.with_suffix(".lock")
    with locked(lock, wait_seconds=0):
        try:
            with temporary_folder(folder):
                yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                lock.unlink()


def _write_parts(utterances: Iterable[Utterance], folder: Path, shard_size: int) -> None:
    """The tar files and cuts of `write_shards`."""
    from lhotse.shar.writers.cut import JsonlShardWriter
    from lhotse.shar.writers.tar import TarWriter

    problems: list[str] = []
    pattern = str(folder).replace("%", "%%")
    recordings = TarWriter(f"{pattern}/recording.%06d.tar", shard_size)
    cuts = JsonlShardWriter(f"{pattern}/cuts.%06d.jsonl.gz", shard_size)
    with recordings, cuts:
        for utterance, name in _with_unique_names(utterances):
            try:
                content, extension, cut = _packed(utterance, name)
            except AsrError as error:
                problems.append(f"{utterance.place}: {error}")
                continue
            recordings.write(f"{name}.{extension}", BytesIO(content))
            recordings.write(f"{name}.json", BytesIO(json.dumps(cut["recording"]).encode()), count=False)
            cuts.write(cut)
    if problems:
        raise AsrError.of_many(problems, "recordings that cannot be packed")


def _with_unique_names(utterances: Iterable[Utterance]) -> Iterable[tuple[Utterance, str]]:
    """Each utterance with its id, numbered where another had it before."""
    taken: dict[str, int] = {}
    for utterance in utterances:
        name, number = utterance.id, taken.get(utterance.id, 0)
        while name in taken:
            number += 1
            name = f"{utterance.id}-{number + 1}"
        taken[name], taken[utterance.id] = 0, number
        yield utterance, name


def _packed(utterance: Utterance, name: str) -> tuple[bytes, str, dict[str, Any]]:
    """An utterance's audio file, its extension, and its cut as lhotse writes it."""
    import soundfile

    has_file_name = name.rpartition("/")[2].strip(".")  # of dots and .flac, all would be the name and no extension
    if not has_file_name or any(category(sign) in NO_NAME for sign in name):
        raise AsrError(f"the id {name!r} cannot name a file in a tar file; give the utterance another")
    start, seconds = utterance.start_seconds, utterance.duration_seconds
    with open_audio(utterance.audio_path) as audio:
        rate, frames, kind = audio.file.samplerate, audio.frames, audio.file.format.lower()
        is_whole = start == 0 and abs(seconds - audio.duration_seconds) < WHOLE_SECONDS
        is_mono = audio.file.channels == 1
    if is_whole and is_mono:
        with open_recording(utterance.audio_path) as file:
            content = file.read()
    else:
        rate = min(rate, HIGHEST_FLAC_RATE)
        rate -= rate % 10 if rate > HIGHEST_ODD_RATE else 0
        samples = read_audio(utterance.audio_path, rate, start_seconds=start, duration_seconds=seconds)
        encoded, is_loud = BytesIO(), samples.abs().amax() > 1  # as floats that mean integers are: FLAC would clip them
        kind, subtype = ("wav", "FLOAT") if is_loud else ("flac", "PCM_16")
        soundfile.write(encoded, samples.numpy(), rate, format=kind, subtype=subtype)
        content, frames = encoded.getvalue(), len(samples)
    return content, kind, make_cut(name, None, rate, frames, utterance.text, utterance.speaker)


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    from asr.corpora.download import md5_of

    return {path.name: {"size": path.stat().st_size, "md5": md5_of(path)} for path in sorted(folder.iterdir())}


def is_shard_folder(folder: Path) -> bool:
    """Whether there are shards in it."""
    return any(folder.glob("cuts.*.jsonl.gz"))


def read_shards(folder: str | Path, names: Iterable[str] | None = None) -> list[Utterance]:
    """The utterances of all shards in a folder. What a damaged shard has lost is told in the log and left out.

    names: of the files with their cuts, where not all shall be read. Raises AsrError where nothing is left, and for
    cuts that are not what a manifest may hold.
    """
    folder = Path(folder)
    utterances = []
    if names is None:
        for recordings in sorted(folder.glob("recording.*.tar")):
            cuts_name = recordings.name.replace("recording", "cuts", 1).removesuffix(".tar") + ".jsonl.gz"
            if not (folder / cuts_name).exists():
                log.warning("shard left out: %s is there, but not %s", recordings, cuts_name)
    for cuts in sorted(folder.glob("cuts.*.jsonl.gz") if names is None else map(folder.joinpath, names)):
        try:
            listed = read_manifest(cuts)
        except DamagedError as error:
            log.warning("shard left out: %s", error)
            continue
        _check_names(cuts, listed)
        there = [utterance for utterance in listed if is_recording(utterance.audio_path)]
        lost = len(listed) - len(there)
        if lost:
            log.warning("%s: %d of its %d recordings are damaged or missing, and left out", cuts, lost, len(listed))
        utterances += there
    if not utterances:
        raise AsrError(f"{folder}: no shard there can be read; make them again with asr shard")
    return utterances


def _check_names(cuts: Path, utterances: Iterable[Utterance]) -> None:
    """Raise AsrError for cuts of one name, whose recordings in the tar file could not be told apart."""
    counts = Counter((utterance.id, utterance.audio_path) for utterance in utterances)
    twice = [f"{cuts}: {count} cuts are called {name}" for (name, _), count in counts.items() if count > 1]
    if twice:
        advice = "give each cut of a shard an id of its own, with lhotse's modify_ids, and write the shards anew"
        raise AsrError(f"{AsrError.of_many(twice, 'such names')}\n{advice}")


def fetch_shards(url: str) -> list[Utterance]:
    """The utterances of the shards at an HTTP address, as `write_shards` left them there; kept in the user's cache.

    What is there already is not fetched again, and what broke off is resumed; where the server does not answer, what
    was fetched before will do. Raises AsrError where a shard cannot be fetched: another training would follow.
    """
    from asr.corpora.download import fetch

    url = urllib.parse.quote(url.rstrip("/"), safe=string.punctuation)  # a request holds no other letters
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bigru-asr" / "shards"
    saved = cache / f"{_digest(url.encode())}.json"
    try:
        listing = _fetch_index(url)
    except AsrError as error:
        if not saved.is_file():
            raise
        log.warning("%s; what was fetched before is used", error)
        listing = saved.read_bytes()
    files = _checked_index(url, listing)
    folder = cache / _digest(url.encode() + listing)  # new shards behind the same address are others
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{folder.name}.lock"):  # of several processes one fetches
            for name, file in files.items():
                if not (folder / name).is_file():
                    fetch(f"{url}/{name}", folder / name, md5=file["md5"], size=file["size"])
            with new_file(saved) as copy:
                copy.write(listing)
    except OSError as error:
        raise AsrError(
            f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to where there is room"
        ) from error
    return read_shards(folder, [name for name in files if name.startswith("cuts.")])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _fetch_index(url: str) -> bytes:
    import http.client
    import urllib.request

    address = url + INDEX_SUFFIX
    try:
        with urllib.request.urlopen(address, timeout=INDEX_TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(MOST_INDEX_BYTES)  # a stream need not end
            return content
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AsrError(f"{address}: cannot be fetched: {getattr(error, 'reason', None) or error}") from error


def _checked_index(url: str, listing: bytes) -> dict[str, dict[str, Any]]:
    """Name to size and checksum of each file."""
    address = url + INDEX_SUFFIX
    try:
        entries = {
            str(name): {"size": int(file["size"]), "md5": str(file["md5"])}
            for name, file in json.loads(listing).items()
        }
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise AsrError(f"{address}: is not the index that asr shard writes") from error
    for name in entries:
        if not FILE_NAME.fullmatch(name):
            raise AsrError(f"{address}: names {name!r}, which is no part of a shard")
    return entries
