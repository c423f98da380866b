"""Training: it learns, leaves what it promises, and after any stop continues as if it had not stopped."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import asr.checkpoints
import asr.guards
import asr.manifest
import asr.training
from asr.audio import read_audio
from asr.check import CheckedCorpus, check_corpus
from asr.checkpoints import find_checkpoint
from asr.config import EncoderConfig, ModelConfig, OptimizerConfig, TrainConfig, TrainerConfig
from asr.data import Batch
from asr.errors import AsrError
from asr.evaluation import evaluate
from asr.learning import CTCTrainingModule, disagreement, make_optimizer
from asr.manifest import read_manifest, write_manifest
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.monitor import TrainingMonitor
from asr.plan import DurationBatchSampler
from asr.recipe import load_config
from asr.text import CharacterVocabulary, SentencePieceVocabulary
from asr.training import check_output_dir, choose_accelerator, choose_precision, make_model, prepare_training, train

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "samples" / "manifest.jsonl"

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


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums in the same order each time."""
    torch.set_num_threads(1)


def make_config(output_dir: Path, *overrides: str) -> TrainConfig:
    manifests = [f"output_dir={output_dir}", f"data.train=[{MANIFEST}]", f"data.valid=[{MANIFEST}]"]
    return load_config(None, [*manifests, *SMALL, *overrides])


class Recorder(lightning.Callback):
    """The utterances of each epoch, as the model was given them."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[list[str]]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        self.epochs.setdefault(trainer.current_epoch, []).append(batch.ids)


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


def read_checkpoint(path: Path) -> dict[str, Any]:
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
    values = read_scalars(output_dir)[tag]
    return values[max(values)][-1]


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


LEARNED = ("epoch", "global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states")


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
        if tag == "valid/loss":  # a mean in float32, whose last digit depends on what the process computed before
            one_value, other_value = (
                {(step, round(value, 5)) for step, value in each} for each in (one_value, other_value)
            )
        if not tag.startswith("valid/"):
            one_value = {(step, value) for step, value in one_value if step not in missing_steps}
        assert one_value == other_value, tag


# What a training leaves behind


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of the small model; a test must not write there."""
    torch.set_num_threads(1)
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train(make_config(output_dir)) == output_dir / "model.safetensors"
    return output_dir


def test_a_run_leaves_a_model_checkpoints_its_config_and_a_data_report(finished_run: Path) -> None:
    names = ["best.ckpt", "config.yaml", "data.txt", "last.ckpt", "model.safetensors", "previous.ckpt", "tensorboard"]
    assert sorted(path.name for path in finished_run.iterdir()) == names
    assert load_config(finished_run / "config.yaml") == make_config(finished_run)
    assert "train: 6 utterances" in (finished_run / "data.txt").read_text(encoding="utf-8")
    model = load_model(finished_run / "model.safetensors")
    assert model.config == make_config(finished_run).model
    assert read_checkpoint(finished_run / "last.ckpt")["epoch"] == 2


def test_tensorboard_gets_every_promised_curve_and_the_transcripts(finished_run: Path) -> None:
    scalars = read_scalars(finished_run)
    steps = int(read_checkpoint(finished_run / "last.ckpt")["global_step"])
    by_step = ["train/loss", "train/gradient_norm", "train/impossible_utterances", "lr"]
    speeds = ["utterances_per_second", "audio_seconds_per_second", "data_wait_share"]
    for tag in by_step + [f"speed/{name}" for name in speeds]:
        assert list(scalars[tag]) == list(range(steps)), tag
    for tag in ("loss", "wer", "cer", "blank_share", "empty_hypothesis_share"):
        assert len(scalars[f"valid/{tag}"]) == 3, tag
    assert all(0 <= value <= 1 for values in scalars["speed/data_wait_share"].values() for value in values)
    (path,) = (finished_run / "tensorboard").glob("events*")
    events = EventAccumulator(str(path)).Reload()
    shown = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("valid/transcripts/text_summary")]
    assert len(shown) == 3
    assert all("ref " in text and "hyp " in text for text in shown)


def test_tensorboard_gets_pictures_of_the_augmentation_and_of_how_valid_utterances_are_read(finished_run: Path) -> None:
    (path,) = (finished_run / "tensorboard").glob("events*")
    events = EventAccumulator(str(path), size_guidance={"images": 0}).Reload()
    pictures = {tag: [event.encoded_image_string for event in events.Images(tag)] for tag in events.Tags()["images"]}
    alignments = [f"valid/alignment_{number}" for number in range(2)]
    assert pictures.keys() >= {"train/features", "train/features_augmented", *alignments}
    assert all(len(drawn) == 3 for drawn in pictures.values()), "one an epoch"
    for plain, augmented in zip(pictures["train/features"], pictures["train/features_augmented"], strict=True):
        assert plain != augmented
    assert len(set(pictures["valid/alignment_0"])) == 3, "they change as the model learns"


def test_speed_in_tensorboard_is_audio_over_time(finished_run: Path) -> None:
    scalars = read_scalars(finished_run)
    pairs = zip(scalars["speed/audio_seconds_per_second"].values(), scalars["speed/utterances_per_second"].values())
    durations = [utterance.duration_seconds for utterance in read_manifest(MANIFEST)]
    for audio_seconds, utterances in pairs:
        assert min(durations) - 0.01 <= audio_seconds[0] / utterances[0] <= max(durations) + 0.01


def test_the_checkpoints_load_without_running_code_from_them(finished_run: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        assert set(LEARNED) <= set(read_checkpoint(finished_run / name))


def test_training_lowers_the_loss_of_a_few_utterances_until_it_overfits(tmp_path: Path) -> None:
    plain = ["augment.speeds=[1.0]", "augment.noise_probability=0", "augment.num_time_masks=0"]
    quick = ["augment.num_frequency_masks=0", "optimizer.learning_rate=1e-2", "optimizer.clip_norm=1"]
    length = ["trainer.epochs=36", "trainer.valid_every_epochs=36", "model.encoder.dropout=0", "data.batch_seconds=40"]
    train(make_config(tmp_path, *plain, *quick, *length))
    losses = [values[0] for values in read_scalars(tmp_path)["train/loss"].values()]
    assert losses[0] > 3.0
    assert max(losses[-5:]) < 0.8 * min(losses[0], 3.6)


# The model file and the validation


def test_the_logged_error_rates_are_those_of_the_saved_model(tmp_path: Path) -> None:
    train(make_config(tmp_path, "trainer.epochs=1", "trainer.average_decay=0", "model.encoder.hidden_size=24"))
    evaluation = evaluate(load_model(tmp_path / "model.safetensors"), read_manifest(MANIFEST))
    for tag, counts in (
        ("valid/wer", [item.words for item in evaluation.scored]),
        ("valid/cer", [item.characters for item in evaluation.scored]),
    ):
        errors, length = sum(count.errors for count in counts), sum(count.reference_length for count in counts)
        # Half precision in the file may tip a letter.
        assert last_value(tmp_path, tag) == pytest.approx(errors / length, abs=2 / length), tag


def test_the_model_file_holds_the_averaged_weights(tmp_path: Path) -> None:
    train(make_config(tmp_path, "trainer.epochs=1"))
    checkpoint = read_checkpoint(tmp_path / "best.ckpt")
    saved = load_model(tmp_path / "model.safetensors").state_dict()
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    for name, tensor in saved.items():
        assert torch.equal(averaged[f"model.{name}"].half().float(), tensor), name
    assert any(not torch.equal(raw[f"model.{name}"].half().float(), tensor) for name, tensor in saved.items())


def test_the_average_follows_its_formula_and_continues_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Average(lightning.Callback):
        def __init__(self) -> None:
            self.weight = torch.empty(0)

        def on_train_batch_end(self, trainer: Any, module: CTCTrainingModule, *_: Any) -> None:
            now = module.model.head.weight.detach().clone()
            self.weight = now if trainer.global_step == 1 else 0.8 * self.weight + 0.2 * now

    average = Average()
    train_with(monkeypatch, average, make_config(tmp_path, "trainer.epochs=2"))
    train_with(monkeypatch, average, make_config(tmp_path, "trainer.epochs=3"), resume=True)
    expected = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["model.head.weight"]
    torch.testing.assert_close(expected, average.weight, rtol=1e-4, atol=1e-6)


def test_only_a_better_model_replaces_the_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([0.5, 0.9, 0.4, 0.6])
    rate = {"now": 1.0}

    def start(module: CTCTrainingModule) -> None:
        rate["now"] = next(rates)

    monkeypatch.setattr(CTCTrainingModule, "on_validation_epoch_start", start)
    monkeypatch.setattr(CTCTrainingModule, "pooled_rate", lambda module, counts: rate["now"])
    saved_at = []
    monkeypatch.setattr(asr.checkpoints, "save_model", lambda model, path: saved_at.append(rate["now"]))
    train(make_config(tmp_path, "trainer.epochs=2"))
    train(make_config(tmp_path, "trainer.epochs=4"), resume=True)
    assert saved_at == [0.5, 0.4]
    assert read_checkpoint(tmp_path / "best.ckpt")["epoch"] == 2
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 3


def test_validation_is_not_augmented(tmp_path: Path) -> None:
    frozen = ["optimizer.learning_rate=1e-30", "trainer.epochs=1"]
    harsh = ["augment.noise_probability=1", "augment.noise_snr_db=[-20,-20]", "augment.time_mask_share=1"]
    train(make_config(tmp_path / "plain", *frozen))
    train(make_config(tmp_path / "harsh", *frozen, *harsh))
    assert last_value(tmp_path / "plain", "valid/loss") == last_value(tmp_path / "harsh", "valid/loss")
    assert last_value(tmp_path / "plain", "train/loss") != last_value(tmp_path / "harsh", "train/loss")


def test_an_empty_reference_can_be_validated(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()][:2]
    for line in lines:
        line.update(audio=str(MANIFEST.parent / line["audio"]), text="42")
    manifest = tmp_path / "valid.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    train(make_config(tmp_path / "run", "trainer.epochs=1", f"data.valid=[{manifest},{MANIFEST}]"))
    assert torch.isfinite(torch.tensor(last_value(tmp_path / "run", "valid/loss")))


# Repeating and resuming


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path, finished_run: Path) -> None:
    torch.rand(3)  # what happened before must not matter
    train(make_config(tmp_path / "same"))
    assert_same_run(finished_run, tmp_path / "same")
    train(make_config(tmp_path / "other", "trainer.seed=2"))
    one, other = (read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (finished_run, tmp_path / "other"))
    assert not torch.equal(one["model.head.weight"], other["model.head.weight"])


def test_a_reading_process_beside_changes_nothing(tmp_path: Path, finished_run: Path) -> None:
    train(make_config(tmp_path, "data.num_workers=1"))
    assert_same_run(finished_run, tmp_path)


def write_uneven_manifest(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Utterances whose plans differ in length: their ids, the batches of four epochs, and the settings."""
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    cuts = [
        {"audio": str(MANIFEST.parent / line["audio"]), "text": "A", "id": f"{place}", "duration": 0.5 + 0.04 * place}
        for place, line in enumerate(lines * 4)
    ]
    manifest = folder / "cuts.jsonl"
    manifest.write_text("\n".join(map(json.dumps, cuts)), encoding="utf-8")
    durations = [cut["duration"] for cut in cuts]
    for batch_seconds, seed in product((3.0, 3.3, 3.7, 4.1, 4.6, 5.2), range(1, 50)):
        sampler = DurationBatchSampler(durations, batch_seconds, seed=seed)
        counts = [len(list(sampler)) for epoch in range(4) if sampler.set_epoch(epoch) is None]
        if {later > earlier for earlier, later in pairwise(counts) if later != earlier} == {True, False}:
            break
    else:
        pytest.fail("no plans whose epochs grow and shrink")
    sizes = [f"data.batch_seconds={batch_seconds}", "data.max_seconds=3", "trainer.epochs=4", f"trainer.seed={seed}"]
    return [cut["id"] for cut in cuts], counts, [f"data.train=[{manifest}]", *sizes]


def test_every_epoch_has_every_utterance_once_and_a_validation_though_plans_differ_in_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, counts, settings = write_uneven_manifest(tmp_path)
    recorder = Recorder()
    train_with(monkeypatch, recorder, make_config(tmp_path / "run", *settings, "data.num_workers=1"))
    assert [len(batches) for batches in recorder.epochs.values()] == counts
    for batches in recorder.epochs.values():
        assert Counter(name for batch_ids in batches for name in batch_ids) == Counter(ids)
    assert len(read_scalars(tmp_path / "run")["valid/wer"]) == 4
    assert_rate_falls_to_zero_behind_the_last_step(tmp_path / "run", sum(counts))


def assert_rate_falls_to_zero_behind_the_last_step(output_dir: Path, steps: int) -> None:
    rates = [values[-1] for _, values in sorted(read_scalars(output_dir)["lr"].items())]
    assert len(rates) == steps
    assert 0 < rates[-1] < 0.05 * max(rates)


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
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt(hook, call), config)
    train(config, resume=True)


STOPS = {
    "before the second step": ("on_train_batch_start", 2),
    "in the middle of a step": ("on_before_optimizer_step", 3),
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


def test_the_stops_below_fall_where_they_say(finished_run: Path) -> None:
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


def test_the_progress_bar_of_a_resumed_epoch_shows_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), make_config(tmp_path))
    gc.collect()  # the stopped run's bar draws itself once more when it is freed
    capsys.readouterr()
    train(make_config(tmp_path), resume=True)
    drawn = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.startswith("Epoch 1:")]
    assert any("| 3/4 [" in line for line in drawn)
    assert not any("/? [" in line or "| 1/4 [" in line for line in drawn)


@pytest.mark.parametrize("changed", ["data.batch_seconds=14", "trainer.seed=5", "data.max_seconds=5"])
def test_another_plan_is_refused_in_the_middle_of_an_epoch_and_taken_between_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), make_config(tmp_path / "middle"))
    with pytest.raises(AsrError, match=r"^the run was stopped in the middle of an epoch with .*; resume it with that"):
        train(make_config(tmp_path / "middle", changed), resume=True)
    train(make_config(tmp_path / "middle"), resume=True)  # it is as it was
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_epoch_start", 2), make_config(tmp_path / "between"))
    train(make_config(tmp_path / "between", changed), resume=True)


def test_the_same_utterances_in_another_order_are_another_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = tmp_path / "backwards.jsonl"
    write_manifest(read_manifest(MANIFEST)[::-1], backwards)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), make_config(tmp_path / "run"))
    with pytest.raises(AsrError, match="in the middle of an epoch with checksum of their order="):
        train(make_config(tmp_path / "run", f"data.train=[{backwards}]"), resume=True)


def test_it_equals_where_plans_differ_in_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, counts, settings = write_uneven_manifest(tmp_path)
    train(make_config(tmp_path / "whole", *settings))
    middle_of_another = next(epoch for epoch in range(1, 4) if counts[epoch] != counts[0])
    stop = sum(counts[:middle_of_another]) + 3
    stop_and_resume(monkeypatch, make_config(tmp_path / "stopped", *settings), "on_train_batch_start", stop)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_whose_pieces_were_learned_from_other_texts_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "train.jsonl"
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    lines = [line | {"audio": str(MANIFEST.parent / line["audio"])} for line in lines]
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    pieces = ["vocabulary.kind=sentencepiece", "vocabulary.size=40", f"data.train=[{manifest}]", "trainer.epochs=1"]
    config = make_config(tmp_path / "run", *pieces)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 3), config)
    lines[0]["text"] = "QUITE QUEER QUESTIONS ABOUT QUICK QUAINT QUILTS"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(AsrError, match=r"^the training texts have changed, and their pieces with them; start with"):
        train(config, resume=True)


def test_training_ends_early_once_no_word_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([0.5, 0.1, 0.0])
    monkeypatch.setattr(
        CTCTrainingModule, "on_validation_epoch_start", lambda module: setattr(module, "r", next(rates))
    )
    monkeypatch.setattr(CTCTrainingModule, "pooled_rate", lambda module, counts: module.r)
    train(make_config(tmp_path, "trainer.epochs=9", "trainer.patience=9"))
    assert len(read_scalars(tmp_path)["valid/wer"]) == 3


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("gpu", True, "cuda")],
)
def test_the_gpu_of_a_mac_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, has_gpu: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator(TrainerConfig(accelerator=accelerator)) == chosen


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AsrError, match=r"^trainer\.accelerator=gpu: no CUDA GPU is available here; use"):
        choose_accelerator(TrainerConfig(accelerator="gpu"))


def test_it_equals_with_muon_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(tmp_path / "whole", "optimizer.name=muon"))
    stopped = make_config(tmp_path / "stopped", "optimizer.name=muon")
    stop_and_resume(monkeypatch, stopped, *STOPS["in the middle of the second epoch"])
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_muon_steps_each_gate_of_the_recurrent_layers_and_leaves_the_rest_to_adamw(cell: str) -> None:
    encoder = EncoderConfig(cell=cell, hidden_size=8, num_layers=2, conv_channels=4)
    model = CTCModel(ModelConfig(encoder=encoder), CharacterVocabulary())
    optimizer = make_optimizer(model, OptimizerConfig(name="muon"), total_steps=10)["optimizer"]
    gates, *others = optimizer.param_groups
    assert {parameter.shape[0] // gates["blocks"] for parameter in gates["params"]} == {8}
    assert len(gates["params"]) == 2 * 2 * 2
    assert [group["blocks"] for group in others] == [0, 0]
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("stop", ["in the middle of the second epoch", "before the second epoch", "in the validation"])
def test_it_equals_with_a_reading_process_too(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    stop_and_resume(monkeypatch, make_config(tmp_path, "data.num_workers=1"), *STOPS[stop])
    assert_same_run(finished_run, tmp_path)


def test_it_equals_without_averaging_and_with_rare_validation_and_several_stops(
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
    assert "stopped inside an update of the weights; --resume continues from the checkpoint before it" in caplog.text
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    train(make_config(tmp_path), resume=True)
    assert_same_run(finished_run, tmp_path)


def test_a_kill_between_the_two_checkpoints_of_an_epoch_does_not_cost_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = asr.checkpoints.Checkpoints._save, iter(range(1, 100))

    def killed(self: asr.checkpoints.Checkpoints, *arguments: Any) -> None:
        if next(calls) == 3:  # before the validation, behind it, and here
            raise KeyboardInterrupt
        save(self, *arguments)

    config = make_config(tmp_path, "trainer.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(asr.checkpoints.Checkpoints, "_save", killed)
        patch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
        with pytest.raises(SystemExit):
            train(config)
    train(config, resume=True)
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("best.ckpt", "last.ckpt")] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 4, 5, 6, 10])
def test_a_killed_run_with_checkpoints_inside_epochs_loses_one_step_and_equals(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
    config = make_config(tmp_path, "trainer.checkpoint_minutes=0")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_end", call), config)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == call - 1
    train(config, resume=True)
    assert_same_run(finished_run, tmp_path)


class FiveMinutes(lightning.Callback):
    """A clock by which the sixth step takes five minutes; the run is stopped before the seventh."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.now = 300.0 if trainer.global_step == 6 else 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.now:
            raise SystemExit


@pytest.mark.parametrize(("minutes", "saved"), [(4.9, 6), (5.1, 4)])
def test_a_checkpoint_is_written_every_so_many_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, saved: int
) -> None:
    clock = FiveMinutes()
    monkeypatch.setattr(asr.checkpoints, "time", clock)
    monkeypatch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
    with pytest.raises(SystemExit):
        train_with(monkeypatch, clock, make_config(tmp_path, f"trainer.checkpoint_minutes={minutes}"))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == saved


def test_checkpoints_inside_epochs_change_nothing(tmp_path: Path, finished_run: Path) -> None:
    train(make_config(tmp_path, "trainer.checkpoint_minutes=0"))
    assert_same_run(finished_run, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    config = make_config(tmp_path, "trainer.checkpoint_minutes=0")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), config)
    last = tmp_path / "last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:10000])
    else:
        last.unlink()  # killed between two renames
    train(config, resume=True)
    assert ("last.ckpt is damaged and left out" in caplog.text) == (damage == "cut")
    assert_same_run(finished_run, tmp_path)


def make_checkpoints(folder: Path) -> asr.checkpoints.Checkpoints:
    return asr.checkpoints.Checkpoints(folder, asr.checkpoints.BestModelFile(folder / "model.safetensors"), 10.0)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_bytes(b"half")
    previous.write_bytes(b"the one before")
    trainer: Any = SimpleNamespace(
        world_size=1, is_global_zero=True, save_checkpoint=lambda path: path.write_bytes(b"the new one")
    )
    checkpoints = make_checkpoints(tmp_path)
    checkpoints.on_train_start(trainer, lightning.LightningModule())
    checkpoints._save(trainer, last)
    assert (last.read_bytes(), previous.read_bytes()) == (b"the new one", b"the one before")


def test_a_process_that_is_stopped_alone_does_not_wait_for_the_others_to_save(tmp_path: Path) -> None:
    checkpoints, saved = make_checkpoints(tmp_path), []
    trainer: Any = SimpleNamespace(world_size=2, global_step=5, validating=False, save_checkpoint=saved.append)
    module = make_module(make_config(tmp_path))
    checkpoints._has_begun = True
    checkpoints.on_exception(trainer, module, KeyboardInterrupt())  # the second Ctrl-C, anywhere in a step
    assert saved == []


def test_where_all_checkpoints_are_damaged_it_is_told(tmp_path: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(AsrError, match="no checkpoint there can be read"):
        train(make_config(tmp_path), resume=True)


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
    path = train(make_config(tmp_path))
    assert [record.getMessage().split(":")[0] for record in caplog.records if "not finite" in record.getMessage()] == [
        "step 1 left out",
        "step 6 left out",
    ]
    assert "utterances 1" in caplog.text or "utterances 8" in caplog.text or "utterances 2" in caplog.text
    assert all(weight.isfinite().all() for weight in load_model(path).parameters())


def test_too_many_such_steps_end_the_training_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asr.guards, "MOST_SKIPPED_STEPS", 3)
    spoil(monkeypatch, set(range(1, 100)))
    with pytest.raises(AsrError, match=r"the gradient was not finite in 4 steps, .*; lower optimizer\.learning_rate"):
        train(make_config(tmp_path))


def test_a_scaler_that_never_meets_a_finite_gradient_ends_the_training_too() -> None:
    module: Any = torch.nn.Linear(2, 2)
    module.log = lambda *_: None
    trainer: Any = SimpleNamespace(precision="16-mixed", global_step=0)
    guards = asr.guards.Guards(10)
    for step in range(100):
        finite = step in (5, 39)
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 if finite else float("nan"))
        if step == 40 + asr.guards.MOST_RESCALED_STEPS:
            with pytest.raises(AsrError, match=r"not finite in 41 steps in a row, .*trainer\.precision=32-true"):
                guards.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters(), 1.0))
            return
        guards.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters(), 1.0))


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
    train(make_config(tmp_path, f"data.num_workers={workers}"))
    assert caplog.text.count("84-121123-0001.flac: the audio is damaged") == 1
    assert caplog.text.count("2035-147960-0001.flac: the audio is damaged") == 1
    assert list(read_scalars(tmp_path)["valid/wer"]) == [3, 7, 11]


def test_a_training_set_of_which_most_is_unreadable_ends_the_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, (".flac",))
    with pytest.raises(AsrError, match=r"\d recordings cannot be read any more, such as .*; is the disk still there"):
        train(make_config(tmp_path))


def test_an_error_inside_a_step_is_told_and_keeps_the_place(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train_with(monkeypatch, Interrupt("on_before_optimizer_step", 6, RuntimeError), make_config(tmp_path))
    train(make_config(tmp_path), resume=True)
    assert_same_run(finished_run, tmp_path)


def test_a_run_that_ended_is_left_as_it_is_by_resume(tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert train(make_config(tmp_path / "run"), resume=True) == tmp_path / "run" / "model.safetensors"
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_a_run_that_has_done_more_epochs_than_are_wanted_now_is_told(tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(AsrError, match=r"^trainer\.epochs=1: the run has done 3 already"):
        train(make_config(tmp_path / "run", "trainer.epochs=1"), resume=True)


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


def test_a_run_that_ended_because_no_word_is_wrong_is_left_as_it_is_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CTCTrainingModule, "pooled_rate", lambda module, counts: 0.0)
    config = make_config(tmp_path, "trainer.patience=9")
    train(config)
    before = (tmp_path / "last.ckpt").read_bytes()
    train(config, resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_broken_write_leaves_the_last_checkpoint_whole(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()

    def fill_the_disk(trainer: lightning.Trainer, path: Path, *_: Any) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", fill_the_disk)
    with pytest.raises(
        AsrError, match=r"last\.ckpt: the checkpoint cannot be written \(No space left on device\); make"
    ):
        train(make_config(tmp_path / "run", "trainer.epochs=4"), resume=True)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert list((tmp_path / "run").glob("*.tmp")) == [], "it would fill the disk"


def test_a_disk_that_is_full_at_a_resume_leaves_the_settings_that_were(tmp_path: Path, full_disk: Any) -> None:
    (tmp_path / "config.yaml").write_text("as it was")
    reports = asr.training._Reports(make_config(tmp_path), CheckedCorpus(), CheckedCorpus())
    with full_disk(), pytest.raises(AsrError, match=r"config\.yaml: cannot be written \(File too large\); make room"):
        reports.on_train_start(None, None)  # type: ignore[arg-type]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]


def start_process(config: TrainConfig, folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
    """`asr train` as a process of its own that has done a step, and what it writes to stderr."""
    recipe, talk = folder / "recipe.yaml", folder / "stderr.txt"
    recipe.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    command = [sys.executable, "-m", "asr", "train", str(recipe), *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums over more round otherwise
    with talk.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while b"train/loss" not in talk.read_bytes() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, talk


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


@pytest.mark.parametrize("place", range(-60, 0, 3))
def test_no_damage_to_a_checkpoints_directory_raises(finished_run: Path, tmp_path: Path, place: int) -> None:
    content = bytearray((finished_run / "last.ckpt").read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "last.ckpt").write_bytes(content)
    shutil.copy(finished_run / "last.ckpt", tmp_path / "previous.ckpt")
    assert find_checkpoint(tmp_path) in (tmp_path / "last.ckpt", tmp_path / "previous.ckpt")


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"])
def test_a_launchers_resume_begins_where_there_is_nothing_yet_and_leaves_another_run_alone(
    launcher: str, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launcher, "1")
    assert check_output_dir(make_config(tmp_path / "new"), resume=True) is None
    assert check_output_dir(make_config(finished_run), resume=True) == finished_run / "last.ckpt"
    with pytest.raises(AsrError, match="holds a run"):
        check_output_dir(make_config(finished_run), resume=False)


# Refusals


def test_a_new_run_does_not_overwrite_another(finished_run: Path) -> None:
    with pytest.raises(AsrError, match=r"holds a run; continue it with --resume, or set another output_dir="):
        train(make_config(finished_run))


def test_a_new_run_does_not_overwrite_a_model_file_whose_checkpoints_were_deleted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a week of training")
    with pytest.raises(AsrError, match=r"model\.safetensors: is there already and would be replaced; set another"):
        check_output_dir(make_config(tmp_path), resume=False)


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"last\.ckpt not found: there is nothing to resume; start without --resume"):
        train(make_config(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("override", "section"), [("model.encoder.hidden_size=8", "model"), ("vocabulary.size=99", "vocabulary")]
)
def test_another_model_cannot_be_resumed(finished_run: Path, override: str, section: str) -> None:
    with pytest.raises(AsrError, match=f"was trained with another {section} section"):
        train(make_config(finished_run, override), resume=True)


@pytest.mark.parametrize(
    ("override", "kept"), [("optimizer.name=muon", "name=adamw"), ("optimizer.frozen_layers=1", "frozen_layers=0")]
)
def test_an_optimizer_of_other_weights_cannot_be_resumed(finished_run: Path, override: str, kept: str) -> None:
    with pytest.raises(AsrError, match=rf"was trained with optimizer\.{kept}; resume it with that"):
        train(make_config(finished_run, "trainer.epochs=4", override), resume=True)


def test_a_resume_that_fails_leaves_all_as_it_was(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    names = ("last.ckpt", "previous.ckpt", "best.ckpt", "config.yaml", "data.txt", "model.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW, "load_state_dict", lambda *_: (_ for _ in ()).throw(ValueError("other groups"))
        )
        with pytest.raises(ValueError, match="other groups"):
            train(make_config(run, "trainer.epochs=4", "optimizer.learning_rate=1e-5"), resume=True)
    assert {name: (run / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("missing", ["data.train=[]", "data.valid=[]"])
def test_a_recipe_without_data_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(AsrError, match=r"data\.train and data\.valid must each name a manifest"):
        train(make_config(tmp_path, missing))


@pytest.mark.parametrize("role", ["train", "valid"])
def test_a_missing_recording_is_told_before_the_first_step(tmp_path: Path, role: str) -> None:
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio": "none.flac", "text": "HELLO", "duration": 2.0}\n', encoding="utf-8")
    with pytest.raises(AsrError, match=r"(?s)audio files are missing.*bad\.jsonl:1.*none\.flac"):
        train(make_config(tmp_path / "run", f"data.{role}=[{manifest}]"))
    assert not (tmp_path / "run").exists()


def test_data_of_which_nothing_is_left_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"(?s)no utterance is left.*left out, too long: 6"):
        train(make_config(tmp_path / "run", "data.max_seconds=1"))
    assert not (tmp_path / "run").exists()


# The pieces


def make_module(config: TrainConfig) -> CTCTrainingModule:
    torch.manual_seed(0)
    return CTCTrainingModule(CTCModel(config.model, CharacterVocabulary()), config)


def test_a_run_can_start_from_a_model_file(tmp_path: Path, finished_run: Path) -> None:
    start = finished_run / "model.safetensors"
    slow = ["optimizer.learning_rate=1e-12", "trainer.epochs=1", "trainer.average_decay=0"]
    path = train(make_config(tmp_path / "run", f"initial_model={start}", *slow))
    for name, weights in load_model(path).state_dict().items():
        torch.testing.assert_close(weights, load_model(start).state_dict()[name], rtol=0, atol=1e-6)


def test_a_run_can_start_from_a_model_of_another_dropout(tmp_path: Path, finished_run: Path) -> None:
    overrides = [f"initial_model={finished_run / 'model.safetensors'}", "model.encoder.dropout=0.35"]
    model = make_model(make_config(tmp_path, *overrides), [])
    assert model.encoder.layers[0].dropout.p == model.encoder.dropout.p == 0.35
    for name, weights in load_model(finished_run / "model.safetensors").state_dict().items():
        assert torch.equal(model.state_dict()[name], weights)


def test_a_run_cannot_start_from_a_model_of_another_shape(tmp_path: Path, finished_run: Path) -> None:
    start = finished_run / "model.safetensors"
    with pytest.raises(AsrError, match=r"model\.safetensors was made with another model or vocabulary section"):
        train(make_config(tmp_path / "run", f"initial_model={start}", "model.encoder.hidden_size=12"))


def test_an_utterance_that_ctc_cannot_write_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    module = make_module(make_config(tmp_path))
    targets = torch.tensor([[3, 3, 3], [4, 5, 0]])  # three equal tokens need five steps
    batch = Batch(torch.zeros(2, 9), torch.tensor([9, 9]), targets, torch.tensor([3, 2]), ["AAA", "BC"], ["a", "b"])
    scores = torch.randn(2, 4, 29, requires_grad=True)
    loss, impossible = module._loss(scores.log_softmax(2), torch.tensor([4, 4]), batch, torch.tensor(5))
    loss.backward()
    assert impossible == 1
    possible = torch.nn.functional.ctc_loss(
        scores[1:].log_softmax(2).transpose(0, 1), targets[1:, :2], (4,), (2,), reduction="sum"
    )
    torch.testing.assert_close(loss, possible / 5)
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[0].any()
    assert scores.grad[1].any()


def test_two_views_disagree_by_the_divergence_of_each_from_the_other_over_their_own_steps() -> None:
    scores = torch.randn(4, 5, 29, requires_grad=True)
    lengths = torch.tensor([5, 2, 5, 2])
    log_probs = scores.log_softmax(2)
    apart = disagreement(log_probs, lengths)
    expected = torch.zeros(())
    for this, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        p, q = log_probs[other, : lengths[this]].detach().exp(), log_probs[this, : lengths[this]].exp()
        expected = expected + (p * (p / q).log()).sum()
    torch.testing.assert_close(apart, expected)
    (ours,) = torch.autograd.grad(apart, scores, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(ours, theirs)


def test_views_that_agree_add_nothing() -> None:
    view = torch.randn(3, 4, 29).log_softmax(2)
    assert disagreement(torch.cat([view, view]), torch.tensor([4, 1, 2] * 2)) == 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
def test_a_step_with_two_views_has_their_mean_ctc_loss_and_their_weighted_disagreement(tmp_path: Path) -> None:
    weighted = make_module(make_config(tmp_path, "augment.consistency_weight=0.5", "model.encoder.dropout=0"))
    waveforms, sample_lengths = torch.randn(2, 16000) * 0.1, torch.tensor([16000, 12000])
    targets, target_lengths = torch.tensor([[3, 9, 4], [5, 6, 0]]), torch.tensor([3, 2])
    loss = weighted.training_step(Batch(waveforms, sample_lengths, targets, target_lengths, ["", ""], ["a", "b"]), 0)

    doubled = [torch.cat([tensor, tensor]) for tensor in (waveforms, sample_lengths, targets, target_lengths)]
    views = Batch(*doubled, [""] * 4, list("abab"))
    log_probs, lengths = weighted.model.log_probs(*weighted.augmented_features(views))
    assert not torch.equal(log_probs[:2], log_probs[2:]), "each view is augmented in its own way"
    tokens = torch.tensor(5)
    ctc = [
        weighted._loss(log_probs[rows], lengths[rows], views_of(views, rows), tokens)[0]
        for rows in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(loss, sum(ctc) / 2 + 0.5 * disagreement(log_probs, lengths) / 10)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in weighted.parameters())


def views_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return Batch(**{name: value if name == "unreadable" else value[rows] for name, value in vars(batch).items()})


def test_matrices_decay_and_vectors_do_not(make_model: Callable[[], CTCModel]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3), 100)["optimizer"]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert decay.keys() == {id(parameter) for parameter in named.values()}
    assert {name: decay[id(parameter)] for name, parameter in named.items()} == {
        name: 0.0 if "bias" in name or "norm" in name else 0.3 for name in named
    }


@pytest.mark.parametrize(("warmup_share", "warmup"), [(0.1, 20), (0.25, 50), (0.0, 1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(
    make_model: Callable[[], CTCModel], warmup_share: float, warmup: int
) -> None:
    parts = make_optimizer(make_model(), OptimizerConfig(learning_rate=0.5, warmup_share=warmup_share), 200)
    rates = []
    for _ in range(200):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.5 / warmup)
    assert max(rates) == rates[warmup - 1] == 0.5
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert parts["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0)


def test_the_schedule_spans_the_whole_training(finished_run: Path) -> None:
    rates = [values[0] for values in read_scalars(finished_run)["lr"].values()]
    assert max(rates) == pytest.approx(2e-3)
    assert read_checkpoint(finished_run / "last.ckpt")["lr_schedulers"][0]["_last_lr"] == [0.0, 0.0]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_other_cells_train(tmp_path: Path, cell: str) -> None:
    train(make_config(tmp_path, "trainer.epochs=1", f"model.encoder.cell={cell}"))
    assert load_model(tmp_path / "model.safetensors").config.encoder.cell == cell


def test_a_sentencepiece_vocabulary_is_learned_from_the_training_text_and_kept(tmp_path: Path) -> None:
    pieces = ["vocabulary.kind=sentencepiece", "vocabulary.size=40"]
    train(make_config(tmp_path, "trainer.epochs=1", *pieces))
    train(make_config(tmp_path, "trainer.epochs=2", *pieces), resume=True)
    vocabulary = load_model(tmp_path / "model.safetensors").vocabulary
    assert isinstance(vocabulary, SentencePieceVocabulary)
    assert len(vocabulary) == 40
    assert vocabulary.decode(vocabulary.encode("HE HAD NEVER BEEN FATHER")) == "HE HAD NEVER BEEN FATHER"


def test_half_precision_trains_and_computes_otherwise_than_full(tmp_path: Path, finished_run: Path) -> None:
    train(make_config(tmp_path, "trainer.epochs=1", "trainer.precision=bf16-mixed"))
    half, full = (read_scalars(folder)["train/loss"][0][0] for folder in (tmp_path, finished_run))
    assert half != full
    assert half == pytest.approx(full, rel=0.05)


def test_the_checked_corpus_of_the_samples_is_whole(model: CTCModel) -> None:
    config = TrainConfig()
    corpus = check_corpus(read_manifest(MANIFEST), model, config.data, config.augment)
    assert (len(corpus.examples), corpus.findings) == (6, {})


def real_batch(speech: list[Tensor]) -> Batch:
    rows = [speech[0][16000:40000], speech[1][16000:32000]]
    lengths = torch.tensor([len(row) for row in rows])
    targets = torch.tensor([[3, 9, 4], [5, 6, 0]])
    return Batch(pad_sequence(rows, batch_first=True), lengths, targets, torch.tensor([3, 2]), ["", ""], ["a", "b"])


def test_every_step_and_every_process_has_draws_of_its_own(
    tmp_path: Path, speech: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch, seen = make_module(make_config(tmp_path)), real_batch(speech), []
    for step, rank in product(range(2), range(2)):
        monkeypatch.setattr(CTCTrainingModule, "global_step", step)
        monkeypatch.setattr(CTCTrainingModule, "global_rank", rank)
        features, _ = module.augmented_features(batch)
        assert all(features.shape != other.shape or not torch.equal(features, other) for other in seen)
        assert torch.equal(features, module.augmented_features(batch)[0])
        seen.append(features)


def test_the_training_step_masks_features(tmp_path: Path, speech: list[Tensor]) -> None:
    module = make_module(
        make_config(tmp_path, "augment.speeds=[1.0]", "augment.gain_db=0", "augment.noise_probability=0")
    )
    batch = real_batch(speech)
    plain, lengths = module.model.frontend(batch.waveforms, batch.sample_lengths)
    masked, masked_lengths = module.augmented_features(batch)
    assert torch.equal(masked_lengths, lengths)
    assert torch.equal(torch.where(masked == 0, 0.0, plain), masked)
    assert 0.05 < ((masked == 0) & (plain != 0)).float().mean() < 0.9


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_memory_of_squared_gradients_is_the_settings(make_model: Callable[..., CTCModel], name: str) -> None:
    optimizer = make_optimizer(make_model(), OptimizerConfig(name=name, beta2=0.7), 10)["optimizer"]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.7)}


@pytest.mark.parametrize(
    ("settings", "has_gpu", "has_bf16", "chosen"),
    [
        ({}, True, False, "16-mixed"),
        ({}, False, True, "bf16-mixed"),
        ({}, False, False, "32-true"),
        ({"accelerator": "cpu"}, True, False, "32-true"),
        ({"precision": "32-true"}, True, True, "32-true"),
    ],
)
def test_the_precision_is_half_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], has_gpu: bool, has_bf16: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_precision(TrainerConfig(**settings)) == chosen


class Norms(lightning.Callback):
    """The lengths of the gradients that the optimizer stepped with."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        self.norms += [float(torch.nn.utils.get_total_norm(gradients))] if gradients else []


def test_longer_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped_with = Norms()
    train_with(monkeypatch, stepped_with, make_config(tmp_path, "trainer.epochs=1", "optimizer.clip_norm=0.01"))
    found = [values[0] for values in read_scalars(tmp_path)["train/gradient_norm"].values()]
    assert stepped_with.norms
    assert max(stepped_with.norms) <= 0.01001 < min(found)


def test_what_the_fastest_speed_leaves_no_steps_for_is_not_trained_on(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()][:2]
    lines = [line | {"audio": str(MANIFEST.parent / line["audio"])} for line in lines]
    lines[0].update(text="ABABABABAB", duration=0.39)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    _, corpus, _ = prepare_training(make_config(tmp_path, f"data.train=[{manifest}]"))
    assert list(corpus.findings) == ["left out, too few steps for CTC"]


def test_the_logged_loss_and_share_of_blanks_are_those_of_the_saved_model(tmp_path: Path) -> None:
    train(make_config(tmp_path, "trainer.epochs=1", "trainer.average_decay=0", "optimizer.learning_rate=1e-2"))
    model, nats, tokens, blanks, steps = load_model(tmp_path / "model.safetensors"), 0.0, 0, 0, 0
    for utterance in read_manifest(MANIFEST):
        samples = read_audio(utterance.audio_path, 16000)
        targets = torch.tensor([model.vocabulary.encode(utterance.text)])
        with torch.no_grad():
            log_probs, lengths = model(samples[None], torch.tensor([len(samples)]))
        sizes = lengths, torch.tensor([targets.shape[1]])
        nats += float(torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, *sizes, reduction="sum"))
        tokens, steps = tokens + targets.shape[1], steps + int(lengths)
        blanks += int((log_probs.argmax(2) == 0).sum())
    assert last_value(tmp_path, "valid/loss") == pytest.approx(nats / tokens, rel=1e-3)
    assert last_value(tmp_path, "valid/blank_share") == pytest.approx(blanks / steps, abs=3 / steps)


def test_what_both_sets_hold_is_told(finished_run: Path) -> None:
    told = (finished_run / "data.txt").read_text(encoding="utf-8")
    assert "utterances of the valid set that are in the training set too: 6" in told


def test_speeds_are_per_second_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    logged: dict[str, float] = {}
    monkeypatch.setattr("asr.monitor.time", SimpleNamespace(perf_counter=lambda: now[0]))
    module: Any = SimpleNamespace(log_dict=lambda rates, **_: logged.update(rates))
    trainer: Any = SimpleNamespace(global_step=1)
    lengths, none = torch.tensor([32000, 16000]), torch.zeros(2)
    batch = Batch(torch.zeros(2, 9), lengths, none, none, ["", ""], ["a", "b"])
    monitor = TrainingMonitor(16000, log_every_steps=1)
    monitor.on_train_start(trainer, module)
    now[0] = 1.0
    monitor.on_train_batch_start(trainer, module, batch, 0)
    now[0] = 4.0
    monitor.on_train_batch_end(trainer, module, None, batch, 0)
    assert logged == {
        "speed/utterances_per_second": 0.5,
        "speed/audio_seconds_per_second": 0.75,
        "speed/data_wait_share": 0.25,
    }


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


def test_half_precision_begins_behind_the_augmentation(tmp_path: Path, speech: list[Tensor]) -> None:
    module, batch = make_module(make_config(tmp_path, "augment.speeds=[0.9]")), real_batch(speech)
    plain, _ = module.augmented_features(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = module.augmented_features(batch)
    assert torch.equal(features, plain)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_run_takes_the_rates_of_its_recipe(tmp_path: Path, name: str) -> None:
    def begin(*overrides: str) -> tuple[CTCTrainingModule, dict[str, Any]]:
        module = make_module(make_config(tmp_path, f"optimizer.name={name}", *overrides))
        return module, make_optimizer(module.model, module.config.optimizer, 10)

    def step(parts: dict[str, Any]) -> None:
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()

    changed = ("optimizer.learning_rate=1e-5", "optimizer.weight_decay=0.5", "optimizer.beta2=0.7")
    _, before = begin("optimizer.learning_rate=2e-3")
    module, expected = begin(*changed)
    for _ in range(4):
        step(before)
        step(expected)
    scheduler = before["lr_scheduler"]["scheduler"]
    checkpoint = {"optimizer_states": [before["optimizer"].state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    module.on_load_checkpoint({"vocabulary": module.model.vocabulary.to_dict(), **checkpoint})
    _, resumed = begin(*changed)
    resumed["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
    resumed["lr_scheduler"]["scheduler"].load_state_dict(checkpoint["lr_schedulers"][0])
    for _ in range(6):
        for ours, theirs in zip(resumed["optimizer"].param_groups, expected["optimizer"].param_groups, strict=True):
            assert ours["lr"] == pytest.approx(theirs["lr"])
            assert (ours["weight_decay"], ours["betas"]) == (theirs["weight_decay"], theirs["betas"])
        step(resumed)
        step(expected)


def test_what_patience_has_counted_is_in_the_checkpoint_and_the_patience_is_the_recipes(tmp_path: Path) -> None:
    settings = ["trainer.patience=2", "optimizer.learning_rate=1e-12"]
    train(make_config(tmp_path, "trainer.epochs=5", *settings))
    states = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    (state,) = (state for state in states.values() if "wait_count" in state)
    assert state["wait_count"] == 2
    patience = asr.training._Patience(5)
    patience.load_state_dict(state)
    assert (patience.patience, patience.wait_count) == (5, 2)


def test_a_run_with_an_average_is_not_resumed_without_one(tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    average = load_config(finished_run / "config.yaml").trainer.average_decay
    other = 0.0 if average > 0 else 0.9
    with pytest.raises(AsrError, match=f"was trained with trainer.average_decay={average}"):
        train(make_config(tmp_path / "run", f"trainer.average_decay={other}"), resume=True)
