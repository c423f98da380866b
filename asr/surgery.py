"""Copies of a model with another vocabulary, phonemes, dropout or reading layers, that keep what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asr.model import CTCModel
from asr.pronunciation import START, Pronunciations
from asr.vocabulary import Vocabulary

__all__ = ["match_phonemes", "match_tokens", "with_dropout", "with_phonemes", "with_reader", "with_vocabulary"]


def with_dropout(model: CTCModel, dropout: float) -> CTCModel:
    """A copy, in the same mode, with another share of dropout, which no weight depends on."""
    config = replace(model.config, encoder=replace(model.config.encoder, dropout=dropout))
    changed = CTCModel(config, model.vocabulary, model.pronunciations, phonemes_by_mmi=model.phonemes_by_mmi)
    changed.load_state_dict(model.state_dict())
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
    changed = CTCModel(config, model.vocabulary, pronunciations, phonemes_by_mmi=teacher.phonemes_by_mmi)
    of_norm = {name: tensor for name, tensor in teacher.state_dict().items() if name.startswith("phoneme_head.0.")}
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("phoneme_head.")}
    changed.load_state_dict(weights | of_norm, strict=False)
    _copy_rows(teacher, changed, "phoneme_head.1", match_phonemes(teacher, pronunciations))
    return changed.train(model.training)


def with_reader(model: CTCModel, num_layers: int, size: int, vocabulary: Vocabulary) -> CTCModel:
    """A copy, in the same mode, in which so many new layers of that size read the phonemes that it hears, and write
    other tokens; the layers above these phonemes are gone.
    """
    layer = model.config.encoder.phoneme_layer
    encoder = replace(model.config.encoder, num_layers=layer, reader_layers=num_layers, reader_size=size)
    config, by_mmi = replace(model.config, encoder=encoder), model.phonemes_by_mmi
    changed = CTCModel(config, vocabulary, model.pronunciations, phonemes_by_mmi=by_mmi)
    changed.load_state_dict(_below_reader(model), strict=False)
    return changed.train(model.training)


def _below_reader(model: CTCModel) -> dict[str, Tensor]:
    """The weights by which the phonemes are heard."""
    layers = (f"encoder.layers.{number}." for number in range(model.config.encoder.phoneme_layer))
    parts = "encoder.subsampling.", "phoneme_head.", *layers
    return {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}


def with_vocabulary(model: CTCModel, vocabulary: Vocabulary) -> CTCModel:
    """A copy, in the same mode, that writes other tokens: those of `match_tokens` keep what was learned.

    A new token knows nothing, and begins as improbable as the rarest old one. Phonemes are no longer heard: the words
    that they belong to were written in the old tokens. Layers that read them are gone with them, and no token is kept,
    for the new ones are written from what is heard.
    """
    encoder = replace(model.config.encoder, phoneme_layer=0, reader_layers=0)
    gone = "head.", "phoneme", "reader."
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(gone)}
    changed = CTCModel(replace(model.config, encoder=encoder), vocabulary)
    changed.load_state_dict(weights, strict=False)
    with torch.no_grad():
        changed.head.bias.fill_(model.head.bias.min())
    if model.reader is None:  # else the old rows are of its encodings
        _copy_rows(model, changed, "head", match_tokens(model.vocabulary, vocabulary))
    return changed.train(model.training)


def _copy_rows(model: CTCModel, changed: CTCModel, layer: str, kept: Mapping[int, int]) -> None:
    """kept: outputs of that layer in the changed model, to those in the model whose weights they take."""
    if not kept:
        return
    old, new = model.state_dict(), changed.state_dict()
    for name in (f"{layer}.weight", f"{layer}.bias"):
        new[name][list(kept)] = old[name][list(kept.values())]


def match_tokens(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """Ids of new tokens that are old ones, to their old ids; a letter may be in the other case, for it sounds alike."""
    return _match(old.tokens, new.tokens, lambda token: (token, token.upper(), token.lower()))


def match_phonemes(model: CTCModel, pronunciations: Pronunciations) -> dict[int, int]:
    """Ids of the phonemes of a dictionary that the model hears already, to their ids there, in whichever case.

    One at the start of a word may be the same phoneme elsewhere.
    """

    def forms(phoneme: str) -> Iterator[str]:
        for name in (phoneme, phoneme.removeprefix(START)):
            yield from (name, name.lower(), name.upper())

    return _match(model.phonemes, pronunciations.phonemes, forms)


def _match(old: Sequence[str], new: Sequence[str], forms: Callable[[str], Iterable[str]]) -> dict[int, int]:
    """Numbers of the new names, to that of the old one which is the first of their forms to be there."""
    numbers = {name: number for number, name in enumerate(old)}
    found = ((number, next(filter(numbers.__contains__, forms(name)), None)) for number, name in enumerate(new))
    return {number: numbers[form] for number, form in found if form is not None}
