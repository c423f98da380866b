"""Trainings as processes: Ctrl-C, a request to end, a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import multiprocessing
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from short_trainings import assert_same_run, make_config, read_checkpoint, train_with

from asr.checkpoints import find_checkpoint
from asr.config import TrainConfig
from asr.data import SpeechDataModule
from asr.training import prepare_training, train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]


def write_command(config: TrainConfig, folder: Path, *options: str) -> list[str]:
    """`asr train` of a recipe that is written to the folder."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    return [sys.executable, "-m", "asr", "train", str(recipe), *options]


def start_process(config: TrainConfig, folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
    """`asr train` as a process of its own that has done a step, and what it writes to stderr."""
    command, talk = write_command(config, folder, *options), folder / "stderr.txt"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums over more round otherwise
    screen, terminal = os.openpty()  # where a bar shows the first step
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = subprocess.Popen(
        command, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    talk.touch()
    threading.Thread(target=_copy, args=(screen, talk), daemon=True).start()
    deadline = time.monotonic() + 300
    while b"train/loss" not in talk.read_bytes() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, talk


def _copy(screen: int, talk: Path) -> None:
    with talk.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # the terminal's end, when it is closed
        while shown := os.read(screen, 65536):
            file.write(shown)
    os.close(screen)


def test_ctrl_c_stops_a_real_run_between_two_steps_and_it_can_be_resumed(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "trainer.epochs=1000", "data.num_workers=1")
    process, talk = start_process(config, tmp_path)
    try:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the reading process too
        stdout, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    said = talk.read_text(encoding="utf-8")
    assert (process.returncode, stdout) == (1, b""), said
    assert "stopping after this step" in said
    assert "--resume continues from" in said
    for noise in ("Traceback", "Warning", "💡", "GPU available", "v_num", "weights_only", "deprecated"):
        assert noise not in said
    step = read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"]
    epochs = step // 4 + 1
    handler = signal.getsignal(signal.SIGINT)
    train(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, epochs=epochs)), resume=True)
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == epochs * 4 > step >= 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_polite_request_to_end_saves_and_exits_with_0(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "trainer.epochs=1000", "data.num_workers=1")
    process, talk = start_process(config, tmp_path)
    try:
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: to the reading process too
        process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, talk.read_text(encoding="utf-8")
    step = read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"]
    assert step >= 1
    assert f"stopped at step {step}" in talk.read_text(encoding="utf-8")


@pytest.mark.parametrize("is_ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_terminal_that_closes_ends_a_run_as_a_request_to_end_does_but_under_nohup(
    tmp_path: Path, is_ignored: bool
) -> None:
    epochs = 8 if is_ignored else 1000
    command = write_command(make_config(tmp_path / "run", f"trainer.epochs={epochs}", "data.num_workers=1"), tmp_path)
    child, screen = pty.fork()
    if child == 0:  # leads a session whose terminal this is: the kernel hangs up when its other end closes
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        talk = os.open(tmp_path / "log.txt", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2) if is_ignored else ():  # where nohup has a terminal's output go
            os.dup2(talk, stream)
        os.chdir(ROOT)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, command)
    last, deadline = tmp_path / "run" / "last.ckpt", time.monotonic() + 300
    while not last.is_file() and time.monotonic() < deadline:
        if not is_ignored and select.select([screen], [], [], 0.05)[0]:
            os.read(screen, 65536)
    os.close(screen)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    step = read_checkpoint(last)["global_step"]
    assert step == 4 * epochs if is_ignored else 4 <= step < 4 * epochs


class SignalsToReaders(lightning.Callback):
    """A scheduler's request to end, which comes twice, reaches the reading processes before the trainer has stopped."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        readers = multiprocessing.active_children()
        assert readers
        for reader in readers:
            assert reader.pid is not None
            os.kill(reader.pid, signal.SIGTERM)
        time.sleep(0.1)


def test_reading_processes_outlive_a_request_to_end_that_comes_more_than_once(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_with(monkeypatch, SignalsToReaders(), make_config(tmp_path, "data.num_workers=1"))
    assert_same_run(finished_run, tmp_path)


def test_reading_processes_end_when_asked_after_the_training(tmp_path: Path) -> None:
    config = make_config(tmp_path, "data.num_workers=1")
    model, *corpora = prepare_training(config)
    data = SpeechDataModule(corpora[0], corpora[1], config.data, model, seed=0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)  # type: ignore[assignment]
    batches = iter(data.val_dataloader())
    next(batches)
    (reader,) = multiprocessing.active_children()
    reader.terminate()
    reader.join(0.3)
    assert reader.is_alive()
    data.close()
    reader.terminate()
    reader.join(10)
    assert reader.exitcode == 0


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_with_the_weights_of_one_that_is_not(tmp_path: Path) -> None:
    settings = ["trainer.epochs=60", "trainer.valid_every_epochs=20", "trainer.checkpoint_minutes=0"]
    killed = make_config(tmp_path / "killed", *settings)
    pauses = random.Random(0)
    steps = []
    for resume in [[], *[["--resume"]] * 9]:
        process, _ = start_process(killed, tmp_path, *resume)
        time.sleep(pauses.uniform(0.2, 0.6))
        process.kill()
        process.wait()
        checkpoint = find_checkpoint(tmp_path / "killed")
        assert checkpoint is not None
        steps.append(read_checkpoint(checkpoint)["global_step"])
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] < 240, "it was always killed in the middle"
    train(killed, resume=True)
    train(make_config(tmp_path / "whole", *settings))
    states = [read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("killed", "whole")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
