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

from asr.config import require
from asr.errors import AsrError
from asr.muon import Muon
from asr.optimizers import with_schedule
from asr.plan import fill_batches
from asr.sentences import GRULanguageModel, load_language_model, save_language_model
from asr.text import ALPHABET
from asr.text_batches import TextBatches, TokenBatch
from asr.text_training import TextCheckpoints, TextTraining, check_output, fit
from asr.vocabulary import SentencePieceVocabulary
from asr.words import split_words

__all__ = ["LanguageModelSettings", "perplexity", "train_language_model"]

log = logging.getLogger(__name__)

VOCABULARY_SENTENCES = 250_000
"""Sentences, evenly from all of the text, that the pieces are learned from."""

SCORED_CHARACTERS = 10_000
"""Of held-out texts at once."""

WARMUP_SHARE = 0.02


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
    checkpoint = check_output(path, resume)
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
    fit(_Training(model, batches, settings), _Saver(path, held_out), settings.epochs, checkpoint)


def perplexity(model: GRULanguageModel, texts: Sequence[str]) -> float:
    """Of the words of some normal transcripts, each text's end counted as one; texts: at least one."""
    by_length = sorted(texts, key=len)
    batches = fill_batches([len(text) for text in by_length], range(len(texts)), SCORED_CHARACTERS)
    log_prob = sum(sum(model.text_log_probs([by_length[index] for index in batch])) for batch in batches)
    loss = -log_prob / sum(len(split_words(text)) + 1 for text in texts)
    return math.exp(loss) if loss < math.log(1e300) else math.inf


class _Training(TextTraining):
    """The mean loss of a token, and how its gradient is followed."""

    sources = "another text, --model, --held-out or --initial-model"

    def __init__(self, model: GRULanguageModel, batches: TextBatches, settings: LanguageModelSettings) -> None:
        super().__init__(settings.seed)
        self.model, self.batches, self.settings, self.checksum = model, batches, settings, batches.checksum

    def plan(self) -> dict[str, Any]:
        sizes = {"hidden_size": self.model.cell.hidden_size, "pieces": len(self.model.vocabulary)}
        return {**asdict(self.settings), **sizes, "text": self.checksum}

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        tokens, lengths = batch
        return self.check_loss(-self.model.sentence_log_probs(tokens, lengths).sum() / (lengths + 1).sum())

    def configure_optimizers(self) -> Any:
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32  # of Muon's products
        cell = [self.model.cell.weight_ih_l0, self.model.cell.weight_hh_l0]
        rest = [parameter for parameter in self.model.parameters() if all(parameter is not weight for weight in cell)]
        optimizer = Muon([{"params": cell, "blocks": 3}, {"params": rest}], lr=self.settings.learning_rate, dtype=dtype)
        return with_schedule(optimizer, WARMUP_SHARE, self.settings.epochs * self.count_steps())


class _Saver(TextCheckpoints):
    """Writes the model that each epoch leaves."""

    def __init__(self, path: Path, held_out: Sequence[str]) -> None:
        super().__init__(path)
        self.held_out = held_out

    def write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, _Training)
        save_language_model(module.model, self.path)
        if self.held_out:
            told = perplexity(module.model, self.held_out)
            log.info("epoch %d: perplexity %.1f on what is held out", trainer.current_epoch + 1, told)
