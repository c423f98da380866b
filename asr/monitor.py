"""What a training shows besides its losses: progress; in TensorBoard learning rate, gradients, speed, transcripts."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from asr.counters import place_of
from asr.data import Batch
from asr.vocabulary import BLANK_ID

__all__ = ["Pictures", "ProgressBar", "SampleTranscripts", "TrainingMonitor", "make_progress"]

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 60.0

PAIRS_PER_EPOCH = 8

ALIGNED = 3
"""Valid utterances of which the token probabilities are drawn."""

PIXELS = 3
"""Width and height of a point in a picture."""


class TrainingMonitor(lightning.Callback):
    """Logs learning rate, utterances and audio seconds per second, and the share of time waiting."""

    def __init__(self, sample_rate: int, log_every_steps: int) -> None:
        self.sample_rate = sample_rate
        self.log_every_steps = log_every_steps
        self._clear(time.perf_counter())

    def _clear(self, now: float) -> None:
        self._since = self._batch_ended = now
        self._waited = self._audio_seconds = 0.0
        self._utterances = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._clear(time.perf_counter())  # a run resumed inside an epoch has no on_train_epoch_start

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._clear(time.perf_counter())  # validation is no part of the rates

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._batch_ended

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        module.log("lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self._utterances += len(batch.ids)
        self._audio_seconds += float(batch.sample_lengths.sum()) / self.sample_rate
        self._batch_ended = now = time.perf_counter()
        if trainer.global_step % self.log_every_steps == 0:
            elapsed = now - self._since
            rates = {
                "speed/utterances_per_second": self._utterances / elapsed,
                "speed/audio_seconds_per_second": self._audio_seconds / elapsed,
                "speed/data_wait_share": self._waited / elapsed,
            }
            module.log_dict(rates, batch_size=1)
            self._clear(now)


class ProgressBar(TQDMProgressBar):
    """Lightning's, which has no total and a false rate for an epoch that a resume begins in the middle."""

    def on_train_start(self, trainer: lightning.Trainer, *others: Any) -> None:
        super().on_train_start(trainer, *others)
        if (done := place_of(trainer).batches_done) > 0:  # no on_train_epoch_start follows, or it sets these anew
            self.on_train_epoch_start(trainer)
            self.train_progress_bar.initial = self.train_progress_bar.n = done


class ProgressLines(lightning.Callback):
    """What the bar shows, in a line of the log a minute and one after each validation."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._began = self._told = time.perf_counter()
        self._share_before = _share_done(trainer)  # of a run that is resumed

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if now - self._told < SECONDS_PER_LINE:
            return
        self._told, share = now, _share_done(trainer)
        left = timedelta(seconds=round((now - self._began) * (1 - share) / (share - self._share_before)))
        place = f"batch {place_of(trainer).batches_done} of {trainer.num_training_batches}"
        log.info("%s, %s: loss %.3f, %s left", _epoch(trainer), place, trainer.progress_bar_metrics["train/loss"], left)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:  # which alone has the error rates of all
            return
        metrics = trainer.callback_metrics
        rates = ((name, metrics.get(f"valid/{name.lower()}")) for name in ("WER", "CER", "PER"))
        shown = (f"{name} {100 * float(rate):.1f} %" for name, rate in rates if rate is not None)
        log.info("%s: valid %s", _epoch(trainer), ", ".join(shown))


def _epoch(trainer: lightning.Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"


def _share_done(trainer: lightning.Trainer) -> float:
    """Of all epochs, taken as equally long."""
    epochs = trainer.current_epoch + place_of(trainer).batches_done / trainer.num_training_batches
    return float(epochs / int(trainer.max_epochs or 1))


def make_progress() -> ProgressBar | ProgressLines:
    """A bar where one can be drawn, on terminals and in notebooks; elsewhere it would fill a file."""
    return ProgressBar() if sys.stderr.isatty() or "ipykernel" in sys.modules else ProgressLines()


class SampleTranscripts(lightning.Callback):
    """Writes a few references and hypotheses of each validation to TensorBoard's text page."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        pairs = sorted(module.valid_pairs)[:PAIRS_PER_EPOCH]
        text = "\n\n".join(f"    ref {reference}\n    hyp {hypothesis}" for reference, hypothesis in pairs)
        trainer.logger.experiment.add_text("valid/transcripts", text, trainer.global_step)


class Pictures(lightning.Callback):
    """Draws to TensorBoard an utterance's features with and without augmentation, and how valid utterances are read."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0 and _writes_pictures(trainer):
            plain, lengths = module.model.frontend(batch.waveforms[:1], batch.sample_lengths[:1])
            augmented, augmented_lengths = module.augmented_features(batch)
            _draw(trainer, "train/features", _brightness(plain[0, : lengths[0]]))
            _draw(trainer, "train/features_augmented", _brightness(augmented[0, : augmented_lengths[0]]))

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A row for each token but the blank, a column for each step; the same utterances every time."""
        if batch_idx == 0 and _writes_pictures(trainer):
            log_probs, lengths = module.model(batch.waveforms[:ALIGNED], batch.sample_lengths[:ALIGNED])
            for number, (row, length) in enumerate(zip(log_probs, lengths.tolist())):
                _draw(trainer, f"valid/alignment_{number}", row[:length, BLANK_ID + 1 :].exp())


def _writes_pictures(trainer: lightning.Trainer) -> bool:
    return trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)


def _brightness(features: Tensor) -> Tensor:
    """Normalized features, (frames, num_mels), between black and white."""
    return ((features + 2) / 5).clamp(0, 1)


def _draw(trainer: lightning.Trainer, tag: str, columns: Tensor) -> None:
    """(columns, rows) in [0, 1] as a grey picture, the first row at the bottom."""
    assert isinstance(trainer.logger, TensorBoardLogger)
    picture = columns.T.flip(0).repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)
    trainer.logger.experiment.add_image(tag, picture[None].float().cpu(), trainer.global_step)
