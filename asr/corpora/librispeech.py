"""LibriSpeech and Mini LibriSpeech: download the subsets, turn their folders into manifests of lhotse cuts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from asr.audio import AUDIO_EXTENSIONS
from asr.corpora.archive import check_can_unpack, unpack
from asr.corpora.chapters import Header, TranscriptLine, find_transcripts, read_chapter, with_headers
from asr.corpora.download import fetch, make_folder
from asr.cuts import make_cut
from asr.errors import AsrError
from asr.locks import locked
from asr.newfiles import new_text_file

__all__ = [
    "SUBSETS",
    "PreparedSubset",
    "Subset",
    "download_librispeech",
    "prepare_all",
    "prepare_librispeech",
]

log = logging.getLogger(__name__)

BASE_URL = "https://www.openslr.org/resources"
UNPACKED_SIZE_FACTOR = 1.1  # FLAC does not get smaller in a .tar.gz; small files fill whole disk blocks
HEADER_THREADS = 8


@dataclass(frozen=True)
class Subset:
    """One archive of OpenSLR."""

    name: str
    resource: int
    """Number of the page: 12 is LibriSpeech, 31 Mini LibriSpeech."""
    md5: str
    """As published in https://www.openslr.org/resources/<resource>/md5sum.txt."""
    size: int
    """Bytes of the archive."""


SUBSETS = {
    subset.name: subset
    for subset in (
        Subset("train-clean-5", 31, "5df7d4e78065366204ca6845bb08f490", 332_954_390),
        Subset("dev-clean-2", 31, "6d7ab67ac6a1d2c993d050e16d61080d", 126_046_265),
        Subset("train-clean-100", 12, "2a93770f6d5c6c964bc36631d331a522", 6_387_309_499),
        Subset("train-clean-360", 12, "c0e676e450a7ff2f54aeade5171606fa", 23_049_477_885),
        Subset("train-other-500", 12, "d1a0fd59409feb2c614ce4d30c387708", 30_593_501_606),
        Subset("dev-clean", 12, "42e2234ba48799c1f50f24a7926300a1", 337_926_286),
        Subset("dev-other", 12, "c8d0bcc9cca99d4f8b62fcc847357931", 314_305_928),
        Subset("test-clean", 12, "32fa31d27d2e1cad72775fee3f4849a9", 346_663_984),
        Subset("test-other", 12, "fb5a50374b501bb3bac4815ee91d3135", 328_757_843),
    )
}


@dataclass(frozen=True)
class PreparedSubset:
    """What a manifest holds."""

    path: Path
    num_utterances: int
    num_speakers: int
    duration_seconds: float


def download_librispeech(
    subsets: Sequence[str],
    directory: str | Path,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    progress: bool = True,
) -> list[Path]:
    """The folders `directory`/LibriSpeech/<subset>, after downloading those that are not complete.

    A finished subset is marked by a file `directory`/LibriSpeech/.<subset>.completed and costs no further request.
    Subsets come one after the other: OpenSLR turns away who opens many connections.

    subsets: names from `SUBSETS`, or one such name.
    directory: made if missing.
    mirror: replaces https://www.openslr.org/resources, as in https://openslr.elda.org/resources; below it lie the
        folders 12 and 31.
    keep_archives: leave `directory`/<subset>.tar.gz after unpacking.
    progress: show bars on stderr.

    Raises AsrError for an unknown subset, before anything is downloaded, and what `fetch` and `unpack` raise.
    """
    names = [subsets] if isinstance(subsets, str) else list(subsets)
    for name in names:
        if name not in SUBSETS:
            raise AsrError(f"LibriSpeech has no subset {name!r}; the subsets are {', '.join(SUBSETS)}")
    base_url = (mirror or BASE_URL).rstrip("/")
    return [_download_subset(SUBSETS[name], Path(directory), base_url, keep_archives, progress) for name in names]


def _download_subset(subset: Subset, directory: Path, base_url: str, keep_archive: bool, progress: bool) -> Path:
    folder = directory / "LibriSpeech" / subset.name
    if _is_complete(folder):  # it may lie where nothing can be written
        log.info("%s is complete, nothing to download", folder)
        return folder
    make_folder(folder.parent)
    with locked(folder.parent / f".{subset.name}.lock"):  # another process may be at it
        _download_alone(subset, folder, base_url, keep_archive, progress)
    return folder


def _download_alone(subset: Subset, folder: Path, base_url: str, keep_archive: bool, progress: bool) -> None:
    directory = folder.parent.parent
    if _is_complete(folder):
        return
    url = f"{base_url}/{subset.resource}/{subset.name}.tar.gz"
    room_bytes = int(subset.size * UNPACKED_SIZE_FACTOR)
    archive = directory / f"{subset.name}.tar.gz"
    check_can_unpack(archive)  # before hours of downloading
    fetch(url, archive, md5=subset.md5, size=subset.size, room_bytes=room_bytes, progress=progress)
    unpack(archive, directory, progress=progress)
    if not folder.is_dir():
        raise AsrError(f"{archive}: no folder LibriSpeech/{subset.name} inside; {url} is not the archive of OpenSLR")
    _marker(folder).touch()
    if not keep_archive:
        archive.unlink()


def _is_complete(folder: Path) -> bool:
    return _marker(folder).exists() and folder.is_dir()


def _marker(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.completed"


def prepare_all(directory: str | Path, output_directory: str | Path) -> Iterator[PreparedSubset]:
    """What was written to `output_directory`/<subset>.jsonl.gz, for every subset below `directory`, by name, each as
    soon as it is.

    directory: holds LibriSpeech/<subset>, or the subsets themselves, or is one subset.
    output_directory: made if missing.

    Raises AsrError if there is no subset, and what `prepare_librispeech` raises.
    """
    for folder in _subset_folders(Path(directory)):
        yield prepare_librispeech(folder, Path(output_directory) / f"{folder.name}.jsonl.gz")


def _subset_folders(directory: Path) -> list[Path]:
    directory = directory.resolve()
    root = directory / "LibriSpeech" if (directory / "LibriSpeech").is_dir() else directory
    if _has_transcripts(root):
        return [root]
    children = sorted(root.iterdir()) if root.is_dir() else []
    folders = [child for child in children if child.is_dir() and _has_transcripts(child)]
    for child in children:
        if child not in folders and any(next(child.glob(f"*/*/*{suffix}"), None) for suffix in AUDIO_EXTENSIONS):
            log.warning("%s: left out, it holds audio and no *.trans.txt", child)
    if not folders:
        raise AsrError(
            f"{directory}: no LibriSpeech subset found; expected LibriSpeech/<subset>/<speaker>/<chapter>/*.trans.txt"
        )
    return folders


def _has_transcripts(folder: Path) -> bool:
    return any(True for _ in folder.glob("*/*/*.trans.txt"))


def prepare_librispeech(
    subset_directory: str | Path,
    output_path: str | Path,
    *,
    num_threads: int = HEADER_THREADS,
    progress: bool = True,
) -> PreparedSubset:
    """A summary of the manifest written to `output_path`: one lhotse cut a line, sorted by utterance id.

    Durations come from the headers of the audio files; nothing is decoded. Audio paths in the manifest are absolute.
    The manifest appears whole or not at all, and is the same, byte by byte, for the same folder.

    subset_directory: holds <speaker>/<chapter>/<speaker>-<chapter>.trans.txt and the audio files beside it, as FLAC
        or converted to WAV, OGG, Opus or MP3.
    output_path: .jsonl or .jsonl.gz.
    num_threads: how many headers are read at the same time.
    progress: show a bar on stderr where it is a terminal.

    Raises AsrError with the list of all problems (file, line, what) if any utterance is not fit for use.
    """
    output_path, subset_directory = Path(output_path), Path(subset_directory).resolve()
    problems: list[str] = []
    transcripts = find_transcripts(subset_directory, problems)
    if not transcripts:
        what = "no <speaker>/<chapter>/*.trans.txt found; give the folder of one subset"
        raise AsrError(f"{subset_directory}: {what}")
    if not output_path.name.endswith((".jsonl", ".jsonl.gz")):
        raise AsrError(f"{output_path}: the name of a manifest must end in .jsonl or .jsonl.gz")
    with new_text_file(output_path) as manifest:
        shown = tqdm(transcripts, desc=subset_directory.name, unit="chapter", disable=None if progress else True)
        utterances = (utterance for path in shown for utterance in read_chapter(path, problems))
        summary = _write_cuts(with_headers(utterances, num_threads, problems), manifest, output_path)
        if problems:
            raise AsrError(_listed(subset_directory, problems))
    log.info("%s: %d utterances", output_path, summary.num_utterances)
    return summary


def _listed(subset_directory: Path, problems: list[str]) -> str:
    noun = "problem" if len(problems) == 1 else "problems"
    listing = "\n  ".join(problems)
    return f"{subset_directory}: {len(problems)} {noun}, nothing is written; mend them and prepare again:\n  {listing}"


def _write_cuts(
    utterances: Iterable[tuple[TranscriptLine, Header]], manifest: TextIO, output_path: Path
) -> PreparedSubset:
    """Write one cut a line to `manifest`; return what was written."""
    count, duration_seconds, speakers = 0, 0.0, set()
    for utterance, header in utterances:
        name, audio = utterance.utterance_id, utterance.audio
        cut = make_cut(name, audio, *header, utterance.text, utterance.speaker, "English")
        manifest.write(json.dumps(cut, ensure_ascii=False) + "\n")
        count += 1
        duration_seconds += cut["duration"]
        speakers.add(utterance.speaker)
    return PreparedSubset(output_path, count, len(speakers), duration_seconds)
