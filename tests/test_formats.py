"""Files of transcripts: what standard parsers read in them is what was said."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import srt
import webvtt
from hypothesis import example, given
from hypothesis import strategies as st
from praatio import textgrid

from asr.commands.options import FORMATS as COMMAND_FORMATS
from asr.errors import AsrError
from asr.formats import (
    CUE_SECONDS,
    FORMATS,
    LEAST_CUE_SECONDS,
    LINE_CHARACTERS,
    as_dict,
    format_transcript,
    write_transcript,
)
from asr.transcript import Transcript, Word


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    words, now = [], 0.0
    for text in draw(st.lists(st.text("ABC'XY", min_size=1, max_size=14), max_size=60)):
        start = now + draw(st.sampled_from([0.0, 0.08, 0.4, 1.0, 4000.0]))
        now = start + draw(st.sampled_from([0.04, 0.2, 0.52, 1.0]))
        words.append(Word(text, start, now, 0.5))
    return Transcript("talks/one two.wav", tuple(words), now + 1)


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


@given(transcripts())
def test_subtitles_hold_every_word_at_its_time(transcript: Transcript) -> None:
    cues = list(srt.parse(format_transcript(transcript, "srt"), ignore_errors=False))
    assert " ".join(cue.content for cue in cues).split() == transcript.text.split()
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))
    starts = {round(word.start_seconds, 3) for word in transcript.words}
    assert {cue.start.total_seconds() for cue in cues} <= starts
    last_words = iter(transcript.words)
    for cue, following in zip(cues, [*cues[1:], None]):
        (*_, last) = islice(last_words, len(cue.content.split()))
        begin, end = cue.start.total_seconds(), cue.end.total_seconds()
        most = following.start.total_seconds() if following else transcript.duration_seconds
        assert end == pytest.approx(max(last.end_seconds, min(begin + LEAST_CUE_SECONDS, most)), abs=0.0011)


def test_even_words_without_a_duration_have_subtitles_that_begin_before_they_end() -> None:
    words = [Word(text, 2.0, 2.0, 0.0) for text in ("FAR" * 20, "AWAY" * 20, "WORDS" * 20)]
    for cue in srt.parse(format_transcript(Transcript("a.wav", tuple(words), 2.0), "srt")):
        assert cue.start < cue.end


def test_a_text_of_many_words_at_one_place_is_split_soon() -> None:
    words = tuple(Word("WORD", 1.0, 1.0, 0.0) for _ in range(20_000))
    assert format_transcript(Transcript("a.wav", words, 2.0), "srt").count("WORD") == len(words)


@given(transcripts())
def test_subtitles_are_short_enough_to_read(transcript: Transcript) -> None:
    for cue in srt.parse(format_transcript(transcript, "srt")):
        lines = cue.content.splitlines()
        assert len(lines) <= 2
        assert max(map(len, lines)) <= LINE_CHARACTERS
        assert (cue.end - cue.start).total_seconds() <= CUE_SECONDS


@given(st.integers(1, 10_000))
@example(28)
def test_a_subtitle_may_stand_as_long_as_one_may_wherever_it_is(step: int) -> None:
    ends = [step * 0.04, step * 0.04 + CUE_SECONDS]
    words = (Word("A", ends[0], ends[0] + 3.3, 0.5), Word("B", ends[1] - 3.3, ends[1], 0.5))
    assert [cue.content for cue in srt.parse(format_transcript(Transcript("a", words, 1e4), "srt"))] == ["A B"]


def test_a_subtitle_is_parted_at_its_longest_pause() -> None:
    words, now = [], 0.0
    for number in range(20):
        now += 0.5 if number == 7 else 0.1
        words.append(Word(f"WORD{number:02}", now, now + 0.2, 1.0))
        now += 0.2
    first, *_ = srt.parse(format_transcript(Transcript("a", tuple(words), 60.0), "srt"))
    assert first.content.split()[-1] == "WORD06"


def test_a_word_longer_than_a_line_is_shown_whole() -> None:
    long = Word("A" * 60, 0.0, 1.0, 1.0)
    (cue,) = srt.parse(format_transcript(Transcript("a", (long,), 1.0), "srt"))
    assert cue.content == "A" * 60


@given(transcripts())
def test_webvtt_says_what_srt_says(transcript: Transcript) -> None:
    cues = list(srt.parse(format_transcript(transcript, "srt")))
    captions = webvtt.from_buffer(io.StringIO(format_transcript(transcript, "vtt"))).captions if cues else []
    assert [caption.text for caption in captions] == [cue.content for cue in cues]
    for caption, cue in zip(captions, cues, strict=True):
        assert seconds(caption.start) == pytest.approx(cue.start.total_seconds())
        assert seconds(caption.end) == pytest.approx(cue.end.total_seconds())


def test_webvtt_escapes_what_would_be_markup() -> None:
    words = (Word("A<B>", 0.0, 1.0, 1.0), Word("C&D", 1.0, 2.0, 1.0))
    assert "A&lt;B&gt; C&amp;D" in format_transcript(Transcript("a", words, 3.0), "vtt")


@given(transcripts())
def test_a_ctm_has_a_line_of_six_fields_per_word(transcript: Transcript) -> None:
    lines = [line.split() for line in format_transcript(transcript, "ctm").splitlines()]
    assert [fields[4] for fields in lines] == [word.text for word in transcript.words]
    for (name, channel, start, duration, _, confidence), word in zip(lines, transcript.words, strict=True):
        assert (name, channel, confidence) == ("one_two", "1", "0.5000")
        assert float(start) == pytest.approx(word.start_seconds, abs=6e-4)
        assert float(duration) == pytest.approx(word.end_seconds - word.start_seconds, abs=1.1e-3)


@pytest.mark.parametrize(("name", "recording"), [(";;a b.wav", "a_b"), (";;.wav", "audio")])
def test_the_name_of_a_recording_makes_no_comment_of_a_ctms_lines(name: str, recording: str) -> None:
    (line,) = format_transcript(Transcript(name, (Word("A", 0.0, 1.0, 1.0),), 1.0), "ctm").splitlines()
    assert line.split()[0] == recording


@given(transcripts())
def test_a_tsv_has_a_row_of_milliseconds_per_segment(transcript: Transcript) -> None:
    header, *rows = [line.split("\t") for line in format_transcript(transcript, "tsv").splitlines()]
    assert header == ["start", "end", "text"]
    assert rows == [
        [str(round(1000 * item.start_seconds)), str(round(1000 * item.end_seconds)), item.text]
        for item in transcript.segments
    ]


@given(transcripts())
def test_json_holds_the_language_models_score_where_there_is_one(transcript: Transcript) -> None:
    assert "lm_log_prob" not in as_dict(transcript)
    assert as_dict(replace(transcript, lm_log_prob=-12.34567))["lm_log_prob"] == -12.346


@given(transcripts())
def test_json_holds_segments_and_their_words(transcript: Transcript) -> None:
    read = json.loads(format_transcript(transcript, "json"))
    assert (read["path"], read["text"]) == (transcript.name, transcript.text)
    words = [word for segment in read["segments"] for word in segment["words"]]
    assert [word["text"] for word in words] == [word.text for word in transcript.words]
    assert [word["start_seconds"] for word in words] == pytest.approx([w.start_seconds for w in transcript.words])


@pytest.mark.parametrize("name", FORMATS)
def test_a_transcript_without_words_is_a_file_of_its_format(name: str) -> None:
    empty = {"txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n", "ctm": ""}
    written = format_transcript(Transcript("a.wav", (), 3.0), name)
    if name == "json":
        assert json.loads(written) == {"path": "a.wav", "text": "", "duration_seconds": 3.0, "segments": []}
    elif name == "TextGrid":
        assert 'text = ""' in written
    else:
        assert written == empty[name]


def test_every_format_of_the_command_is_one_from_python_and_another_is_told() -> None:
    transcript = Transcript("a.wav", (Word("HELLO", 0.0, 0.4, 0.9),), 1.0)
    for name in COMMAND_FORMATS:
        assert format_transcript(transcript, name)
    with pytest.raises(AsrError, match=r"^format 'docx' must be one of text, txt, json, srt"):
        format_transcript(transcript, "docx")


def test_words_that_overlap_are_intervals_that_do_not() -> None:
    words = (Word("A", 0.0, 0.5, 1.0), Word("B", 0.46, 0.8, 1.0), Word("C", 0.7, 0.78, 1.0), Word("D", 0.9, 1.0, 1.0))
    written = format_transcript(Transcript("a.wav", words, 1.2), "TextGrid")
    edges = [float(edge) for edge in re.findall(r"    xm(?:in|ax) = ([\d.]+)\n", written.split("intervals [1]")[1])]
    assert edges == sorted(edges)
    assert all(f'text = "{text}"' in written for text in "ABD")


@pytest.mark.parametrize("name", ["json", "ctm", "txt"])
def test_a_name_that_is_not_utf_8_is_written_as_in_python(tmp_path: Path, name: str) -> None:
    path = os.fsdecode(b"caf\xe9.wav")
    write_transcript(Transcript(path, (Word("A", 0.0, 0.5, 1.0),), 1.0), [tmp_path / f"out.{name}"])
    written = (tmp_path / f"out.{name}").read_text(encoding="utf-8")
    assert name == "txt" or "caf\\udce9" in written


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(AsrError, match=r"a\.srt: cannot be written \(No space left on device\); make room"):
        write_transcript(Transcript("a", (), 1.0), [tmp_path / "a.srt"])
    assert list(tmp_path.iterdir()) == []


def test_json_and_textgrid_hold_the_times_of_every_word(tmp_path: Path) -> None:
    words = (Word("A", 0.25, 0.5, 0.75), Word("B", 0.625, 1.0, 0.5), Word("C", 3.0, 3.125, 0.25))
    transcript = Transcript("a.wav", words, 4.0)
    first, second = as_dict(transcript)["segments"]
    assert [(segment["start_seconds"], segment["end_seconds"]) for segment in (first, second)] == [
        (0.25, 1.0),
        (3.0, 3.125),
    ]
    assert [tuple(word.values()) for word in (*first["words"], *second["words"])] == [
        (word.text, word.start_seconds, word.end_seconds, word.confidence) for word in words
    ]
    (tmp_path / "a.TextGrid").write_text(format_transcript(transcript, "TextGrid"))
    tier = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False).getTier("words")
    assert [(one.label, one.start, one.end) for one in tier.entries] == [
        (w.text, w.start_seconds, w.end_seconds) for w in words
    ]
