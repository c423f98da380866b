"""What a training leaves on the disk: the best model so far, and checkpoints from which it can go on exactly."""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
import zipfile
from math import inf
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from asr.counters import between_two_steps, round_down_progress
from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.modelfile import save_model

__all__ = [
    "LAST_CHECKPOINT",
    "MODEL_NAME",
    "NONE_YET",
    "BestModelFile",
    "Checkpoints",
    "RunCheckpoints",
    "find_checkpoint",
    "is_whole",
]

log = logging.getLogger(__name__)

NONE_YET = (inf, inf, inf)

MODEL_NAME = "model.safetensors"

LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT = "last.ckpt", "previous.ckpt", "best.ckpt"


def find_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint to go on from: the last one, or the one before where that is damaged; None where there is none.

    Raises AsrError where both are damaged.
    """
    paths = [path for path in (output_dir / LAST_CHECKPOINT, output_dir / PREVIOUS_CHECKPOINT) if path.is_file()]
    for path in paths:
        if is_whole(path):
            return path
        log.warning("%s is damaged and left out", path)
    if paths:
        raise AsrError(f"{output_dir}: no checkpoint there can be read; start again with another output_dir=")
    return None


def is_whole(path: Path) -> bool:
    """Whether every part of a checkpoint, which is a ZIP archive, has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged directory of an archive can raise anything
        return False


class BestModelFile(lightning.Callback):
    """Writes the model file whenever a validation is the best so far, with the averaged weights if any.

    The best has the lowest WER. Of equal ones, as they are while no word is right in a language that is new to a model,
    it has the lowest CER, and then the lowest loss, to two digits.
    """

    def __init__(self, path: Path, valid_checksum: int = 0) -> None:
        """valid_checksum: another one for another valid set, whose rates say nothing of this one's."""
        self.path, self.valid_checksum = path, valid_checksum
        self.best = NONE_YET
        """WER, CER and loss."""
        self.improved = False
        """Whether the present epoch's validation was the best so far; only this class changes it."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.best != NONE_YET and not trainer.strategy.broadcast(self.path.exists()):
            log.warning("%s is gone; the next validation writes it anew", self.path)
            self.best = NONE_YET

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.improved = False  # not every epoch has a validation

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, CTCTrainingModule)
        wer, cer = map(module.pooled_rate, (module.valid_words, module.valid_characters))
        rates = wer, cer, round(float(trainer.callback_metrics["valid/loss"]), 2)
        self.improved = rates < self.best
        if self.improved:
            self.best = rates
            if trainer.is_global_zero:
                save_model(module.model, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {**dict(zip(("best_wer", "best_cer", "best_loss"), self.best)), "valid": self.valid_checksum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("valid", self.valid_checksum) != self.valid_checksum:
            log.warning("the valid set is another one now; the next validation counts as the best so far")
            return
        self.best = state_dict["best_wer"], state_dict.get("best_cer", inf), state_dict.get("best_loss", inf)


class Checkpoints(lightning.Callback):
    """Keeps a checkpoint from which a training goes on exactly.

    It is written every so many minutes, before each validation, at each epoch's end and when training stops by Ctrl-C,
    a request to end, its terminal's end or an error. Signals take effect between two steps, so that no step is half
    done; what stops a run inside an update of the weights leaves the checkpoint before it.
    """

    def __init__(self, last: Path, minutes: float, previous: Path | None = None, *, is_trial: bool = False) -> None:
        """minutes: time between two checkpoints within an epoch.
        previous: where the preceding `last` checkpoint is kept.
        is_trial: the run will never be resumed, so messages do not mention --resume.
        """
        self.last, self.previous, self.is_trial = last, previous, is_trial
        self.minutes = minutes
        self._saved_at = time.monotonic()
        self._stop_asked = self._end_asked = False
        self._has_begun = False
        """Whether all of a checkpoint has been restored; before that there is nothing to save."""
        self._all_stop = False
        """Whether every process has stopped between the same two steps, where all can save together."""
        self._is_updating = False
        """From a step's first change of a weight until all that follows from it is done."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._has_begun = True
        if trainer.is_global_zero and not is_whole(self.last):
            self.last.unlink(missing_ok=True)  # it would take the place of the one before, from which this run goes on
        if threading.current_thread() is not threading.main_thread():
            return
        if trainer.world_size > 1:
            # Lightning's handler waits for the other ranks wherever the signal comes, and they may wait elsewhere.
            signal.signal(signal.SIGTERM, self._ask_to_end)
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none, and nohup has it ignored
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:
            signal.signal(hang_up, self._hang_up)

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._ask_to_stop)

    def _ask_to_end(self, *_: Any) -> None:
        self._end_asked = True

    def _hang_up(self, *_: Any) -> None:
        """Ends the run as a request to end does. The terminal is gone: what is written to it from now on would fail."""
        self._end_asked = True
        with open(os.devnull, "w") as nowhere:
            for stream in (1, 2):
                if not stat.S_ISREG(os.fstat(stream).st_mode):
                    os.dup2(nowhere.fileno(), stream)

    def _ask_to_stop(self, *_: Any) -> None:
        self._stop_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info("stopping after this step; Ctrl-C again stops at once")

    def on_train_batch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        is_due = trainer.global_step > 0 and time.monotonic() - self._saved_at >= 60 * self.minutes
        asked = [self._end_asked, self._stop_asked, is_due]
        if trainer.world_size > 1:
            # A signal may have come to some ranks only, and their clocks differ: what one is asked for, all do.
            counts = torch.tensor(asked, dtype=torch.float32, device=module.device)
            asked = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        must_end, must_stop, must_save = asked
        self._all_stop = bool(must_end or must_stop)
        if must_end:
            raise SIGTERMException
        if must_stop:
            raise KeyboardInterrupt
        if must_save:
            with between_two_steps(trainer):
                self._save(trainer)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._is_updating = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._is_updating = False

    def on_validation_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.world_size > 1:
            return  # ranks have unlike numbers of these batches
        if self._end_asked:
            raise SIGTERMException
        if self._stop_asked:
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        round_down_progress(trainer)
        self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint unless the weights are being updated; a step that has not changed them yet is taken again.

        A rank that stops on its own must not save, because saving waits for all ranks.
        """
        if not self._has_begun or trainer.global_step == 0 or (trainer.world_size > 1 and not self._all_stop):
            return
        if self._is_updating:
            log.warning("stopped inside an update of the weights; %s", self._way_on())
            return
        try:
            if not trainer.validating:
                round_down_progress(trainer)
                self._save(trainer)
        finally:
            log.info("stopped at step %d; %s", trainer.global_step, self._way_on())

    def _way_on(self) -> str:
        kept = [path for path in (self.last, self.previous) if path and path.exists() and not self.is_trial]
        return f"--resume continues from {kept[0]}" if kept else "there is nothing to resume: start again"

    def _save(self, trainer: lightning.Trainer) -> None:
        """Raises AsrError for weights from which no training can go on: what was saved before is kept."""
        if not all(weight.half().isfinite().all() for weight in trainer.lightning_module.parameters()):
            raise AsrError("the weights are no finite numbers any more: the training diverged; lower its learning rate")
        write_checkpoint(trainer, self.last, self.previous)
        self._saved_at = time.monotonic()


class RunCheckpoints(Checkpoints):
    """In a run's output folder: last.ckpt, the one before it as previous.ckpt, and the best model's as best.ckpt."""

    def __init__(self, output_dir: Path, best_model: BestModelFile, minutes: float, *, is_trial: bool = False) -> None:
        super().__init__(output_dir / LAST_CHECKPOINT, minutes, output_dir / PREVIOUS_CHECKPOINT, is_trial=is_trial)
        self.best, self.best_model = output_dir / BEST_CHECKPOINT, best_model

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.best_model.improved:
            write_checkpoint(trainer, self.best)  # a kill before the next line has the validation repeated
        super().on_train_epoch_end(trainer, module)


def write_checkpoint(trainer: lightning.Trainer, path: Path, previous: Path | None = None) -> None:
    """Write to a temporary name first, so that `path` is whole or as it was; what it was gets the name `previous`.

    Raises AsrError where it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        trainer.save_checkpoint(temporary)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"the checkpoint cannot be written ({error.strerror})"
        raise AsrError(f"{path}: {reason}; make room") from error
    if not trainer.is_global_zero:
        return
    with open(temporary, "r+b") as file:  # Windows syncs only what may be written to
        os.fsync(file.fileno())
    if previous is not None and path.exists():
        os.replace(path, previous)
    os.replace(temporary, path)
