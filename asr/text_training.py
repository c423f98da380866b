"""What trainings on text share: one file in the end, and a checkpoint beside it until then."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader, Dataset

from asr.checkpoints import Checkpoints, is_whole
from asr.config import TrainerConfig
from asr.counters import epoch_to_plan, place_of
from asr.devices import choose_accelerator, choose_precision, full_float32
from asr.engine import quiet_lightning
from asr.errors import AsrError
from asr.monitor import ProgressBar, make_progress
from asr.newfiles import check_new_file
from asr.plan import Place
from asr.ranks import is_started_again, process_arguments
from asr.text_batches import ShuffledBatches

__all__ = ["TextCheckpoints", "TextTraining", "check_output", "fit"]

CHECKPOINT_MINUTES = 10.0
"""Between two inside an epoch."""

CLIP_NORM = 1.0


def checkpoint_of(path: Path) -> Path:
    return path.with_name(path.name + ".ckpt")


def check_output(path: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; raises AsrError where a file would be replaced, or cannot be written."""
    checkpoint = checkpoint_of(path)
    if checkpoint.exists() and not resume:
        raise AsrError(f"{checkpoint} is of a training that was stopped; continue it with --resume, or remove it")
    if checkpoint.exists():
        if not is_whole(checkpoint):
            raise AsrError(f"{checkpoint} is damaged: the training cannot be resumed; remove it, and start again")
        return checkpoint
    if resume and not is_started_again():
        raise AsrError(f"{checkpoint} not found: there is nothing to resume; start without --resume")
    if path.exists():
        raise AsrError(f"{path}: is there already and would be replaced; name another file")
    check_new_file(path)
    return None


def fit(training: TextTraining, checkpoints: TextCheckpoints, epochs: int, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one, which is gone once all epochs are done."""
    options, progress = TrainerConfig(), make_progress()
    with quiet_lightning(), full_float32():
        trainer = lightning.Trainer(
            accelerator=choose_accelerator(options),
            **process_arguments(options),
            precision=choose_precision(options),
            max_epochs=epochs,
            gradient_clip_val=CLIP_NORM,
            callbacks=[progress, checkpoints],
            enable_checkpointing=False,
            logger=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            enable_progress_bar=isinstance(progress, ProgressBar),
            enable_model_summary=False,
        )
        trainer.fit(training, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and trainer.current_epoch == epochs:
        checkpoints.last.unlink(missing_ok=True)


class TextTraining(lightning.LightningModule):
    """The batches of each epoch, and that they are the same ones when it is resumed."""

    sources = "another text"
    """Said where `text` of the plan is another one: that, or options by which it is read."""

    batches: Dataset[Any]
    """Each item is one; given before the first epoch."""

    def __init__(self, seed: int, most_steps: int | None = None) -> None:
        """most_steps: of an epoch, in each process; None takes all batches."""
        super().__init__()
        self.seed, self.most_steps = seed, most_steps
        self._resumed_at = Place(0, 0)

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What must be as it was where the training is resumed: settings by their names, and `text`, a checksum."""

    def batches_of(self, epoch: int) -> Dataset[Any]:
        """As many in each epoch."""
        return self.batches

    def count_steps(self) -> int:
        """Of an epoch, in each process."""
        steps = math.ceil(len(self.batches) / self.trainer.world_size)  # type: ignore[arg-type]
        return steps if self.most_steps is None else min(steps, self.most_steps)

    def train_dataloader(self) -> DataLoader[Any]:
        """Lightning asks for it before each epoch."""
        epoch = epoch_to_plan(self.trainer, self._resumed_at)
        ranks = self.trainer.world_size, self.trainer.global_rank
        done = self._resumed_at.batches_done_of(epoch)
        size: int = len(self.batches)  # type: ignore[arg-type]
        sampler = ShuffledBatches(size, self.seed, epoch, *ranks, batches_done=done, most=self.most_steps)
        return DataLoader(self.batches_of(epoch), batch_size=None, sampler=sampler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["done"] = tuple(place_of(self.trainer))
        checkpoint["plan"] = {**self.plan(), "processes": self.trainer.world_size}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises AsrError for that of another training, whose order and rates would be others."""
        before, now = checkpoint.get("plan", {}), {**self.plan(), "processes": self.trainer.world_size}
        if changed := [f"{name}={before.get(name)}" for name, value in now.items() if before.get(name) != value]:
            has_other_text = changed == [f"text={before.get('text')}"]
            what = self.sources if has_other_text else ", ".join(changed)
            raise AsrError(f"the training to resume had {what}; resume it as it was")
        self._resumed_at = Place(*checkpoint["done"])

    def check_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Logs it; raises AsrError for one that is no number."""
        if not loss.isfinite():
            raise AsrError(f"the loss is {loss.item()}: the training diverged; lower learning_rate")
        self.log("train/loss", loss, prog_bar=True)
        return loss


class TextCheckpoints(Checkpoints):
    """Keeps a checkpoint, and writes the file that each epoch leaves."""

    def __init__(self, path: Path) -> None:
        super().__init__(checkpoint_of(path), CHECKPOINT_MINUTES)
        self.path = path

    @abstractmethod
    def write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the file, and tell how good the model is."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(trainer, module)
        super().on_train_epoch_end(trainer, module)
