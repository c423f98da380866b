"""LibriSpeech and Mini LibriSpeech: download the subsets, turn their folders into manifests of lhotse cuts."""

import gzip
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import soundfile
from tqdm import tqdm

from asr.download import fetch, unpack
from asr.errors import AsrError

__all__ = [
    "SUBSETS",
    "PreparedSubset",
    "Subset",
    "download_librispeech",
    "prepare_all",
    "prepare_librispeech",
]

logger = logging.getLogger(__name__)

BASE_URL = "https://www.openslr.org/resources"
UNPACKED_SIZE_FACTOR = 1.1  # FLAC does not get smaller in a .tar.gz; small files fill whole disk blocks
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")  # the best comes first, should there be two
HEADER_THREADS = 8
HEADERS_AT_ONCE = 1024


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


class _Utterance(NamedTuple):
    utterance_id: str
    speaker: str
    text: str
    audio: Path
    where: str


class _Header(NamedTuple):
    num_samples: int
    sample_rate: int


def download_librispeech(
    subsets: Sequence[str],
    directory: str | Path,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Return the folders `directory`/LibriSpeech/<subset>, after downloading those that are not complete.

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
    marker = folder.parent / f".{subset.name}.completed"
    if marker.exists() and folder.is_dir():
        logger.info("%s is complete, nothing to download", folder)
        return folder
    url = f"{base_url}/{subset.resource}/{subset.name}.tar.gz"
    room_bytes = int(subset.size * UNPACKED_SIZE_FACTOR)
    archive = directory / f"{subset.name}.tar.gz"
    fetch(url, archive, md5=subset.md5, size=subset.size, room_bytes=room_bytes, progress=progress)
    unpack(archive, directory, progress=progress)
    if not folder.is_dir():
        raise AsrError(f"{archive}: no folder LibriSpeech/{subset.name} inside; {url} is not the archive of OpenSLR")
    marker.touch()
    if not keep_archive:
        archive.unlink()
    return folder


def prepare_all(directory: str | Path, output_directory: str | Path, *, progress: bool = True) -> list[PreparedSubset]:
    """Return what was written to `output_directory`/<subset>.jsonl.gz, for every subset below `directory`, by name.

    directory: holds LibriSpeech/<subset>, or the subsets themselves, or is one subset.
    output_directory: made if missing.
    progress: show bars on stderr where it is a terminal.

    Raises AsrError if there is no subset, and what `prepare_librispeech` raises.
    """
    return [
        prepare_librispeech(folder, Path(output_directory) / f"{folder.name}.jsonl.gz", progress=progress)
        for folder in _subset_folders(Path(directory))
    ]


def _subset_folders(directory: Path) -> list[Path]:
    directory = directory.resolve()
    root = directory / "LibriSpeech" if (directory / "LibriSpeech").is_dir() else directory
    if _has_transcripts(root):
        return [root]
    children = sorted(root.iterdir()) if root.is_dir() else []
    folders = [child for child in children if child.is_dir() and _has_transcripts(child)]
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
    """Return a summary of the manifest written to `output_path`: one lhotse cut a line, sorted by utterance id.

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
    transcripts = _transcript_files(subset_directory)
    problems: list[str] = []
    with _new_manifest(output_path) as manifest:
        shown = tqdm(transcripts, desc=subset_directory.name, unit="chapter", disable=None if progress else True)
        utterances = (utterance for path in shown for utterance in _read_chapter(path, problems))
        summary = _write_cuts(_with_headers(utterances, num_threads, problems), manifest, output_path)
        if problems:
            raise AsrError(_listed(subset_directory, problems))
    logger.info("%s: %d utterances", output_path, summary.num_utterances)
    return summary


def _transcript_files(subset_directory: Path) -> list[Path]:
    """Return the transcript files in the order of the utterance ids in them."""
    # The hyphen sorts before every digit, so the ids of 103-124 come before those of 103-1240, like the file names.
    files = sorted(subset_directory.glob("*/*/*.trans.txt"), key=lambda path: path.name.removesuffix(".trans.txt"))
    if not files:
        raise AsrError(f"{subset_directory}: no <speaker>/<chapter>/*.trans.txt found; give the folder of one subset")
    return files


def _listed(subset_directory: Path, problems: list[str]) -> str:
    noun = "problem" if len(problems) == 1 else "problems"
    listing = "\n  ".join(problems)
    return f"{subset_directory}: {len(problems)} {noun}, nothing is written; mend them and prepare again:\n  {listing}"


def _read_chapter(transcript_file: Path, problems: list[str]) -> list[_Utterance]:
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

    def utterance(self, line: bytes, where: str) -> _Utterance:
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
        return _Utterance(utterance_id, self.speaker, text, audio, where)


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


def _with_headers(
    utterances: Iterable[_Utterance], num_threads: int, problems: list[str]
) -> Iterator[tuple[_Utterance, _Header]]:
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


def _header_or_error(utterance: _Utterance) -> _Header | AsrError:
    # Returned, not raised: a raised error would end the executor's map at the first bad file.
    try:
        return _read_header(utterance)
    except AsrError as error:
        return error


def _read_header(utterance: _Utterance) -> _Header:
    at = f"{utterance.where}: {utterance.audio}"
    try:
        with soundfile.SoundFile(utterance.audio) as audio:
            num_samples, sample_rate, num_channels = audio.frames, audio.samplerate, audio.channels
    except (soundfile.SoundFileError, OSError) as error:
        raise AsrError(f"{at}: cannot be read as audio ({error})") from error
    if num_samples <= 0:
        raise AsrError(f"{at}: holds no audio")
    if num_channels != 1:
        raise AsrError(f"{at}: has {num_channels} channels, but LibriSpeech is mono; mix them into one")
    return _Header(num_samples, sample_rate)


def _write_cuts(
    utterances: Iterable[tuple[_Utterance, _Header]], manifest: TextIO, output_path: Path
) -> PreparedSubset:
    """Write one cut a line to `manifest`; return what was written."""
    count, duration_seconds, speakers = 0, 0.0, set()
    for utterance, header in utterances:
        cut = _cut(utterance, header)
        manifest.write(json.dumps(cut, ensure_ascii=False) + "\n")
        count += 1
        duration_seconds += cut["duration"]
        speakers.add(utterance.speaker)
    return PreparedSubset(output_path, count, len(speakers), duration_seconds)


def _cut(utterance: _Utterance, header: _Header) -> dict[str, Any]:
    """Return the dictionary form of the lhotse cut that spans the whole recording of `utterance`."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment  # imported late: takes a second or two

    name, duration = utterance.utterance_id, header.num_samples / header.sample_rate
    source = AudioSource(type="file", channels=[0], source=str(utterance.audio))
    recording = Recording(name, [source], header.sample_rate, header.num_samples, duration)
    supervision = SupervisionSegment(
        name, name, 0.0, duration, channel=0, text=utterance.text, language="English", speaker=utterance.speaker
    )
    cut = MonoCut(name, 0.0, duration, channel=0, supervisions=[supervision], recording=recording)
    dictionary: dict[str, Any] = cut.to_dict()
    return dictionary


@contextmanager
def _new_manifest(path: Path) -> Iterator[TextIO]:
    """Give a text file that gets the name `path` when the block ends without an error, and is removed otherwise."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise AsrError(f"{path}: the name of a manifest must end in .jsonl or .jsonl.gz")
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            yield _open_text(temporary, path.suffix == ".gz", stack)
        temporary.replace(path)
    except OSError as error:
        raise AsrError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _open_text(path: Path, compressed: bool, stack: ExitStack) -> TextIO:
    file: Any = stack.enter_context(path.open("wb"))
    if compressed:
        # Neither name nor time in the gzip header: the same cuts make the same bytes.
        file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
    return stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
