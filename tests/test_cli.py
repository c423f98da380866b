"""The `asr` command as people meet it: what it prints, where, with which exit code, and what it says of mistakes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import pytest
import soundfile
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch import Tensor

import asr
import asr.beam
import asr.formats
import asr.hotwords
import asr.longform
import asr.shards
from asr.audio import read_audio
from asr.cli import build_parser, main
from asr.commands.options import FORMATS
from asr.commands.progress import audio_bar
from asr.formats import as_dict
from asr.metrics import ErrorCounts, character_errors, pool, word_errors
from asr.model import CTCModel
from asr.modelfile import FORMAT_NUMBER, PACKAGED_MODEL, save_model

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
RATE = 16000
COMMAND = [sys.executable, "-m", "asr"]


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int | str | None
    output: str
    errors: str


class Run(Protocol):
    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The `asr` command in this process."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code: int | str | None
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def model_path(model: CTCModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's file."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def small(model_path: Path) -> CTCModel:
    return asr.load_model(model_path)


def write(path: Path, samples: Tensor, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples.numpy(), rate, subtype=subtype, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The `asr` command as a process of its own, which hears Ctrl-C even where the tests run in the background."""
    command = [*COMMAND, *map(str, arguments)]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, preexec_fn=listen, **options)


@pytest.mark.parametrize("to_files", [True, False])
def test_a_bar_on_a_terminal_shows_the_position_in_the_audio(
    model_path: Path, sample_paths: list[Path], tmp_path: Path, to_files: bool
) -> None:
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # lines, columns
    extra = ["--output-dir", str(tmp_path)] if to_files else []
    command = [*COMMAND, "transcribe", "--model", str(model_path), *extra, *map(str, sample_paths)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=inside, timeout=300)
    os.close(inside)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    whole = int(sum(soundfile.info(path).duration for path in sample_paths))
    assert done.returncode == 0
    assert f"0:00:{whole} of 0:00:{whole} |" in shown
    assert len(done.stdout.splitlines()) == (0 if to_files else len(sample_paths))


def test_after_a_kill_resume_does_the_rest(model_path: Path, sample_paths: list[Path], tmp_path: Path) -> None:
    speech = torch.cat([read_audio(path, RATE) for path in sample_paths])
    recordings = [tmp_path / f"{number}.wav" for number in range(8)]
    for path in recordings:
        write(path, speech.repeat(10))
    texts = [tmp_path / "texts" / f"{path.stem}.txt" for path in recordings]
    command = ["transcribe", "--model", model_path, "--output-dir", tmp_path / "texts", "--resume", *recordings]
    with process(*command) as running:
        while not texts[0].exists() and running.poll() is None:
            time.sleep(0.01)
        running.kill()
    assert texts[0].exists()
    assert not texts[-1].exists()
    texts[0].write_text("kept as it is\n")
    with process(*command) as running:
        assert running.wait(timeout=300) == 0
    assert texts[0].read_text() == "kept as it is\n"
    assert all(len(text.read_text()) > 100 for text in texts[1:])


# What transcribe prints


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


@pytest.mark.parametrize("batch_seconds", ["0.1", "9", "1e6"])
def test_batch_seconds_changes_no_text(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], batch_seconds: str
) -> None:
    expected = "".join(f"{path}\t{asr.transcribe(path, model=small).text}\n" for path in sample_paths)
    done = run("transcribe", "--model", model_path, "--batch-seconds", batch_seconds, *sample_paths)
    assert done == Outcome(0, expected, "")


def test_json_is_one_object_a_line_also_for_one_file(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path]
) -> None:
    for paths in (sample_paths[:1], sample_paths):
        done = run("transcribe", *paths, "--format", "json", "--model", model_path)
        assert (done.code, done.errors) == (0, "")
        for path, line in zip(paths, done.output.splitlines(), strict=True):
            shown, expected = json.loads(line), as_dict(asr.transcribe(path, model=small))
            assert {name: shown[name] for name in ("path", "text", "duration_seconds")} == {
                name: expected[name] for name in ("path", "text", "duration_seconds")
            }
            assert [len(segment["words"]) for segment in shown["segments"]] == [
                len(segment["words"]) for segment in expected["segments"]
            ]


# The files that transcribe writes


@pytest.mark.parametrize("kind", ["srt", "vtt", "tsv", "ctm"])
def test_one_file_can_be_printed_in_any_format(run: Run, model_path: Path, sample_paths: list[Path], kind: str) -> None:
    done = run("transcribe", "--model", model_path, "--format", kind, sample_paths[0])
    assert (done.code, done.errors) == (0, "")
    words = asr.transcribe(sample_paths[0], model=asr.load_model(model_path)).text.split()
    assert [word for word in done.output.split() if word in words] != []


def test_several_formats_of_several_files_are_written_to_a_folder(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "texts"
    done = run("transcribe", "--model", model_path, "--format", "text,srt,json", "--output-dir", folder, *sample_paths)
    assert (done.code, done.output) == (0, "")
    assert re.fullmatch(r"6 of 6 files, 0\.01 hours in \S+ s, \d+ times real time\n", done.errors)
    names = {f"{path.stem}.{kind}" for path in sample_paths for kind in ("txt", "srt", "json")}
    assert {path.name for path in folder.iterdir()} == names
    for path in sample_paths:
        assert (folder / f"{path.stem}.txt").read_text() == asr.transcribe(path, model=small).text + "\n"
        assert json.loads((folder / f"{path.stem}.json").read_text())["path"] == str(path)


def test_existing_files_are_skipped_where_that_is_asked_and_else_replaced(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    there, half = (tmp_path / f"{path.stem}.txt" for path in sample_paths[:2])
    arguments = ["transcribe", "--model", model_path, "--output-dir", tmp_path, *sample_paths[:2]]
    there.write_text("mine")
    (tmp_path / "half.srt.tmp").write_text("1")
    done = run(*arguments, "--skip-existing")
    assert done.code == 0
    assert re.fullmatch(r"1 of 1 files, .*; done before: 1\n", done.errors)
    assert there.read_text() == "mine"
    assert half.read_text() != ""
    assert run(*arguments).code == 0
    assert there.read_text() != "mine"


def test_a_bad_file_among_good_ones_has_no_output(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    files = [tmp_path / "bad.wav", sample_paths[0]]
    done = run("transcribe", "--model", model_path, "--output-dir", tmp_path / "out", *files)
    assert done.code == 1
    assert "bad.wav: not audio" in done.errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{sample_paths[0].stem}.txt"]


def test_a_folder_stands_for_the_audio_in_it_and_below(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "talks"
    for place, path in zip(("b.FLAC", "sub/a.flac", "a.flac", "notes.txt"), sample_paths):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / place)
    texts = {place: asr.transcribe(folder / place, model=small).text for place in ("a.flac", "b.FLAC", "sub/a.flac")}
    printed = run("transcribe", "--model", model_path, folder)
    assert printed == Outcome(0, "".join(f"{folder}/{place}\t{text}\n" for place, text in texts.items()), "")
    assert run("transcribe", "--model", model_path, folder, "--output-dir", tmp_path / "out").code == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt")) == [
        "a.txt",
        "b.txt",
        "sub/a.txt",
    ]


def test_a_list_names_a_recording_in_each_line(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("\ufeff" + "".join(f"{path}\n\n" for path in sample_paths[:2]))
    expected = "".join(f"{path}\t{asr.transcribe(path, model=small).text}\n" for path in sample_paths[:2])
    assert run("transcribe", "--model", model_path, f"@{tmp_path}/list.txt") == Outcome(0, expected, "")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("@none.txt", "@none.txt: the list cannot be read: No such file or directory"),
        ("@empty.txt", "@empty.txt: the list names no file"),
    ],
)
def test_a_list_without_a_file_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert run("transcribe", argument) == Outcome(1, "", f"asr transcribe: {reason}\n")


def test_failures_are_told_again_at_the_end_of_a_long_list(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    done = run("transcribe", "--model", model_path, "--output-dir", tmp_path, "none.wav", sample_paths[0])
    assert done.code == 1
    first, summary, last = done.errors.splitlines()
    assert first == "none.wav: audio file cannot be opened: No such file or directory"
    assert summary.startswith("1 of 2 files, ")
    assert last == "failed: none.wav"


def test_a_transcript_that_cannot_be_written_stops_no_other(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    long = tmp_path / f"{'a' * 251}.wav"  # of which a .json has one byte more than a disk takes
    shutil.copy(sample_paths[0], long)
    options = ("--model", model_path, "--format", "json", "--output-dir", tmp_path / "out")
    done = run("transcribe", *options, long, sample_paths[1])
    assert done.code == 1
    assert f"{'a' * 251}.json: cannot be written (File name too long)" in done.errors
    assert done.errors.endswith(f"failed: {long}\n")
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [sample_paths[1].stem]


def test_two_recordings_of_one_name_are_told_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    done = run("transcribe", "--output-dir", tmp_path / "out", "a/x.wav", "b/x.wav")
    reason = f"a/x.wav and b/x.wav would both be written to {tmp_path}/out/x.*; rename one"
    assert done == Outcome(1, "", f"asr transcribe: {reason}\n")
    assert not (tmp_path / "out").exists()


def test_the_model_is_the_one_that_is_named(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path]
) -> None:
    text = asr.transcribe(sample_paths[0], model=small).text
    assert text != asr.transcribe(sample_paths[0]).text
    assert run("transcribe", "--model", model_path, sample_paths[0]).output == f"{text}\n"
    packaged = run("transcribe", "--model", PACKAGED_MODEL, sample_paths[0])
    assert packaged == run("transcribe", sample_paths[0])


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_dash_is_standard_input(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = min(sample_paths, key=lambda path: path.stat().st_size)
    if kind == "pipe":
        reading, writing = os.pipe()
        assert os.write(writing, path.read_bytes()) == path.stat().st_size  # 62 kB are less than a pipe holds
        os.close(writing)
    else:
        reading = os.open(path, os.O_RDONLY)
    texts = [asr.transcribe(each, model=small).text for each in (path, sample_paths[0])]
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


# Audio of every kind


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


def silence_of(seconds: float) -> Callable[[Path], object]:
    return lambda path: write(path, torch.zeros(round(seconds * RATE)))


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
    "folder.wav": (Path.mkdir, "audio file cannot be opened: a folder, not WAV, FLAC, OGG/Opus, MP3"),
    "empty.wav": (Path.touch, r"the audio file is empty \(0 bytes\)"),
    "text.wav": (write_text, r"not audio that can be read \(WAV, FLAC, OGG/Opus, MP3\): \w.*"),
    "truncated.flac": (write_truncated_flac, "the audio is (cut short: it ends at|damaged:) .*"),
    "zero.wav": (silence_of(0), "the audio file holds no samples"),
    "short.wav": (silence_of(0.01), r"0\.01 s of audio is too short to recognise; at least 0\.05 s is needed"),
    "nan.wav": (write_nan, "the audio holds samples that are not finite numbers"),
}
"""Name: how it is made, and what is said of it."""


@pytest.mark.parametrize("output_format", ["text", "json"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_in_one_sentence_that_names_it(
    run: Run, model_path: Path, tmp_path: Path, name: str, output_format: str
) -> None:
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    done = run("transcribe", "--model", model_path, "--format", output_format, tmp_path / name)
    assert (done.code, done.output) == (1, "")
    assert re.fullmatch(rf"{re.escape(str(tmp_path / name))}: {reason}\n", done.errors)


def test_all_other_files_are_done_beside_bad_ones(
    run: Run, model_path: Path, small: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    files: list[Path] = []
    for (name, (make, _)), good in zip(BAD_FILES.items(), sample_paths + sample_paths):
        make(tmp_path / name)
        files += [tmp_path / name, good]
    done = run("transcribe", "--model", model_path, *files)
    assert done.code == 1
    assert [line.split(":")[0] for line in done.errors.splitlines()] == [str(path) for path in files[::2]]
    assert done.output == "".join(f"{path}\t{asr.transcribe(path, model=small).text}\n" for path in files[1::2])


def test_silence_is_an_empty_text_and_no_failure(
    run: Run, model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "silence.wav"
    silence_of(1)(path)
    assert run("transcribe", "--model", model_path, path) == Outcome(0, "\n", "")
    assert caplog.messages == [f"{path}: holds nothing but silence"]
    assert run("transcribe", "--model", model_path, path, path).output == f"{path}\t\n" * 2


# Model files and options


def truncated_model(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:-1000])


def newer_model(path: Path, source: Path) -> None:
    save_file(load_file(source), path, {"format": str(FORMAT_NUMBER + 1)})


def foreign_weights(path: Path, source: Path) -> None:
    save_file(load_file(source), path)


def recording_as_model(path: Path, source: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", path)


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path, source: None, "model file not found"),
        (lambda path, source: path.mkdir(), "model file not found"),
        (lambda path, source: path.touch(), "the model file is damaged or not a model file"),
        (truncated_model, "the model file is damaged or not a model file"),
        (recording_as_model, "the model file is damaged or not a model file"),
        (foreign_weights, "not a model file of bigru-asr"),
        (newer_model, f"has model format {FORMAT_NUMBER + 1}, this release reads up to {FORMAT_NUMBER}; upgrade"),
    ],
    ids=["missing", "folder", "empty", "truncated", "a recording", "foreign weights", "newer"],
)
def test_a_model_file_that_is_none_is_told_in_one_sentence(
    run: Run, model_path: Path, tmp_path: Path, command: str, make: Callable[[Path, Path], None], reason: str
) -> None:
    path = tmp_path / "m.safetensors"
    make(path, model_path)
    recording, manifest = SAMPLES / "84-121123-0001.flac", SAMPLES / "manifest.jsonl"
    rest = (path, manifest) if command == "evaluate" else ("--model", path, recording)
    done = run(command, *rest)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr {command}: {path}: {reason}")
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["transcrib", "a.wav"], "invalid choice: 'transcrib' (choose from"),
        (["transcribe"], "the following arguments are required: FILE"),
        (["transcribe", "a.wav", "--frmat", "json"], "unrecognized arguments: --frmat"),
        (["transcribe", "a.wav", "--format", "xml"], "'xml' must be one of text, json, srt, vtt, tsv, ctm"),
        (
            ["transcribe", "a.wav", "--format", "srt,json"],
            "--format srt,json needs --output-dir: the screen shows one format",
        ),
        (["transcribe", "a", "b", "--format", "srt"], "--format srt of several files needs --output-dir"),
        (["transcribe", str(SAMPLES), "--format", "srt"], "--format srt of several files needs --output-dir"),
        (["transcribe", "a.wav", "--skip-existing"], "--skip-existing needs --output-dir"),
        (["transcribe", "a.wav", "--batch-seconds", "0"], "0 must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds", "nan"], "nan must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds=-1"], "-1 must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds", "many"], "many must be a number above 0"),
        (["train"], "the following arguments are required: recipe"),
        (["train", "mini.yaml", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["train", "mini.yaml", "--resume", "trainer.epochs"], "unrecognized arguments: trainer.epochs"),
        (["evaluate", "packaged"], "the following arguments are required: MANIFEST"),
        (["evaluate", "packaged", "a.jsonl", "b.jsonl"], "unrecognized arguments: b.jsonl"),
        (["download", "librispeech", "--subsets", "dev-clean-2"], "the following arguments are required: --dir"),
        (["download", "librispeech", "--dir", "data"], "the following arguments are required: --subsets"),
        (["download", "librispeach", "--dir", "data", "--subsets", "dev-clean"], "invalid choice: 'librispeach'"),
        (["prepare", "librispeech", "data"], "the following arguments are required: --output-dir"),
        (["prepare", "librispeech", "--output-dir", "data"], "the following arguments are required: DIR"),
        (["prepare", "timit", "data", "--output-dir", "data"], "invalid choice: 'timit'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_told_with_exit_code_2(run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith("usage: asr")
    assert said in done.errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("tpu", "--device tpu must be cpu, cuda or auto"),
        ("cpu:x", "--device cpu:x must be cpu, cuda or auto"),
        ("meta", "--device meta must be cpu, cuda or auto"),
        pytest.param(
            "cuda",
            "--device cuda: no GPU is available here; use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_told(run: Run, sample_paths: list[Path], device: str, said: str) -> None:
    done = run("transcribe", "--device", device, sample_paths[0])
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr transcribe: {said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.epoch=3", "unknown setting trainer.epoch; did you mean trainer.epochs?"),
        ("trainr.epochs=3", "unknown setting trainr; did you mean trainer?"),
        ("trainer.epochs=many", "trainer.epochs"),
        ("trainer.epochs=0", "trainer.epochs=0 must be at least 1"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_right(run: Run, override: str, said: str) -> None:
    recipe = ROOT / "recipes" / "librispeech" / "mini.yaml"
    done = run("train", recipe, override)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr train: {recipe}: ")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_a_recipe_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert run("train", path) == Outcome(1, "", f"asr train: recipe not found: {path}\n")


def test_an_unknown_subset_is_told_with_those_that_there_are(run: Run, tmp_path: Path) -> None:
    done = run("download", "librispeech", "--subsets", "dev-clean-2", "dev-clean-3", "--dir", tmp_path / "data")
    assert (done.code, done.output) == (1, "")
    assert "no subset 'dev-clean-3'; the subsets are " in done.errors
    assert "dev-clean-2" in done.errors
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("mirror", ["openslr", "ftp://openslr.invalid", "file:///tmp"])
def test_a_mirror_that_is_no_web_address_is_told(run: Run, tmp_path: Path, mirror: str) -> None:
    done = run("download", "librispeech", "--subsets", "dev-clean-2", "--dir", tmp_path, "--mirror", mirror)
    assert (done.code, done.output) == (1, "")
    assert f"{mirror}/31/dev-clean-2.tar.gz" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_the_corpus_is_told(run: Run, tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "data" / "LibriSpeech" / "dev-clean-2").mkdir(parents=True)
    done = run("prepare", "librispeech", tmp_path / "data", "--output-dir", tmp_path / "manifests")
    assert (done.code, done.output) == (1, "")
    assert "no LibriSpeech subset found; expected LibriSpeech/<subset>/" in done.errors
    assert not (tmp_path / "manifests").exists()


def test_prepare_prints_each_manifest_with_its_size_and_evaluate_reads_it(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    chapter = tmp_path / "LibriSpeech" / "dev-clean-2" / "84" / "121123"
    chapter.mkdir(parents=True)
    shutil.copy(SAMPLES / "84-121123-0001.flac", chapter)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n")
    done = run("prepare", "librispeech", tmp_path, "--output-dir", tmp_path / "manifests")
    manifest = tmp_path / "manifests" / "dev-clean-2.jsonl.gz"
    assert (done.code, done.output) == (0, f"{manifest}\t1 utterances\t0.00 hours\n")
    assert run("evaluate", model_path, manifest).output.startswith("utterances 1  hours 0.00\n")


# evaluate

RATES = (
    r"(WER|CER) (\d+\.\d\d)%  \[(\d+\.\d\d)%, (\d+\.\d\d)%\]  "
    r"substitutions ([\d,]+)  deletions ([\d,]+)  insertions ([\d,]+)  of ([\d,]+)"
)


def printed_rates(output: str) -> dict[str, tuple[float, float, float, ErrorCounts]]:
    """Rate, the ends of its interval and the counts, of WER and CER."""
    found = {}
    for name, *numbers in re.findall(rf"^{RATES}$", output, flags=re.MULTILINE):
        rate, low, high = (float(number) for number in numbers[:3])
        found[name] = (rate, low, high, ErrorCounts(*(int(number.replace(",", "")) for number in numbers[3:])))
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluate_prints_rates_intervals_kinds_and_speed_and_writes_hypotheses(
    run: Run, sample_paths: list[Path], tmp_path: Path
) -> None:
    manifest = SAMPLES / "manifest.jsonl"
    done = run("evaluate", "packaged", manifest, "--hypotheses", tmp_path / "hypotheses.jsonl")
    assert (done.code, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert len(lines) == 4
    assert lines[0] == "utterances 6  hours 0.01"
    assert re.fullmatch(r"RTF 0\.\d{4}  \(\d+ times real time\)", lines[3])

    written = read_lines(tmp_path / "hypotheses.jsonl")
    expected = read_lines(manifest)
    assert [line["id"] for line in written] == [line["id"] for line in expected]
    assert [line["reference"] for line in written] == [line["text"] for line in expected]
    assert [line["audio"] for line in written] == [str(path) for path in sample_paths]
    assert [line["hypothesis"] for line in written] == [asr.transcribe(path).text for path in sample_paths]

    printed = printed_rates(done.output)
    for name, count in (("WER", word_errors), ("CER", character_errors)):
        rate, low, high, counts = printed[name]
        assert counts == pool([count(line["reference"], line["hypothesis"]) for line in written])
        assert rate == pytest.approx(100 * counts.rate, abs=0.0051)
        assert low <= rate <= high
        assert low < high
    kinds = ("substitutions", "deletions", "insertions", "reference_length")
    assert ErrorCounts(*(sum(line[kind] for line in written) for kind in kinds)) == printed["WER"][3]


def test_evaluate_is_the_same_for_any_batch_and_kind_of_manifest(run: Run, model_path: Path, tmp_path: Path) -> None:
    lines = read_lines(SAMPLES / "manifest.jsonl")
    table = "".join(f"{SAMPLES / line['audio']},{line['text'].lower()}\n" for line in lines)
    (tmp_path / "samples.csv").write_text(f"audio,text\n{table}")
    expected = run("evaluate", model_path, SAMPLES / "manifest.jsonl").output.splitlines()[:3]
    for arguments in (
        (SAMPLES / "manifest.jsonl", "--batch-seconds", "1"),
        (tmp_path / "samples.csv", "--device", "cpu"),
    ):
        assert run("evaluate", model_path, *arguments).output.splitlines()[:3] == expected


def test_evaluate_names_audio_that_fails_by_its_line_and_counts_its_words_as_deleted(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    good = {"audio": str(SAMPLES / "84-121123-0001.flac"), "text": "BUT IN LESS", "duration": 3.99}
    bad = [
        {"audio": "missing.wav", "text": "ONE TWO THREE", "duration": 2.0},
        {"audio": "short.wav", "text": "FOUR", "duration": 0.01},
    ]
    silence_of(1)(tmp_path / "short.wav")
    manifest, hypotheses = tmp_path / "m.jsonl", tmp_path / "h.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in (bad[0], good, bad[1])))
    done = run("evaluate", model_path, manifest, "--hypotheses", hypotheses)
    assert done.code == 1
    assert done.errors.splitlines() == [
        f"{manifest}:1: {tmp_path}/missing.wav: audio file cannot be opened: No such file or directory",
        f"{manifest}:3: {tmp_path}/short.wav: 0.01 s of audio is too short to recognise; at least 0.05 s is needed",
    ]
    written = read_lines(hypotheses)
    assert [line["hypothesis"] == "" for line in written] == [True, False, True]
    assert [line["deletions"] for line in written[::2]] == [3, 1]
    assert printed_rates(done.output)["WER"][3].reference_length == 7


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("m.jsonl", '{"audio": "a.wav", "text": "A", "duration": 1}\n{"audio": \n', ":2: ", "not a line of JSON"),
        ("m.jsonl", '\n\n{"audio": "a.wav", "duration": 1}\n', ":3: ", "'text' is missing"),
        ("m.jsonl", '{"audio": "a.wav", "text": "A", "duration": -1}\n', ":1: ", "not below 0"),
        ("m.jsonl", '{"audio": "a.wav", "text": "A"}\n', ":1: ", "a.wav: audio file cannot be opened"),
        ("m.csv", "audio,text\na.wav,ONE, TWO\n", ":2: ", "more columns than the header"),
        ("m.csv", "file,text\na.wav,ONE\n", ":1: ", "'audio' is missing (there are: file, text)"),
        ("m.jsonl", "", ": ", "holds no utterance"),
        ("m.jsonl.gz", "not gzip", ": ", "the manifest is damaged"),
        ("m.jsonl", None, ": ", "manifest not found"),
    ],
)
def test_a_bad_manifest_is_told_by_file_and_line(
    run: Run, model_path: Path, tmp_path: Path, name: str, content: str | None, place: str, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run("evaluate", model_path, tmp_path / name)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr evaluate: {tmp_path / name}{place}")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_a_recording_named_twice_is_done_once_and_written_to_every_place(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder, out = tmp_path / "rec", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(sample_paths[0], folder / "sub" / "a.flac")
    done = run("transcribe", "--model", model_path, folder, folder / "sub", "none.wav", "none.wav", "--output-dir", out)
    assert done.code == 1
    assert "1 of 2 files" in done.errors
    assert (out / "sub" / "a.txt").read_text(encoding="utf-8") == (out / "a.txt").read_text(encoding="utf-8") != ""


def test_a_name_that_no_disk_takes_stops_no_other(run: Run, model_path: Path, sample_paths: list[Path]) -> None:
    name = "x" * 300 + ".wav"
    for names in ((name, sample_paths[0]), (sample_paths[0], name)):
        done = run("transcribe", "--model", model_path, *names)
        assert done.code == 1
        assert done.output.startswith(f"{sample_paths[0]}\t")
        assert done.errors.startswith(f"{name}: ")


def test_an_empty_name_is_not_the_folder_one_is_in(run: Run) -> None:
    done = run("transcribe", "")
    assert (done.code, done.output) == (2, "")
    assert done.errors.endswith("FILE must not be empty\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders there")
def test_the_bar_leaves_a_pipe_to_the_transcription(tmp_path: Path, sample_paths: list[Path]) -> None:
    pipe, content = tmp_path / "pipe", sample_paths[0].read_bytes()
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(content), daemon=True)
    writer.start()
    with audio_bar([str(pipe), str(sample_paths[0])], shown=True):
        assert pipe.read_bytes() == content
    writer.join()


def test_hypotheses_that_cannot_be_written_are_told(run: Run, model_path: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", model_path, SAMPLES / "manifest.jsonl", "--hypotheses")
    path = tmp_path / "none" / "h.jsonl"
    assert run(*arguments, path) == Outcome(1, "", f"asr evaluate: --hypotheses {path}: its folder does not exist\n")
    done = run(*arguments, tmp_path)
    assert done.code == 1
    assert done.errors == f"asr evaluate: {tmp_path}: is a folder; name a file in it\n"
    assert "WER" in done.output, "what was computed is not lost"


# scripts and help


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transcribe", [str(SAMPLES / "84-121123-0001.flac")]),
        ("transcribe", ["--format", "json", str(SAMPLES / "84-121123-0001.flac"), "none.wav"]),
        ("transcribe", []),
        ("train", ["none.yaml"]),
        ("train", [str(ROOT / "recipes" / "librispeech" / "mini.yaml"), "--resume", "trainer.epoch=1"]),
        ("evaluate", ["packaged", str(SAMPLES / "manifest.jsonl")]),
        ("evaluate", ["packaged", "none.jsonl"]),
    ],
    ids=lambda value: " ".join(Path(item).name for item in value) if isinstance(value, list) else None,
)
def test_a_script_does_what_the_command_does(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: list[str],
) -> None:
    def without_speed(output: str) -> str:
        return re.sub(r"RTF .*", "RTF", output)

    expected = run(name, *arguments)
    script = ROOT / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    captured = capsys.readouterr()
    assert stopped.value.code == expected.code
    assert without_speed(captured.out) == without_speed(expected.output)
    assert captured.err == expected.errors
    assert captured.out or captured.err


def commands() -> list[str]:
    (choices,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert choices is not None
    return list(choices)


@pytest.mark.parametrize("command", [None, *commands()])
def test_help_explains_and_ends_well(run: Run, command: str | None) -> None:
    done = run(*([command] if command else []), "--help")
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"usage: asr {command or '[-h]'}")
    for other in [] if command else commands():
        assert re.search(rf"^ +{other}\s+\w", done.output, flags=re.MULTILINE)


# Where the process matters


def test_output_goes_to_stdout_and_warnings_to_stderr(
    model_path: Path, small: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    silence = tmp_path / "silence.wav"
    silence_of(1)(silence)
    with process(
        "transcribe", "--model", model_path, "-", silence, stdin=sample_paths[0].open("rb"), stdout=subprocess.PIPE
    ) as running:
        output, errors = running.communicate(timeout=300)
    assert running.returncode == 0
    assert output == f"-\t{asr.transcribe(sample_paths[0], model=small).text}\n{silence}\t\n"
    assert errors == f"{silence}: holds nothing but silence\n"


def test_a_reader_that_leaves_early_as_head_does_hears_nothing_more(
    model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    silence, pipe = tmp_path / "silence.wav", tmp_path / "pipe"
    silence_of(1)(silence)
    os.mkfifo(pipe)
    with process("transcribe", "--model", model_path, silence, pipe, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == f"{silence}\t\n"
        running.stdout.close()
        pipe.write_bytes(sample_paths[0].read_bytes())  # waits for the command to read the second file
        errors = running.stderr.read()
        assert running.wait(timeout=300) == 1
    assert errors == f"{silence}: holds nothing but silence\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_sentence(model_path: Path, sample_paths: list[Path]) -> None:
    with (
        Path("/dev/full").open("w") as full,
        process("transcribe", "--model", model_path, sample_paths[0], stdout=full) as running,
    ):
        _, errors = running.communicate(timeout=300)
    assert running.returncode == 1
    assert errors == "asr transcribe: [Errno 28] No space left on device\n"


def test_ctrl_c_ends_it_without_a_traceback_and_keeps_what_is_printed(model_path: Path, tmp_path: Path) -> None:
    silence, pipe = tmp_path / "silence.wav", tmp_path / "pipe"
    silence_of(1)(silence)
    os.mkfifo(pipe)
    with process("transcribe", "--model", model_path, silence, pipe, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = running.stdout.readline()
        with pipe.open("wb"):  # waits for the command to open it too, which then waits for its content
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=300) == 130
        rest, errors = running.stdout.read(), running.stderr.read()
    assert (first, rest) == (f"{silence}\t\n", "")
    assert errors == f"{silence}: holds nothing but silence\n"


def test_a_script_runs_from_any_folder(tmp_path: Path) -> None:
    """The example of the README, with the packaged model, in a process that starts elsewhere."""
    path = SAMPLES / "1272-128104-0000.flac"
    command = [sys.executable, str(ROOT / "scripts" / "transcribe.py"), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{asr.transcribe(path).text}\n", "")


def test_evaluate_does_not_replace_its_manifest(run: Run, model_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": str(SAMPLES / "84-121123-0001.flac"), "text": "BUT IN LESS"}))
    before = manifest.read_bytes()
    done = run("evaluate", model_path, manifest, "--hypotheses", manifest)
    assert done.code == 1
    assert done.errors.startswith(f"asr evaluate: --hypotheses {manifest}: would replace the data themselves; choose")
    assert manifest.read_bytes() == before


def test_a_text_beside_its_recording_is_not_replaced(run: Run, model_path: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("what a person heard")
    arguments = ["transcribe", "--model", model_path, tmp_path, "--output-dir", tmp_path]
    done = run(*arguments)
    assert done.code == 1
    assert f"{tmp_path / 'a.txt'}: stands beside its recording and would be replaced" in done.errors
    assert run(*arguments, "--resume").code == 0
    assert run(*arguments, "--format", "srt").code == 0
    assert (tmp_path / "a.txt").read_text() == "what a person heard"


def test_what_references_lose_is_told(run: Run, model_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    audio = str(SAMPLES / "84-121123-0001.flac")
    lines = [{"audio": audio, "text": text} for text in ("LESS THAN 55 MINUTES!", "LESS")]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    said = run("evaluate", model_path, manifest).output
    assert "dropped from the references, for the model cannot write them: '5' × 2\n" in said
    manifest.write_text(json.dumps(lines[1]))
    assert "dropped" not in run("evaluate", model_path, manifest).output


def test_the_packaged_model_has_a_name(run: Run) -> None:
    recording = SAMPLES / "84-121123-0001.flac"
    assert run("transcribe", recording, "--model", "packaged") == run("transcribe", recording)


def test_a_closed_standard_error_disturbs_nothing(model_path: Path) -> None:
    command = f"{shlex.join(COMMAND)} transcribe --model {model_path} --lm packaged {SAMPLES}/84-121123-0001.flac 2>&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0
    assert "Errno" not in done.stdout


def test_what_help_says_without_importing_torch_is_what_the_modules_have(run: Run) -> None:
    assert set(FORMATS) == {"text", *asr.formats.FORMATS} - {"txt"}
    said = " ".join(run("transcribe", "--help").output.split())
    defaults = [
        asr.longform.BATCH_SECONDS,
        asr.beam.BEAM_SIZE,
        asr.beam.LM_WEIGHT,
        asr.beam.WORD_SCORE,
        asr.beam.PRIOR_WEIGHT,
    ]
    for default in defaults:
        assert f"(default: {default:g})" in said
    assert f"(default: {asr.hotwords.BOOST:g}; with --lm {asr.hotwords.BOOST_BEHIND_LM:g})" in said
    assert f"(default: {asr.shards.SHARD_SIZE})" in " ".join(run("shard", "--help").output.split())


def test_a_name_cannot_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "a\x1b[2J\r\x9b1mb"]) == 1
    message = capsys.readouterr().err
    assert r"a\x1b[2J\r\x9b1mb: no training has written its curves there" in message
    assert message.isascii()
    assert message.rstrip("\n").isprintable()
