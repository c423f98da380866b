"""The model that a training begins with: random weights, or those of a model file in the shape of the recipe."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from textwrap import shorten

from asr.config import TrainConfig
from asr.errors import AsrError
from asr.model import CTCModel
from asr.modelfile import PACKAGED, load_model
from asr.pronunciation import Pronunciations, read_pronunciations
from asr.surgery import match_phonemes, match_tokens, with_dropout, with_phonemes, with_vocabulary
from asr.text import ALPHABET
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary, Vocabulary

__all__ = ["make_model"]

log = logging.getLogger(__name__)


def make_model(config: TrainConfig, texts: Iterable[str]) -> CTCModel:
    """A model with random weights, or with those of `config.initial_model`; texts: what it shall learn to write."""
    if config.initial_model:
        model = before = with_dropout(load_model(config.initial_model), config.model.encoder.dropout)
        is_same_kind = model.vocabulary.to_dict()["kind"] == config.vocabulary.kind
        if config.vocabulary.characters and (is_same_kind or (model.reader and not config.model.encoder.reader_layers)):
            vocabulary = make_vocabulary(config, texts)
            if vocabulary.to_dict() != model.vocabulary.to_dict():
                model = change_vocabulary(model, vocabulary)
        if pronunciations := make_pronunciations(config, model.vocabulary):
            model = with_phonemes(model, config.model.encoder.phoneme_layer, pronunciations, teacher=before)
            kept = match_phonemes(before, pronunciations)
            _log_change("phonemes", before.phonemes, model.phonemes, kept)
        elif before.pronunciations and not model.pronunciations and config.model.encoder.phoneme_layer:
            ways = "name a dictionary (vocabulary.pronunciations), or do without (model.encoder.phoneme_layer=0)"
            raise AsrError(f"{config.initial_model}: its phonemes are of words in its own letters, not the new; {ways}")
        if others := ", ".join(_other_settings(model, config)):
            reason = f"was made with another model or vocabulary section: {others}"
            raise AsrError(f"{config.initial_model} {reason}; set the same, or another initial_model=")
    else:
        vocabulary = make_vocabulary(config, texts)
        model = CTCModel(config.model, vocabulary, make_pronunciations(config, vocabulary))
    model.phonemes_by_mmi = model.pronunciations is not None and config.optimizer.mmi_share > 0
    freeze(model, config.optimizer.frozen_layers)
    return model.train()


def _other_settings(model: CTCModel, config: TrainConfig) -> Iterator[str]:
    """What of the recipe is not so in the model, as it is there."""
    for section in ("frontend", "encoder"):
        given = asdict(getattr(config.model, section))
        for name, value in asdict(getattr(model.config, section)).items():
            if value != given[name]:
                yield f"model.{section}.{name}={value}"
    kind, size = model.vocabulary.to_dict()["kind"], len(model.vocabulary)
    if kind != config.vocabulary.kind:
        yield f"vocabulary.kind={kind}"
    if kind == "sentencepiece" and size > config.vocabulary.size:
        yield f"vocabulary.size={size}"


def change_vocabulary(model: CTCModel, vocabulary: Vocabulary) -> CTCModel:
    """`with_vocabulary`; what is kept, new and gone is logged."""
    kept = {} if model.reader else match_tokens(model.vocabulary, vocabulary)
    _log_change("tokens", model.vocabulary.tokens, vocabulary.tokens, kept)
    return with_vocabulary(model, vocabulary)


def _log_change(what: str, old: Sequence[str], new: Sequence[str], kept: Mapping[int, int]) -> None:
    """kept: new ids to old ones."""
    kinds = {
        "kept": [new[new_id] for new_id in kept],
        "new": [name for new_id, name in enumerate(new) if new_id not in kept],
        "gone": [name for old_id, name in enumerate(old) if old_id not in kept.values()],
    }
    lists = {kind: shorten(" ".join(map(repr, names)), 1000, placeholder=" ...") for kind, names in kinds.items()}
    shown = [f"{kind} {len(kinds[kind])}: {names}" for kind, names in lists.items() if names]
    log.info("%s: %s", what, "; ".join(shown))


def freeze(model: CTCModel, num_layers: int) -> None:
    """Keep the weights of the lowest recurrent layers and of the convolutions before them; 0 keeps none."""
    if num_layers > len(model.encoder.layers):
        raise AsrError(f"optimizer.frozen_layers={num_layers} must be at most {len(model.encoder.layers)}, the layers")
    if num_layers > 0:
        for part in (model.encoder.subsampling, *model.encoder.layers[:num_layers]):
            part.requires_grad_(False)


def make_vocabulary(config: TrainConfig, texts: Iterable[str]) -> Vocabulary:
    """Characters, or pieces learned from the texts of the training set."""
    characters = config.vocabulary.characters or ALPHABET
    vocabulary = CharacterVocabulary(characters)
    if config.vocabulary.kind == "characters":
        return vocabulary
    return SentencePieceVocabulary.train(map(vocabulary.normalize, texts), config.vocabulary.size, characters)


def make_pronunciations(config: TrainConfig, vocabulary: Vocabulary) -> Pronunciations | None:
    """Those of the recipe's dictionary, for words as the vocabulary writes them, with their starts marked."""
    path = config.vocabulary.pronunciations
    if path == PACKAGED and (packaged := load_model().pronunciations):
        try:
            return packaged.written_by(vocabulary.normalize).with_starts()
        except AsrError as error:
            reason = "none of its English words can be written with the model's letters; name a dictionary of your own"
            raise AsrError(f"vocabulary.pronunciations={PACKAGED}: {reason}") from error
    return read_pronunciations(path, vocabulary.normalize).with_starts() if path else None
