"""The weights of a language model that give a valid set the lowest WER.

The model computes each utterance once; only the search is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.audio import open_audio
from asr.beam import PRIOR_WEIGHT, BeamDecoder
from asr.forks import Forks
from asr.longform import BATCH_SECONDS, stream_log_probs
from asr.manifest import Utterance
from asr.metrics import ErrorCounts, pool, word_errors
from asr.model import CTCModel
from asr.plan import fill_batches
from asr.transcription import LONG_SECONDS

__all__ = ["Point", "compute_log_probs", "find_best", "tune"]

LM_WEIGHTS, WORD_SCORES = (0.5, 1.0, 1.5, 2.0), (-1.0, 0.0, 1.0, 2.0)
"""The coarse grid, in even steps; around its best point a second one of half the step follows."""

PRIOR_WEIGHTS = (0.0, 0.3, 0.7)
"""Tried at the best point of both, which have the decoder's own."""


@dataclass(frozen=True)
class Point:
    """Three weights, and what came of them."""

    lm_weight: float
    word_score: float
    prior_weight: float
    words: ErrorCounts


def tune(
    model: CTCModel, utterances: Sequence[Utterance], language_model: str | Path, *, processes: int, **settings: Any
) -> Iterator[Point]:
    """The points of a coarse grid, those around the best of them, then other prior weights, each as it is done.

    processes: searches that run side by side. settings: of the BeamDecoder.
    Raises AsrError for utterances without audio that can be read.
    """
    vocabulary = model.vocabulary
    BeamDecoder(vocabulary, language_model, **settings)  # what is wrong with them is told before the model computes
    examples = compute_log_probs(model, utterances)

    def score(weights: tuple[float, ...]) -> Point:
        named: dict[str, Any] = dict(zip(("lm_weight", "word_score", "prior_weight"), weights, strict=True))
        decoder = BeamDecoder(vocabulary, language_model, **named, **settings)
        counts = [word_errors(reference, " ".join(decoder.search(log_probs)[0])) for reference, log_probs in examples]
        return Point(**named, words=pool(counts))

    forks = Forks(score, processes)
    points: list[Point] = []

    def score_all(weights: Iterable[tuple[float, ...]]) -> Iterator[Point]:
        for point in forks.map(weights):
            points.append(point)
            yield point

    yield from score_all((*pair, PRIOR_WEIGHT) for pair in product(LM_WEIGHTS, WORD_SCORES))
    best = find_best(points)
    half = (LM_WEIGHTS[1] - LM_WEIGHTS[0]) / 2, (WORD_SCORES[1] - WORD_SCORES[0]) / 2
    steps = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]
    yield from score_all((best.lm_weight + w * half[0], best.word_score + s * half[1], PRIOR_WEIGHT) for w, s in steps)
    best = find_best(points)
    yield from score_all((best.lm_weight, best.word_score, weight) for weight in PRIOR_WEIGHTS)


def find_best(points: Iterable[Point]) -> Point:
    """The first of those with the lowest WER."""
    return min(points, key=lambda point: point.words.rate)


Example = tuple[str, numpy.ndarray]
"""A reference, and the log-probs (steps, vocabulary) of its utterance."""


def compute_log_probs(model: CTCModel, utterances: Sequence[Utterance]) -> list[Example]:
    """What the model makes of each utterance, long ones cut as `transcribe` cuts them.

    Raises AsrError for audio that cannot be read.
    """
    by_length = sorted(utterances, key=lambda utterance: utterance.duration_seconds)
    seconds = [utterance.duration_seconds for utterance in by_length]
    short = [index for index, each in enumerate(seconds) if each <= LONG_SECONDS]
    batches = fill_batches(seconds, short, BATCH_SECONDS)
    rows = [row for batch in batches for row in _of_batch(model, [by_length[index] for index in batch])]
    rows += [_of_long(model, utterance) for utterance in by_length[len(short) :]]
    return [
        (model.vocabulary.normalize(utterance.text), row.cpu().numpy())
        for utterance, row in zip(by_length, rows, strict=True)
    ]


@torch.inference_mode()
def _of_batch(model: CTCModel, utterances: Sequence[Utterance]) -> Iterator[Tensor]:
    """(steps, vocabulary) log-probs of each."""
    samples = [utterance.read(model.sample_rate).to(model.device) for utterance in utterances]
    sample_lengths = torch.tensor([len(each) for each in samples], device=model.device)
    log_probs, lengths = model(pad_sequence(samples, batch_first=True), sample_lengths)
    return (row[:length] for row, length in zip(log_probs, lengths.tolist(), strict=True))


def _of_long(model: CTCModel, utterance: Utterance) -> Tensor:
    """(steps, vocabulary) log-probs of an utterance of any length."""
    with open_audio(utterance.audio_path, model.sample_rate) as audio:
        blocks = audio.blocks(utterance.start_seconds, utterance.duration_seconds)
        return torch.cat(list(stream_log_probs(model, blocks, batch_seconds=BATCH_SECONDS)))
