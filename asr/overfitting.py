"""A few utterances learned by heart: whether these data, this model and these settings can learn at all, in minutes.

Where that fails, no number of hours will help: a transcript belongs to other audio, a learning rate is wrong.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from asr.check import check_corpus
from asr.config import AugmentConfig, TrainConfig
from asr.errors import AsrError
from asr.evaluation import Evaluation, evaluate
from asr.folders import read_many
from asr.initial import make_model
from asr.manifest import read_manifest, write_manifest
from asr.modelfile import load_model, save_model
from asr.plotting import EVENT_FILES, LOG_NAME
from asr.training import MODEL_NAME, train

__all__ = ["LEARNED_WER", "overfit", "overfit_config"]

EPOCHS, VALIDATIONS = 100, 10
"""Of four batches each; it ends earlier where no word is wrong any more."""

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
    small = overfit_config(config, count)
    model = load_model(train(small, is_trial=True))
    return evaluate(model, read_manifest(small.data.train[0]))


def overfit_config(config: TrainConfig, count: int) -> TrainConfig:
    """The recipe on those utterances, without augmentation and dropout; writes their manifest to its output folder."""
    output_dir = Path(f"{Path(config.output_dir)}-overfit")
    manifest = output_dir / MANIFEST_NAME
    patterns = "*.ckpt", MODEL_NAME, f"{LOG_NAME}/{EVENT_FILES}"
    earlier = [path for pattern in patterns for path in output_dir.glob(pattern)]
    if earlier and not manifest.exists():
        raise AsrError(f"{output_dir} holds a training that is no trial; move it, or set another output_dir=")
    limits = config.data
    utterances = read_many(config.data.train)
    torch.manual_seed(config.trainer.seed)
    model = make_model(config, (utterance.text for utterance in utterances))  # few texts are too few to learn pieces
    examples = check_corpus(utterances, model, limits, NO_AUGMENTATION).examples[:count]
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in earlier:  # of a trial, which nobody resumes
        path.unlink()
    write_manifest([example.utterance for example in examples], manifest)
    initial_model = output_dir / "initial.safetensors"
    save_model(model, initial_model)
    batch_seconds = max(limits.max_seconds, sum(example.utterance.duration_seconds for example in examples) / 4)
    encoder = dataclasses.replace(config.model.encoder, dropout=0.0)
    return dataclasses.replace(
        config,
        output_dir=str(output_dir),
        initial_model=str(initial_model),
        model=dataclasses.replace(config.model, encoder=encoder),
        vocabulary=dataclasses.replace(config.vocabulary, characters="", pronunciations=""),  # of the initial model
        augment=NO_AUGMENTATION,
        data=dataclasses.replace(limits, train=[str(manifest)], valid=[str(manifest)], batch_seconds=batch_seconds),
        trainer=dataclasses.replace(
            config.trainer,
            epochs=EPOCHS,
            valid_every_epochs=EPOCHS // VALIDATIONS,
            patience=VALIDATIONS,
            average_decay=0.0,
            devices="1",
        ),
    )
