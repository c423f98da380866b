"""Recordings to transcripts: the same text whatever the company and from whatever source, in the order given."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import count, islice, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RATE, assert_same_result, encoded, results_of, text_of, write
from torch import Tensor

import asr
import asr.recognition
import asr.transcription
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.transcript import Transcript
from asr.transcription import Failure, Recording, transcribe, transcribe_recordings


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
        assert_same_result(transcript, asr.transcribe(path, model=packaged_model))
    assert not packaged_model.training


def test_a_model_may_be_given_as_its_file(sample_paths: list[Path], model: CTCModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    expected = asr.transcribe(sample_paths[0], model=asr.load_model(tmp_path / "m.safetensors"))
    assert_same_result(asr.transcribe(sample_paths[0], model=tmp_path / "m.safetensors"), expected)
    (several,) = asr.transcribe_files(sample_paths[:1], model=str(tmp_path / "m.safetensors"))
    assert isinstance(several, Transcript)
    assert_same_result(several, expected)


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


def test_the_mixture_of_recordings_has_transcripts_and_failures(
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
        assert_same_result(result, alone[recording.name])


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


def test_a_recording_that_cannot_be_read_makes_no_batch_smaller(
    make_model: Callable[..., CTCModel], sample_paths: list[Path], tmp_path: Path
) -> None:
    model, batches = make_model(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[1])))
    paths = [sample_paths[0], tmp_path / "missing.wav", sample_paths[0]]
    results_of(model, [Recording(path, path.name) for path in paths], 20.0)
    assert batches == [2]


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

        assert_same_result(next(transcribe_recordings(model, one_then_never())), alone[ready])


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


def test_an_error_in_a_batch_reaches_the_caller(
    model: CTCModel, sample_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(asr.recognition, "decode_greedy", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        results_of(model, [Recording(path, str(path)) for path in sample_paths])


def test_no_word_ends_behind_its_recording(model: CTCModel, speech: list[Tensor]) -> None:
    cuts = [speech[0][:end] for end in range(20000, 40000, 1331)]  # in the middle of a word
    heard = [transcribe(samples, sample_rate=RATE, model=model) for samples in cuts]
    assert all(one.words[-1].end_seconds <= one.duration_seconds for one in heard)
    at_end, samples = next(pair for pair in zip(heard, cuts) if pair[0].words[-1].end_seconds == len(pair[1]) / RATE)
    aligned = asr.align(model, io.BytesIO(encoded(samples, "WAV")), at_end.text).words[-1]
    assert aligned.end_seconds == aligned.parts[-1].end_seconds == at_end.duration_seconds
