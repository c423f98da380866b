"""What goes wrong in a training without ending it is named and left out, up to a bound."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from short_trainings import Recorder, make_config, read_scalars, train_with
from torch import Tensor

import asr.guards
import asr.manifest
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
    guards = asr.guards.Guards(100)
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
    guards, optimizer = asr.guards.Guards(10), torch.optim.SGD(module.parameters(), 1.0)

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


def lose(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """Have the recordings of these names become unreadable after the check."""
    read = asr.manifest.read_audio

    def reading(path: str, *arguments: Any, **options: Any) -> Tensor:
        if any(name in path for name in names):
            raise AsrError(f"{path}: the audio is damaged")
        return read(path, *arguments, **options)

    monkeypatch.setattr(asr.manifest, "read_audio", reading)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_becomes_unreadable_is_left_out_and_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    lose(monkeypatch, ("84-121123", "2035-147960"))
    train(make_config(tmp_path, f"data.num_workers={workers}", "trainer.epochs=2"))
    assert caplog.text.count("84-121123-0001.flac: the audio is damaged") == 1
    assert caplog.text.count("2035-147960-0001.flac: the audio is damaged") == 1
    assert list(read_scalars(tmp_path)["valid/wer"]) == [3, 7]


def test_a_training_set_of_which_most_is_unreadable_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, (".flac",))
    with pytest.raises(AsrError, match=r"\d recordings cannot be read any more, such as .*; is the disk still there"):
        train(make_config(tmp_path))
