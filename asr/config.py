"""Every setting of the project, once: one frozen dataclass per stage, a default and its meaning per field."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

from asr.errors import AsrError

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EncoderConfig",
    "FrontendConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainerConfig",
    "VocabularyConfig",
    "model_config_from_dict",
]


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise AsrError `name=value must <rule>` unless `condition` holds."""
    if not condition:
        raise AsrError(f"{name}={value!r} must {rule}")


@dataclass(frozen=True)
class FrontendConfig:
    """Waveforms to log-mel features. Stored in the model file."""

    sample_rate: int = 16000
    """Hz; audio of any other rate is resampled to it."""
    num_mels: int = 80
    """Mel bands between 0 Hz and half the sample rate (Slaney's scale and norm)."""
    window_ms: float = 25.0
    """Width of the Hann window, ms."""
    hop_ms: float = 10.0
    """Distance between two frames, ms."""

    def __post_init__(self) -> None:
        rate, window = self.sample_rate, self.window_ms
        require(1000 <= rate <= 768000, "model.frontend.sample_rate", rate, "be 1000 to 768000 Hz")
        require(8 <= self.num_mels <= 1000, "model.frontend.num_mels", self.num_mels, "be 8 to 1000")
        require(self.hop_ms * self.sample_rate >= 1000, "model.frontend.hop_ms", self.hop_ms, "be at least a sample")
        is_window = self.hop_ms <= window <= 1000
        require(is_window, "model.frontend.window_ms", window, "be at least model.frontend.hop_ms, at most 1000")
        require(window * rate >= 2000, "model.frontend.window_ms", window, "be at least two samples")


@dataclass(frozen=True)
class EncoderConfig:
    """Features to encodings. Stored in the model file."""

    conv_channels: int = 32
    """Channels of the two strided convolutions that make four frames one step."""
    cell: str = "gru"
    """Recurrent cell: gru, lstm or rnn (tanh)."""
    num_layers: int = 4
    """Residual bidirectional layers."""
    hidden_size: int = 320
    """Units per direction; a layer reads and writes twice as many."""
    dropout: float = 0.1
    """Share of each layer's output, and of the convolutions', that training zeroes for a whole utterance."""
    phoneme_layer: int = 0
    """The layer, from below, behind which a second CTC output hears phonemes (`vocabulary.pronunciations`), which the
    search with a language model reads beside the tokens. 0: none."""
    reader_layers: int = 0
    """Layers that read nothing but what phonemes were heard, and write the tokens, as `asr learn-text` makes them."""
    reader_size: int = 256
    """Their units per direction."""

    def __post_init__(self) -> None:
        require(self.cell in ("gru", "lstm", "rnn"), "model.encoder.cell", self.cell, "be gru, lstm or rnn")
        for name in ("num_layers", "hidden_size", "conv_channels", "reader_size"):
            require(getattr(self, name) >= 1, f"model.encoder.{name}", getattr(self, name), "be at least 1")
        require(0 <= self.dropout < 1, "model.encoder.dropout", self.dropout, "be in [0, 1)")
        is_layer = 0 <= self.phoneme_layer <= self.num_layers
        require(is_layer, "model.encoder.phoneme_layer", self.phoneme_layer, f"be 0 to num_layers={self.num_layers}")
        can_read = self.reader_layers == 0 or (self.reader_layers > 0 and self.phoneme_layer == self.num_layers)
        require(can_read, "model.encoder.reader_layers", self.reader_layers, "be 0 unless phoneme_layer is num_layers")


@dataclass(frozen=True)
class ModelConfig:
    """All that shapes the model besides its vocabulary. Stored in the model file."""

    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True)
class VocabularyConfig:
    """The output symbols of a model trained from nothing."""

    kind: str = "characters"
    """characters, or sentencepiece (unigram pieces learned from the training text)."""
    characters: str = ""
    """What transcripts are written with, the space included; what is not in it is dropped. Empty: LibriSpeech's space,
    apostrophe and A-Z, or what `initial_model` has."""
    size: int = 256
    """Pieces at most, blank included; sentencepiece only."""
    pronunciations: str = ""
    """Pronouncing dictionary for `model.encoder.phoneme_layer`: a word and its phonemes a line, as in CMUdict, or
    `packaged`, the packaged model's, which is English; the phoneme that begins a word is learned as one of its own.
    Empty: none, or what `initial_model` has."""

    def __post_init__(self) -> None:
        kinds = ("characters", "sentencepiece")
        require(self.kind in kinds, "vocabulary.kind", self.kind, "be characters or sentencepiece")
        distinct = len(set(self.characters)) == len(self.characters)
        is_alphabet = not self.characters or (distinct and " " in self.characters)
        rule = 'hold a space, which YAML keeps in quotes (" ab"), and each character once'
        require(is_alphabet, "vocabulary.characters", self.characters, rule)
        require(self.size >= 2, "vocabulary.size", self.size, "be at least 2")


@dataclass(frozen=True)
class AugmentConfig:
    """What a training, and nothing else, does to its recordings."""

    speeds: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    """One is drawn per batch, in hundredths: resampling, so the pitch moves too. [1.0] switches it off."""
    gain_db: float = 6.0
    """Loudness is moved by up to this much either way, dB."""
    noise_probability: float = 0.2
    """Share of the utterances that get Gaussian noise, its colour drawn between white and brown."""
    noise_snr_db: list[float] = field(default_factory=lambda: [10.0, 40.0])
    """Lowest and highest signal-to-noise ratio drawn, dB."""
    num_frequency_masks: int = 2
    """SpecAugment masks over mel bands, per utterance."""
    frequency_mask_mels: int = 20
    """Greatest width of one, mel bands."""
    num_time_masks: int = 5
    """SpecAugment masks over frames, per utterance."""
    time_mask_share: float = 0.05
    """Greatest width of one, share of the utterance."""
    consistency_weight: float = 0.0
    """Above 0, two views of each utterance are augmented, and their outputs are drawn together with this weight
    (CR-CTC, Yao et al., 2025, which takes 0.2 and 2.5 times the time masks). A step takes twice the time and memory."""

    def __post_init__(self) -> None:
        snr = self.noise_snr_db
        are_speeds = bool(self.speeds) and all(0.5 <= speed <= 2 and speed == round(speed, 2) for speed in self.speeds)
        require(are_speeds, "augment.speeds", self.speeds, "be numbers from 0.5 to 2, in steps of 0.01")
        is_range = len(snr) == 2 and -inf < snr[0] <= snr[1] < inf
        require(is_range, "augment.noise_snr_db", snr, "be [lowest, highest], both finite")
        require(0 <= self.time_mask_share <= 1, "augment.time_mask_share", self.time_mask_share, "be in [0, 1]")
        require(0 <= self.noise_probability <= 1, "augment.noise_probability", self.noise_probability, "be in [0, 1]")
        for name in ("gain_db", "num_frequency_masks", "frequency_mask_mels", "num_time_masks", "consistency_weight"):
            value = getattr(self, name)
            require(0 <= value < inf, f"augment.{name}", value, "be at least 0, and finite")


@dataclass(frozen=True)
class DataConfig:
    """Manifests to batches."""

    train: list[str] = field(default_factory=list)
    """Manifests to learn from."""
    valid: list[str] = field(default_factory=list)
    """Manifests that choose the best checkpoint."""
    batch_seconds: float = 120.0
    """Audio per batch and device, padding included, seconds."""
    min_seconds: float = 0.3
    """Shorter utterances are left out of training, and listed."""
    max_seconds: float = 20.0
    """Longer utterances are left out of training, and listed."""
    shortest_first: bool = True
    """The first epoch goes from short to long utterances (SortaGrad, Amodei et al., 2016), which CTC finds easier."""
    num_workers: int = 1
    """Processes that read audio ahead; 0 reads in the training process."""
    cache_hours: float = 0.0
    """Decoded audio that each process of `num_workers` keeps in memory, hours (115 MB an hour)."""

    def __post_init__(self) -> None:
        for name, paths in (("data.train", self.train), ("data.valid", self.valid)):
            require(not isinstance(paths, str), name, paths, f"be a list such as [{paths!r}]")  # else of its letters
        require(
            self.batch_seconds >= self.max_seconds,
            "data.batch_seconds",
            self.batch_seconds,
            f"be at least data.max_seconds={self.max_seconds}",
        )
        shortest, longest = self.min_seconds, self.max_seconds
        require(0 <= shortest <= longest, "data.min_seconds", shortest, f"be in [0, data.max_seconds={longest}]")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "be at least 0")
        require(0 <= self.cache_hours < inf, "data.cache_hours", self.cache_hours, "be at least 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a linear warm-up and a cosine down to zero."""

    name: str = "adamw"
    """adamw; or muon: Muon for the recurrent layers' matrices, AdamW for the rest. Fewer steps, each a sixth longer."""
    learning_rate: float = 2e-3
    """At the end of the warm-up."""
    warmup_share: float = 0.1
    """Share of all steps."""
    weight_decay: float = 1e-2
    """On matrices; biases and norms have none."""
    beta2: float = 0.98
    """AdamW's memory of squared gradients."""
    clip_norm: float = 5.0
    """Longest gradient, L2 norm over all weights."""
    frozen_layers: int = 0
    """Recurrent layers, from below, that keep their weights, with the convolutions before them; 0: all learn."""
    phoneme_weight: float = 0.5
    """Share of the loss that is the phonemes', in a model that hears them; the tokens have the rest."""
    mmi_share: float = 0.9
    """Share of the phonemes' loss that is maximum mutual information: what was said against all other sequences of
    phonemes, as likely as their trigrams in the training texts are (CTC-CRF, Xiang and Ou, 2019). CTC has the rest."""

    def __post_init__(self) -> None:
        require(self.name in ("adamw", "muon"), "optimizer.name", self.name, "be adamw or muon")
        is_rate = 0 < self.learning_rate < inf
        require(is_rate, "optimizer.learning_rate", self.learning_rate, "be above 0, and finite")
        require(0 <= self.warmup_share <= 1, "optimizer.warmup_share", self.warmup_share, "be in [0, 1]")
        is_decay = 0 <= self.weight_decay < inf
        require(is_decay, "optimizer.weight_decay", self.weight_decay, "be at least 0, and finite")
        require(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "be in [0, 1)")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "be above 0")
        require(self.frozen_layers >= 0, "optimizer.frozen_layers", self.frozen_layers, "be at least 0")
        require(0 <= self.phoneme_weight < 1, "optimizer.phoneme_weight", self.phoneme_weight, "be in [0, 1)")
        require(0 <= self.mmi_share <= 1, "optimizer.mmi_share", self.mmi_share, "be in [0, 1]")


@dataclass(frozen=True)
class TrainerConfig:
    """How long, where and how exactly."""

    epochs: int = 30
    """Passes over the training set."""
    valid_every_epochs: int = 1
    """Epochs from one validation to the next; it divides `epochs`, so that the last is validated."""
    patience: int = 0
    """Validations in a row without a lower WER, or of equal WER a lower CER or loss, after which training ends early;
    0: never."""
    seed: int = 1
    """Of the initial weights, the order of the utterances and the augmentation."""
    precision: str = "auto"
    """auto, 32-true, bf16-mixed (CPU) or 16-mixed (GPU); auto takes bf16 or fp16 where the device has it."""
    accelerator: str = "auto"
    """auto, cpu or gpu."""
    devices: str = "auto"
    """auto or how many, on this machine."""
    average_decay: float = 0.998
    """Upper limit of the decay of the moving average of the weights; at step n the decay is
    min(this, (1 + n) / (10 + n)). The averaged weights are validated and saved. 0 turns averaging off."""
    checkpoint_minutes: float = 10.0
    """Between two checkpoints inside an epoch: what a kill may cost."""
    log_every_steps: int = 10
    """Steps between two TensorBoard points."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "trainer.epochs", self.epochs, "be at least 1")
        every = self.valid_every_epochs
        divides = every >= 1 and self.epochs % every == 0
        require(divides, "trainer.valid_every_epochs", every, f"divide trainer.epochs={self.epochs}; set both")
        require(self.patience >= 0, "trainer.patience", self.patience, "be at least 0")
        require(0 <= self.seed < 2**63, "trainer.seed", self.seed, "be at least 0 and below 2^63")
        precisions, accelerators = ("auto", "32-true", "bf16-mixed", "16-mixed"), ("auto", "cpu", "gpu")
        require(self.precision in precisions, "trainer.precision", self.precision, f"be one of {precisions}")
        require(self.accelerator in accelerators, "trainer.accelerator", self.accelerator, "be auto, cpu or gpu")
        counted = self.devices == "auto" or (self.devices.isdecimal() and int(self.devices) > 0)
        require(counted, "trainer.devices", self.devices, "be auto or a number above 0")
        require(0 <= self.average_decay < 1, "trainer.average_decay", self.average_decay, "be in [0, 1)")
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "trainer.checkpoint_minutes", minutes, "be at least 0")
        require(self.log_every_steps >= 1, "trainer.log_every_steps", self.log_every_steps, "be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """A whole recipe."""

    output_dir: str = "runs/asr"
    """Gets model.safetensors, checkpoints, config.yaml, TensorBoard's events, and data.txt with the data's faults."""
    initial_model: str = ""
    """Model file whose weights the run starts from; `model` and `vocabulary` must be as there. Empty: from random."""
    model: ModelConfig = field(default_factory=ModelConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        require(self.output_dir.strip() != "", "output_dir", self.output_dir, "name a folder")
        is_plain = not self.output_dir.startswith("~")  # Lightning takes it for the home folder, nobody else does
        require(is_plain, "output_dir", self.output_dir, "not begin with ~; write the home folder out")


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of dataclasses.asdict for a ModelConfig; raises TypeError, KeyError or AsrError for others."""
    return ModelConfig(frontend=FrontendConfig(**values["frontend"]), encoder=EncoderConfig(**values["encoder"]))
