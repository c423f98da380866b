"""Trainings of seconds, for tests: how they begin, how they are stopped, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import asr.manifest
import asr.training
from asr.config import TrainConfig
from asr.data import Batch
from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.recipe import load_config
from asr.training import train
from asr.vocabulary import CharacterVocabulary

MANIFEST = Path(__file__).parents[1] / "samples" / "manifest.jsonl"

SMALL = [
    "model.frontend.num_mels=16",
    "model.encoder.conv_channels=4",
    "model.encoder.num_layers=1",
    "model.encoder.hidden_size=16",
    "data.batch_seconds=11",
    "data.max_seconds=11",
    "data.num_workers=0",
    "trainer.epochs=3",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.average_decay=0.8",
    "trainer.log_every_steps=1",
]
"""Four batches an epoch, and four a validation."""


def make_config(output_dir: Path, *overrides: str) -> TrainConfig:
    """Three epochs of a small model on the samples, which are the valid set too."""
    manifests = [f"output_dir={output_dir}", f"data.train=[{MANIFEST}]", f"data.valid=[{MANIFEST}]"]
    return load_config(None, [*manifests, *SMALL, *overrides])


def sample_lines() -> list[dict[str, Any]]:
    """The lines of the samples' manifest, with absolute paths."""
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    return [line | {"audio": str(MANIFEST.parent / line["audio"])} for line in lines]


def write_lines(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """A manifest of these lines."""
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def make_module(config: TrainConfig) -> CTCTrainingModule:
    """What `train` trains, without a trainer."""
    torch.manual_seed(0)
    return CTCTrainingModule(CTCModel(config.model, CharacterVocabulary()), config)


def train_with(
    monkeypatch: pytest.MonkeyPatch, callback: lightning.Callback, config: TrainConfig, **options: Any
) -> Path:
    """`train` with one more callback, called last."""
    make_trainer = asr.training.make_trainer

    def make(*arguments: Any) -> lightning.Trainer:
        trainer = make_trainer(*arguments)
        trainer.callbacks.append(callback)
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(asr.training, "make_trainer", make)
        return train(config, **options)


def lose(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the recordings of these names become unreadable after the check."""
    read = asr.manifest.read_audio

    def reading(path: str, *arguments: Any, **options: Any) -> Tensor:
        if any(name in path for name in names):
            raise AsrError(f"{path}: the audio is damaged")
        return read(path, *arguments, **options)

    monkeypatch.setattr(asr.manifest, "read_audio", reading)


class Recorder(lightning.Callback):
    """The utterances of each epoch, as the model was given them."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[list[str]]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        self.epochs.setdefault(trainer.current_epoch, []).append(batch.ids)


class Interrupt(lightning.Callback):
    """Raises an error at the n-th call (from 1) of a hook."""

    def __init__(self, hook: str, call: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls, self.call, self.error = 0, call, error
        setattr(self, hook, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        if self.calls == self.call:
            raise self.error("stopped by the test")


def stop_and_resume(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, hook: str, call: int) -> None:
    """`train`, stopped at the n-th call of a hook, and once more to its end."""
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt(hook, call), config)
    train(config, resume=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; raises an error where it holds more than tensors and plain values."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def read_scalars(output_dir: Path) -> dict[str, dict[int, list[float]]]:
    """Tag to step to the values there, of all TensorBoard files of a run."""
    scalars: dict[str, dict[int, list[float]]] = {}
    for path in sorted((output_dir / "tensorboard").glob("events*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                scalars.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return scalars


def last_value(output_dir: Path, tag: str) -> float:
    """Where a curve of a run ends."""
    values = read_scalars(output_dir)[tag]
    return values[max(values)][-1]


LEARNED = ("epoch", "global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states")
"""What of a checkpoint two equal runs share."""


def assert_same_run(left: Path, right: Path, missing_steps: Sequence[int] = ()) -> None:
    """Two output folders with the same weights, averages, optimizer, schedule, model file and curves.

    missing_steps: of which the right one lacks the points of training.
    """
    one, other = (read_checkpoint(folder / "last.ckpt") for folder in (left, right))
    for key in (*LEARNED, "lr_schedulers"):
        if key in one or key in other:
            assert_same_tensors(one[key], other[key], key)
    weights = [load_model(folder / "model.safetensors").state_dict() for folder in (left, right)]
    assert_same_tensors(dict(weights[0]), dict(weights[1]))
    curves = [read_scalars(folder) for folder in (left, right)]
    for tag in ("train/loss", "train/gradient_norm", "lr", "valid/loss", "valid/wer", "valid/cer"):
        one_value, other_value = (
            {(step, value) for step, values in curve[tag].items() for value in values} for curve in curves
        )
        if not tag.startswith("valid/"):
            one_value = {(step, value) for step, value in one_value if step not in missing_steps}
        assert one_value == other_value, tag


def assert_same_tensors(left: Any, right: Any, place: str = "") -> None:
    """Nested dicts and lists with bit for bit the same tensors."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_same_tensors(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), place
        for number, (one, other) in enumerate(zip(left, right)):
            assert_same_tensors(one, other, f"{place}[{number}]")
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), place
    else:
        assert left == right, place
