"""Validation: its numbers are those of the model that is saved, which is the best and holds averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import (
    MANIFEST,
    last_value,
    lose,
    make_config,
    read_checkpoint,
    sample_lines,
    train_with,
    write_lines,
)

import asr.checkpoints
from asr.audio import read_audio
from asr.errors import AsrError
from asr.evaluation import evaluate
from asr.learning import CTCTrainingModule
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_while_no_word_is_right_the_lower_loss_is_the_better_model_and_keeps_the_training_going(tmp_path: Path) -> None:
    train(make_config(tmp_path, "trainer.epochs=4", "trainer.patience=1", "trainer.average_decay=0"))
    assert last_value(tmp_path, "valid/wer") == 1
    assert [read_checkpoint(tmp_path / name)["epoch"] for name in ("last.ckpt", "best.ckpt")] == [3, 3]


def test_an_epoch_without_a_validation_leaves_the_best_checkpoint_as_it_is(tmp_path: Path) -> None:
    frozen = "optimizer.learning_rate=1e-30"  # the second validation is no better
    train(make_config(tmp_path, "trainer.epochs=4", "trainer.valid_every_epochs=2", frozen))
    assert [read_checkpoint(tmp_path / name)["epoch"] for name in ("last.ckpt", "best.ckpt")] == [3, 1]


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
            steps = trainer.global_step - 1
            decay = min(0.8, (1 + steps) / (10 + steps))
            self.weight = decay * self.weight + (1 - decay) * now if steps else now

    average = Average()
    train_with(monkeypatch, average, make_config(tmp_path, "trainer.epochs=1"))
    train_with(monkeypatch, average, make_config(tmp_path, "trainer.epochs=6"), resume=True)
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

    def save(model: CTCModel, path: Path) -> None:
        path.touch()
        saved_at.append(rate["now"])

    monkeypatch.setattr(asr.checkpoints, "save_model", save)
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


def test_words_that_cannot_be_read_count_as_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a validation without its hard utterances would be the best, and one without any perfect."""
    losing = ["data.batch_seconds=11", "trainer.epochs=1", "optimizer.learning_rate=1e-30"]
    train(make_config(tmp_path / "whole", *losing))
    lost, *others = read_manifest(MANIFEST)
    lose(monkeypatch, lost.audio_path)
    train(make_config(tmp_path / "lossy", *losing))
    whole, lossy = (last_value(tmp_path / name, "valid/cer") for name in ("whole", "lossy"))
    evaluation = evaluate(load_model(tmp_path / "whole" / "model.safetensors"), [lost])
    (item,) = evaluation.scored
    length = sum(len(utterance.text) for utterance in (lost, *others))
    missed = item.characters.reference_length - item.characters.errors
    assert lossy - whole == pytest.approx(missed / length, abs=2 / length)


def test_a_valid_set_without_a_word_is_refused(tmp_path: Path) -> None:
    manifest = write_lines([line | {"text": "42"} for line in sample_lines()], tmp_path / "valid.jsonl")
    with pytest.raises(AsrError, match=r"data\.valid: no transcript has a letter of the model's alphabet"):
        train(make_config(tmp_path / "run", f"data.valid=[{manifest}]"))


def test_an_empty_reference_can_be_validated(tmp_path: Path) -> None:
    manifest = write_lines([line | {"text": "42"} for line in sample_lines()[:2]], tmp_path / "valid.jsonl")
    train(make_config(tmp_path / "run", "trainer.epochs=1", f"data.valid=[{manifest},{MANIFEST}]"))
    assert torch.isfinite(torch.tensor(last_value(tmp_path / "run", "valid/loss")))
