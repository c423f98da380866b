"""The `asr` command as a process: terminals, pipes, signals, a full disk."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from threading import Thread

import pytest
import soundfile
import torch
from command_line import COMMAND, ROOT, SAMPLES, process
from recordings import RATE, write, write_silence

import asr
from asr.audio import read_audio
from asr.commands.progress import audio_bar
from asr.model import CTCModel


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


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders there")
def test_the_bar_leaves_a_pipe_to_the_transcription(tmp_path: Path, sample_paths: list[Path]) -> None:
    pipe, content = tmp_path / "pipe", sample_paths[0].read_bytes()
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(content), daemon=True)
    writer.start()
    with audio_bar([str(pipe), str(sample_paths[0])], shown=True):
        assert pipe.read_bytes() == content
    writer.join()


def test_output_goes_to_stdout_and_warnings_to_stderr(
    model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    silence = write_silence(tmp_path / "silence.wav")
    with process(
        "transcribe", "--model", model_path, "-", silence, stdin=sample_paths[0].open("rb"), stdout=subprocess.PIPE
    ) as running:
        output, errors = running.communicate(timeout=300)
    assert running.returncode == 0
    assert output == f"-\t{asr.transcribe(sample_paths[0], model=saved_model).text}\n{silence}\t\n"
    assert errors == f"{silence}: holds nothing but silence\n"


def test_a_reader_that_leaves_early_as_head_does_hears_nothing_more(
    model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    silence, pipe = write_silence(tmp_path / "silence.wav"), tmp_path / "pipe"
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
    silence, pipe = write_silence(tmp_path / "silence.wav"), tmp_path / "pipe"
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


def test_after_a_kill_resume_does_the_rest(model_path: Path, sample_paths: list[Path], tmp_path: Path) -> None:
    speech = torch.cat([read_audio(path, RATE) for path in sample_paths])
    recordings = [tmp_path / f"{number}.wav" for number in range(5)]
    write(recordings[0], speech.repeat(10))
    for path in recordings[1:]:
        path.symlink_to(recordings[0])
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


def test_a_closed_standard_error_disturbs_nothing(model_path: Path) -> None:
    command = f"{shlex.join(COMMAND)} transcribe --model {model_path} --lm packaged {SAMPLES}/84-121123-0001.flac 2>&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0
    assert "Errno" not in done.stdout


def test_a_closed_standard_output_is_told() -> None:
    command = f"{shlex.join(COMMAND)} transcribe {SAMPLES}/84-121123-0001.flac >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "asr transcribe: standard output is closed; send it to a file, or to /dev/null\n"


def test_a_script_runs_from_any_folder(tmp_path: Path) -> None:
    """The example of the README, with the packaged model, in a process that starts elsewhere."""
    path = SAMPLES / "1272-128104-0000.flac"
    command = [sys.executable, str(ROOT / "scripts" / "transcribe.py"), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{asr.transcribe(path).text}\n", "")
