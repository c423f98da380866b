"""What a training shows besides its losses: progress; in TensorBoard learning rate, gradients, speed, transcripts."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from asr.data import Batch

__all__ = ["ProgressBar", "SampleTranscripts", "TrainingMonitor"]

PAIRS_PER_EPOCH = 8


class TrainingMonitor(lightning.Callback):
    """Logs learning rate, gradient norm, utterances and audio seconds per second, and the share of time waiting."""

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
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        module.log("lr", optimizer.param_groups[0]["lr"])
        module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

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
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.processed > 0:  # no on_train_epoch_start follows, or it sets these anew
            self.on_train_epoch_start(trainer)
            self.train_progress_bar.initial = self.train_progress_bar.n = progress.processed


class SampleTranscripts(lightning.Callback):
    """Writes a few references and hypotheses of each validation to TensorBoard's text page."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking or not isinstance(trainer.logger, TensorBoardLogger):
            return
        pairs = sorted(module.valid_pairs)[:PAIRS_PER_EPOCH]
        text = "\n\n".join(f"    ref {reference}\n    hyp {hypothesis}" for reference, hypothesis in pairs)
        trainer.logger.experiment.add_text("valid/transcripts", text, trainer.global_step)
