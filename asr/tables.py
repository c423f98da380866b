"""CSV and TSV, as spreadsheets and people write them, to rows by the names of their columns."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from asr.errors import AsrError

__all__ = ["ALIASES", "NOT_UTF8", "read_table"]

ALIASES = {
    "audio": ("audio_filepath", "file_name", "path", "wav", "wav_filename"),
    "text": ("transcript", "transcription", "sentence", "wrd"),
    "start": ("offset",),
    "speaker": ("speaker_id", "client_id", "spk_id"),
}
"""Names that NeMo, Hugging Face, Common Voice, SpeechBrain and DeepSpeech use for ours."""

USED = {"id", "duration", "end", *ALIASES, *chain.from_iterable(ALIASES.values())}
"""Columns that are read."""

NOT_UTF8 = " is not UTF-8; save the manifest as UTF-8"

SEPARATOR = re.compile(r"sep=([,;\t])")
"""A line that Excel understands, and some programs write for it, above the header."""

LINE_BREAK = re.compile(r"[\r\n]")

LONGEST_VALUE = 2**31 - 1
"""Characters; as Python has it they are 131,072, and the text of a lecture of three hours has more."""

BinaryFile = gzip.GzipFile | io.BufferedReader


def read_table(path: Path, data: BinaryFile, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line that holds a value; values that have no column are under None.

    Common Voice's own, known by their `client_id`, quote nothing, and their audio lies in a folder that they leave out.
    Raises AsrError for what is wrong with the table as a whole: no UTF-8, columns without audio or text or with one of
    them twice, quotation marks that do not fit together.
    """
    lines = _checked(path, io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    above, header, delimiter = _header(lines, delimiter)
    is_common_voice = delimiter == "\t" and "client_id" in header.split()
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_common_voice else csv.QUOTE_MINIMAL
    has_spaces = f"{delimiter} " in header  # as people type them, whose quotes stand behind a space then
    form: dict[str, Any] = {"delimiter": delimiter, "quoting": quoting, "skipinitialspace": has_spaces}
    table = csv.reader(chain([header], lines), strict=True, **form)
    csv.field_size_limit(LONGEST_VALUE)  # there is one for all readers
    has_clips = is_common_voice and (path.parent / "clips").is_dir()
    line = above
    try:
        names = [name.strip() for name in next(table, [])]
        _check_names(f"{path}:{1 + above}", names)
        line = above + table.line_num
        for values in table:
            first, line = line + 1, above + table.line_num
            if line > first and any(delimiter in value and LINE_BREAK.search(value) for value in values):
                advice = "double it, or write the text in one line"
                raise AsrError(f"{path}:{first}: a quotation mark reaches to line {line}; {advice}")
            row: dict[Any, Any] = dict(zip_longest(names, values))
            if has_clips and row.get("path"):
                row["path"] = os.path.join("clips", row["path"])
            if any(map(str.strip, values)):
                yield line, row
    except csv.Error as error:  # behind the last good line; an open quote may reach to the end of the file
        raise AsrError(f"{path}:{line + 1}: {error}; double the quotes in a text, and quote it") from error


def _header(lines: Iterator[str], delimiter: str) -> tuple[int, str, str]:
    """How many lines are above it, the line with the names in small letters, and what parts them."""
    filled = ((above, line.lower()) for above, line in enumerate(lines) if line.strip())
    above, header = next(filled, (0, ""))
    if separator := SEPARATOR.fullmatch(header.rstrip("\r\n")):
        delimiter = separator[1]
        above, header = next(filled, (0, ""))
    return above, header, delimiter


def _check_names(place: str, names: Sequence[str]) -> None:
    """Raise AsrError, once and not for every line, for columns that are missing or come twice."""
    for name in ("audio", "text") if names else ():
        if not {name, *ALIASES[name]} & set(names):
            advice = "; part columns by commas, or by tabs in a .tsv" if {*";\t"} & {*"".join(names)} else ""
            raise AsrError(f"{place}: {name!r} is missing (there are: {', '.join(names)}){advice}")
    for name in sorted(USED):
        if names.count(name) > 1:
            raise AsrError(f"{place}: {names.count(name)} columns are called {name!r}; rename all but the one to read")


def _checked(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines that were read with surrogateescape; raises AsrError at the first that is not UTF-8."""
    for number, line in enumerate(lines, start=1):
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) & 0xFF
            raise AsrError(f"{path}:{number}: byte 0x{byte:02x}{NOT_UTF8}") from error
        yield line
