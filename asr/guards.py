"""What may go wrong in a training without ending it, up to a bound: named, counted, left out."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as lightning
import torch

from asr.data import Batch
from asr.errors import AsrError

__all__ = ["Guards"]

log = logging.getLogger(__name__)

MOST_SKIPPED_STEPS, MOST_RESCALED_STEPS = 20, 40
"""Without a finite gradient: in all; and in a row in 16-mixed, whose scaler begins at 2¹⁶ and halves at each."""

MOST_UNREADABLE_SHARE, FEWEST_UNREADABLE = 0.01, 10
"""How many recordings of a set may be unreadable before training stops: 1 % of the set or 10, whichever is more, but at
most half of it. With several processes each may meet an equal share of that number, and at least one."""


class _Unreadable:
    """Recordings of one set that could be read when it was checked."""

    def __init__(self, examples: int) -> None:
        self.most = min(max(FEWEST_UNREADABLE, int(MOST_UNREADABLE_SHARE * examples)), examples // 2)
        self._problems: set[str] = set()

    def note(self, batch: Batch, processes: int) -> None:
        """Log what is new; raises AsrError where it is too much."""
        for problem in set(batch.unreadable) - self._problems:
            self._problems.add(problem)
            log.error("left out: %s", problem)  # which each of several processes tells of its own
        if len(self._problems) > (self.most if processes == 1 else max(1, self.most // processes)):
            times = "where their times are wrong, `asr check --fix` leaves them out"
            disk = "where the disk was gone, --resume goes on from the last checkpoint"
            raise AsrError(
                f"{len(self._problems)} recordings cannot be read, such as {min(self._problems)}; {times}; {disk}"
            )


class Guards(lightning.Callback):
    """Logs the gradient's norm, leaves out steps where it is not finite, and stops where too much is left out."""

    def __init__(self, train_examples: int, valid_examples: int) -> None:
        self.skipped_steps = self.rescaled_steps = 0
        self._train, self._valid = _Unreadable(train_examples), _Unreadable(valid_examples)
        self._ids: list[str] = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._ids = batch.ids
        self._train.note(batch, trainer.world_size)

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Batch, *_: Any
    ) -> None:
        self._valid.note(batch, trainer.world_size)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        module.log("train/gradient_norm", norm)
        if norm.isfinite():
            self.rescaled_steps = 0
            return
        shown = ", ".join(self._ids)
        if trainer.precision == "16-mixed":  # whose scaler meets such steps, and skips them, itself
            self.rescaled_steps += 1
            if self.rescaled_steps > MOST_RESCALED_STEPS:
                raise AsrError(
                    f"the gradient was not finite in {self.rescaled_steps} steps in a row, the last with {shown}; "
                    "lower optimizer.learning_rate, or set trainer.precision=32-true"
                )
            return
        self.skipped_steps += 1
        optimizer.zero_grad(set_to_none=True)  # parameters without a gradient stay as they are
        log.error("step %d left out: its gradient is not finite; utterances %s", trainer.global_step, shown)
        if self.skipped_steps > MOST_SKIPPED_STEPS:
            raise AsrError(
                f"the gradient was not finite in {self.skipped_steps} steps, the last with {shown}; "
                "lower optimizer.learning_rate, or look at these recordings"
            )
