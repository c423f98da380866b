"""The acoustic model: frontend, encoder and head in one module, with the vocabulary it was trained for."""

from __future__ import annotations

from contextlib import nullcontext
from operator import eq
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from asr.config import ModelConfig
from asr.devices import full_float32
from asr.encoder import BiGRUEncoder, PhonemeReader
from asr.errors import AsrError
from asr.features import Lengths, LogMelFrontend, valid_positions
from asr.pronunciation import Pronunciations
from asr.vocabulary import BLANK_ID, Vocabulary

if TYPE_CHECKING:
    import numpy

    from asr.decoder import Decode
    from asr.sources import AudioSource
    from asr.transcript import Transcript

__all__ = ["CTCModel", "check_evaluates", "steps_needed"]

NOT_WRITTEN = -30.0
"""Log-probability of each token in a step that is not read."""


class CTCModel(nn.Module):
    """Waveforms to per-step log-probabilities over the vocabulary; the same computation in training and evaluation.

    A model with pronunciations hears phonemes too, by a second head behind one of its layers. Instead of the sound it
    may read these, by layers that have learned from text how words are written.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        pronunciations: Pronunciations | None = None,
        *,
        phonemes_by_mmi: bool = False,
    ) -> None:
        """phonemes_by_mmi: whether it learns the phonemes by maximum mutual information, which a search weighs
        otherwise. Raises AsrError for pronunciations without `phoneme_layer`, and for it without them.
        """
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
        self.head = nn.Linear(2 * config.encoder.reader_size if config.encoder.reader_layers else size, len(vocabulary))
        self.pronunciations = pronunciations
        self.phonemes_by_mmi = phonemes_by_mmi
        self.phoneme_head = (
            None if pronunciations is None else nn.Sequential(nn.LayerNorm(size), nn.Linear(size, len(pronunciations)))
        )
        self.reader = PhonemeReader(config.encoder, len(self.phonemes)) if config.encoder.reader_layers else None

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
        return self.split(log_probs)[0].contiguous(), lengths

    def all_log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and behind the tokens of each step the log-probabilities of the phonemes, if it hears them.

        returns: (batch, steps, vocabulary + phonemes), (batch,).
        """
        _check_lengths(waveforms, sample_lengths)
        # A backward pass, which comes later, must find the precision of its forward pass.
        with nullcontext() if torch.is_grad_enabled() else full_float32():
            return self.log_probs_of_features(*self.frontend(waveforms, sample_lengths))

    def log_probs_of_features(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `all_log_probs`, from (batch, frames, num_mels) normalized features."""
        middle, lengths = self.encoder.lower_layers(features, feature_lengths)
        phonemes = None if self.phoneme_head is None else self._hear(middle)
        if self.reader is None or phonemes is None:
            tokens = self.head(self.encoder.upper_layers(middle, lengths)).float().log_softmax(dim=2)
        else:
            tokens = self.read(phonemes, lengths)
        return tokens if phonemes is None else torch.cat([tokens, phonemes.transpose(0, 1)], dim=2), lengths

    def log_probs_of_phonemes(self, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Of phonemes alone, which a model with pronunciations hears: (steps, batch, phonemes), and lengths, (batch,);
        arguments as of `log_probs_of_features`.
        """
        middle, lengths = self.encoder.lower_layers(features, feature_lengths)
        return self._hear(middle), lengths

    def _hear(self, middle: Tensor) -> Tensor:
        """(steps, batch, size) of the lower layers → log-probs of the phonemes (steps, batch, phonemes)."""
        assert self.phoneme_head is not None
        log_probs: Tensor = self.phoneme_head(middle).float().log_softmax(dim=2)
        return log_probs

    def read(self, phonemes: Tensor, lengths: Tensor) -> Tensor:
        """The tokens' log-probabilities by a model that reads phonemes: (batch, steps, vocabulary).

        Steps in which none is heard are not read, and nothing is written there.
        phonemes: (steps, batch, phonemes) log-probabilities; lengths: (batch,) steps.
        """
        written, places, counts = self.read_heard(phonemes, lengths)
        nothing = written.new_full((len(written), len(phonemes), written.shape[2]), NOT_WRITTEN)
        nothing[:, :, BLANK_ID] = 0.0
        is_read = valid_positions(counts, written.shape[1])[:, :, None]
        written = torch.where(is_read, written, nothing[:, : written.shape[1]])
        log_probs: Tensor = nothing.scatter(1, places[:, :, None].expand_as(written), written)
        return log_probs

    def read_heard(self, phonemes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `read`, of the steps alone in which a phoneme is heard: (batch, heard, vocabulary); and which steps these
        are, (batch, heard), and how many, (batch,). Past these both are undefined.
        """
        assert self.reader is not None
        encodings, places, counts = self.reader(phonemes, lengths)
        return self.head(encodings).float().log_softmax(dim=2), places, counts

    def split(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """What `all_log_probs` returns, or a row of it, parted: (…, steps, vocabulary) and (…, steps, phonemes)."""
        tokens, phonemes = log_probs.tensor_split([len(self.vocabulary)], dim=-1)
        return tokens, phonemes

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
    """Raise AsrError for a model in training mode, of which each transcript would be another one, and for one in half
    precision, which the frontend does not compute in.
    """
    if model.training:
        raise AsrError("the model is in training mode, where dropout changes what it writes; call model.eval() first")
    dtype = model.head.weight.dtype
    if dtype.itemsize < torch.float32.itemsize:
        raise AsrError(f"the model's weights are in {dtype}, which it does not compute in; call model.float() first")


def steps_needed(token_ids: list[int]) -> int:
    """The fewest steps in which CTC can write these tokens: one each, and a blank between two equal ones."""
    repeats: int = sum(map(eq, token_ids, token_ids[1:]))
    return len(token_ids) + repeats
