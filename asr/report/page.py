"""The page and what lies beside it: audio, which a browser loads when it is played, and pictures, when they are seen.

index.html holds all else, and works without a network. The folder can be moved and sent as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from asr import __version__
from asr.errors import AsrError
from asr.manifest import Utterance
from asr.newfiles import check_new_file, new_text_file
from asr.report.analysis import Edit

__all__ = ["Cell", "Column", "Page", "Row", "check_report", "write_page"]


Cell = float | str | None
"""What a column holds of an utterance; None where it is not known."""


@dataclass(frozen=True)
class Column:
    """One of the table of utterances."""

    name: str
    digits: int = 0
    unit: str = ""
    text: bool = False
    minor: bool = False
    """Left out on a narrow screen."""
    long: bool = False
    """Sentences."""


@dataclass
class Row:
    """One utterance in the table."""

    cells: list[Cell]
    """As many as there are columns."""
    searched: str
    """What a search looks in."""
    filters: list[list[str]] = field(default_factory=list)
    """For each filter of the page the values that this utterance has."""
    texts: list[tuple[str, list[Edit]]] = field(default_factory=list)
    """Name and aligned words of each hypothesis."""
    notes: list[str] = field(default_factory=list)
    words: list[tuple[str, float, float]] = field(default_factory=list)
    """Text, start and end in seconds."""
    audio: str = ""
    """Path beside the page, as the picture's; none where it is empty."""
    picture: str = ""


@dataclass
class Page:
    """All that a page shows."""

    title: str
    totals: list[tuple[str, str]]
    columns: list[Column]
    rows: list[Row]
    filters: list[tuple[str, list[str]]] = field(default_factory=list)
    """Label and values of each."""
    groups: list[tuple[str, list[Sequence[str]]]] = field(default_factory=list)
    """Title and lines of each table, its head first."""
    findings: list[tuple[str, list[str]]] = field(default_factory=list)
    footer: str = ""


def write_page(page: Page, folder: Path) -> Path:
    """Write index.html and return its path; raises AsrError where it cannot be written."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_text("page.html.j2"))
    rendered = template.render(
        title=page.title,
        totals=page.totals,
        filters=page.filters,
        groups=[(title, rows) for title, rows in page.groups if len(rows) > 1],
        findings=[(kind, places) for kind, places in page.findings if places],
        footer=f"bigru-asr {__version__}. {page.footer}",
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
        data=Markup(_as_json(page)),
    )
    path = folder / "index.html"
    with new_text_file(path) as file:
        file.write(rendered)
    return path


FOOTER = "<footer>bigru-asr "
"""Tells a page from others."""

MOST_UTTERANCES = 20_000
"""A report copies the audio of every utterance."""


def check_report(folder: Path, utterances: Sequence[Utterance]) -> None:
    """Raise AsrError where a report would be mixed with something else, take the recordings' place, or be too large,
    and where it cannot be written.
    """
    if (count := len(utterances)) > MOST_UTTERANCES:
        raise AsrError(f"--report holds at most {MOST_UTTERANCES:,} utterances, not {count:,}; name a part of them")
    inside = os.path.join(os.path.realpath(folder), "")
    if any(os.path.realpath(path).startswith(inside) for path in {each.audio_path for each in utterances}):
        raise AsrError(f"--report {folder}: holds recordings that it is about; name another folder")
    if folder.exists() and not folder.is_dir():
        raise AsrError(f"--report {folder}: it is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(folder / "index.html"):
        raise AsrError(f"--report {folder}: the folder holds other files; name a new one")
    check_new_file(folder / "index.html")


def _is_report(path: Path) -> bool:
    return path.is_file() and FOOTER in path.read_text(encoding="utf-8", errors="replace")


def _text(name: str) -> str:
    return (files("asr.report") / name).read_text(encoding="utf-8")


def _as_json(page: Page) -> str:
    """What the script reads, safe inside a script element."""
    utterances: list[dict[str, Any]] = []
    for row in page.rows:
        texts = [{"name": name, "steps": steps} for name, steps in row.texts]
        utterances.append({**vars(row), "texts": texts, "searched": row.searched.upper()})
    data = {"columns": [vars(column) for column in page.columns], "utterances": utterances}
    return json.dumps(data).replace("<", "\\u003c")
