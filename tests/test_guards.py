"""What goes wrong in a training without ending it is named and left out, up to a bound."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import Recorder, lose, make_config, read_scalars, sample_lines, train_with, write_lines
from torch import Tensor

import asr.guards
from asr.data import Batch
from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.modelfile import load_model
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def spoil(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Make the training loss of these calls (from 1) not a number."""
    counted = iter(range(1, 10**6))
    step = CTCTrainingModule.training_step

    def spoiled(self: CTCTrainingModule, batch: Batch, batch_idx: int) -> Tensor:
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if next(counted) in calls else loss

    monkeypatch.setattr(CTCTrainingModule, "training_step", spoiled)


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, {2, 7})
    recorder = Recorder()
    path = train_with(monkeypatch, recorder, make_config(tmp_path, "trainer.epochs=2"))
    batches = [ids for epoch in recorder.epochs.values() for ids in epoch]
    assert [message for message in caplog.messages if "not finite" in message] == [
        f"step {step} left out: its gradient is not finite; utterances {', '.join(batches[step])}" for step in (1, 6)
    ]
    assert all(weight.isfinite().all() for weight in load_model(path).parameters())


def test_a_step_that_is_left_out_moves_no_weight() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    module: Any = SimpleNamespace(parameters=layer.parameters, log=lambda *_: None)
    trainer: Any = SimpleNamespace(precision="32-true", global_step=1)
    guards = asr.guards.Guards(100, 100)
    weights = []
    for gradient in (1.0, float("nan"), 1.0):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        guards.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        weights.append(layer.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert guards.skipped_steps == 1


def test_too_many_steps_without_a_finite_gradient_end_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.guards, "MOST_SKIPPED_STEPS", 3)
    spoil(monkeypatch, set(range(1, 100)))
    with pytest.raises(AsrError, match=r"the gradient was not finite in 4 steps, .*; lower optimizer\.learning_rate"):
        train(make_config(tmp_path))


def test_a_scaler_that_meets_no_finite_gradient_ends_the_training() -> None:
    module: Any = torch.nn.Linear(2, 2)
    module.log = lambda *_: None
    trainer: Any = SimpleNamespace(precision="16-mixed", global_step=0)
    guards, optimizer = asr.guards.Guards(10, 10), torch.optim.SGD(module.parameters(), 1.0)

    def step(gradient: float) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        guards.on_before_optimizer_step(trainer, module, optimizer)

    for _ in range(2):  # a finite one begins the count anew
        for _ in range(asr.guards.MOST_RESCALED_STEPS):
            step(float("nan"))
        step(1.0)
    for _ in range(asr.guards.MOST_RESCALED_STEPS):
        step(float("nan"))
    with pytest.raises(AsrError, match=r"not finite in 41 steps in a row, .*trainer\.precision=32-true"):
        step(float("nan"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_becomes_unreadable_is_left_out_and_named_once_for_each_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    lose(monkeypatch, "84-121123", "2035-147960")
    train(make_config(tmp_path, f"data.num_workers={workers}", "trainer.epochs=2"))
    assert caplog.text.count("84-121123-0001.flac: the audio is damaged") == 2
    assert caplog.text.count("2035-147960-0001.flac: the audio is damaged") == 2
    assert list(read_scalars(tmp_path)["valid/wer"]) == [3, 7]


def test_a_training_set_of_which_most_is_unreadable_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, ".flac")
    with pytest.raises(
        AsrError, match=r"\d recordings cannot be read, such as .*manifest\.jsonl:\d+: .*; where their times are wrong"
    ):
        train(make_config(tmp_path))


def test_a_valid_set_of_which_most_is_unreadable_ends_the_training_however_large_the_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, *others = sample_lines()
    valid = write_lines([lost], tmp_path / "valid.jsonl")
    train_set = write_lines(others, tmp_path / "train.jsonl")
    lose(monkeypatch, lost["audio"])
    with pytest.raises(AsrError, match="1 recordings cannot be read, such as "):
        train(make_config(tmp_path / "run", f"data.train=[{train_set}]", f"data.valid=[{valid}]"))


def test_each_of_several_processes_may_meet_its_part_of_what_is_unreadable() -> None:
    def ends(met: int, processes: int) -> bool:
        trainer: Any = SimpleNamespace(world_size=processes)
        batch: Any = SimpleNamespace(ids=[], unreadable=[f"{number}.flac: is damaged" for number in range(met)])
        try:
            asr.guards.Guards(2000, 6).on_train_batch_start(trainer, Any, batch, 0)
        except AsrError:
            return True
        return False

    assert [ends(20, 1), ends(21, 1), ends(5, 4), ends(6, 4), ends(1, 64), ends(2, 64)] == [False, True] * 3


def test_a_reading_process_that_is_killed_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                for reader in multiprocessing.active_children():
                    reader.kill()

    with pytest.raises(AsrError, match=r"a process that reads audio was killed; .* lower data\.cache_hours"):
        train_with(monkeypatch, Kill(), make_config(tmp_path, "data.num_workers=1", "trainer.epochs=20"))
