"""Training: a recipe to a model file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from zlib import crc32

import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, WeightAveraging
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import TensorBoardLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn

from asr.check import CheckedCorpus, check_corpus, find_shared
from asr.checkpoints import MODEL_NAME, NONE_YET, BestModelFile, RunCheckpoints
from asr.config import TrainConfig, TrainerConfig
from asr.data import SpeechDataModule
from asr.devices import choose_accelerator, choose_precision, full_float32
from asr.engine import explain_dead_readers, quiet_lightning
from asr.errors import AsrError
from asr.folders import read_many
from asr.guards import Guards
from asr.initial import make_model
from asr.learning import CTCTrainingModule
from asr.locks import locked
from asr.model import CTCModel
from asr.monitor import Pictures, ProgressBar, SampleTranscripts, TrainingMonitor, make_progress
from asr.newfiles import new_text_file
from asr.plotting import LOG_NAME
from asr.ranks import is_first_process, process_arguments
from asr.resuming import find_resume_point
from asr.words import split_words

__all__ = ["prepare_training", "train"]

log = logging.getLogger(__name__)

NO_ERROR = 1e-9
"""A WER that only 0 is below."""

LOCK_SECONDS = 20.0
"""For another training in the same folder to end."""


def train(config: TrainConfig, *, resume: bool = False, is_trial: bool = False) -> Path:
    """Train a model by a recipe; returns the path of its model file, the best by valid WER.

    resume: continue the run in `config.output_dir` where it stopped; under torchrun and SLURM, whose restarts repeat
    the first command, begin it where there is none. is_trial: nobody will continue it.
    Raises AsrError for data that cannot be trained on, a device that is not there and an output folder that holds
    another run.
    """
    output_dir = Path(config.output_dir)
    choose_precision(config.trainer)  # raises what this machine lacks before the data are read
    checkpoint = find_resume_point(config, resume)
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    torch.manual_seed(config.trainer.seed)
    model, train_corpus, valid_corpus = prepare_training(config)
    output_dir.mkdir(parents=True, exist_ok=True)
    data = SpeechDataModule(train_corpus, valid_corpus, config.data, model, config.trainer.seed)
    module = CTCTrainingModule(model, config, (example.reference for example in train_corpus.examples))
    with _alone_in(output_dir), quiet_lightning(), full_float32(), closing(data), explain_dead_readers():
        if checkpoint is None and is_first_process():
            find_resume_point(config, resume)  # another training may have been here while the data were checked
        trainer = make_trainer(config, model.sample_rate, train_corpus, valid_corpus, is_trial)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    model_file = output_dir / MODEL_NAME
    if is_first_process() and not model_file.exists():
        raise AsrError(f"{model_file} is gone, and no validation is left to write it; resume with more trainer.epochs=")
    return model_file


def prepare_training(config: TrainConfig) -> tuple[CTCModel, CheckedCorpus, CheckedCorpus]:
    """The model with its initial weights, and the checked training and valid sets; the findings are logged."""
    if not config.data.train or not config.data.valid:
        raise AsrError("data.train and data.valid must each name a manifest")
    utterances = read_many(config.data.train)
    model = make_model(config, (utterance.text for utterance in utterances))
    train_corpus = check_corpus(utterances, model, config.data, config.augment)
    valid_corpus = check_corpus(read_many(config.data.valid), model)
    if not any(split_words(example.reference) for example in valid_corpus.examples):
        raise AsrError("data.valid: no transcript has a letter of the model's alphabet, so no error could be counted")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("model: %.1f million parameters, %d tokens", parameters / 1e6, len(model.vocabulary))
    log.info("train: %s\nvalid: %s", train_corpus.report(), valid_corpus.report())
    if model.pronunciations is not None:
        words = {word for example in train_corpus.examples for word in split_words(example.reference)}
        known = sum(word in model.pronunciations for word in words)
        told = f"{known:,} of {len(words):,} words to learn are in it, the others are pronounced by analogy"
        log.log(logging.INFO if 2 * known > len(words) else logging.WARNING, "pronouncing dictionary: %s", told)
    return model, train_corpus, valid_corpus


@contextmanager
def _alone_in(output_dir: Path) -> Iterator[None]:
    """Keep a second training out of the folder. The reading processes of a killed one hold it for some seconds more."""
    with locked(output_dir / ".lock", wait_seconds=LOCK_SECONDS) if is_first_process() else nullcontext():
        yield


def make_trainer(
    config: TrainConfig, sample_rate: int, train_corpus: CheckedCorpus, valid_corpus: CheckedCorpus, is_trial: bool
) -> lightning.Trainer:
    """Lightning's Trainer with this recipe's callbacks, writing to its output folder."""
    settings, output_dir = config.trainer, Path(config.output_dir)
    valid = [(example.reference, example.utterance.duration_seconds) for example in valid_corpus.examples]
    best_model = BestModelFile(output_dir / MODEL_NAME, crc32(repr(valid).encode()))
    progress = make_progress()
    # The order matters in four places. best_model stands before _Patience, which begins anew where best_model's
    # on_train_start has reset `best`, and before the averaging, which puts the raw weights back when a validation ends.
    # TrainingMonitor stands after the averaging, whose time would else count as waiting for data. RunCheckpoints stands
    # last: what it saves is a state in which all others are done.
    callbacks: list[lightning.Callback] = [
        progress,
        SampleTranscripts(),
        Pictures(),
        best_model,
        Guards(len(train_corpus.examples), len(valid_corpus.examples)),
        _Reports(config, train_corpus, valid_corpus),
        *([_Patience(settings.patience, best_model)] if settings.patience > 0 else []),
        *([_make_averaging(settings)] if settings.average_decay > 0 else []),
        TrainingMonitor(sample_rate, settings.log_every_steps),
        RunCheckpoints(output_dir, best_model, settings.checkpoint_minutes, is_trial=is_trial),
    ]
    return lightning.Trainer(
        accelerator=choose_accelerator(settings),
        **process_arguments(settings),
        precision=choose_precision(settings),
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.valid_every_epochs,
        gradient_clip_val=config.optimizer.clip_norm,
        callbacks=callbacks,
        enable_checkpointing=False,
        logger=TensorBoardLogger(output_dir, name=LOG_NAME, version=""),
        log_every_n_steps=settings.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # it would give every epoch the first one's number of batches
        enable_progress_bar=isinstance(progress, ProgressBar),  # else Lightning adds its own
        enable_model_summary=False,
    )


def _make_averaging(settings: TrainerConfig) -> WeightAveraging:
    """A moving average of the weights, created on the training device because Lightning builds it before the model is
    moved there.

    It never spans more than about a ninth of the steps so far, so a short training is not pulled back towards its
    random initial weights.
    """

    def average(averages: Any, weights: Any, steps: Any) -> None:
        done = int(steps)
        decay = min(settings.average_decay, (1 + done) / (10 + done))
        get_ema_multi_avg_fn(decay)(averages, weights, steps)

    # Buffers, such as the frontend's filters, are in no checkpoint; an average would drift by rounding until a resume.
    return WeightAveraging(choose_accelerator(settings), use_buffers=False, multi_avg_fn=average)


class _Patience(EarlyStopping):
    """Ends a training without progress; counts before an epoch's checkpoint is written, and in it."""

    def __init__(self, patience: int, best_model: BestModelFile) -> None:
        super().__init__("valid/wer", patience=patience, stopping_threshold=NO_ERROR, check_on_train_epoch_end=False)
        self.best_model = best_model

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Of equal WER another measure tells the progress."""
        if self.best_model.improved:
            self.wait_count = -1  # Lightning's own count, which sees the WER alone, adds 1
        super().on_validation_end(trainer, module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """All but the patience, which the recipe may have changed."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """A run that had ended early is not continued by a resume, unless its patience is greater now."""
        if self.best_model.best == NONE_YET:  # of this valid set
            self.wait_count, self.best_score = 0, torch.tensor(math.inf)
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        has_learned_all = self.stopping_reason == EarlyStoppingReason.STOPPING_THRESHOLD
        trainer.should_stop = has_learned_all or self.wait_count >= self.patience

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.stopping_reason == EarlyStoppingReason.STOPPING_THRESHOLD:
            log.info("ended early: every word of the valid set is right")
        elif self.wait_count >= self.patience:
            log.info("ended early: no lower WER in %d validations in a row (trainer.patience)", self.wait_count)


class _Reports(lightning.Callback):
    """Writes config.yaml and the full data report beside the checkpoints once the training goes on from them."""

    def __init__(self, config: TrainConfig, train: CheckedCorpus, valid: CheckedCorpus) -> None:
        self.config, self.train, self.valid = config, train, valid

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """What the sets share is logged too."""
        if not is_first_process():
            return
        output_dir = Path(self.config.output_dir)
        with new_text_file(output_dir / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        shared = find_shared(self.train, self.valid)
        for line in shared:
            log.warning("%s", line)
        pages = [f"train: {self.train.report(most=None)}", f"valid: {self.valid.report(most=None)}", *shared]
        with new_text_file(output_dir / "data.txt") as file:
            file.write("\n".join(pages) + "\n")
