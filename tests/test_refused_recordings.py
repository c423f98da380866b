"""What cannot be transcribed, or holds nothing, is told and stops no other."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RATE, assert_same_result, encoded, results_of, text_of, write
from torch import Tensor

import asr
from asr.errors import AsrError
from asr.model import CTCModel
from asr.transcript import Transcript
from asr.transcription import Failure, Recording, transcribe


def test_one_file_and_a_list_of_files_are_not_taken_for_each_other() -> None:
    with pytest.raises(AsrError, match="a list of files is for transcribe_files"):
        asr.transcribe(["a.wav"])  # type: ignore[arg-type]
    with pytest.raises(AsrError, match=r"^a\.wav: is one file; transcribe_files takes a list of them"):
        asr.transcribe_files("a.wav")


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
def test_samples_that_are_no_sound_are_refused_with_the_rule(
    model: CTCModel, samples: numpy.ndarray | Tensor, sample_rate: int | None, rule: str
) -> None:
    with pytest.raises(AsrError, match=rule):
        transcribe(samples, sample_rate=sample_rate, model=model)


@pytest.mark.filterwarnings("error")
def test_what_is_too_large_for_32_bits_is_told_without_a_warning_of_numpys(model: CTCModel) -> None:
    with pytest.raises(AsrError, match="not finite"):
        transcribe(numpy.full(RATE, 1e300), sample_rate=RATE, model=model)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_told(
    make_model: Callable[..., CTCModel], sample_paths: list[Path], dtype: torch.dtype
) -> None:
    with pytest.raises(AsrError, match=rf"weights are in {dtype}, .* call model\.float\(\) first"):
        make_model().eval().to(dtype).transcribe(sample_paths[0])


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_batch_without_seconds_is_refused(model: CTCModel, sample_paths: list[Path], seconds: float) -> None:
    with pytest.raises(AsrError, match=rf"^batch_seconds={seconds} must be above 0 seconds$"):
        list(asr.transcribe_files(sample_paths, model=model, batch_seconds=seconds))


def test_the_name_of_a_decoder_is_none(model: CTCModel, sample_paths: list[Path]) -> None:
    with pytest.raises(AsrError, match=r"^decode='beam' must be a BeamDecoder or a HotwordDecoder; None decodes"):
        model.transcribe(sample_paths[0], decode="beam")  # type: ignore[arg-type]


def test_a_file_takes_no_rate_that_would_be_ignored(model: CTCModel, sample_paths: list[Path]) -> None:
    with pytest.raises(AsrError, match=r"flac: sample_rate= is for samples \(a NumPy array or a torch tensor\)"):
        transcribe(sample_paths[0], sample_rate=8000, model=model)


def test_transcribe_raises_the_sentence_of_a_file_that_fails(model: CTCModel, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=rf"^{tmp_path}/none\.wav: audio file cannot be opened: No such file"):
        transcribe(tmp_path / "none.wav", model=model)


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


def failure_of(model: CTCModel, recording: Recording) -> str:
    """The sentence of a recording that has no transcript."""
    (result,) = results_of(model, [recording])
    assert isinstance(result, Failure)
    assert result.name == recording.name
    assert "\n" not in result.message
    return result.message


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
    recordings = [Recording(name, name.name) for name in names]
    cut, first, not_finite, second = results_of(model, recordings)
    assert isinstance(cut, Failure)
    assert cut.message.startswith(f"{tmp_path}/cut.flac: the audio is ")
    assert not_finite == Failure("nan.wav", f"{nan}: the audio holds samples that are not finite numbers")
    for result, recording in ((first, recordings[1]), (second, recordings[3])):
        assert_same_result(result, *results_of(model, [recording]))
        assert isinstance(result, Transcript)
        assert result.text


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


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("seconds", [1, 90])
def test_silence_has_an_empty_transcript_and_is_told(
    make_model: Callable[..., CTCModel],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seconds: int,
    offset: float,
) -> None:
    model, computed = make_model(), []
    model.encoder.subsampling.register_forward_pre_hook(lambda *_: computed.append(True))
    path = write(tmp_path / "silence.wav", torch.full((seconds * RATE,), offset), subtype="PCM_16")
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
    model.encoder.subsampling.register_forward_pre_hook(lambda *_: computed.append(True))
    quiet = speech[1] / speech[1].abs().max() * 1.01e-4
    samples = torch.cat([torch.zeros(seconds * RATE), quiet])
    transcribe(write(tmp_path / "quiet.wav", samples), model=model)
    assert computed
    assert not caplog.messages
