"""How far a training is, by Lightning's counters, and how they are set where a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytorch_lightning as lightning

from asr.plan import Place

__all__ = ["between_two_steps", "epoch_to_plan", "place_of", "round_down_progress"]


def place_of(trainer: lightning.Trainer) -> Place:
    """The batches before a resume count too; an epoch that is over is the next one's start."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    # Between two epochs Lightning still counts the last one's batches.
    return Place(epochs.processed, batches.processed if epochs.started > epochs.processed else 0)


def epoch_to_plan(trainer: lightning.Trainer, resumed_at: Place) -> int:
    """The epoch whose batches Lightning asks for: it does so before it knows the epoch of a resumed run."""
    return max(trainer.current_epoch, resumed_at.epoch)


@contextmanager
def between_two_steps(trainer: lightning.Trainer) -> Iterator[None]:
    """Lightning's counters as `round_down_progress` sets them, and afterwards as they were."""
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    trackers: list[Any] = [
        trainer.fit_loop.epoch_progress,
        epoch_loop.batch_progress,
        epoch_loop.val_loop.batch_progress,
    ]
    states = [deepcopy(tracker.state_dict()) for tracker in trackers]
    stepped = epoch_loop._batches_that_stepped
    round_down_progress(trainer)
    try:
        yield
    finally:
        for tracker, state in zip(trackers, states, strict=True):
            tracker.load_state_dict(state)
        epoch_loop._batches_that_stepped = stepped


def round_down_progress(trainer: lightning.Trainer) -> None:
    """Set Lightning's counters to "between two steps", the one place in an epoch from which it resumes exactly.

    What is begun and not done counts as not begun: of a batch, of an epoch before its first step, and of the validation
    behind its last one, which runs in full.
    """
    epochs: Any = trainer.fit_loop.epoch_progress
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    batches = epoch_loop.batch_progress
    has_stepped = place_of(trainer).batches_done > 0
    _forget_what_is_begun(batches)
    if not has_stepped:
        _forget_what_is_begun(epochs)
    batches.is_last_batch = has_stepped and batches.current.processed == trainer.num_training_batches
    epoch_loop._batches_that_stepped = trainer.global_step
    if batches.is_last_batch and epoch_loop._should_check_val_epoch():
        epoch_loop._batches_that_stepped -= 1  # Lightning counts the last step once the validation has run
        validation = epoch_loop.val_loop.batch_progress
        validation.reset()
        validation.total.ready = validation.total.started = 1


def _forget_what_is_begun(progress: Any) -> None:
    for count in (progress.total, progress.current):
        count.ready = count.started = count.completed = count.processed
