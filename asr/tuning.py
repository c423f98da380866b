"""The weights of a language model that give a valid set the lowest WER.

The model computes each utterance once; only the search is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.audio import open_audio
from asr.beam import PRIOR_WEIGHT, BeamDecoder
from asr.errors import AsrError
from asr.forks import Forks
from asr.longform import BATCH_SECONDS, stream_log_probs
from asr.manifest import Utterance
from asr.metrics import ErrorCounts, pool, word_errors
from asr.model import CTCModel
from asr.plan import fill_batches
from asr.transcription import LONG_SECONDS
from asr.words import join_words, split_words

__all__ = ["Point", "compute_log_probs", "find_best", "tune"]

LM_WEIGHTS, WORD_SCORES = (0.5, 1.0, 1.5, 2.0), (-1.0, 0.0, 1.0, 2.0)
"""The coarse grid, in even steps, with the decoder's own prior weight."""

STEPS = [(0.25, 0.5, 0.0), (0.0, 0.0, 0.25)]
"""Half a step of the grid in both, then one of the prior weight: so far around the best point others are tried, until
none of them is better."""


@dataclass(frozen=True)
class Point:
    """Three weights, and what came of them."""

    lm_weight: float
    word_score: float
    prior_weight: float
    words: ErrorCounts

    @property
    def weights(self) -> tuple[float, ...]:
        """All three, in their order."""
        return self.lm_weight, self.word_score, self.prior_weight


def tune(
    model: CTCModel, utterances: Sequence[Utterance], language_model: str | Path, *, processes: int, **settings: Any
) -> Iterator[Point]:
    """The points of a coarse grid, then those around the best point as long as it gets better, each as it is done.

    processes: searches that run side by side. settings: of the BeamDecoder.
    Raises AsrError for utterances without audio that can be read.
    """
    make = partial(BeamDecoder.for_model, model, language_model, **settings)
    make()  # what is wrong with the settings is told before the model computes
    examples = compute_log_probs(model, utterances, with_phonemes=True)
    if not any(split_words(reference) for reference, _ in examples):
        raise AsrError("no reference holds a letter that the model writes: there are no errors to count")

    def score(weights: tuple[float, ...]) -> Point:
        named: dict[str, Any] = dict(zip(("lm_weight", "word_score", "prior_weight"), weights, strict=True))
        decoder = make(**named)
        found = ([word for row in rows for word in decoder.search(row)[0]] for _, rows in examples)
        counts = [word_errors(reference, join_words(words)) for (reference, _), words in zip(examples, found)]
        return Point(**named, words=pool(counts))

    forks = Forks(score, processes)
    points: list[Point] = []

    def score_all(weights: Iterable[tuple[float, ...]]) -> Iterator[Point]:
        for point in forks.map(weights):
            points.append(point)
            yield point

    yield from score_all((*pair, PRIOR_WEIGHT) for pair in product(LM_WEIGHTS, WORD_SCORES))
    for step in STEPS:
        while waiting := _around(find_best(points), step) - {point.weights for point in points}:
            yield from score_all(sorted(waiting))


def _around(point: Point, step: tuple[float, ...]) -> set[tuple[float, ...]]:
    """The weights one step away, but for those below 0 of the language model and of the prior."""
    axes = [{weight - size, weight, weight + size} for weight, size in zip(point.weights, step, strict=True)]
    return {weights for weights in product(*axes) if weights[0] >= 0 and weights[2] >= 0}


def find_best(points: Iterable[Point]) -> Point:
    """The first of those with the lowest WER."""
    return min(points, key=lambda point: point.words.rate)


Example = tuple[str, list[numpy.ndarray]]
"""A reference, and the log-probs (steps, vocabulary), or (steps, vocabulary + phonemes), of its utterance, or of each
stretch of a long one that may hold speech."""


def compute_log_probs(
    model: CTCModel, utterances: Sequence[Utterance], *, with_phonemes: bool = False
) -> list[Example]:
    """What the model makes of each utterance, long ones cut as `transcribe` cuts them.

    with_phonemes: whether those of the phonemes follow the tokens', where the model hears them.
    Raises AsrError for audio that cannot be read.
    """
    by_length = sorted(utterances, key=lambda utterance: utterance.duration_seconds)
    seconds = [utterance.duration_seconds for utterance in by_length]
    short = [index for index, each in enumerate(seconds) if each <= LONG_SECONDS]
    batches = fill_batches(seconds, short, BATCH_SECONDS)
    rows = [
        [row] for batch in batches for row in _of_batch(model, [by_length[index] for index in batch], with_phonemes)
    ]
    rows += [_of_long(model, utterance, with_phonemes) for utterance in by_length[len(short) :]]
    return [
        (model.vocabulary.normalize(utterance.text), [part.cpu().numpy() for part in parts])
        for utterance, parts in zip(by_length, rows, strict=True)
    ]


@torch.inference_mode()
def _of_batch(model: CTCModel, utterances: Sequence[Utterance], with_phonemes: bool) -> Iterator[Tensor]:
    """(steps, vocabulary) log-probs of each."""
    samples = [_read(utterance, model.sample_rate).to(model.device) for utterance in utterances]
    sample_lengths = torch.tensor([len(each) for each in samples], device=model.device)
    hear = model.all_log_probs if with_phonemes else model
    log_probs, lengths = hear(pad_sequence(samples, batch_first=True), sample_lengths)
    return (row[:length] for row, length in zip(log_probs, lengths.tolist(), strict=True))


def _read(utterance: Utterance, sample_rate: int) -> Tensor:
    """Its samples; raises AsrError with its line in the manifest."""
    try:
        return utterance.read(sample_rate)
    except AsrError as error:
        raise AsrError(f"{utterance.place}: {error}") from error


def _of_long(model: CTCModel, utterance: Utterance, with_phonemes: bool) -> list[Tensor]:
    """(steps, vocabulary) log-probs of each stretch that may hold speech, of an utterance of any length."""
    with open_audio(utterance.audio_path, model.sample_rate) as audio:
        blocks = audio.blocks(utterance.start_seconds, utterance.duration_seconds)
        settings = {"with_phonemes": with_phonemes, "only_speech": True}
        return list(stream_log_probs(model, blocks, batch_seconds=BATCH_SECONDS, **settings))
