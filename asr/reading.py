"""Text to a model that spells better: the layers that read phonemes learn from sentences that nobody said.

Recordings with texts are few, texts alone are many. A model that hears phonemes knows from the recordings what sounds
are like, its mistakes included; with those of other recordings' phonemes, each sentence of a text is put together, and
the upper layers learn to write it. What an n-gram language model adds at each search, they then know by themselves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from asr.check import Example
from asr.config import AugmentConfig, OptimizerConfig, require
from asr.decoder import decode_greedy
from asr.encoder import BidirectionalLayer
from asr.errors import AsrError
from asr.learning import ctc_losses
from asr.metrics import pool, word_errors
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.optimizers import make_optimizer
from asr.plan import fill_batches
from asr.surgery import with_reader
from asr.text_training import TextCheckpoints, TextTraining, check_output, fit
from asr.units import Heard, Units, hear, vary_sureness
from asr.vocabulary import BLANK_ID, SentencePieceVocabulary
from asr.words import split_words

__all__ = ["WIDE", "ReadingSettings", "SaidBatches", "train_reader"]

log = logging.getLogger(__name__)

MOST_WORDS = 40
"""Of a sentence: recordings seldom hold more."""

VOCABULARY_SENTENCES = 250_000
"""Sentences, evenly from all of the text, that pieces are learned from."""

POOL = 20_000
"""Sentences that are sorted by length among themselves, to make batches of."""

WIDE = AugmentConfig(
    speeds=[0.77, 0.82, 0.87, 0.92, 0.97, 1.02, 1.07, 1.12, 1.17, 1.22],
    noise_probability=0.0,
    frequency_mask_mels=15,
    num_time_masks=0,
)
"""With which recordings that a model has learned from are heard worse than new ones; more surely than with noise."""

BLANK_PENALTY = 1.0
"""Nats that the blank of a file is less probable than it was learned: where several pieces may be right, the blank is
likelier than each of them, and greedy text would lack the word. Found for the packaged model on dev-clean half.
"""

STEPS_PER_LETTER = 1.7
"""Of what is said, about; for the size of batches only."""

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Phonemes (steps, batch, phonemes), steps (batch,), tokens (batch, tokens), their numbers (batch,)."""


@dataclass(frozen=True)
class ReadingSettings:
    """Of the layers that read and their training."""

    layers: int = 0
    """That read phonemes, new ones in place of the model's; 0 keeps those that it has, and its vocabulary."""
    size: int = 256
    """Of new layers: units per direction."""
    pieces: int = 2048
    """Tokens of new layers: pieces of words, learned from the text."""
    epochs: int = 8
    """After each one the model is validated and written."""
    steps: int = 1000
    """Of an epoch at most, in each process."""
    batch_steps: int = 6000
    """Of 40 ms, about, padding included, in a step of each process."""
    recordings_share: float = 0.2
    """Of the batches: recordings as they were heard."""
    dropout: float = 0.1
    """Of the layers that read, while they learn."""
    learning_rate: float = 2e-3
    """At its highest, Muon's."""
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.layers >= 0, "layers", self.layers, "be at least 0")
        for name in ("size", "epochs", "steps", "batch_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        require(self.pieces >= 2, "pieces", self.pieces, "be at least 2")
        require(0 <= self.recordings_share < 1, "recordings_share", self.recordings_share, "be in [0, 1)")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "be in [0, 1)")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "be above 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "be at least 0 and below 2^63")


def train_reader(
    model: CTCModel,
    sentences: Sequence[str],
    recordings: Sequence[Example],
    path: str | Path,
    settings: ReadingSettings | None = None,
    *,
    valid: Sequence[Example] = (),
    augment: AugmentConfig | None = None,
    resume: bool = False,
) -> None:
    """Train the layers that read phonemes, new ones where the model has none, and write it to `path` each epoch.

    model: one that hears phonemes; all that hears them stays as it is. sentences: normal transcripts. recordings: of
    which the sentences are put together, changed by `augment` (by default `WIDE`). valid: recordings whose
    WER is logged after each epoch. resume: as of `train_language_model`.
    Raises AsrError for a model that hears no phonemes, for text without a word, where a file would be replaced, and for
    a training that diverges.
    """
    path, settings = Path(path), settings or ReadingSettings()
    if model.pronunciations is None:
        raise AsrError("the model hears no phonemes; train one with model.encoder.phoneme_layer")
    checkpoint = check_output(path, resume)
    torch.manual_seed(settings.seed)
    usable = [sentence for sentence in sentences if 0 < len(split_words(sentence)) <= MOST_WORDS]
    if not usable:
        raise AsrError(f"the text holds no sentence of up to {MOST_WORDS} words to learn from")
    reader = _make_reader(model, usable, settings)
    training = _Training(reader, usable, recordings, valid, augment or WIDE, settings)
    fit(training, _Saver(path), settings.epochs, checkpoint)


def _make_reader(model: CTCModel, sentences: Sequence[str], settings: ReadingSettings) -> CTCModel:
    """The model itself where it shall keep its layers, or one with new ones; only they can learn."""
    if settings.layers:
        every = max(1, len(sentences) // VOCABULARY_SENTENCES)
        alphabet = model.vocabulary.alphabet
        vocabulary = SentencePieceVocabulary.train(sentences[::every], settings.pieces, alphabet)
        model = with_reader(model, settings.layers, settings.size, vocabulary)
    elif model.reader is None:
        raise AsrError("the model has no layers that read phonemes; have new ones made (--layers 2)")
    else:
        with torch.no_grad():
            model.head.bias[BLANK_ID] += BLANK_PENALTY
    model.requires_grad_(False)
    assert model.reader is not None
    for part in (model.reader, model.head):
        part.requires_grad_(True)
    for layer in model.reader.layers:
        assert isinstance(layer, BidirectionalLayer)
        layer.dropout.p = settings.dropout  # the model's is of a training by recordings
    return model


class SaidBatches(Dataset[Batch]):
    """Sentences of a text, said in units, and recordings among them, in batches of like length; each is an item.

    By whose units a sentence is said is a function of the seed, the epoch and the batch alone.
    """

    epoch = 0

    def __init__(
        self, sentences: Sequence[str], recordings: Sequence[Heard], model: CTCModel, settings: ReadingSettings
    ) -> None:
        assert model.pronunciations is not None
        self.sentences, self.seed = sentences, settings.seed
        self.vocabulary, self.pronunciations = model.vocabulary, model.pronunciations
        self.units, self.references = Units(recordings), [heard.reference for heard in recordings]
        if missing := self.units.missing(self.pronunciations.phonemes):
            log.warning("sentences with what no recording has are left out: %s", " ".join(missing))
        share = settings.recordings_share
        times = round(share / (1 - share) * len(sentences) / len(recordings)) if share else 0
        lengths = [STEPS_PER_LETTER * len(sentence) for sentence in sentences]
        lengths += max(times, bool(share)) * [float(len(heard.log_probs)) for heard in recordings]
        sizes = numpy.asarray(lengths)
        order = numpy.random.default_rng(settings.seed).permutation(len(sizes))
        self._batches: list[list[int]] = []
        for start in range(0, len(order), POOL):
            pool = order[start : start + POOL]
            pool = pool[sizes[pool].argsort(kind="stable")]
            self._batches += [
                pool[batch].tolist()
                for batch in fill_batches(sizes[pool].tolist(), range(len(pool)), settings.batch_steps)
            ]

    @property
    def checksum(self) -> int:
        """Another one for other sentences or recordings; what is heard of these may differ in its last digits."""
        return crc32("\n".join([*self.sentences, *self.references]).encode())

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        generator = numpy.random.default_rng([self.seed, self.epoch, index])
        said = [self._say(number, generator) for number in self._batches[index]]
        first = self.units.recording(0), self.references[0]  # where nothing of the batch can be said
        rows, texts = zip(*(list(filter(None, said)) or [first]), strict=True)
        phonemes = pad_sequence([torch.from_numpy(row).float() for row in rows])
        tokens = [torch.tensor(self.vocabulary.encode(text), dtype=torch.long) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        return phonemes, lengths, pad_sequence(tokens, batch_first=True), torch.tensor([len(row) for row in tokens])

    def _say(self, number: int, generator: numpy.random.Generator) -> tuple[numpy.ndarray, str] | None:
        """What is heard, and its text; None where the recordings lack a phoneme of it."""
        if number >= len(self.sentences):
            number = (number - len(self.sentences)) % len(self.references)
            return self.units.recording(number), self.references[number]
        sentence = self.sentences[number]
        phonemes = self.units.say(self.pronunciations.encode(sentence), generator)
        return None if phonemes is None else (vary_sureness(phonemes, generator), sentence)


class _Training(TextTraining):
    """The mean loss of a token."""

    sources = "another text, model, --recordings or --held-out"

    valid: Sequence[Heard] = ()
    """What was heard of the valid set."""

    def __init__(
        self,
        model: CTCModel,
        sentences: Sequence[str],
        recordings: Sequence[Example],
        valid: Sequence[Example],
        augment: AugmentConfig,
        settings: ReadingSettings,
    ) -> None:
        super().__init__(settings.seed, settings.steps)
        self.model, self.sentences, self.settings = model, sentences, settings
        self._to_hear = recordings, valid, augment

    def setup(self, stage: str) -> None:
        """All that shall be heard is heard by all processes together, as soon as they know of each other."""
        recordings, valid, augment = self._to_hear
        self.valid = hear(self.model.eval(), valid)
        heard = hear(self.model, recordings, augment, self.settings.seed)
        self.said = self.batches = SaidBatches(self.sentences, heard, self.model.train(), self.settings)
        log.info("text: %s sentences, said by %s recordings", f"{len(self.sentences):,}", f"{len(heard):,}")

    def plan(self) -> dict[str, Any]:
        return {**asdict(self.settings), "text": self.said.checksum}

    def batches_of(self, epoch: int) -> SaidBatches:
        self.said.epoch = epoch
        return self.said

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        draws = numpy.random.SeedSequence([self.settings.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(draws.generate_state(1)[0]))  # dropout's, the same in a resumed training
        phonemes, lengths, tokens, token_lengths = batch
        log_probs, _, counts = self.model.read_heard(phonemes, lengths)
        losses = ctc_losses(log_probs, counts, tokens, token_lengths)
        return self.check_loss(losses.sum() / token_lengths.sum().clamp(min=1))

    def configure_optimizers(self) -> Any:
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32  # of Muon's products
        config = OptimizerConfig(name="muon", learning_rate=self.settings.learning_rate)
        return make_optimizer(self.model, config, self.settings.epochs * self.count_steps(), dtype)


class _Saver(TextCheckpoints):
    """Writes the model that each epoch leaves, and tells how it reads the valid set."""

    @torch.no_grad()
    def write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, _Training)
        model = module.model
        learned = model.head.bias[BLANK_ID].clone()
        model.head.bias[BLANK_ID] -= BLANK_PENALTY
        save_model(model, self.path)
        if module.valid:
            rate = pool([word_errors(heard.reference, _read(model, heard)) for heard in module.valid]).rate
            log.info("epoch %d: WER %.2f %% of the valid set", trainer.current_epoch + 1, 100 * rate)
        model.head.bias[BLANK_ID] = learned  # to the last digit, as in the other processes


@torch.inference_mode()
def _read(model: CTCModel, heard: Heard) -> str:
    """Greedily."""
    phonemes = torch.from_numpy(heard.log_probs).float()[:, None].to(model.device)
    was_training, lengths = model.training, torch.tensor([len(phonemes)], device=model.device)
    [tokens] = decode_greedy(model.eval().read(phonemes, lengths), lengths)
    model.train(was_training)
    return model.vocabulary.decode(tokens.token_ids)
