"""Recordings to transcripts: the same text whatever the company, in the order given, and one bad file stops nothing."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import asr
import asr.recognition
import asr.transcription
from asr.audio import AudioFile
from asr.decoder import DecodedTokens, decode_greedy
from asr.errors import AsrError
from asr.metrics import character_errors
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.threads import lent_threads
from asr.transcript import Transcript
from asr.transcription import Failure, Recording, transcribe, transcribe_recordings

RATE = 16000


def write(path: Path, samples: Tensor, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples.numpy(), rate, subtype=subtype, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def encoded(samples: Tensor, format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), RATE, format=format, subtype=subtype)
    return file.getvalue()


def text_of(model: CTCModel, samples: Tensor) -> str:
    """What the model writes for (samples,) at its rate, without anything in between."""
    with torch.inference_mode():
        (tokens,) = decode_greedy(*model(samples[None], torch.tensor([len(samples)])))
    return model.vocabulary.decode(tokens.token_ids)


def results_of(
    model: CTCModel, recordings: list[Recording], batch_seconds: float = 160.0
) -> list[Transcript | Failure]:
    return list(transcribe_recordings(model, recordings, batch_seconds=batch_seconds))


def assert_same(left: Transcript | Failure, right: Transcript | Failure) -> None:
    """The same words at the same times; where two tokens are as probable, one may take a step from the other."""
    if isinstance(left, Failure) or isinstance(right, Failure):
        assert left == right
        return
    assert (left.name, left.text, left.duration_seconds) == (right.name, right.text, right.duration_seconds)
    for one, other in zip(left.words, right.words, strict=True):
        assert one.start_seconds == pytest.approx(other.start_seconds, abs=0.041)
        assert one.end_seconds == pytest.approx(other.end_seconds, abs=0.041)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def failure_of(model: CTCModel, recording: Recording) -> str:
    """The sentence of a recording that has no transcript."""
    (result,) = results_of(model, [recording])
    assert isinstance(result, Failure)
    assert result.name == recording.name
    assert "\n" not in result.message
    return result.message


@pytest.fixture(scope="module")
def packaged_model() -> CTCModel:
    return asr.load_model()


@pytest.fixture(scope="module")
def long_path(speech: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """87 s of speech, which are computed in windows."""
    return write(tmp_path_factory.mktemp("long") / "long.wav", torch.cat(speech * 3), subtype="PCM_16")


@pytest.fixture(scope="module")
def mixture(
    sample_paths: list[Path], long_path: Path, speech: list[Tensor], tmp_path_factory: pytest.TempPathFactory
) -> list[Recording]:
    """Recordings of every kind: speech, pieces of it, a long one, silence, and four that cannot be transcribed."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "text.wav").write_text("hello world\n" * 100)
    paths = [
        *sample_paths,
        long_path,
        write(folder / "silence.wav", torch.zeros(RATE)),
        write(folder / "short.wav", speech[0][:160]),
        folder / "text.wav",
        folder / "missing.wav",
    ]
    recordings = [Recording(path, path.name) for path in paths]
    pieces = [(0, 0.0, 0.06), (1, 1.25, 0.5), (2, 0.5, 1.7), (3, 2.0, None), (4, 99.0, 1.0), (5, 0.0, 3.3)]
    for index, start, duration in pieces:
        path = sample_paths[index]
        recordings.append(Recording(path, f"{path.name} from {start} for {duration}", start, duration))
    return recordings


@pytest.fixture(scope="module")
def alone(model: CTCModel, mixture: list[Recording]) -> dict[str, Transcript | Failure]:
    """The result of each recording of the mixture, computed by itself."""
    return {recording.name: results_of(model, [recording])[0] for recording in mixture}


def test_the_packaged_model_is_loaded_once_and_is_what_load_model_gives(
    sample_paths: list[Path], packaged_model: CTCModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[CTCModel] = []

    def counted() -> CTCModel:
        loads.append(asr.load_model())
        return loads[-1]

    monkeypatch.setattr(asr.transcription, "load_model", counted)
    asr.transcription._packaged_model.cache_clear()
    transcripts = [asr.transcribe(path) for path in sample_paths]
    assert len(loads) == 1
    for path, transcript in zip(sample_paths, transcripts, strict=True):
        assert_same(transcript, asr.transcribe(path, model=packaged_model))
    assert not packaged_model.training


def test_a_model_may_be_given_as_its_file(sample_paths: list[Path], model: CTCModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    expected = asr.transcribe(sample_paths[0], model=asr.load_model(tmp_path / "m.safetensors"))
    assert_same(asr.transcribe(sample_paths[0], model=tmp_path / "m.safetensors"), expected)
    (several,) = asr.transcribe_files(sample_paths[:1], model=str(tmp_path / "m.safetensors"))
    assert isinstance(several, Transcript)
    assert_same(several, expected)


def test_one_file_and_a_list_of_files_are_not_taken_for_each_other() -> None:
    with pytest.raises(AsrError, match="a list of files is for transcribe_files"):
        asr.transcribe(["a.wav"])  # type: ignore[arg-type]
    with pytest.raises(AsrError, match=r"^a\.wav: is one file; transcribe_files takes a list of them"):
        asr.transcribe_files("a.wav")


def test_the_packaged_model_writes_speech_and_for_each_recording_something_else(
    packaged_model: CTCModel, sample_paths: list[Path], speech: list[Tensor]
) -> None:
    texts = [transcribe(path, model=packaged_model).text for path in sample_paths]
    assert texts == [text_of(packaged_model, samples) for samples in speech]
    assert len(set(texts)) == len(texts)
    assert min(len(text.split()) for text in texts) > 3


def test_a_transcript_has_its_name_its_duration_and_its_text_as_a_string(
    model: CTCModel, sample_paths: list[Path], speech: list[Tensor]
) -> None:
    result = transcribe(sample_paths[0], model=model)
    assert (result.name, result.duration_seconds) == (str(sample_paths[0]), len(speech[0]) / RATE)
    assert result.text == text_of(model, speech[0])
    assert str(result) == result.text != ""


def test_a_path_a_file_and_samples_have_the_same_text(
    model: CTCModel, sample_paths: list[Path], speech: list[Tensor]
) -> None:
    path, samples = sample_paths[1], speech[1]
    expected = text_of(model, samples)
    assert expected
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        assert transcribe(source, model=model).text == expected
    with path.open("rb") as file:
        assert transcribe(file, model=model).text == expected
        assert not file.closed
    stereo = torch.stack([samples, samples], dim=1)
    for given_samples in (samples, samples.double(), stereo, samples.clone().requires_grad_(), stereo.T.numpy().T):
        assert transcribe(given_samples, sample_rate=RATE, model=model).text == expected
    big_endian = samples.numpy().astype(">f4")
    assert transcribe(big_endian, sample_rate=RATE, model=model).text == expected


def test_a_model_transcribes_by_itself_too(model: CTCModel, sample_paths: list[Path], speech: list[Tensor]) -> None:
    assert model.transcribe(sample_paths[0]) == transcribe(sample_paths[0], model=model)
    assert model.transcribe(speech[0], sample_rate=RATE).text == transcribe(sample_paths[0], model=model).text


@pytest.mark.parametrize("rate", [8000, 44100])
def test_samples_of_another_rate_have_the_text_of_a_file_of_that_rate(
    model: CTCModel, speech: list[Tensor], tmp_path: Path, rate: int
) -> None:
    samples = speech[2][:rate]
    path = write(tmp_path / "a.wav", samples, rate)
    assert transcribe(samples, sample_rate=rate, model=model).text == transcribe(path, model=model).text
    assert transcribe(samples, sample_rate=rate, model=model).duration_seconds == 1.0


@pytest.mark.parametrize(
    ("samples", "sample_rate", "rule"),
    [
        (numpy.zeros(RATE), None, "set sample_rate="),
        (numpy.zeros(RATE, dtype="int16"), RATE, "must be floating point .* not int16; divide"),
        (torch.zeros(RATE, dtype=torch.int32), RATE, "must be floating point .* not int32"),
        (numpy.zeros(RATE, dtype="complex64"), RATE, "must be floating point .* not complex64"),
        (numpy.zeros((2, RATE)), RATE, r"\(2, 16000\) must be \(samples,\) or \(samples, channels\); give their .T"),
        (numpy.zeros((1, 1, RATE)), RATE, r"shape \(1, 1, 16000\) must be"),
        (numpy.array(0.5), RATE, r"shape \(\) must be"),
        (numpy.zeros((RATE, 0)), RATE, r"shape \(16000, 0\) must be"),
        (numpy.zeros(0), RATE, "holds no samples"),
        (numpy.zeros(100), RATE, "0.00625 s of audio is too short"),
        (numpy.full(RATE, numpy.nan), RATE, "not finite"),
        (numpy.zeros(RATE), 0, "sample_rate=0 must be 1000 to 768000 Hz"),
        (numpy.zeros(RATE), -RATE, "sample_rate=-16000 must be"),
        (numpy.zeros(RATE), float("nan"), "sample_rate=nan must be"),
        (numpy.zeros(RATE), 10**7, "sample_rate=10000000 must be"),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else None,
)
def test_samples_that_are_none_are_refused_with_the_rule(
    model: CTCModel, samples: numpy.ndarray | Tensor, sample_rate: int | None, rule: str
) -> None:
    with pytest.raises(AsrError, match=rule):
        transcribe(samples, sample_rate=sample_rate, model=model)


@pytest.mark.parametrize("source", [None, 3, b"RIFF", numpy.float32(0.5), io.StringIO("RIFF")])
def test_what_is_no_recording_is_told_and_stops_no_other(
    model: CTCModel, sample_paths: list[Path], source: Any
) -> None:
    rule = f"^{type(source).__name__}: is no recording that can be opened; give a str or Path, a file opened with"
    with pytest.raises(AsrError, match=rule):
        transcribe(source, model=model)
    with pytest.raises(AsrError, match=rule):
        asr.align(model, source, "HELLO")
    failed, other = asr.transcribe_files([source, sample_paths[1]], model=model)
    assert isinstance(failed, Failure)
    assert isinstance(other, Transcript)


def test_a_model_in_training_mode_writes_nothing_by_chance(
    make_model: Callable[..., CTCModel], sample_paths: list[Path]
) -> None:
    model = make_model(dropout=0.3).train()
    with pytest.raises(AsrError, match=r"^the model is in training mode, .* call model\.eval\(\) first$"):
        model.transcribe(sample_paths[0])
    with pytest.raises(AsrError, match="is in training mode"):
        asr.align(model, sample_paths[0], "HELLO")
    model.eval().transcribe(sample_paths[0])


def test_a_file_takes_no_rate_that_would_be_ignored(model: CTCModel, sample_paths: list[Path]) -> None:
    with pytest.raises(AsrError, match=r"flac: sample_rate= is for samples \(a NumPy array or a torch tensor\)"):
        transcribe(sample_paths[0], sample_rate=8000, model=model)


def test_transcribe_raises_the_sentence_of_a_file_that_fails(model: CTCModel, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=rf"^{tmp_path}/none\.wav: audio file cannot be opened: No such file"):
        transcribe(tmp_path / "none.wav", model=model)


def test_the_mixture_of_these_tests_has_transcripts_and_failures(
    alone: dict[str, Transcript | Failure], mixture: list[Recording], model: CTCModel, speech: list[Tensor]
) -> None:
    failed = [name for name, result in alone.items() if isinstance(result, Failure)]
    piece = mixture[-2].name
    assert failed == ["short.wav", "text.wav", "missing.wav", piece]
    texts = [result.text for result in alone.values() if isinstance(result, Transcript)]
    assert len(set(texts)) >= 10
    assert texts[:6] == [text_of(model, samples) for samples in speech]


@settings(max_examples=30)
@given(
    order=st.lists(st.integers(0, 16), min_size=1, max_size=9),
    batch_seconds=st.sampled_from([0.01, 1.0, 4.0, 5.5, 9.0, 13.0, 30.0, 160.0]),
)
def test_any_company_in_any_order_and_batch_changes_no_result(
    model: CTCModel,
    mixture: list[Recording],
    alone: dict[str, Transcript | Failure],
    order: list[int],
    batch_seconds: float,
) -> None:
    recordings = [mixture[index] for index in order]
    for recording, result in zip(recordings, results_of(model, recordings, batch_seconds), strict=True):
        assert_same(result, alone[recording.name])


def test_the_packaged_model_writes_the_same_in_any_company(packaged_model: CTCModel, sample_paths: list[Path]) -> None:
    expected = {path.name: transcribe(path, model=packaged_model).text for path in sample_paths}
    for paths, batch_seconds in ((sample_paths, 160.0), (sample_paths[::-1], 12.0)):
        results = results_of(packaged_model, [Recording(path, path.name) for path in paths], batch_seconds)
        assert [result.name for result in results] == [path.name for path in paths]
        assert {result.name: result.text for result in results if isinstance(result, Transcript)} == expected


@pytest.mark.parametrize("batch_seconds", [0.5, 4.6, 11.0, 20.0])
def test_batches_are_of_like_length_and_hold_no_more_than_they_may(
    make_model: Callable[..., CTCModel], sample_paths: list[Path], batch_seconds: float
) -> None:
    model, batches = make_model(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append((inputs[0].shape, inputs[1].tolist())))
    starts = (0.0, 3.0, 2.0)
    recordings = [Recording(path, f"{path} {start}", start) for start in starts for path in sample_paths]
    results = results_of(model, recordings, batch_seconds)
    durations = [result.duration_seconds for result in results if isinstance(result, Transcript)]
    assert sorted(length for _, lengths in batches for length in lengths) == sorted(
        round(duration * RATE) for duration in durations
    )
    for (rows, padded), lengths in batches:
        assert rows == 1 or rows * padded <= batch_seconds * RATE
        assert padded == max(lengths)
        assert lengths == sorted(lengths)
    if batch_seconds == 20.0:
        assert sum(durations) < 4 * batch_seconds, "all must be sorted among themselves"
        by_length = sorted(lengths for _, lengths in batches)
        assert all(shorter[-1] <= longer[0] for shorter, longer in pairwise(by_length))
        assert len(batches) < 6


def test_recordings_are_read_as_results_are_taken(model: CTCModel, sample_paths: list[Path]) -> None:
    """An endless list is transcribed, with no more read ahead than the pools hold."""
    taken = 0

    def endless() -> Iterator[Recording]:
        nonlocal taken
        for number in count():
            taken += 1
            yield Recording(sample_paths[number % 6], str(number))

    results = list(islice(transcribe_recordings(model, endless(), batch_seconds=5.0), 10))
    assert [result.name for result in results] == [str(number) for number in range(10)]
    assert taken <= 15


def test_a_result_that_needs_no_batch_comes_before_the_next_recording_is_read(
    model: CTCModel, mixture: list[Recording], alone: dict[str, Transcript | Failure]
) -> None:
    for ready in ("silence.wav", "text.wav"):
        first = next(recording for recording in mixture if recording.name == ready)

        def one_then_never(first: Recording = first) -> Iterator[Recording]:
            yield first
            pytest.fail("the second recording was asked for before the first result was given")

        assert_same(next(transcribe_recordings(model, one_then_never())), alone[ready])


def test_the_first_results_come_before_the_last_batch_is_computed(
    make_model: Callable[..., CTCModel], sample_paths: list[Path]
) -> None:
    model, batches = make_model(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[1])))
    results = transcribe_recordings(model, [Recording(path, path.name) for path in sample_paths], batch_seconds=6.0)
    computed = []
    for _ in results:
        computed.append(len(batches))
    assert computed[0] < computed[-1] == 6
    assert computed == sorted(computed)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many cores this process may use, until the test is over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_cores_changes_no_text(
    packaged_model: CTCModel, sample_paths: list[Path], threads: Callable[[int], None]
) -> None:
    recordings = [Recording(path, str(path)) for path in sample_paths] * 2
    texts = []
    for number in (1, 2, 3):
        threads(number)
        texts.append([str(result) for result in results_of(packaged_model, recordings, batch_seconds=25)])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("taken", [0, 1, 3, None])
def test_the_number_of_threads_is_afterwards_as_before_even_if_results_are_left(
    model: CTCModel, sample_paths: list[Path], threads: Callable[[int], None], taken: int | None
) -> None:
    threads(3)
    results = transcribe_recordings(model, [Recording(path, str(path)) for path in sample_paths], batch_seconds=20)
    list(islice(results, taken))
    results.close()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as executor:
        assert (torch.get_num_threads(), executor.submit(torch.get_num_threads).result()) == (3, 3)


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


def test_a_language_models_score_that_is_not_of_all_words_is_none(packaged_model: CTCModel, talk: Tensor) -> None:
    """A hotword that takes a word's place leaves its part without a score."""
    turns = count()

    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        decoded = decode_greedy(log_probs, lengths)
        return [replace(tokens, lm_log_prob=None if next(turns) == 2 else -1.0) for tokens in decoded]

    assert transcribe(talk.repeat(2), sample_rate=RATE, model=packaged_model, decode=decode).lm_log_prob is None


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


def test_an_error_in_a_batch_reaches_the_caller(
    model: CTCModel, sample_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(asr.recognition, "decode_greedy", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        results_of(model, [Recording(path, str(path)) for path in sample_paths])


@pytest.mark.parametrize("model_name", ["model", "packaged_model"])
def test_a_recording_without_a_pause_has_the_same_text_as_a_long_one_and_as_a_short_one(
    request: pytest.FixtureRequest, model_name: str, sample_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(model_name)
    whole = [transcribe(path, model=model) for path in sample_paths]
    monkeypatch.setattr(asr.transcription, "LONG_SECONDS", 0.0)
    for path, expected in zip(sample_paths, whole, strict=True):
        assert_same(transcribe(path, model=model), expected)


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


def test_no_word_ends_behind_its_recording(model: CTCModel, speech: list[Tensor]) -> None:
    cuts = [speech[0][:end] for end in range(20000, 40000, 1331)]  # in the middle of a word
    heard = [transcribe(samples, sample_rate=RATE, model=model) for samples in cuts]
    assert all(one.words[-1].end_seconds <= one.duration_seconds for one in heard)
    at_end, samples = next(pair for pair in zip(heard, cuts) if pair[0].words[-1].end_seconds == len(pair[1]) / RATE)
    aligned = asr.align(model, io.BytesIO(encoded(samples, "WAV")), at_end.text).words[-1]
    assert aligned.end_seconds == aligned.parts[-1].end_seconds == at_end.duration_seconds


@pytest.mark.parametrize(("seconds", "is_long"), [(39.99, False), (40.0, False), (40.01, True)])
def test_the_text_stays_where_recordings_begin_to_count_as_long(
    packaged_model: CTCModel, long_path: Path, speech: list[Tensor], seconds: float, is_long: bool
) -> None:
    expected = text_of(packaged_model, torch.cat(speech * 3)[: round(seconds * RATE)])
    (result,) = results_of(packaged_model, [Recording(long_path, "a", 0.0, seconds)])
    assert isinstance(result, Transcript)
    assert result.duration_seconds == seconds
    assert character_errors(expected, result.text).rate <= (0.15 if is_long else 0.0)


def test_a_long_recording_that_is_damaged_at_its_end_has_no_transcript_and_stops_nothing(
    model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    flac = write(tmp_path / "a.flac", torch.randn(70 * RATE) * 0.01, subtype="PCM_16")
    content = flac.read_bytes()
    flac.write_bytes(content[: len(content) * 2 // 3])
    recordings = [Recording(path, path.name) for path in (sample_paths[0], flac, sample_paths[1])]
    first, broken, last = results_of(model, recordings)
    assert isinstance(broken, Failure)
    assert "a.flac" in broken.message
    assert_same(first, results_of(model, [recordings[0]])[0])
    assert_same(last, results_of(model, [recordings[2]])[0])


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


@pytest.mark.parametrize("seconds", [1, 90])
def test_silence_has_an_empty_transcript_and_is_told(
    make_model: Callable[..., CTCModel], tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: int
) -> None:
    model, computed = make_model(), []
    model.encoder.register_forward_pre_hook(lambda *_: computed.append(True))
    path = write(tmp_path / "silence.wav", torch.zeros(seconds * RATE), subtype="PCM_16")
    with caplog.at_level(logging.WARNING):
        assert transcribe(path, model=model) == Transcript(str(path), (), seconds)
    assert caplog.messages == [f"{path}: holds nothing but silence"]
    assert not computed


def test_channels_that_take_each_other_out_are_told(
    model: CTCModel, speech: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "opposite.wav", torch.stack([speech[0], -speech[0]], dim=1))
    with caplog.at_level(logging.WARNING):
        assert transcribe(path, model=model).text == ""
    assert "or channels that are each other's opposite" in caplog.text


@pytest.mark.parametrize("seconds", [1, 90])
def test_what_is_quiet_and_not_silent_is_computed(
    make_model: Callable[..., CTCModel],
    speech: list[Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seconds: int,
) -> None:
    model, computed = make_model(), []
    model.encoder.register_forward_pre_hook(lambda *_: computed.append(True))
    quiet = speech[1] / speech[1].abs().max() * 1.01e-4
    samples = torch.cat([torch.zeros(seconds * RATE), quiet])
    transcribe(write(tmp_path / "quiet.wav", samples), model=model)
    assert computed
    assert not caplog.messages


@pytest.mark.parametrize("samples", [799, 800])
def test_a_recording_must_be_as_long_as_the_sentence_says(
    model: CTCModel, speech: list[Tensor], tmp_path: Path, samples: int
) -> None:
    path = write(tmp_path / "a.wav", speech[0][RATE:][:samples])
    (result,) = results_of(model, [Recording(path, "a")])
    if samples == 800:
        assert isinstance(result, Transcript)
    else:
        assert result == Failure(
            "a", f"{path}: 0.0499375 s of audio is too short to recognise; at least 0.05 s is needed"
        )


@pytest.mark.parametrize(
    ("start", "duration", "reason"),
    [
        (3.99, 0.05, "3.99 to 4.04 s holds none of its 63840 samples"),
        (3.97, 0.05, "0.02 s of audio is too short to recognise"),
        (1.0, 0.04, "0.04 s of audio is too short to recognise"),
        (9.0, None, "9 to 3.99 s is not inside its 3.99 s"),
        (9.0, 2.0, "9 to 11 s is not inside its 3.99 s"),
        (-1.0, None, "-1 to 3.99 s is not inside its 3.99 s"),
        (0.0, 90.0, "0 to 90 s is not inside its 3.99 s"),
    ],
)
def test_a_piece_that_is_not_in_its_recording_is_told_by_the_name_of_the_audio(
    model: CTCModel, sample_paths: list[Path], start: float, duration: float | None, reason: str
) -> None:
    message = failure_of(model, Recording(sample_paths[1], "manifest.jsonl:7", start, duration))
    assert message.startswith(f"{sample_paths[1]}: {reason}")


def test_damage_late_in_a_long_recording_is_told_and_stops_no_other(
    model: CTCModel, speech: list[Tensor], sample_paths: list[Path], tmp_path: Path
) -> None:
    samples = torch.cat(speech * 3)
    whole = write(tmp_path / "whole.flac", samples, subtype="PCM_16").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: int(0.9 * len(whole))])
    samples[85 * RATE] = float("nan")
    nan = write(tmp_path / "nan.wav", samples)
    names = [tmp_path / "cut.flac", sample_paths[0], nan, sample_paths[1]]
    cut, first, not_finite, second = results_of(model, [Recording(name, name.name) for name in names])
    assert isinstance(cut, Failure)
    assert cut.message.startswith(f"{tmp_path}/cut.flac: the audio is ")
    assert not_finite == Failure("nan.wav", f"{nan}: the audio holds samples that are not finite numbers")
    assert [first.name, second.name] == [sample_paths[0].name, sample_paths[1].name]
    assert all(isinstance(result, Transcript) and result.text for result in (first, second))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]),
    kept=st.floats(0.0, 1.0),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
    in_the_header=st.booleans(),
)
def test_no_damage_to_a_file_stops_the_others(
    model: CTCModel,
    speech: list[Tensor],
    sample_paths: list[Path],
    kind: str,
    kept: float,
    changes: list[tuple[int, int]],
    in_the_header: bool,
) -> None:
    data = bytearray(encoded(speech[1][:RATE], kind))
    for place, value in changes:
        data[place % (64 if in_the_header else len(data))] = value
    damaged = io.BytesIO(bytes(data[: round(kept * len(data))]))
    result, other = results_of(model, [Recording(damaged, "damaged"), Recording(sample_paths[3], "whole")])
    assert result.name == "damaged"
    if isinstance(result, Failure):
        assert result.message.startswith("audio: ")
        assert "\n" not in result.message
    assert isinstance(other, Transcript)
    assert (other.name, other.text) == ("whole", text_of(model, speech[3]))


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
    assert sum(len(part.samples) for part in parts) == 0


FORK = """
import os, signal, sys, torch, asr

def text():
    return asr.transcribe(sys.argv[2], model=sys.argv[1]).text

torch.set_num_threads(2)
before = text()
if os.fork() == 0:
    signal.alarm(250)
    os._exit(0 if text() == before else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no process")
def test_a_copy_of_a_process_that_has_transcribed_does_not_wait_for_its_threads(
    model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    save_model(model, tmp_path / "m.safetensors")
    command = [sys.executable, "-c", FORK, str(tmp_path / "m.safetensors"), str(sample_paths[0])]
    assert subprocess.run(command, timeout=300).returncode == 0


def test_the_number_of_threads_is_given_back_when_the_last_of_several_callers_is_done() -> None:
    before = torch.get_num_threads()
    with ExitStack() as second:
        with lent_threads() as first_number:
            torch.set_num_threads(before + 1)  # as a batch of the first caller does
            second_number = second.enter_context(lent_threads())
        assert torch.get_num_threads() == before + 1
    assert first_number == second_number == torch.get_num_threads() == before
