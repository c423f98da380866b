"""Transcripts to the files that people use: text, JSON, subtitles (SRT, WebVTT), tables (TSV, CTM), TextGrid."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from asr.errors import AsrError
from asr.newfiles import new_text_file
from asr.transcript import Transcript, Word
from asr.words import join_words

__all__ = ["FORMATS", "as_dict", "format_transcript", "write_transcript"]

LINE_CHARACTERS = 42
"""Longest line of a subtitle; of Chinese or Japanese half as many."""
CUE_LINES = 2
CUE_SECONDS = 7.0
"""Longest time that one subtitle stands."""
LEAST_CUE_SECONDS = 1.0
"""Of a word alone, which may be spoken in a tenth of that; the next subtitle ends it sooner."""

Cue = Sequence[Word]


def format_transcript(transcript: Transcript, name: str) -> str:
    """A transcript in one of `FORMATS`, as the content of a file; `text` is the command's name of `txt`.

    Raises AsrError for another name.
    """
    write = FORMATS.get("txt" if name == "text" else name)
    if write is None:
        raise AsrError(f"format {name!r} must be one of text, {', '.join(FORMATS)}")
    return write(transcript)


def as_dict(transcript: Transcript) -> dict[str, Any]:
    """What the JSON output holds: times in seconds, rounded to milliseconds, confidence to four digits.

    `lm_log_prob` is there where a language model chose all words, and no hotword took the place of one.
    """
    score = transcript.lm_log_prob
    return {
        "path": transcript.name,
        "text": transcript.text,
        "duration_seconds": round(transcript.duration_seconds, 3),
        **({} if score is None else {"lm_log_prob": round(score, 3)}),
        "segments": [
            {
                "text": segment.text,
                "start_seconds": round(segment.start_seconds, 3),
                "end_seconds": round(segment.end_seconds, 3),
                "words": [_word_dict(word) for word in segment.words],
            }
            for segment in transcript.segments
        ],
    }


def _word_dict(word: Word) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": word.text,
        "start_seconds": round(word.start_seconds, 3),
        "end_seconds": round(word.end_seconds, 3),
        "confidence": round(word.confidence, 4),
    }
    return fields | ({"parts": [_word_dict(part) for part in word.parts]} if word.parts else {})


def _txt(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript) -> str:
    return json.dumps(as_dict(transcript), ensure_ascii=False, indent=1) + "\n"


def _srt(transcript: Transcript) -> str:
    cues = enumerate(_cues(transcript), start=1)
    return "\n".join(f"{number}\n{_span(times, ',')}\n{_lines(cue)}\n" for number, (times, cue) in cues)


def _vtt(transcript: Transcript) -> str:
    cues = [f"{_span(times, '.')}\n{html.escape(_lines(cue), quote=False)}\n" for times, cue in _cues(transcript)]
    return "\n".join(["WEBVTT\n", *cues])


def _tsv(transcript: Transcript) -> str:
    rows = [
        f"{_milliseconds(segment.start_seconds)}\t{_milliseconds(segment.end_seconds)}\t{segment.text}\n"
        for segment in transcript.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _ctm(transcript: Transcript) -> str:
    """NIST's: recording, channel, start, duration, word, confidence."""
    recording = "_".join(Path(transcript.name).stem.split()).lstrip(";") or "audio"  # ;; begins a comment
    return "".join(
        f"{recording} 1 {word.start_seconds:.3f} {word.end_seconds - word.start_seconds:.3f} "
        f"{word.text} {word.confidence:.4f}\n"
        for word in transcript.words
    )


def _textgrid(transcript: Transcript) -> str:
    """Praat's long text form: a tier of words, and one of their parts where there are any."""
    tiers = {"words": transcript.words, "parts": tuple(part for word in transcript.words for part in word.parts)}
    tiers = {name: words for name, words in tiers.items() if name == "words" or words}
    end = transcript.duration_seconds
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.3f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, words) in enumerate(tiers.items(), start=1):
        intervals = list(_intervals(words, end))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {end:.3f}", f"        intervals: size = {len(intervals)}"]
        for place, (first, last, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{place}]:", f"            xmin = {first:.3f}"]
            lines += [f"            xmax = {last:.3f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _intervals(words: Sequence[Word], end: float) -> Iterator[tuple[float, float, str]]:
    """From 0 to `end` without a gap, as Praat wants it; words without a duration cannot be shown."""
    now = 0.0
    for word in words:
        first, last = max(now, round(word.start_seconds, 3)), round(min(end, word.end_seconds), 3)
        if last <= first:
            continue
        if first > now:
            yield now, first, ""
        yield first, last, word.text
        now = last
    if round(end, 3) > now:
        yield now, round(end, 3), ""


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": _txt,
    "json": _json,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "ctm": _ctm,
    "TextGrid": _textgrid,
}
"""Name, which is also the file's extension, to what writes it."""


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _clock(seconds: float, point: str) -> str:
    """Hours:minutes:seconds and milliseconds behind `point`."""
    minutes, milliseconds = divmod(_milliseconds(seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"


def _span(times: tuple[float, float], point: str) -> str:
    return " --> ".join(_clock(seconds, point) for seconds in times)


def _cues(transcript: Transcript) -> Iterator[tuple[tuple[float, float], Cue]]:
    """Each subtitle's begin and end, and its words: long enough to be read where the next one leaves the time."""
    cues = [cue for segment in transcript.segments for cue in _split(segment.words)]
    next_begins = [*(cue[0].start_seconds for cue in cues[1:]), transcript.duration_seconds]
    for cue, next_begin in zip(cues, next_begins):
        begin = cue[0].start_seconds
        end = max(cue[-1].end_seconds, min(begin + LEAST_CUE_SECONDS, next_begin), begin + 0.001)
        yield (begin, end), cue


def _split(words: Cue) -> Iterator[Cue]:
    """Subtitles that fit: what is too long is parted at its longest pause, of like ones at that nearest the middle."""
    begin, end = _milliseconds(words[0].start_seconds), _milliseconds(words[-1].end_seconds)
    if len(words) == 1 or (end - begin <= 1000 * CUE_SECONDS and len(_wrap(words)) <= CUE_LINES):
        yield words
        return

    def preference(place: int) -> tuple[float, float]:
        pause = words[place].start_seconds - words[place - 1].end_seconds
        return round(pause, 1), -abs(place - len(words) / 2)

    place = max(range(1, len(words)), key=preference)
    yield from _split(words[:place])
    yield from _split(words[place:])


def _lines(words: Cue) -> str:
    return "\n".join(_wrap(words))


def _wrap(words: Cue) -> list[str]:
    """One line, or two of like length, or where neither fits as many as it takes."""
    texts = [word.text for word in words]
    whole = join_words(texts)
    if _width(whole) <= LINE_CHARACTERS:
        return [whole]
    places = range(1, len(texts)) if _width(whole) <= CUE_LINES * LINE_CHARACTERS + 1 else ()
    halves = [(join_words(texts[:place]), join_words(texts[place:])) for place in places]
    best = min(halves, key=lambda pair: max(map(_width, pair)), default=(whole, ""))
    if max(map(_width, best)) <= LINE_CHARACTERS:
        return list(best)
    lines = texts[:1]
    for text in texts[1:]:
        longer = join_words([lines[-1], text])
        lines[-1:] = [longer] if _width(longer) <= LINE_CHARACTERS else [lines[-1], text]
    return lines


def _width(text: str) -> int:
    """Characters, of which Chinese and Japanese ones count double, as they are twice as wide."""
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)


def write_transcript(transcript: Transcript, paths: Sequence[Path]) -> None:
    """Write each of `paths` in the format of its extension: it is whole or not there."""
    for path in paths:
        with new_text_file(path) as file:
            file.write(format_transcript(transcript, path.suffix[1:]))
