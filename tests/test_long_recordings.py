"""Long recordings: read in blocks, computed in stretches, and written as if they were short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from recordings import RATE, assert_same_result, results_of, text_of, write
from torch import Tensor

import asr.transcription
from asr.audio import AudioFile
from asr.decoder import DecodedTokens, decode_greedy
from asr.metrics import character_errors
from asr.model import CTCModel
from asr.transcript import Transcript
from asr.transcription import Recording, transcribe, transcribe_recordings


@pytest.mark.parametrize("model_name", ["model", "packaged_model"])
def test_a_recording_without_a_pause_has_the_same_text_as_a_long_one_and_as_a_short_one(
    request: pytest.FixtureRequest, model_name: str, sample_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(model_name)
    whole = [transcribe(path, model=model) for path in sample_paths]
    monkeypatch.setattr(asr.transcription, "LONG_SECONDS", 0.0)
    for path, expected in zip(sample_paths, whole, strict=True):
        assert_same_result(transcribe(path, model=model), expected)


def test_a_long_recording_says_what_its_utterances_say_at_their_times(
    packaged_model: CTCModel, speech: list[Tensor], talk: Tensor
) -> None:
    result = transcribe(talk.repeat(3), sample_rate=RATE, model=packaged_model)
    begin, expected = 0, []
    for samples in speech * 3:
        alone = talk.repeat(3)[begin : begin + len(samples)]
        words = transcribe(alone, sample_rate=RATE, model=packaged_model).words
        expected += [(word.text, begin / RATE + word.start_seconds) for word in words]
        begin += len(samples) + RATE
    assert result.duration_seconds == len(talk) * 3 / RATE
    assert character_errors(" ".join(text for text, _ in expected), result.text).rate < 0.25
    assert len(result.words) == pytest.approx(len(expected), rel=0.05)
    assert result.words[-1].start_seconds == pytest.approx(expected[-1][1], abs=0.5)
    assert all(word.end_seconds <= following.start_seconds for word, following in pairwise(result.words))


@pytest.mark.parametrize(("seconds", "is_long"), [(40.0, False), (40.01, True)])
def test_the_text_stays_where_recordings_begin_to_count_as_long(
    packaged_model: CTCModel, long_path: Path, speech: list[Tensor], seconds: float, is_long: bool
) -> None:
    expected = text_of(packaged_model, torch.cat(speech * 3)[: round(seconds * RATE)])
    (result,) = results_of(packaged_model, [Recording(long_path, "a", 0.0, seconds)])
    assert isinstance(result, Transcript)
    assert result.duration_seconds == seconds
    assert character_errors(expected, result.text).rate <= (0.15 if is_long else 0.0)


def test_a_piece_of_a_long_recording_has_the_text_of_a_file_of_its_own(
    model: CTCModel, long_path: Path, speech: list[Tensor], tmp_path: Path
) -> None:
    own = write(tmp_path / "own.wav", torch.cat(speech * 3)[5 * RATE : 75 * RATE], subtype="PCM_16")
    (piece,) = results_of(model, [Recording(long_path, "piece", 5.0, 70.0)])
    assert isinstance(piece, Transcript)
    assert piece.text == transcribe(own, model=model).text != ""


def test_no_read_of_a_long_recording_is_longer_than_a_block(
    model: CTCModel, long_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = AudioFile._read_native

    def watched(self: AudioFile, start: int, count: int) -> Tensor:
        reads.append(count)
        return original(self, start, count)

    monkeypatch.setattr(AudioFile, "_read_native", watched)
    transcribe(long_path, model=model)
    assert max(reads) == 30 * RATE
    assert sum(reads) == soundfile.info(long_path).frames, "each sample once"


def test_each_step_of_a_long_recording_without_a_pause_is_decoded_once(model: CTCModel, speech: list[Tensor]) -> None:
    frames = torch.cat(speech * 4).unfold(0, 640, 640)
    power = frames.square().mean(1)
    talk = frames[power > 3e-3 * power.max()].flatten()[: 75 * RATE]
    steps = []

    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        steps.extend(lengths.tolist())
        return decode_greedy(log_probs, lengths)

    transcribe(talk, sample_rate=RATE, model=model, decode=decode)
    assert len(steps) > 1
    assert sum(steps) == len(talk) // model.step_samples + 1


def test_the_language_models_scores_of_a_long_recording_are_added(
    packaged_model: CTCModel, talk: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = count(1)

    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        return [replace(tokens, lm_log_prob=-float(next(scores))) for tokens in decode_greedy(log_probs, lengths)]

    result = transcribe(talk.repeat(2), sample_rate=RATE, model=packaged_model, decode=decode)
    parts = next(scores) - 1
    assert parts > 5
    assert result.lm_log_prob == -parts * (parts + 1) / 2
    assert transcribe(talk, sample_rate=RATE, model=packaged_model).lm_log_prob is None


def test_a_recording_without_a_word_has_no_score_of_a_language_model(packaged_model: CTCModel) -> None:
    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        return [DecodedTokens([], [], [], [], lm_log_prob=-1.0) for _ in lengths]

    for samples in (0.1 * torch.randn(RATE), torch.zeros(RATE)):
        assert transcribe(samples, sample_rate=RATE, model=packaged_model, decode=decode).lm_log_prob is None


def test_a_language_models_score_that_is_not_of_all_words_is_none(packaged_model: CTCModel, talk: Tensor) -> None:
    """A hotword that takes a word's place leaves its part without a score."""
    turns = count()

    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        decoded = decode_greedy(log_probs, lengths)
        return [replace(tokens, lm_log_prob=None if next(turns) == 2 else -1.0) for tokens in decoded]

    assert transcribe(talk.repeat(2), sample_rate=RATE, model=packaged_model, decode=decode).lm_log_prob is None


def test_progress_adds_up_to_the_audio_and_comes_often_in_a_long_recording(
    model: CTCModel, speech: list[Tensor], tmp_path: Path
) -> None:
    long = torch.cat(speech * 3)
    soundfile.write(tmp_path / "long.wav", long.numpy(), 16000)
    soundfile.write(tmp_path / "short.wav", speech[0].numpy(), 16000)
    seconds: list[float] = []
    recordings = [Recording(tmp_path / name, name) for name in ("long.wav", "short.wav", "missing.wav")]
    list(transcribe_recordings(model, recordings, progress=seconds.append))
    assert len(seconds) > 4
    assert sum(seconds) == pytest.approx((len(long) + len(speech[0])) / 16000, abs=0.1)


def test_progress_counts_silence_too_which_is_not_kept_in_memory(
    model: CTCModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[asr.transcription.Part] = []
    read = asr.transcription._read

    def watched(*arguments: Any) -> Iterator[asr.transcription.Part]:
        for part in read(*arguments):
            parts.append(part)
            yield part

    monkeypatch.setattr(asr.transcription, "_read", watched)
    path = write(tmp_path / "night.wav", torch.zeros(200 * RATE))
    seconds: list[float] = []
    (night,) = transcribe_recordings(model, [Recording(path, "night")], progress=seconds.append)
    assert isinstance(night, Transcript)
    assert night.text == ""
    assert sum(seconds) == pytest.approx(200)
    assert len(parts) > 2
    assert [part.samples for part in parts] == [None] * len(parts)
