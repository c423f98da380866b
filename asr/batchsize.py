"""How many seconds of audio a training step should take: sizes tried on this machine, the longest utterances first."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

from asr.config import TrainConfig
from asr.data import Batch, SpeechDataset
from asr.devices import choose_accelerator, choose_precision, full_float32
from asr.engine import quiet_lightning
from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.model import CTCModel
from asr.splitting import FullMemoryError
from asr.training import prepare_training

__all__ = ["Sizes", "Trial", "find_batch"]

log = logging.getLogger(__name__)

WARMUP_STEPS, TIMED_STEPS = 1, 2
LARGEST_BATCH_SECONDS = 20_000.0
TITLE = "batch, s  audio s / s  memory, GB"
BISECTIONS = 3
"""Between a size that fits and one that does not, which is twice as large: the answer is within an eighth."""
RESERVE = 0.9
"""Of what fits into a GPU's memory, to leave room for what a long training breaks it up into."""
AS_FAST = 0.95
"""A batch with so much of the greatest speed is as good, and smaller batches are more steps."""


@dataclass(frozen=True)
class Trial:
    """Training steps of one size."""

    batch_seconds: float
    audio_per_second: float
    """Seconds of audio, padding left out, that a second of training takes in."""
    memory_bytes: int
    """The most that was in use: of a GPU's memory, or of this process."""
    on_gpu: bool
    fits: bool

    def line(self) -> str:
        if not self.fits:
            return f"{self.batch_seconds:8.0f}  does not fit"
        return f"{self.batch_seconds:8.0f} {self.audio_per_second:12.0f} {self.memory_bytes / 1e9:11.2f}"


@dataclass(frozen=True)
class Sizes:
    """All trials, from the smallest batch to the largest."""

    trials: list[Trial]
    max_seconds: float
    """Of an utterance by the recipe, which a batch must hold."""

    @property
    def largest(self) -> Trial:
        """Of those that fit."""
        return max((trial for trial in self.trials if trial.fits), key=lambda trial: trial.batch_seconds)

    @property
    def best(self) -> Trial:
        """The smallest of those that are as fast as the fastest."""
        fitting = [trial for trial in self.trials if trial.fits]
        fastest = max(trial.audio_per_second for trial in fitting)
        return next(trial for trial in fitting if trial.audio_per_second >= AS_FAST * fastest)

    def summary(self) -> str:
        lines = [TITLE, *(trial.line() for trial in self.trials)]
        if self.largest is not self.trials[-1]:
            lines.append(f"largest that fits, less a reserve: {self._settings(RESERVE * self.largest.batch_seconds)}")
        lines.append(f"smallest that is as fast as any: {self._settings(self.best.batch_seconds)}")
        return "\n".join(lines)

    def _settings(self, batch_seconds: float) -> str:
        """Overrides that a training takes: where the batch is smaller, utterances must be shorter."""
        rounded = f"{batch_seconds:.0f}"
        shorter = f" data.max_seconds={rounded}" if float(rounded) < self.max_seconds else ""
        return f"data.batch_seconds={rounded}{shorter}"


def find_batch(config: TrainConfig) -> Sizes:
    """Try training steps by a recipe, with twice as many seconds of its longest utterances each time.

    It ends where the memory of a GPU is full, to look between the last two then, or the utterances are used up; on a
    CPU where twice as much is no faster, or would take half of the memory. Nothing is written.
    Raises AsrError as `train` does, and where not even the longest utterance fits.
    """
    model, corpus, _ = prepare_training(config)
    examples = sorted(corpus.examples, key=lambda example: -example.utterance.duration_seconds)
    dataset = SpeechDataset(
        examples, model.vocabulary, model.sample_rate, LARGEST_BATCH_SECONDS / 3600, model.pronunciations
    )
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    trials: list[Trial] = []
    log.info("%s", TITLE)

    def fits(batch_seconds: float) -> bool:
        model.load_state_dict(initial)
        trials.append(_try_size(config, model, dataset, batch_seconds))
        log.info("%s", trials[-1].line())
        return trials[-1].fits

    longest = examples[0].utterance.duration_seconds
    seconds, most = float(math.ceil(longest)), min(LARGEST_BATCH_SECONDS, longest * len(examples))
    while fits(seconds) and 2 * seconds <= most and not _is_enough(trials):
        seconds *= 2
    if not trials[0].fits:
        raise AsrError(f"one utterance of {longest:.1f} s does not fit into the memory; lower data.max_seconds")
    low, high = seconds / 2, seconds
    for _ in range(0 if trials[-1].fits else BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Sizes(sorted(trials, key=lambda trial: trial.batch_seconds), config.data.max_seconds)


def _is_enough(trials: Sequence[Trial]) -> bool:
    """Whether a CPU has no use for a larger batch; a GPU is filled."""
    last = trials[-1]
    if last.on_gpu:
        return False
    is_slower = len(trials) > 1 and AS_FAST * last.audio_per_second < trials[-2].audio_per_second
    return is_slower or 2 * last.memory_bytes > _physical_memory() / 2


def _try_size(config: TrainConfig, model: CTCModel, dataset: SpeechDataset, batch_seconds: float) -> Trial:
    """Training steps with the first utterances of `dataset`, as many as a batch takes that are as long as the first."""
    count = max(1, int(batch_seconds / dataset.examples[0].utterance.duration_seconds))
    batch = dataset[list(range(min(count, len(dataset))))]
    steps = WARMUP_STEPS + TIMED_STEPS
    loader: Any = DataLoader([batch], sampler=[0] * steps, batch_size=None)  # type: ignore[arg-type]
    module, watch = CTCTrainingModule(model, config, batch.references), _Watch()
    with quiet_lightning(), full_float32():
        trainer = lightning.Trainer(
            accelerator=choose_accelerator(config.trainer),
            devices=1,
            precision=choose_precision(config.trainer),
            max_steps=steps,
            gradient_clip_val=config.optimizer.clip_norm,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, loader)
        except FullMemoryError:  # not even one utterance
            watch.fits = False
    audio_seconds = TIMED_STEPS * int(batch.sample_lengths.sum()) / model.sample_rate
    return Trial(batch_seconds, audio_seconds / watch.seconds, watch.memory_bytes, watch.on_gpu, watch.fits)


class _Watch(lightning.Callback):
    """The time and the memory that training steps take; it ends them where a batch had to be split."""

    seconds, memory_bytes, fits, on_gpu = math.inf, 0, True, False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.on_gpu = module.device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.fits = math.isinf(module.memory.most_frames)
        trainer.should_stop = not self.fits
        if batch_idx + 1 == WARMUP_STEPS:
            self._since = time.perf_counter()
        elif self.fits:
            self.seconds = time.perf_counter() - self._since
            self.memory_bytes = torch.cuda.max_memory_allocated() if self.on_gpu else _process_memory()


def _physical_memory() -> float:
    """Of this machine, bytes; infinite on Windows, where a slower trial is the only end."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _process_memory() -> int:
    """The most that this process has had in use so far, bytes; 0 on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
