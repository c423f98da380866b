"""Lightning kept quiet, and the error of a dead process put in words."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from asr.errors import AsrError

__all__ = ["explain_dead_readers", "quiet_lightning"]

FALSE_ALARMS = (
    "The '(train|val)_dataloader' does not have many workers",  # one reads faster than a model trains
    "The number of training batches",  # fewer than log_every_steps: the next epoch's count on
    "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler continues at the right batch
    "You defined a `validation_step` but have no `val_dataloader`",  # a trial of batch sizes needs none
    "It is recommended to use `self.log\\('valid/(wer|cer|per)'",  # they are pooled over the processes already
    "Be aware that when using `ckpt_path`",  # patience may be ended between two parts of a training
    "The `srun` command is available on your system but is not used",  # nor is it needed for one process
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own call
)
"""Beginnings of Lightning's warnings that do not hold here."""


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Run Lightning without its tips and false alarms and with its progress bar on stderr; restore signal handlers."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]  # Windows has one
    handlers = [(number, signal.getsignal(number)) for number in numbers]
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
            for number, handler in handlers:
                signal.signal(number, handler)


@contextmanager
def explain_dead_readers() -> Iterator[None]:
    """Raise an AsrError in place of the data loader's error when one of its processes was killed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter where it was sending a batch
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        advice = "lower data.cache_hours or data.num_workers; --resume goes on from the last checkpoint"
        raise AsrError(f"a process that reads audio was killed; was the memory full? {advice}") from error
