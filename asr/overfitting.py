"""A few utterances learned by heart: whether these data, this model and these settings can learn at all, in minutes.

Where that fails, no number of hours will help: a transcript belongs to other audio, a learning rate is wrong.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from asr.check import check_corpus
from asr.checkpoints import MODEL_NAME
from asr.config import AugmentConfig, TrainConfig
from asr.errors import AsrError
from asr.evaluation import Evaluation, evaluate
from asr.folders import read_many
from asr.initial import make_model
from asr.manifest import read_manifest, write_manifest
from asr.modelfile import load_model, save_model
from asr.plotting import EVENT_FILES, LOG_NAME
from asr.training import train

__all__ = ["LEARNED_WER", "overfit", "prepare_trial"]

EPOCHS, VALIDATIONS = 100, 10
"""It ends earlier where no word is wrong any more."""

BATCHES = 4
"""Of an epoch; fewer where that would be less than the longest utterance that a recipe allows."""

LEARNED_WER = 0.05
"""A higher one on the very utterances that were learned means that something is wrong."""

MANIFEST_NAME = "overfit.jsonl"
"""By which a trial's output folder is known."""

NO_AUGMENTATION = AugmentConfig(
    speeds=[1.0], gain_db=0.0, noise_probability=0.0, num_frequency_masks=0, num_time_masks=0
)


def overfit(config: TrainConfig, count: int) -> Evaluation:
    """Train by a recipe on the first `count` usable utterances of its training set alone, and evaluate on them.

    Raises AsrError as `train` does.
    """
    small = prepare_trial(config, count)
    model = load_model(train(small, is_trial=True))
    return evaluate(model, read_manifest(small.data.train[0]))


def prepare_trial(config: TrainConfig, count: int) -> TrainConfig:
    """The recipe for those utterances, whose manifest and first model it writes to an output folder of their own.

    Raises AsrError where that folder holds a training that is no trial.
    """
    if count < 1:
        raise AsrError(f"count={count} must be at least 1")
    if not config.data.train:
        raise AsrError("data.train must name a manifest")
    output_dir = Path(f"{Path(config.output_dir)}-overfit")
    manifest, initial_model = output_dir / MANIFEST_NAME, output_dir / "initial.safetensors"
    earlier = _find_earlier(output_dir)
    utterances = read_many(config.data.train)
    torch.manual_seed(config.trainer.seed)
    model = make_model(config, (utterance.text for utterance in utterances))  # few texts are too few to learn pieces
    examples = check_corpus(utterances, model, config.data, NO_AUGMENTATION).examples[:count]
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in earlier:
        path.unlink()
    write_manifest([example.utterance for example in examples], manifest)
    save_model(model, initial_model)
    seconds = sum(example.utterance.duration_seconds for example in examples)
    return dataclasses.replace(
        _without_regularization(config),
        output_dir=str(output_dir),
        initial_model=str(initial_model),
        vocabulary=dataclasses.replace(config.vocabulary, characters="", pronunciations=""),  # of the initial model
        data=dataclasses.replace(
            config.data,
            train=[str(manifest)],
            valid=[str(manifest)],
            batch_seconds=max(config.data.max_seconds, seconds / BATCHES),
        ),
    )


def _find_earlier(output_dir: Path) -> list[Path]:
    """What an earlier trial left there, which nobody resumes."""
    patterns = "*.ckpt", MODEL_NAME, f"{LOG_NAME}/{EVENT_FILES}"
    earlier = [path for pattern in patterns for path in output_dir.glob(pattern)]
    if earlier and not (output_dir / MANIFEST_NAME).exists():
        raise AsrError(f"{output_dir} holds a training that is no trial; move it, or set another output_dir=")
    return earlier


def _without_regularization(config: TrainConfig) -> TrainConfig:
    """The recipe without augmentation, dropout and averages, long enough to learn by heart, in one process."""
    encoder = dataclasses.replace(config.model.encoder, dropout=0.0)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, encoder=encoder),
        augment=NO_AUGMENTATION,
        trainer=dataclasses.replace(
            config.trainer,
            epochs=EPOCHS,
            valid_every_epochs=EPOCHS // VALIDATIONS,
            patience=VALIDATIONS,
            average_decay=0.0,
            devices="1",
        ),
    )
