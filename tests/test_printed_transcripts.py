"""`asr transcribe` on the screen: what it prints of good recordings and of bad ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torchaudio
from command_line import SAMPLES, Outcome, Run
from recordings import RATE, write, write_silence
from torch import Tensor

import asr
from asr.audio import read_audio
from asr.formats import as_dict, format_transcript
from asr.metrics import character_errors
from asr.model import CTCModel
from asr.modelfile import PACKAGED_MODEL


def test_one_file_prints_its_text_and_nothing_else(run: Run, sample_paths: list[Path]) -> None:
    assert run("transcribe", sample_paths[0]) == Outcome(0, f"{asr.transcribe(sample_paths[0]).text}\n", "")


def test_several_files_print_path_tab_text_in_the_order_given(run: Run, sample_paths: list[Path]) -> None:
    for paths in (sample_paths, sample_paths[::-1], [sample_paths[0]] * 2):
        expected = "".join(f"{path}\t{asr.transcribe(path).text}\n" for path in paths)
        assert run("transcribe", *paths) == Outcome(0, expected, "")


def test_a_tab_or_a_line_break_in_a_name_does_not_part_fields_or_lines(
    run: Run, tmp_path: Path, sample_paths: list[Path]
) -> None:
    odd = Path(shutil.copy(sample_paths[0], tmp_path / "one\ttwo\nthree.flac"))
    text = asr.transcribe(odd).text
    assert run("transcribe", odd, sample_paths[0]).output == (
        f"{tmp_path}/one\\ttwo\\nthree.flac\t{text}\n{sample_paths[0]}\t{text}\n"
    )


def test_a_name_that_is_not_text_is_printed_with_escapes(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    name = os.fsdecode(b"\xff.flac")
    shutil.copy(sample_paths[0], tmp_path / name)
    done = run("transcribe", "--model", model_path, tmp_path / name, sample_paths[0])
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"{tmp_path}/\\udcff.flac\t")
    (line,) = run("transcribe", "--model", model_path, "--format", "json", tmp_path / name).output.splitlines()
    assert json.loads(line)["path"] == f"{tmp_path}/{name}"


@pytest.mark.parametrize("batch_seconds", ["0.1", "9", "1e6"])
def test_batch_seconds_changes_no_text(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], batch_seconds: str
) -> None:
    expected = "".join(f"{path}\t{asr.transcribe(path, model=saved_model).text}\n" for path in sample_paths)
    done = run("transcribe", "--model", model_path, "--batch-seconds", batch_seconds, *sample_paths)
    assert done == Outcome(0, expected, "")


def test_json_is_one_object_a_line_also_for_one_file_and_none_for_a_failure(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path]
) -> None:
    for paths, failing in ((sample_paths[:1], []), (sample_paths, ["none.wav"])):
        done = run("transcribe", *failing, *paths, "--format", "json", "--model", model_path)
        assert (done.code, done.errors.count("\n")) == (len(failing), len(failing))
        for path, line in zip(paths, done.output.splitlines(), strict=True):
            shown, expected = json.loads(line), as_dict(asr.transcribe(path, model=saved_model))
            assert {name: shown[name] for name in ("path", "text", "duration_seconds")} == {
                name: expected[name] for name in ("path", "text", "duration_seconds")
            }
            assert [len(segment["words"]) for segment in shown["segments"]] == [
                len(segment["words"]) for segment in expected["segments"]
            ]


@pytest.mark.parametrize("kind", ["srt", "vtt", "tsv", "ctm"])
def test_one_file_can_be_printed_in_any_format(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], kind: str
) -> None:
    done = run("transcribe", "--model", model_path, "--format", kind, sample_paths[0])
    assert (done.code, done.errors) == (0, "")
    assert done.output == format_transcript(asr.transcribe(sample_paths[0], model=saved_model), kind)


def test_the_model_is_the_one_that_is_named(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path]
) -> None:
    text = asr.transcribe(sample_paths[0], model=saved_model).text
    assert text != asr.transcribe(sample_paths[0]).text
    assert run("transcribe", "--model", model_path, sample_paths[0]).output == f"{text}\n"
    for packaged in (PACKAGED_MODEL, "packaged"):
        assert run("transcribe", "--model", packaged, sample_paths[0]) == run("transcribe", sample_paths[0])


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_dash_is_standard_input(
    run: Run,
    model_path: Path,
    saved_model: CTCModel,
    sample_paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    path = min(sample_paths, key=lambda path: path.stat().st_size)
    if kind == "pipe":
        reading, writing = os.pipe()
        assert os.write(writing, path.read_bytes()) == path.stat().st_size  # 62 kB are less than a pipe holds
        os.close(writing)
    else:
        reading = os.open(path, os.O_RDONLY)
    texts = [asr.transcribe(each, model=saved_model).text for each in (path, sample_paths[0])]
    with open(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = run("transcribe", "--model", model_path, "-", sample_paths[0])
    assert done == Outcome(0, f"-\t{texts[0]}\n{sample_paths[0]}\t{texts[1]}\n", "")


@pytest.mark.parametrize("content", [b"", b"hello world"])
def test_standard_input_that_is_no_audio_is_told(
    run: Run, model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "input").write_bytes(content)
    with (tmp_path / "input").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = run("transcribe", "--model", model_path, "-")
    reason = "not audio that can be read" if content else "the audio file is empty (0 bytes)"
    assert (done.code, done.output) == (1, "")
    assert reason in done.errors
    assert done.errors.count("\n") == 1


def test_a_closed_standard_input_is_an_empty_one(run: Run, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    done = run("transcribe", "--model", model_path, "-")
    assert (done.code, done.output) == (1, "")
    assert "the audio file is empty" in done.errors


def test_other_rates_and_channels_are_transcribed(
    run: Run, sample_paths: list[Path], speech: list[Tensor], tmp_path: Path
) -> None:
    samples = speech[0]
    mono = asr.transcribe(sample_paths[0]).text
    channels = write(tmp_path / "eight.wav", samples[:, None].repeat(1, 8))
    assert run("transcribe", channels) == Outcome(0, f"{mono}\n", "")
    for rate, least_alike in ((8000, 0.3), (192000, 0.95)):
        path = write(tmp_path / f"{rate}.wav", torchaudio.functional.resample(samples, RATE, rate), rate)
        again = asr.transcribe(read_audio(path, RATE), sample_rate=RATE).text
        assert run("transcribe", path) == Outcome(0, f"{again}\n", "")
        assert 1 - character_errors(mono, again).rate >= least_alike


def test_silence_is_an_empty_text_and_no_failure(
    run: Run, model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_silence(tmp_path / "silence.wav")
    assert run("transcribe", "--model", model_path, path) == Outcome(0, "\n", "")
    assert caplog.messages == [f"{path}: holds nothing but silence"]
    assert run("transcribe", "--model", model_path, path, path).output == f"{path}\t\n" * 2


def write_text(path: Path) -> None:
    path.write_text("Dear all,\nplease find attached the recording.\n")


def write_truncated_flac(path: Path) -> None:
    data = (SAMPLES / "84-121123-0001.flac").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def write_nan(path: Path) -> None:
    samples = read_audio(SAMPLES / "84-121123-0001.flac", RATE)
    samples[20000] = float("nan")
    write(path, samples)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.wav": (lambda path: None, "audio file cannot be opened: No such file or directory"),
    "folder.wav": (
        Path.mkdir,
        "audio file cannot be opened: a folder, and no file of it that is WAV, FLAC, OGG/Opus, MP3; "
        "`ffmpeg -i FILE NEW.flac` makes one of most else",
    ),
    "empty.wav": (Path.touch, r"the audio file is empty \(0 bytes\)"),
    "text.wav": (write_text, r"not audio that can be read \(WAV, FLAC, OGG/Opus, MP3\): \w.*"),
    "truncated.flac": (write_truncated_flac, "the audio is (cut short: it ends at|damaged:) .*"),
    "zero.wav": (lambda path: write_silence(path, 0), "the audio file holds no samples"),
    "short.wav": (
        lambda path: write_silence(path, 0.01),
        r"0\.01 s of audio is too short to recognise; at least 0\.05 s is needed",
    ),
    "nan.wav": (write_nan, "the audio holds samples that are not finite numbers"),
}
"""Name: how it is made, and what is said of it."""


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_in_one_sentence_that_names_it(
    run: Run, model_path: Path, tmp_path: Path, name: str
) -> None:
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    done = run("transcribe", "--model", model_path, tmp_path / name)
    assert (done.code, done.output) == (1, "")
    assert re.fullmatch(rf"{re.escape(str(tmp_path / name))}: {reason}\n", done.errors)


def test_all_other_files_are_done_beside_bad_ones(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    files: list[Path] = []
    for (name, (make, _)), good in zip(BAD_FILES.items(), sample_paths + sample_paths):
        make(tmp_path / name)
        files += [tmp_path / name, good]
    done = run("transcribe", "--model", model_path, *files)
    assert done.code == 1
    assert [line.split(":")[0] for line in done.errors.splitlines()] == [str(path) for path in files[::2]]
    assert done.output == "".join(f"{path}\t{asr.transcribe(path, model=saved_model).text}\n" for path in files[1::2])


def test_a_name_that_no_disk_takes_stops_no_other(run: Run, model_path: Path, sample_paths: list[Path]) -> None:
    name = "x" * 300 + ".wav"
    for names in ((name, sample_paths[0]), (sample_paths[0], name)):
        done = run("transcribe", "--model", model_path, *names)
        assert done.code == 1
        assert done.output.startswith(f"{sample_paths[0]}\t")
        assert done.errors.startswith(f"{name}: ")
