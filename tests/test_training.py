"""Training: it learns, and leaves what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_trainings import LEARNED, assert_same_run, make_config, read_checkpoint, read_scalars

from asr.modelfile import load_model
from asr.recipe import load_config
from asr.training import train
from asr.vocabulary import SentencePieceVocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_a_model_checkpoints_its_config_and_a_data_report(finished_run: Path) -> None:
    kept = ["best.ckpt", "config.yaml", "data.txt", "last.ckpt", "model.safetensors", "previous.ckpt", "tensorboard"]
    assert sorted(path.name for path in finished_run.iterdir()) == [".lock", *kept]
    assert load_config(finished_run / "config.yaml") == make_config(finished_run)
    assert "train: 6 utterances" in (finished_run / "data.txt").read_text(encoding="utf-8")
    model = load_model(finished_run / "model.safetensors")
    assert model.config == make_config(finished_run).model
    assert read_checkpoint(finished_run / "last.ckpt")["epoch"] == 2


def test_what_both_sets_hold_is_told_in_the_data_report(finished_run: Path) -> None:
    told = (finished_run / "data.txt").read_text(encoding="utf-8")
    assert "utterances of the valid set that are in the training set too: 6" in told


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


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path, finished_run: Path) -> None:
    torch.rand(3)  # what happened before must not matter
    train(make_config(tmp_path / "same"))
    assert_same_run(finished_run, tmp_path / "same")
    train(make_config(tmp_path / "other", "trainer.seed=2", "trainer.epochs=1"))
    one, other = (read_scalars(folder)["train/loss"][0] for folder in (finished_run, tmp_path / "other"))
    assert one != other


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
