"""After any stop a training continues as if it had not stopped, and where it had ended it stays as it is."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from short_trainings import (
    Interrupt,
    assert_same_run,
    make_config,
    read_checkpoint,
    read_scalars,
    stop_and_resume,
    train_with,
)

import asr.checkpoints
from asr.learning import CTCTrainingModule
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

STOPS = {
    "before the second step": ("on_train_batch_start", 2),
    "in the middle of a step": ("on_after_backward", 3),
    "after a step": ("on_train_batch_end", 3),
    "after the last step of an epoch": ("on_train_batch_end", 4),
    "before the validation": ("on_validation_start", 1),
    "in the validation": ("on_validation_batch_start", 2),
    "in the second validation": ("on_validation_batch_end", 6),
    "after the validation": ("on_validation_end", 1),
    "at the end of the first epoch": ("on_train_epoch_end", 1),
    "before the second epoch": ("on_train_epoch_start", 2),
    "before the first step of the second epoch": ("on_train_batch_start", 5),
    "in the middle of the second epoch": ("on_train_batch_start", 7),
    "in the last validation": ("on_validation_batch_start", 11),
}


def test_the_run_that_is_stopped_has_four_steps_and_a_validation_in_each_of_three_epochs(finished_run: Path) -> None:
    assert read_checkpoint(finished_run / "last.ckpt")["global_step"] == 3 * 4
    assert list(read_scalars(finished_run)["valid/wer"]) == [3, 7, 11]


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_is_interrupted_and_resumed_equals_one_that_is_not(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    stop_and_resume(monkeypatch, make_config(tmp_path), *STOPS[stop])
    hook, call = STOPS[stop]
    unlogged = [call - 1] if hook == "on_train_batch_end" else []  # Lightning logs a step after this hook
    assert_same_run(finished_run, tmp_path, unlogged)


def test_a_resumed_run_equals_a_whole_one_with_muon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    muon = ["optimizer.name=muon", "trainer.epochs=2"]
    train(make_config(tmp_path / "whole", *muon))
    stop_and_resume(monkeypatch, make_config(tmp_path / "stopped", *muon), *STOPS["in the middle of the second epoch"])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("stop", ["in the middle of the second epoch", "before the second epoch", "in the validation"])
def test_a_resumed_run_with_a_reading_process_equals_a_whole_one_without(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    stop_and_resume(monkeypatch, make_config(tmp_path, "data.num_workers=1"), *STOPS[stop])
    assert_same_run(finished_run, tmp_path)


def test_a_run_that_is_stopped_twice_equals_a_whole_one_without_averaging_and_with_rare_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = ["trainer.average_decay=0", "trainer.valid_every_epochs=3", "data.num_workers=1"]
    train(make_config(tmp_path / "whole", *rare))
    config = make_config(tmp_path / "parts", *rare)
    for resume, (hook, call) in enumerate([("on_train_batch_end", 4), ("on_train_batch_start", 3)]):
        with pytest.raises(SystemExit):
            train_with(monkeypatch, Interrupt(hook, call), config, resume=resume > 0)
    train(config, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", missing_steps=[3])


def test_a_killed_run_resumes_from_its_last_epoch_even_if_the_error_rate_has_risen(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_end", 10), make_config(tmp_path))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 8
    train(make_config(tmp_path), resume=True)
    assert_same_run(finished_run, tmp_path)


def test_a_stop_inside_an_update_of_the_weights_leaves_the_checkpoint_before_it(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, calls = torch.optim.AdamW.step, iter(range(1, 100))

    @functools.wraps(step)
    def stopping(self: torch.optim.AdamW, closure: Any = None) -> Any:
        loss = step(self, closure)
        if next(calls) == 6:
            raise KeyboardInterrupt  # Ctrl-C for the second time
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(SystemExit):
            train(make_config(tmp_path))
    assert f"stopped inside an update of the weights; --resume continues from {tmp_path}/last.ckpt" in caplog.text
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    train(make_config(tmp_path), resume=True)
    assert_same_run(finished_run, tmp_path)


def test_an_error_inside_a_step_is_told_and_keeps_the_place(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train_with(monkeypatch, Interrupt("on_after_backward", 6, RuntimeError), make_config(tmp_path))
    train(make_config(tmp_path), resume=True)
    assert_same_run(finished_run, tmp_path)


def test_a_run_that_ended_is_left_as_it_is_by_resume(tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert train(make_config(tmp_path / "run"), resume=True) == tmp_path / "run" / "model.safetensors"
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_a_run_that_ended_early_is_left_as_it_is_by_resume_unless_its_patience_is_greater_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = ["trainer.epochs=9", "optimizer.learning_rate=1e-12", "trainer.patience=1"]
    train(make_config(tmp_path, *settings))
    assert "ended early: no lower WER in 1 validations in a row" in caplog.text
    before = (tmp_path / "last.ckpt").read_bytes()
    train(make_config(tmp_path, *settings), resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    train(make_config(tmp_path, *settings, "trainer.patience=2"), resume=True)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3 * 4


def test_training_ends_once_no_word_is_wrong_and_a_resume_leaves_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.5, 0.0])
    monkeypatch.setattr(
        CTCTrainingModule, "on_validation_epoch_start", lambda module: setattr(module, "r", next(rates))
    )
    monkeypatch.setattr(CTCTrainingModule, "pooled_rate", lambda module, counts: module.r)
    config = make_config(tmp_path, "trainer.epochs=9", "trainer.patience=9")
    train(config)
    assert len(read_scalars(tmp_path)["valid/wer"]) == 2
    before = (tmp_path / "last.ckpt").read_bytes()
    train(config, resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == before
