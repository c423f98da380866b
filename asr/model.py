"""The acoustic model: frontend, encoder and head in one module, with the vocabulary it was trained for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from operator import eq
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from asr.config import ModelConfig
from asr.devices import full_float32
from asr.encoder import BiGRUEncoder
from asr.errors import AsrError
from asr.features import Lengths, LogMelFrontend
from asr.pronunciation import START, Pronunciations
from asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy

    from asr.decoder import Decode
    from asr.sources import AudioSource
    from asr.transcript import Transcript

__all__ = [
    "CTCModel",
    "check_evaluates",
    "find_kept",
    "steps_needed",
    "with_dropout",
    "with_phonemes",
    "with_vocabulary",
]


class CTCModel(nn.Module):
    """Waveforms to per-step log-probabilities over the vocabulary; the same computation in training and evaluation.

    A model with pronunciations hears phonemes too, by a second head behind one of its layers.
    """

    def __init__(
        self, config: ModelConfig, vocabulary: Vocabulary, pronunciations: Pronunciations | None = None
    ) -> None:
        """Raises AsrError for pronunciations without `phoneme_layer`, and for it without them."""
        super().__init__()
        layer = config.encoder.phoneme_layer
        if (layer > 0) != (pronunciations is not None):
            rule = "be above 0 beside a pronouncing dictionary (vocabulary.pronunciations), and 0 without one"
            raise AsrError(f"model.encoder.phoneme_layer={layer} must {rule}")
        self.config = config
        self.vocabulary = vocabulary
        self.frontend = LogMelFrontend(config.frontend)
        self.encoder = BiGRUEncoder(config.encoder, config.frontend.num_mels)
        size = self.encoder.output_size
        self.head = nn.Linear(size, len(vocabulary))
        self.pronunciations = pronunciations
        self.phonemes_by_mmi = False
        """Whether it learned the phonemes by maximum mutual information, which a search weighs otherwise."""
        self.phoneme_head = (
            None if pronunciations is None else nn.Sequential(nn.LayerNorm(size), nn.Linear(size, len(pronunciations)))
        )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.frontend.sample_rate

    @property
    def phonemes(self) -> list[str]:
        """Those that it hears, the blank first; none without pronunciations."""
        return [] if self.pronunciations is None else self.pronunciations.phonemes

    @property
    def step_samples(self) -> int:
        """Samples from one step to the next."""
        return self.frontend.hop_samples * self.encoder.subsampling.subsampling_factor

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def output_lengths(self, sample_lengths: Lengths) -> Lengths:
        """Steps of utterances of so many samples."""
        return self.encoder.subsampling.output_lengths(self.frontend.output_lengths(sample_lengths))

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities in float32, and their lengths in steps.

        waveforms: (batch, samples) in [-1, 1] at `sample_rate`; sample_lengths: (batch,) integers.
        returns: (batch, steps, vocabulary), (batch,); what stands past a length is undefined.
        Raises AsrError for other shapes, and on a CPU for lengths that are not those of samples.
        """
        log_probs, lengths = self.all_log_probs(waveforms, sample_lengths)
        return log_probs[:, :, : len(self.vocabulary)].contiguous(), lengths

    def all_log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and behind the tokens of each step the log-probabilities of the phonemes, if it hears them.

        returns: (batch, steps, vocabulary + phonemes), (batch,).
        """
        _check_lengths(waveforms, sample_lengths)
        # A backward pass, which comes later, must find the precision of its forward pass.
        with nullcontext() if torch.is_grad_enabled() else full_float32():
            return self.log_probs(*self.frontend(waveforms, sample_lengths))

    def log_probs(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `all_log_probs`, from (batch, frames, num_mels) normalized features."""
        middle, lengths = self.encoder.lower(features, feature_lengths)
        outputs = [self.head(self.encoder.upper(middle, lengths))]
        if self.phoneme_head is not None:
            outputs.append(self.phoneme_head(middle).transpose(0, 1))
        return torch.cat([output.float().log_softmax(dim=2) for output in outputs], dim=2), lengths

    def transcribe(
        self,
        source: AudioSource | Tensor | numpy.ndarray,
        *,
        sample_rate: int | None = None,
        decode: Decode | None = None,
    ) -> Transcript:
        """`asr.transcribe` with this model."""
        from asr.transcription import transcribe  # the one import from below: people look for it on a model

        return transcribe(source, sample_rate=sample_rate, model=self, decode=decode)


def _check_lengths(waveforms: Tensor, sample_lengths: Tensor) -> None:
    """Raise AsrError for what `CTCModel.forward` does not take; what is on a GPU is not waited for."""
    given = f"waveforms {tuple(waveforms.shape)} and sample_lengths {tuple(sample_lengths.shape)}"
    if waveforms.dim() != 2 or sample_lengths.shape != waveforms.shape[:1] or not waveforms.numel():
        raise AsrError(f"{given} must be (batch, samples) and (batch,), of one utterance and one sample at least")
    if sample_lengths.is_floating_point() or sample_lengths.is_complex():
        raise AsrError(f"sample_lengths of {sample_lengths.dtype} must be integers")
    if sample_lengths.device.type == "cpu":
        shortest, longest = sample_lengths.min().item(), sample_lengths.max().item()
        if shortest < 0 or longest > waveforms.shape[1]:
            raise AsrError(f"{given}: lengths of {shortest} to {longest} must be from 0 to {waveforms.shape[1]}")


def check_evaluates(model: CTCModel) -> None:
    """Raise AsrError for a model in training mode, of which each transcript would be another one."""
    if model.training:
        raise AsrError("the model is in training mode, where dropout changes what it writes; call model.eval() first")


def steps_needed(token_ids: list[int]) -> int:
    """The fewest steps in which CTC can write these tokens: one each, and a blank between two equal ones."""
    repeats: int = sum(map(eq, token_ids, token_ids[1:]))
    return len(token_ids) + repeats


def with_dropout(model: CTCModel, dropout: float) -> CTCModel:
    """A copy, in the same mode, with another share of dropout, which no weight depends on."""
    config = replace(model.config, encoder=replace(model.config.encoder, dropout=dropout))
    changed = CTCModel(config, model.vocabulary, model.pronunciations)
    changed.load_state_dict(model.state_dict())
    changed.phonemes_by_mmi = model.phonemes_by_mmi
    return changed.train(model.training)


def with_phonemes(
    model: CTCModel, layer: int, pronunciations: Pronunciations, *, teacher: CTCModel | None = None
) -> CTCModel:
    """A copy, in the same mode, that hears phonemes behind that layer; those of the teacher it keeps.

    One that is new at the start of a word begins as it sounds elsewhere.
    teacher: the model before its vocabulary was changed; by default the model itself.
    """
    teacher = teacher or model
    config = replace(model.config, encoder=replace(model.config.encoder, phoneme_layer=layer))
    changed = CTCModel(config, model.vocabulary, pronunciations)
    of_norm = {name: tensor for name, tensor in teacher.state_dict().items() if name.startswith("phoneme_head.0.")}
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("phoneme_head.")}
    changed.load_state_dict(weights | of_norm, strict=False)
    _copy_rows(teacher, changed, "phoneme_head.1", find_kept_phonemes(teacher, pronunciations))
    changed.phonemes_by_mmi = teacher.phonemes_by_mmi
    return changed.train(model.training)


def with_vocabulary(model: CTCModel, vocabulary: Vocabulary) -> CTCModel:
    """A copy, in the same mode, that writes other tokens: those of `find_kept` keep what was learned.

    A new token knows nothing, and begins as improbable as the rarest old one. Phonemes are no longer heard: the words
    that they belong to were written in the old tokens.
    """
    changed = CTCModel(replace(model.config, encoder=replace(model.config.encoder, phoneme_layer=0)), vocabulary)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("head.", "phoneme"))}
    changed.load_state_dict(weights, strict=False)
    with torch.no_grad():
        changed.head.bias.fill_(model.head.bias.min())
    _copy_rows(model, changed, "head", find_kept(model.vocabulary, vocabulary))
    return changed.train(model.training)


def _copy_rows(model: CTCModel, changed: CTCModel, layer: str, kept: Mapping[int, int]) -> None:
    """kept: outputs of that layer in the changed model, to those in the model whose weights they take."""
    if not kept:
        return
    old, new = model.state_dict(), changed.state_dict()
    for name in (f"{layer}.weight", f"{layer}.bias"):
        new[name][list(kept)] = old[name][list(kept.values())]


def find_kept_phonemes(model: CTCModel, pronunciations: Pronunciations) -> dict[int, int]:
    """Ids of the phonemes of a dictionary that the model hears already, to their ids there, in whichever case."""
    old_ids = {phoneme: number for number, phoneme in enumerate(model.phonemes)}
    names = [(one, one.removeprefix(START)) for one in pronunciations.phonemes]
    forms = ([form for name in pair for form in (name, name.lower(), name.upper())] for pair in names)
    found = (next(filter(old_ids.__contains__, cases), None) for cases in forms)
    return {number: old_ids[name] for number, name in enumerate(found) if name is not None}


def find_kept(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """Ids of new tokens that are old ones, to their old ids; a letter may be in the other case, for it sounds alike."""
    old_ids = {token: token_id for token_id, token in enumerate(old.tokens)}
    forms = enumerate((token, token.upper(), token.lower()) for token in new.tokens)
    found = ((token_id, next(filter(old_ids.__contains__, cases), None)) for token_id, cases in forms)
    return {token_id: old_ids[token] for token_id, token in found if token is not None}
