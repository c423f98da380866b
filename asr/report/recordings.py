"""`asr check --report`: recordings and their texts, with all that was found about them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path

from asr.model import CTCModel
from asr.report.analysis import DURATIONS, spans
from asr.report.media import copy_audio, draw_pictures
from asr.report.page import Column, Page, Row, write_page
from asr.survey import Survey, letters_per_second

__all__ = ["report_recordings"]

COLUMNS = [
    Column("findings"),
    Column("seconds", 1),
    Column("letters/s", 1, minor=True),
    Column("SNR", 0, " dB", minor=True),
    Column("id", text=True, minor=True),
    Column("speaker", text=True, minor=True),
    Column("text", text=True, long=True),
]


def report_recordings(found: Survey, model: CTCModel, folder: Path, *, name: str, pictures: int = 50) -> Path:
    """Write the page of a survey into `folder`, and return its path.

    name: of the data. pictures: of so many utterances, those with most findings first.
    Raises AsrError where the folder cannot be written.
    """
    utterances = found.utterances
    kinds = {kind: places for kind, places in (found.keeping_out | found.odd).items() if places}
    notes: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for kind, places in kinds.items():
        for utterance, detail in places:
            notes[id(utterance)].append((kind, detail))
    heard = copy_audio(utterances, folder, model.sample_rate)
    chosen = sorted(range(len(utterances)), key=lambda index: -len(notes[id(utterances[index])]))[:pictures]
    drawn = draw_pictures({index: (heard[index], None) for index in chosen}, model, folder)
    rows = []
    for index, utterance in enumerate(utterances):
        own, audio = notes[id(utterance)], heard[index]
        facts = [len(own), utterance.duration_seconds, letters_per_second(utterance, model.vocabulary), audio.snr]
        row = Row(
            [*facts, utterance.id, utterance.speaker, utterance.text],
            f"{utterance.id} {utterance.speaker} {utterance.text}",
        )
        row.filters = [[kind for kind, _ in own] or ["none"]]
        row.notes = [*[f"{kind}: {detail}" for kind, detail in own], *audio.problems]
        row.audio, row.picture = audio.path, drawn.get(index, "")
        rows.append(row)
    findings = [
        (kind, [f"{utterance.place}: {utterance.id}: {detail}" for utterance, detail in places])
        for kind, places in kinds.items()
    ]
    hours = sum(utterance.duration_seconds for utterance in utterances) / 3600
    speakers = {utterance.speaker for utterance in utterances} - {""}
    totals = [
        ("utterances", f"{len(utterances):,}"),
        ("hours", f"{hours:.2f}"),
        ("speakers", f"{len(speakers) or '?'}"),
    ]
    totals += [(kind, f"{len(places):,}") for kind, places in kinds.items()]
    durations = Counter(bisect_right(DURATIONS, utterance.duration_seconds) for utterance in utterances)
    label = spans(DURATIONS, "s")
    stretches = [(label(key), f"{durations[key]:,}") for key in sorted(durations)]
    page = Page(
        f"Recordings of {name}",
        totals,
        COLUMNS,
        rows,
        filters=[("finding", [*kinds, "none"])],
        groups=[("Duration", [("duration", "utterances"), *stretches])],
        findings=findings,
        footer="SNR is estimated from the samples.",
    )
    return write_page(page, folder)
