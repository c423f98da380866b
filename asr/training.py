"""Training: the Lightning module with CTC, and `train`, which turns a recipe into a model file.

Every random draw of a step is a function of the seed and the step, so a resumed run draws what an uninterrupted one
would have drawn.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy
import pytorch_lightning as lightning
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.nn.functional import ctc_loss

from asr.augment import augment_features, augment_waveforms
from asr.check import CheckedCorpus, check_corpus
from asr.config import OptimizerConfig, TrainConfig, TrainerConfig, load_config
from asr.data import Batch, SpeechDataModule
from asr.decoder import decode_greedy
from asr.errors import AsrError
from asr.features import valid_positions
from asr.manifest import read_manifests
from asr.metrics import ErrorCounts, character_errors, word_errors
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.monitor import SampleTranscripts, TrainingMonitor
from asr.text import BLANK_ID, CharacterVocabulary, SentencePieceVocabulary, Vocabulary, normalize_transcript

__all__ = ["CTCTrainingModule", "train"]

log = logging.getLogger(__name__)

MODEL_NAME, LAST_CHECKPOINT, BEST_CHECKPOINT = "model.safetensors", "last.ckpt", "best.ckpt"

FALSE_ALARMS = (
    "The '(train|val)_dataloader' does not have many workers",  # one reads faster than a model trains
    "The number of training batches",  # fewer than log_every_steps: the next epoch's count on
    "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler continues at the right batch
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own call
)
"""Beginnings of Lightning's warnings that do not hold here."""


class CTCTrainingModule(lightning.LightningModule):
    """What a step, a validation and the optimizer are."""

    def __init__(self, model: CTCModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.valid_words, self.valid_characters = ErrorCounts(), ErrorCounts()
        self.valid_pairs: list[tuple[str, str]] = []
        """Some references and hypotheses of the last validation."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(self._step_seed())  # dropout's draws

    def _step_seed(self) -> int:
        draws = numpy.random.SeedSequence([self.config.trainer.seed, self.global_step, self.global_rank])
        return int(draws.generate_state(1)[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CTC loss per target token of an augmented batch."""
        generator = torch.Generator().manual_seed(self._step_seed())
        augment = self.config.augment
        waveforms, sample_lengths = augment_waveforms(batch.waveforms, batch.sample_lengths, augment, generator)
        features, feature_lengths = self.model.frontend(waveforms, sample_lengths)
        features = augment_features(features, feature_lengths, augment, generator)
        loss, impossible = self._loss(*self.model.log_probs(features, feature_lengths), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ids))
        self.log("train/impossible_utterances", impossible, reduce_fx="sum", batch_size=len(batch.ids))
        return loss

    def _loss(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pooled CTC loss per target token, in float32, and how many utterances CTC could not write in their steps."""
        losses = ctc_loss(
            log_probs.transpose(0, 1),
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=BLANK_ID,
            reduction="none",
            zero_infinity=True,
        )
        # An utterance that CTC cannot write has infinite loss, which zero_infinity makes exactly 0.
        return losses.sum() / batch.target_lengths.sum().clamp(min=1), (losses == 0).sum().float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_probs, lengths = self.model(batch.waveforms, batch.sample_lengths)
        loss, _ = self._loss(log_probs, lengths, batch)
        hypotheses = [self.model.vocabulary.decode(tokens.token_ids) for tokens in decode_greedy(log_probs, lengths)]
        for reference, hypothesis in zip(batch.references, hypotheses):
            self.valid_words += word_errors(reference, hypothesis)
            self.valid_characters += character_errors(reference, hypothesis)
        self.valid_pairs.append((batch.references[0], hypotheses[0]))
        valid = valid_positions(lengths, log_probs.shape[1])
        blanks = (log_probs.argmax(2) == BLANK_ID)[valid].float().mean()
        empty = sum(not hypothesis for hypothesis in hypotheses) / len(hypotheses)
        shares = {"valid/loss": loss, "valid/blank_share": blanks, "valid/empty_hypothesis_share": empty}
        self.log_dict(shares, batch_size=len(batch.ids), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        self.valid_words, self.valid_characters = ErrorCounts(), ErrorCounts()
        self.valid_pairs = []

    def on_validation_epoch_end(self) -> None:
        """Log WER and CER from the counts of all ranks."""
        for name, counts in (("valid/wer", self.valid_words), ("valid/cer", self.valid_characters)):
            self.log(name, self.pooled_rate(counts), prog_bar=True, rank_zero_only=True)

    def pooled_rate(self, counts: ErrorCounts) -> float:
        """Errors of all ranks per reference word or character of all ranks."""
        sums = torch.tensor([counts.errors, counts.reference_length], device=self.device)
        errors, length = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return float(errors / max(1, length))

    def configure_optimizers(self) -> Any:
        total_steps = int(self.trainer.estimated_stepping_batches)
        return make_optimizer(self.model, self.config.optimizer, total_steps)


def make_optimizer(model: CTCModel, config: OptimizerConfig, total_steps: int) -> dict[str, Any]:
    """AdamW and its schedule, as Lightning wants them."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))
    warmup_steps = max(1, round(config.warmup_share * total_steps))

    def share_of_peak(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BestModelFile(lightning.Callback):
    """Writes the model file whenever a validation has the lowest WER so far, with the averaged weights if any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best_wer = float("inf")
        self.improved = False
        """Whether the last validation had the lowest WER so far."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, CTCTrainingModule)
        wer = module.pooled_rate(module.valid_words)
        self.improved = wer < self.best_wer
        if self.improved:
            self.best_wer = wer
            if trainer.is_global_zero:
                save_model(module.model, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"best_wer": self.best_wer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_wer = state_dict["best_wer"]


class Checkpoints(lightning.Callback):
    """Keeps last.ckpt resumable, and best.ckpt beside it.

    last.ckpt is written before each validation, at each epoch's end and when training stops by Ctrl-C or an error.
    Ctrl-C takes effect between two steps, so that no step is half done.
    """

    def __init__(self, output_dir: Path, best_model: BestModelFile) -> None:
        self.last, self.best = output_dir / LAST_CHECKPOINT, output_dir / BEST_CHECKPOINT
        self.best_model = best_model
        self._stop_asked = False

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._ask_to_stop)

    def _ask_to_stop(self, *_: Any) -> None:
        self._stop_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info("stopping after this step; Ctrl-C again stops at once")

    def on_train_batch_start(self, *_: Any) -> None:
        if self._stop_asked:
            raise KeyboardInterrupt

    def on_validation_batch_start(self, *_: Any) -> None:
        if self._stop_asked:
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        round_down_progress(trainer)
        self._save(trainer, self.last)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._save(trainer, self.last)
        if self.best_model.improved:
            self.best_model.improved = False
            self._save(trainer, self.best)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save where nothing has been since the last step. An error of one rank alone must not wait for the others."""
        asked = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if trainer.global_step == 0 or (trainer.world_size > 1 and not asked):
            return
        if not trainer.validating:
            round_down_progress(trainer)
            self._save(trainer, self.last)
        log.info("stopped at step %d; --resume continues from %s", trainer.global_step, self.last)

    def _save(self, trainer: lightning.Trainer, path: Path) -> None:
        """Write to a temporary name first, so that `path` is whole or as it was."""
        temporary = path.with_name(path.name + ".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, path)


def round_down_progress(trainer: lightning.Trainer) -> None:
    """Set Lightning's counters to "between two steps", the one place in an epoch from which it resumes exactly.

    Before an epoch's first step they say that the epoch is yet to begin, and after its last one that the validation is
    yet to run, in full.
    """
    epochs: Any = trainer.fit_loop.epoch_progress
    epoch_loop = trainer.fit_loop.epoch_loop
    batches: Any = epoch_loop.batch_progress
    done = batches.current.processed
    for tracker in (batches.total, batches.current, *((epochs.total, epochs.current) if done == 0 else ())):
        tracker.ready = tracker.started = tracker.completed = tracker.processed
    batches.is_last_batch = done == trainer.num_training_batches
    epoch_loop._batches_that_stepped = trainer.global_step
    if batches.is_last_batch and epoch_loop._should_check_val_epoch():
        epoch_loop._batches_that_stepped -= 1  # Lightning counts the last step once the validation has run
        validation = epoch_loop.val_loop.batch_progress
        validation.reset()
        validation.total.ready = validation.total.started = 1  # type: ignore[attr-defined]


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train a model by a recipe; returns the path of its model file, the best by valid WER.

    resume: continue the run in `config.output_dir` where it stopped.
    Raises AsrError for data that cannot be trained on and for an output folder that holds another run.
    """
    output_dir = Path(config.output_dir)
    checkpoint = output_dir / LAST_CHECKPOINT
    _check_output_dir(config, checkpoint, resume)
    torch.manual_seed(config.trainer.seed)
    model, train_corpus, valid_corpus = prepare_training(config)
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_reports(output_dir, config, train_corpus, valid_corpus)
    data = SpeechDataModule(train_corpus, valid_corpus, config.data, model, config.trainer.seed)
    module = CTCTrainingModule(model, config)
    with _quiet_lightning():
        trainer = make_trainer(config, model.sample_rate)
        trainer.fit(module, data, ckpt_path=checkpoint if resume else None, weights_only=True)
    return output_dir / MODEL_NAME


def prepare_training(config: TrainConfig) -> tuple[CTCModel, CheckedCorpus, CheckedCorpus]:
    """The model with its initial weights, and the checked training and valid sets; the findings are logged."""
    if not config.data.train or not config.data.valid:
        raise AsrError("data.train and data.valid must each name a manifest")
    utterances = read_manifests(config.data.train)
    references = [normalize_transcript(utterance.text) for utterance in utterances]
    model = CTCModel(config.model, make_vocabulary(config, references))
    train_corpus = check_corpus(utterances, model, config.data, config.augment)
    valid_corpus = check_corpus(read_manifests(config.data.valid), model, None, None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("model: %.1f million parameters, %d tokens", parameters / 1e6, len(model.vocabulary))
    log.info("train: %s\nvalid: %s", train_corpus.report(), valid_corpus.report())
    return model, train_corpus, valid_corpus


def make_vocabulary(config: TrainConfig, references: Sequence[str]) -> Vocabulary:
    """Characters, or pieces learned from the training references."""
    if config.vocabulary.kind == "characters":
        return CharacterVocabulary()
    return SentencePieceVocabulary.train(references, config.vocabulary.size)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning without its tips and false alarms, its progress bar on stderr, and Ctrl-C afterwards as it was."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels, handler = [logger.level for logger in loggers], signal.getsignal(signal.SIGINT)
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            for message in FALSE_ALARMS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def make_trainer(config: TrainConfig, sample_rate: int) -> lightning.Trainer:
    """Lightning's Trainer with this recipe's callbacks, writing to its output folder."""
    settings, output_dir = config.trainer, Path(config.output_dir)
    best_model = BestModelFile(output_dir / MODEL_NAME)
    callbacks: list[lightning.Callback] = [
        TrainingMonitor(sample_rate, settings.log_every_steps),
        SampleTranscripts(),
        best_model,  # before the averaging puts the raw weights back
        Checkpoints(output_dir, best_model),
    ]
    if settings.average_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=settings.average_decay))
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices if settings.devices == "auto" else int(settings.devices),
        precision=choose_precision(settings),
        max_epochs=settings.epochs,
        check_val_every_n_epoch=settings.valid_every_epochs,
        gradient_clip_val=config.optimizer.clip_norm,
        callbacks=callbacks,
        enable_checkpointing=False,
        logger=TensorBoardLogger(output_dir, name="tensorboard", version=""),
        log_every_n_steps=settings.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # it would give every epoch the first one's number of batches
        enable_model_summary=False,
    )


def choose_precision(settings: TrainerConfig) -> Any:
    """Lightning's name of the precision; `auto` takes half precision only where the device computes in it."""
    if settings.precision != "auto":
        return settings.precision
    if settings.accelerator != "cpu" and torch.cuda.is_available():
        return "16-mixed"  # cuDNN's recurrent layers take fp16 in every version, bf16 only in the newest
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def _check_output_dir(config: TrainConfig, checkpoint: Path, resume: bool) -> None:
    """Raise AsrError where a run would overwrite another, or continue one of another model."""
    if not resume:
        if checkpoint.exists():
            raise AsrError(f"{config.output_dir} holds a run; continue it with --resume, or set another output_dir=")
        return
    if not checkpoint.is_file():
        raise AsrError(f"{checkpoint} not found: there is nothing to resume; start without --resume")
    before = load_config(checkpoint.parent / "config.yaml")
    for section in ("model", "vocabulary"):
        if getattr(before, section) != getattr(config, section):
            raise AsrError(f"{config.output_dir} was trained with another {section} section; see its config.yaml")


def _write_reports(output_dir: Path, config: TrainConfig, train: CheckedCorpus, valid: CheckedCorpus) -> None:
    """config.yaml and the full data report beside the checkpoints."""
    (output_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    report = f"train: {train.report(most=None)}\nvalid: {valid.report(most=None)}\n"
    (output_dir / "data.txt").write_text(report, encoding="utf-8")
