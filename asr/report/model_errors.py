"""`asr evaluate --report`: what a model gets wrong, and against another model what got better or worse."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from asr.evaluation import Evaluation, Scored
from asr.metrics import ErrorCounts
from asr.model import CTCModel
from asr.report.analysis import DURATIONS, align_words, compare, find_confusions, group_by, spans
from asr.report.media import Heard, copy_audio, draw_pictures
from asr.report.page import Cell, Column, Page, Row, write_page
from asr.words import split_words

__all__ = ["report_errors"]

MOST_FREQUENT = 30
"""Confusions of a kind that the page shows."""

VERDICTS = "with errors", "without an error"


@dataclass(frozen=True)
class _Shown:
    """An utterance that the table shows."""

    item: Scored
    heard: Heard
    theirs: list[Scored]
    """What the models to compare with make of it."""


COLUMNS: list[tuple[Column, Callable[[_Shown], Cell]]] = [
    (Column("errors"), lambda shown: shown.item.words.errors),
    (Column("WER", 0, " %"), lambda shown: _percent(shown.item.words.rate)),
    (Column("CER", 0, " %", minor=True), lambda shown: _percent(shown.item.characters.rate)),
    (Column("seconds", 1, minor=True), lambda shown: shown.item.utterance.duration_seconds),
    (Column("words/s", 1, minor=True), lambda shown: _speaking_rate(shown.item)),
    (Column("SNR", 0, " dB", minor=True), lambda shown: shown.heard.snr),
    (Column("id", text=True, minor=True), lambda shown: shown.item.utterance.id),
    (Column("speaker", text=True, minor=True), lambda shown: shown.item.utterance.speaker),
]
REFERENCE: tuple[Column, Callable[[_Shown], Cell]] = (
    Column("reference", text=True, long=True),
    lambda shown: shown.item.reference,
)

MOST_SPEAKERS = 300
"""More are not offered as a filter, and not in the table."""

RATES, NOISES = (1.5, 2, 2.5, 3, 3.5), (10, 20, 30, 40)
"""Where groups part: words per second, dB."""


def report_errors(
    evaluation: Evaluation,
    model: CTCModel,
    folder: Path,
    *,
    name: str,
    others: Sequence[tuple[str, Evaluation]] = (),
    pictures: int = 50,
) -> Path:
    """Write the page of an evaluation into `folder`, and return its path.

    name: of the model. others: names and evaluations of other models on the same utterances, to compare with.
    pictures: of so many of the worst utterances.
    Raises AsrError where the folder cannot be written.
    """
    scored = evaluation.scored
    heard = copy_audio([item.utterance for item in scored], folder, model.sample_rate)
    worst = sorted(range(len(scored)), key=lambda index: -scored[index].words.errors)[:pictures]
    drawn = draw_pictures({index: (heard[index], scored[index].transcript) for index in worst}, model, folder)
    speakers = sorted({item.utterance.speaker for item in scored} - {""})
    many_speakers = 1 < len(speakers) <= MOST_SPEAKERS
    names = [name, *(other for other, _ in others)]
    failures = {failure.name: failure.message for failure in evaluation.failures}
    columns = [*COLUMNS, *(_fewer_errors(number, other) for number, other in enumerate(names[1:])), REFERENCE]
    rows = []
    for index, item in enumerate(scored):
        shown = _Shown(item, heard[index], [theirs.scored[index] for _, theirs in others])
        row = Row([cell(shown) for _, cell in columns], _searched(item))
        row.texts = [
            (each, align_words(one.reference, one.hypothesis))
            for each, one in zip(names, [item, *shown.theirs], strict=True)
        ]
        row.filters = [_verdicts(shown, names[1:]), *([[item.utterance.speaker]] if many_speakers else [])]
        failure = failures.get(item.utterance.place)
        row.notes = [failure] if failure else heard[index].problems
        words = item.transcript.words if item.transcript else ()
        row.words = [(word.text, word.start_seconds, word.end_seconds) for word in words]
        row.audio, row.picture = heard[index].path, drawn.get(index, "")
        rows.append(row)
    better_or_worse = [f"{verdict} than {other}" for other in names[1:] for verdict in ("better", "worse")]
    page = Page(
        f"What the model {name} gets wrong",
        [*_totals(evaluation), *[_difference(evaluation, other, theirs) for other, theirs in others]],
        [column for column, _ in columns],
        rows,
        filters=[("utterances", [*VERDICTS, *better_or_worse]), *([("speaker", speakers)] if many_speakers else [])],
        groups=_tables(scored, heard),
        footer="SNR is estimated from the samples; intervals are 95 %, over utterances.",
    )
    return write_page(page, folder)


def _searched(item: Scored) -> str:
    """What the page's search looks in."""
    return f"{item.utterance.id} {item.utterance.speaker} {item.reference} {item.hypothesis}"


def _percent(rate: float) -> float | None:
    return None if rate == inf else 100 * rate


def _shown_rate(counts: ErrorCounts) -> str:
    """As `Evaluation.summary` has it: without a reference there is none."""
    return f"{counts.rate:.1%}" if counts.reference_length else "none"


def _fewer_errors(number: int, other: str) -> tuple[Column, Callable[[_Shown], Cell]]:
    """A column of the model of this number to compare with."""
    column = Column(f"fewer errors than {other}", minor=True)
    return column, lambda shown: shown.theirs[number].words.errors - shown.item.words.errors


def _verdicts(shown: _Shown, others: list[str]) -> list[str]:
    """The filters' values that an utterance has."""
    errors = shown.item.words.errors
    found = [VERDICTS[0] if errors else VERDICTS[1]]
    for other, theirs in zip(others, shown.theirs, strict=True):
        if theirs.words.errors != errors:
            found.append(f"{'better' if theirs.words.errors > errors else 'worse'} than {other}")
    return found


def _speaking_rate(item: Scored) -> float:
    return len(split_words(item.reference)) / max(item.utterance.duration_seconds, 1e-3)


def _totals(evaluation: Evaluation) -> list[tuple[str, str]]:
    totals = [("utterances", f"{len(evaluation.scored):,}"), ("hours", f"{evaluation.audio_seconds / 3600:.2f}")]
    for name, (total, (low, high)) in evaluation.rates.items():
        interval = f" [{low:.1%}, {high:.1%}]" if total.reference_length else ""
        totals.append((name, _shown_rate(total) + interval))
    words = evaluation.words
    totals += [(kind, f"{getattr(words, kind):,}") for kind in ("substitutions", "deletions", "insertions")]
    odd = [(kind.partition(",")[0], counted) for kind, counted in evaluation.oddities()]
    failed = [("could not be read", f"{len(evaluation.failures):,}")] if evaluation.failures else []
    speed = f"{evaluation.audio_seconds / evaluation.processing_seconds:.0f}"
    return [*totals, *odd, *failed, ("times real time", speed)]


def _difference(evaluation: Evaluation, other: str, theirs: Evaluation) -> tuple[str, str]:
    found = compare([item.words for item in theirs.scored], [item.words for item in evaluation.scored])
    low, high = (100 * edge for edge in found.interval)
    chance = "below 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
    return f"WER less that of {other}", f"{100 * found.difference:+.1f} points [{low:+.1f}, {high:+.1f}], p {chance}"


def _noise_number(snr: float | None) -> int:
    return -1 if snr is None else bisect_right(NOISES, snr)


def _name_noise(number: int) -> str:
    return "unknown" if number < 0 else spans(NOISES, "dB")(number)


def _tables(scored: Sequence[Scored], heard: Sequence[Heard]) -> list[tuple[str, list[Sequence[str]]]]:
    """Groups of utterances, and frequent confusions."""
    noises = {id(item): one.snr for item, one in zip(scored, heard, strict=True)}
    groups: list[tuple[str, Callable[[Scored], Any], Callable[[Any], str]]] = [
        ("Duration", lambda item: bisect_right(DURATIONS, item.utterance.duration_seconds), spans(DURATIONS, "s")),
        ("Speaking rate", lambda item: bisect_right(RATES, _speaking_rate(item)), spans(RATES, "words/s")),
        ("Signal to noise", lambda item: _noise_number(noises[id(item)]), _name_noise),
        ("Speaker", lambda item: item.utterance.speaker, lambda key: key or "unknown"),
    ]
    tables: list[tuple[str, list[Sequence[str]]]] = []
    for title, key, label in groups:
        lines: list[Sequence[str]] = [(title.lower(), "utterances", "words", "WER", "95 %")]
        shown = scored
        if title == "Speaker":  # of thousands those with the most utterances
            heard_most = dict(Counter(item.utterance.speaker for item in scored).most_common(MOST_SPEAKERS))
            shown = [item for item in scored if item.utterance.speaker in heard_most]
        for group in group_by(shown, key):
            low, high = group.interval
            is_known = group.utterances > 1 and group.words.reference_length > 0
            interval = f"{low:.1%} to {high:.1%}" if is_known else ""
            counts = f"{group.utterances:,}", f"{group.words.reference_length:,}", _shown_rate(group.words)
            lines.append((label(group.key), *counts, interval))
        tables.append((title, lines))
    for kind, pairs in find_confusions(scored).items():
        tables.append((f"Frequent {kind}" if kind != "characters" else "Confused characters", _most_common(pairs)))
    return tables


def _most_common(pairs: Counter[tuple[str, str]]) -> list[Sequence[str]]:
    shown = [
        (said.replace(" ", "␣"), written.replace(" ", "␣"), f"{count:,}")
        for (said, written), count in pairs.most_common(MOST_FREQUENT)
    ]
    return [("said", "written", "times"), *shown]
