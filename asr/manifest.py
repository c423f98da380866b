"""Manifests: what was said in which recording, one utterance a line.

Read are lhotse's cuts (`.jsonl`, `.jsonl.gz`; what `asr prepare` writes, or what lies beside a shard), JSON lines with
`audio`, `text` and, if known, `start` and `duration` or `end` (seconds), `speaker` and `id`, and CSV or TSV with those
names in the header. The names of NeMo, Hugging Face, Common Voice, SpeechBrain and DeepSpeech will do too. A relative
audio path is relative to its manifest.
"""

from __future__ import annotations

import codecs
import gc
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from typing import Any

import orjson
from torch import Tensor

from asr.audio import open_audio, read_audio
from asr.errors import AsrError, DamagedError
from asr.newfiles import is_compressed, new_text_file
from asr.tables import ALIASES, NOT_UTF8, read_table
from asr.tarfiles import split_path

__all__ = ["Utterance", "read_manifest", "write_manifest"]


WHOLE_SECONDS = 0.01
"""A transcript that leaves out less of a lhotse cut belongs to all of it."""

DIGITS = 8
"""To which lhotse rounds seconds."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech with its transcript."""

    id: str
    audio_path: str
    text: str
    """As it stands in the manifest."""
    start_seconds: float
    duration_seconds: float
    speaker: str
    """Empty where unknown."""
    manifest: str
    line: int

    @property
    def place(self) -> str:
        """Where it is written, for messages."""
        return f"{self.manifest}:{self.line}"

    def read(self, sample_rate: int) -> Tensor:
        """Its samples, as `asr.audio.read_audio` gives them."""
        span = {"start_seconds": self.start_seconds, "duration_seconds": self.duration_seconds}
        return read_audio(self.audio_path, sample_rate, **span)


class _LineError(Exception):
    """What is wrong with a line."""


def read_manifest(path: str | Path, faults: list[str] | None = None) -> list[Utterance]:
    """Every utterance of a manifest, in its order.

    Raises AsrError that lists each bad line: no JSON, a missing or an extra column, an empty transcript, a duration
    that is not above 0; a duration that is not given is read from the audio's header. Audio is not opened otherwise.
    faults: gets the bad lines, if given, and the others are returned.
    """
    path = Path(path)
    utterances, problems, manifest, folder = [], [], str(path), str(path.parent)
    shard = path.name.replace("cuts", "recording", 1).removesuffix(".gz").removesuffix(".jsonl") + ".tar"
    try:
        with _garbage_left_alone():
            for line, row in _rows(path):
                try:
                    utterances.append(_utterance(_fields(row, shard), manifest, line, folder))
                except (_LineError, AsrError) as error:
                    problems.append(f"{manifest}:{line}: {error}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"{path}: the manifest is damaged: {error}") from error
    except FileNotFoundError as error:
        made = "; `asr download` and `asr prepare` make LibriSpeech's" if path.name.endswith(".jsonl.gz") else ""
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise AsrError(f"{path}: manifest not found{place}{made}") from error
    except OSError as error:
        raise AsrError(f"{path}: manifest cannot be opened: {error.strerror}") from error
    if problems and (faults is None or not utterances):
        raise AsrError.of_many(problems, "bad lines")
    if faults is not None:
        faults += problems
    if not utterances:
        raise DamagedError(f"{path}: the manifest holds no utterance")
    return utterances


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Without the search for cycles, of which utterances have none: among a million it took a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _rows(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Line number and content: a JSON text, or the columns of a CSV or TSV line."""
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    with gzip.open(path) if is_compressed(path) else path.open("rb") as file:
        if kind in (".csv", ".tsv"):
            yield from read_table(path, file, "\t" if kind == ".tsv" else ",")
        else:
            first = file.readline()
            if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise AsrError(f"{path}:1: byte 0x{first[0]:02x}{NOT_UTF8}")  # once, not for every line
            if first and kind not in (".json", ".jsonl") and b"{" not in first:
                names = "call it .csv, .tsv or .jsonl, with the columns audio and text, or name a folder"
                raise AsrError(f"{path}: is no manifest; {names}")
            first = first.removeprefix(codecs.BOM_UTF8)  # as spreadsheets write it
            if first.startswith(b"[") or first.strip() == b"{":
                raise AsrError(f"{path}:1: holds one JSON text; `jq -c '.[]' FILE` writes an object a line")
            for number, line in enumerate(chain([first], file), start=1):
                if line and not line.isspace():
                    yield number, line


def _fields(row: bytes | dict[str, Any], shard: str) -> dict[str, Any]:
    """The named values of a row, lhotse's cuts flattened to our names; shard: the tar file of a shard's cuts."""
    if isinstance(row, dict):
        return _with_our_names(row)
    try:
        fields = _parsed(row)
    except UnicodeDecodeError as error:
        raise _LineError(f"byte 0x{row[error.start]:02x}{NOT_UTF8}") from error
    except (ValueError, RecursionError) as error:
        raise _LineError(f"not a line of JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(fields, dict):
        raise _LineError('must be a JSON object such as {"audio": "a.wav", "text": "HELLO"}')
    return _from_cut(fields, shard) if "recording" in fields else _with_our_names(fields)


def _parsed(row: bytes) -> Any:
    """The value of a JSON text, by orjson, which is quick; what it refuses or rounds (NaN, long numbers), by json."""
    try:
        value = orjson.loads(row)
    except orjson.JSONDecodeError:
        return json.loads(row.decode())
    return json.loads(row) if isinstance(value, dict) and isinstance(value.get("id"), float) else value


def _with_our_names(fields: dict[str, Any]) -> dict[str, Any]:
    given = {name: fields[alias] for name, aliases in ALIASES.items() for alias in aliases if alias in fields}
    return {**given, **fields} if given else fields


def _from_cut(cut: dict[str, Any], shard: str) -> dict[str, Any]:
    """Our names for a lhotse MonoCut with one file, or a place in its shard, as its source, and one supervision."""
    try:
        (source,) = cut["recording"]["sources"]
        if len(cut["supervisions"]) > 1:
            advice = "lhotse's trim_to_supervisions(keep_overlapping=False) makes a cut of each"
            raise _LineError(f"cut {cut['id']}: holds {len(cut['supervisions'])} supervisions; {advice}")
        (supervision,) = cut["supervisions"]
        if source["type"] not in ("file", "shar"):
            raise _LineError(f"cut {cut['id']}: audio of type {source['type']!r} is not read here, only files are")
        if len(source.get("channels", [0])) > 1 or cut["recording"].get("transforms"):
            raise _LineError(f"cut {cut['id']}: channels and transforms are not read here; lhotse's save_audios first")
        start, duration = _span(cut, supervision)
        return {
            "id": cut["id"],
            "audio": source["source"] if source["type"] == "file" else f"{shard}/{cut['id']}",
            "text": supervision.get("text", ""),
            "start": start,
            "duration": duration,
            "speaker": supervision.get("speaker") or "",
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _LineError("must be a lhotse MonoCut with one audio source and one supervision") from error


def _span(cut: dict[str, Any], supervision: dict[str, Any]) -> tuple[float, float]:
    """Start in the recording and duration (seconds) of what of a cut is transcribed."""
    cut_start, cut_duration = cut["start"], cut["duration"]
    if "start" not in supervision or "duration" not in supervision:
        return cut_start, cut_duration
    start = max(0.0, supervision["start"])
    end = min(cut_duration, supervision["start"] + supervision["duration"])
    if start < WHOLE_SECONDS and end > cut_duration - WHOLE_SECONDS:
        return cut_start, cut_duration
    return round(cut_start + start, DIGITS), round(end - start, DIGITS)


def _utterance(fields: dict[str, Any], manifest: str, line: int, folder: str) -> Utterance:
    """The checked utterance of a line's named values."""
    if None in fields:  # where csv puts what has no name
        raise _LineError("has more columns than the header; put a text with commas in double quotes")
    for name in ("audio", "text"):
        value = fields.get(name)
        if name not in fields:
            raise _LineError(f"{name!r} is missing (there are: {', '.join(fields)})")
        if value is not None and not isinstance(value, str):
            raise _LineError(f"{name}={value!r} must be a string")
        if not value or not value.strip():
            raise _LineError(f"{name!r} is empty")
    if not fields["text"].isascii() and any("\ud800" <= character <= "\udfff" for character in fields["text"]):
        raise _LineError(f"text={fields['text']!r} holds half a character; save it anew")
    audio_path = os.path.join(folder, fields["audio"])
    start, duration = _seconds(fields, "start") or 0.0, _seconds(fields, "duration")
    if duration is None and (end := _seconds(fields, "end")) is not None:
        duration = end - start
    if duration is None:
        with open_audio(audio_path) as audio:
            duration = audio.duration_seconds - start
            if duration <= 0:
                raise _LineError(f"start={start:g} is not before the end of the audio, {audio.duration_seconds:g} s")
    if duration <= 0:
        raise _LineError(f"duration={duration:g} must be above 0 seconds")
    name = Path(audio_path).stem if fields.get("id") in (None, "") else str(fields["id"])
    speaker = "" if fields.get("speaker") is None else str(fields["speaker"])
    return Utterance(name, audio_path, fields["text"], start, duration, speaker, manifest, line)


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    """The value of that name; None where there is none."""
    value = fields.get(name)
    if type(value) is float and 0 <= value < inf:
        return value
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise _LineError(f"{name}={value!r} must be a number of seconds") from error
    if not isfinite(seconds) or seconds < 0:
        raise _LineError(f"{name}={value} must be a finite number of seconds, not below 0")
    return seconds


def write_manifest(utterances: Iterable[Utterance], path: str | Path) -> None:
    """Write JSON lines that `read_manifest` reads; audio paths are relative to the manifest.

    Raises AsrError where it cannot be written.
    """
    folder = os.path.realpath(Path(path).parent)
    with new_text_file(Path(path)) as file:
        for utterance in utterances:
            audio = _relative(utterance.audio_path, folder)
            span = {"start": utterance.start_seconds, "duration": utterance.duration_seconds}
            fields = {"id": utterance.id, "speaker": utterance.speaker, "audio": audio, **span, "text": utterance.text}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _relative(audio_path: str, folder: str) -> str:
    """The path from a real folder on. Of links only those to folders are followed, whose `..` would lead elsewhere."""
    file, *inside = split_path(audio_path) or (audio_path,)
    place, name = os.path.split(file)
    place = os.path.realpath(place)
    with suppress(ValueError):  # of another of Windows' drives
        place = os.path.relpath(place, folder)
    return "/".join([os.path.join(place, name), *inside])
