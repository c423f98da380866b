"""Training a GRU language model: text to a file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from asr.checkpoints import Checkpoints, is_whole
from asr.config import TrainerConfig, require
from asr.counters import epoch_to_plan, place_of
from asr.devices import choose_accelerator, choose_precision, full_float32
from asr.engine import quiet_lightning
from asr.errors import AsrError
from asr.monitor import ProgressBar, make_progress
from asr.muon import Muon
from asr.newfiles import check_new_file
from asr.optimizers import with_schedule
from asr.plan import Place, fill_batches
from asr.ranks import is_started_again, process_arguments
from asr.sentences import GRULanguageModel, load_language_model, save_language_model
from asr.text import ALPHABET
from asr.text_batches import ShuffledBatches, TextBatches, TokenBatch
from asr.vocabulary import SentencePieceVocabulary
from asr.words import split_words

__all__ = ["LanguageModelSettings", "perplexity", "train_language_model"]

log = logging.getLogger(__name__)

VOCABULARY_SENTENCES = 250_000
"""Sentences, evenly from all of the text, that the pieces are learned from."""

SCORED_CHARACTERS = 10_000
"""Of held-out texts at once."""

CHECKPOINT_MINUTES = 10.0
"""Between two inside an epoch."""

WARMUP_SHARE, CLIP_NORM = 0.02, 1.0


@dataclass(frozen=True)
class LanguageModelSettings:
    """Of the model and its training."""

    pieces: int = 2048
    """Tokens of its vocabulary: pieces of words."""
    embedding_size: int = 256
    hidden_size: int = 640
    epochs: int = 2
    """Passes over the text."""
    batch_tokens: int = 4096
    """At most, padding included, in a step of each process."""
    learning_rate: float = 4e-3
    """At its highest: Muon's for the recurrent layer, AdamW's for the rest."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("pieces", "embedding_size", "hidden_size", "epochs", "batch_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "be above 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "be at least 0 and below 2^63")


def train_language_model(
    sentences: Iterable[str],
    path: str | Path,
    settings: LanguageModelSettings | None = None,
    *,
    held_out: Sequence[str] = (),
    alphabet: str = ALPHABET,
    initial_model: str | Path | None = None,
    resume: bool = False,
) -> None:
    """Train on normal transcripts, which are written in `alphabet`, and after each epoch write the model to `path`.

    held_out: others, whose perplexity is logged after each epoch.
    initial_model: the file of a GRU language model, or `packaged`, whose pieces, sizes and weights it begins with.
    resume: go on with a training that was stopped, from the checkpoint beside `path`, which is there until all epochs
    are done; under torchrun and SLURM, whose restarts repeat the first command, begin where there is none.
    Raises AsrError for text without a word, where a file would be replaced, and for a training that diverges.
    """
    path, settings = Path(path), settings or LanguageModelSettings()
    checkpoint = _check_output(path, resume)
    torch.manual_seed(settings.seed)
    text = list(sentences)
    if initial_model:
        model = load_language_model(initial_model).train().requires_grad_(True)
    else:
        every = max(1, math.ceil(len(text) / VOCABULARY_SENTENCES))
        vocabulary = SentencePieceVocabulary.train(islice(text, 0, None, every), settings.pieces, alphabet)
        model = GRULanguageModel(vocabulary, settings.embedding_size, settings.hidden_size)
    batches = TextBatches(text, model.vocabulary, settings.batch_tokens, settings.seed)
    del text
    if len(batches) == 0:
        raise AsrError("the text holds no word to learn from")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("text: %s pieces of words; model: %.1f million parameters", f"{batches.num_tokens:,}", parameters / 1e6)
    with quiet_lightning(), full_float32():
        trainer = _make_trainer(settings, _Saver(path, held_out))
        trainer.fit(_Training(model, batches, settings), ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and trainer.current_epoch == settings.epochs:
        _checkpoint_of(path).unlink(missing_ok=True)


def perplexity(model: GRULanguageModel, texts: Sequence[str]) -> float:
    """Of the words of some normal transcripts, each text's end counted as one; texts: at least one."""
    by_length = sorted(texts, key=len)
    batches = fill_batches([len(text) for text in by_length], range(len(texts)), SCORED_CHARACTERS)
    log_prob = sum(sum(model.text_log_probs([by_length[index] for index in batch])) for batch in batches)
    loss = -log_prob / sum(len(split_words(text)) + 1 for text in texts)
    return math.exp(loss) if loss < math.log(1e300) else math.inf


def _checkpoint_of(path: Path) -> Path:
    return path.with_name(path.name + ".ckpt")


def _check_output(path: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; raises AsrError where a file would be replaced, or cannot be written."""
    checkpoint = _checkpoint_of(path)
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


def _make_trainer(settings: LanguageModelSettings, saver: _Saver) -> lightning.Trainer:
    options, progress = TrainerConfig(), make_progress()
    return lightning.Trainer(
        accelerator=choose_accelerator(options),
        **process_arguments(options),
        precision=choose_precision(options),
        max_epochs=settings.epochs,
        gradient_clip_val=CLIP_NORM,
        callbacks=[progress, saver],
        enable_checkpointing=False,
        logger=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        enable_progress_bar=isinstance(progress, ProgressBar),
        enable_model_summary=False,
    )


class _Training(lightning.LightningModule):
    """The mean loss of a token, and how its gradient is followed."""

    def __init__(self, model: GRULanguageModel, batches: TextBatches, settings: LanguageModelSettings) -> None:
        super().__init__()
        self.model, self.batches, self.settings = model, batches, settings
        self._resumed_at = Place(0, 0)

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Lightning asks for it before each epoch."""
        epoch = epoch_to_plan(self.trainer, self._resumed_at)
        ranks = self.trainer.world_size, self.trainer.global_rank
        done = self._resumed_at.batches_done_of(epoch)
        sampler = ShuffledBatches(len(self.batches), self.settings.seed, epoch, *ranks, batches_done=done)
        return DataLoader(self.batches, batch_size=None, sampler=sampler)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        tokens, lengths = batch
        loss = -self.model.sentence_log_probs(tokens, lengths).sum() / (lengths + 1).sum()
        if not loss.isfinite():
            raise AsrError(f"the loss is {loss.item()}: the training diverged; lower learning_rate")
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32  # of Muon's products
        cell = [self.model.cell.weight_ih_l0, self.model.cell.weight_hh_l0]
        rest = [parameter for parameter in self.model.parameters() if all(parameter is not weight for weight in cell)]
        optimizer = Muon([{"params": cell, "blocks": 3}, {"params": rest}], lr=self.settings.learning_rate, dtype=dtype)
        total = self.settings.epochs * math.ceil(len(self.batches) / self.trainer.world_size)
        return with_schedule(optimizer, WARMUP_SHARE, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["done"] = tuple(place_of(self.trainer))
        checkpoint["plan"] = self._plan()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises AsrError for that of another training, whose order and rates would be others."""
        before = checkpoint.get("plan", {})
        if changed := [
            f"{name}={before.get(name)}" for name, value in self._plan().items() if before.get(name) != value
        ]:
            has_other_text = changed == [f"text={before.get('text')}"]
            what = "another text, --model, --held-out or --initial-model" if has_other_text else ", ".join(changed)
            raise AsrError(f"the training to resume had {what}; resume it as it was")
        self._resumed_at = Place(*checkpoint["done"])

    def _plan(self) -> dict[str, Any]:
        sizes = {"hidden_size": self.model.cell.hidden_size, "pieces": len(self.model.vocabulary)}
        return {**asdict(self.settings), **sizes, "processes": self.trainer.world_size, "text": self.batches.checksum}


class _Saver(Checkpoints):
    """Keeps a checkpoint, and writes the model that each epoch leaves."""

    def __init__(self, path: Path, held_out: Sequence[str]) -> None:
        super().__init__(_checkpoint_of(path), CHECKPOINT_MINUTES)
        self.path, self.held_out = path, held_out

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, _Training)
        if trainer.is_global_zero:
            save_language_model(module.model, self.path)
            if self.held_out:
                told = perplexity(module.model, self.held_out)
                log.info("epoch %d: perplexity %.1f on what is held out", trainer.current_epoch + 1, told)
        super().on_train_epoch_end(trainer, module)
