"""A model file to one that knows a domain, an accent or a microphone better: the training code, with other defaults."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from asr.config import DataConfig, TrainConfig
from asr.decoder import Decode
from asr.devices import choose_accelerator, choose_precision
from asr.errors import AsrError
from asr.evaluation import Evaluation, evaluate
from asr.folders import read_data, read_many
from asr.manifest import Utterance, write_manifest
from asr.metrics import ErrorCounts
from asr.model import CTCModel
from asr.modelfile import PACKAGED_MODEL, load_model
from asr.ranks import is_first_process
from asr.recipe import load_config
from asr.resuming import find_resume_point
from asr.training import train
from asr.vocabulary import CharacterVocabulary

__all__ = ["Finetuned", "finetune", "finetune_config"]

log = logging.getLogger(__name__)

DEFAULTS = [
    "output_dir=runs/finetune",
    "data.batch_seconds=60",  # an hour gives sixty steps an epoch
    "data.shortest_first=false",
    "data.cache_hours=12",
    "augment.noise_probability=0.1",
    "augment.num_frequency_masks=1",
    "augment.num_time_masks=2",
    "optimizer.learning_rate=5e-4",  # a quarter of what random weights need: what was learned stays
    "optimizer.clip_norm=1.0",
    "trainer.average_decay=0.98",  # few steps: a long memory would still hold the beginning
    "trainer.patience=6",
]

GIVEN_OTHERWISE = (
    *("initial_model=", "data=", "data.train=", "data.valid="),
    *("vocabulary=", "vocabulary.kind=", "vocabulary.size="),
)
"""Settings of a training that a fine-tuning takes from its model and its arguments."""

FEWEST_EPOCHS, MOST_EPOCHS, TOTAL_HOURS = 5, 40, 10.0
"""As many epochs as make ten hours of audio, within these bounds."""


MakeDecode: TypeAlias = "Callable[[CTCModel], Decode | None]"


@dataclass(frozen=True)
class Finetuned:
    """The new model file, and each valid set before and after."""

    path: Path
    before: dict[str, Evaluation]
    after: dict[str, Evaluation]

    def summary(self) -> str:
        """A line for each valid set: WER before, after, and its manifest."""
        lines = [
            f"{_show(before.words)}\t{_show(self.after[name].words)}\t{name}" for name, before in self.before.items()
        ]
        return "\n".join(["before\tafter\tWER on", *lines])


def _show(words: ErrorCounts) -> str:
    """The rate, and none where there is no word to count."""
    return f"{words.rate:.2%}" if words.reference_length else "none"


def finetune(
    config: TrainConfig,
    *,
    also_valid: Sequence[str] = (),
    mixed: Sequence[str] = (),
    resume: bool = False,
    make_decode: MakeDecode | None = None,
) -> Finetuned:
    """Train on from `config.initial_model`, and compare on the valid sets, and on others that shall not suffer.

    config: as `finetune_config` makes it. also_valid: manifests that only the comparison reads.
    mixed: manifests of what the model learned from before; as many hours as are new are drawn from them, against
    forgetting, and listed in `mixed.jsonl` in the output folder.
    make_decode: of each of both models, the decoder that the comparison uses; by default `decode_greedy`.
    Of several processes the first one compares.
    """
    choose_precision(config.trainer)  # to refuse before the comparison what `train` would refuse after it
    find_resume_point(config, resume)
    if mixed:
        train_manifests = [*config.data.train, _write_mixed(mixed, config)]
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=train_manifests))
    compare = partial(_evaluate, [*config.data.valid, *also_valid], config, make_decode)
    before = compare(config.initial_model)
    path = train(config, resume=resume)
    finetuned = Finetuned(path, before, compare(path))
    lower = f"optimizer.learning_rate={config.optimizer.learning_rate / 2:g}"
    same_alphabet = not config.vocabulary.characters  # else the references differ too
    for name in config.data.valid:
        if before and same_alphabet and 0 < before[name].words.rate <= finetuned.after[name].words.rate:
            advice = f"try more recordings, a lower rate ({lower}) or `asr average`"
            log.warning("%s: no better than before; %s", name, advice)
    return finetuned


def _evaluate(
    manifests: Sequence[str], config: TrainConfig, make_decode: MakeDecode | None, model_path: str | Path
) -> dict[str, Evaluation]:
    """Of each, in the first of several processes, where the training computes; the others have none.

    Raises AsrError that lists recordings that cannot be read, whose rate would say nothing of the model.
    """
    if not is_first_process():
        return {}
    model = load_model(model_path, choose_accelerator(config.trainer))
    decode = make_decode(model) if make_decode else None
    evaluations = {manifest: evaluate(model, read_data(manifest), decode=decode) for manifest in manifests}
    unread = [failure for evaluation in evaluations.values() for failure in evaluation.failures]
    failures = [f"{failure.name}: {failure.message}" for failure in unread]
    if failures:
        raise AsrError.of_many(failures, "recordings that cannot be read")
    return evaluations


def finetune_config(
    model_path: str | Path | None,
    train_manifests: Sequence[str],
    valid_manifests: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    frozen_layers: int | None = None,
    characters: str = "",
) -> TrainConfig:
    """A recipe for ten minutes to ten hours of recordings; None is the packaged model.

    overrides: `section.key=value`, over the defaults. frozen_layers: of the encoder, from below, keep their weights.
    characters: what the new model shall write with, where it is not what the old one does; a model of pieces learns
    as many from the new texts, but one that reads phonemes, whose pieces are of millions of words, writes characters.
    Raises AsrError for overrides of what the other arguments say, and of the model section, of which only the dropout
    can change.
    """
    model_path = model_path or PACKAGED_MODEL
    if isinstance(valid_manifests, str):
        raise AsrError(f"{valid_manifests}: is one manifest; give a list of them")
    _check_overrides(overrides, {"optimizer.frozen_layers=": frozen_layers, "vocabulary.characters=": characters})
    data = load_config(None, [*DEFAULTS, *overrides]).data
    hours = sum(utterance.duration_seconds for utterance in _read_usable(train_manifests, data)) / 3600
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(TOTAL_HOURS / hours)))
    model = load_model(model_path)
    defaults = [*DEFAULTS, f"trainer.epochs={epochs}", f"model.encoder.dropout={model.config.encoder.dropout}"]
    frozen = [] if frozen_layers is None else [f"optimizer.frozen_layers={frozen_layers}"]
    config = load_config(None, [*defaults, *overrides, *frozen])
    characters = characters or config.vocabulary.characters
    same_letters = model.reader and sorted(characters) == sorted(model.vocabulary.alphabet)
    if characters and (same_letters or CharacterVocabulary(characters).to_dict() == model.vocabulary.to_dict()):
        characters = ""  # nothing changes, the phonemes included
    if config.vocabulary.pronunciations and model.pronunciations is None:
        how = "train by a recipe that hears them, with initial_model="
        raise AsrError(f"vocabulary.pronunciations: {model_path} hears no phonemes; {how}{model_path}")
    hears_phonemes = not characters or config.vocabulary.pronunciations  # `with_vocabulary` drops those of old letters
    encoder = dataclasses.replace(
        model.config.encoder,
        dropout=config.model.encoder.dropout,
        phoneme_layer=model.config.encoder.phoneme_layer if hears_phonemes else 0,
        reader_layers=0 if characters else model.config.encoder.reader_layers,  # its phonemes are of the old letters
    )
    return dataclasses.replace(
        config,
        initial_model=str(model_path),
        model=dataclasses.replace(model.config, encoder=encoder),
        vocabulary=dataclasses.replace(
            config.vocabulary,
            kind="characters" if characters and model.reader else model.vocabulary.to_dict()["kind"],
            characters=characters,
            size=len(model.vocabulary),
        ),
        data=dataclasses.replace(config.data, train=[*train_manifests], valid=[*valid_manifests]),
    )


def _check_overrides(overrides: Sequence[str], given: Mapping[str, object]) -> None:
    """given: settings that arguments of their own stand for, and what these say, if anything."""
    for override in overrides:
        if override.startswith(("model.", "model=")) and not override.startswith("model.encoder.dropout="):
            raise AsrError(
                f"{override}: the model keeps its shape; of its section only model.encoder.dropout can change"
            )
        if override.startswith(GIVEN_OTHERWISE):
            raise AsrError(f"{override}: fine-tuning takes it from its own arguments and the model; see --help")
        if any(override.startswith(name) and value not in (None, "") for name, value in given.items()):
            raise AsrError(f"{override}: an option says the same; give one of the two")


def _write_mixed(manifests: Sequence[str], config: TrainConfig) -> str:
    """The path of a manifest with as many hours as there are to learn from, drawn by the seed."""
    wanted = sum(utterance.duration_seconds for utterance in _read_usable(config.data.train, config.data))
    utterances = _read_usable(manifests, config.data)
    random.Random(config.trainer.seed).shuffle(utterances)
    drawn: list[Utterance] = []
    seconds = 0.0
    while utterances and seconds < wanted:
        drawn.append(utterances.pop())
        seconds += drawn[-1].duration_seconds
    log.info("mixed in: %.2f hours of what was learned before, beside %.2f", seconds / 3600, wanted / 3600)
    path = Path(config.output_dir) / "mixed.jsonl"
    write_manifest(drawn, path)
    return str(path)


def _read_usable(manifests: Sequence[str], data: DataConfig) -> list[Utterance]:
    """The utterances that a training does not leave out for their length; raises AsrError where there is none."""
    shortest, longest = data.min_seconds, data.max_seconds
    usable = [one for one in read_many(manifests) if shortest <= one.duration_seconds <= longest]
    if not usable:
        lasts = f"lasts from {shortest:g} to {longest:g} s (data.min_seconds, data.max_seconds)"
        raise AsrError(f"{', '.join(manifests)}: no utterance {lasts}, so there is nothing to learn from")
    return usable
