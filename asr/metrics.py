"""Error rates of words, characters and phonemes, pooled over a corpus (never a mean of percentages), and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from asr.words import split_words

__all__ = [
    "ErrorCounts",
    "bootstrap_interval",
    "character_errors",
    "phoneme_errors",
    "pool",
    "resampled_rates",
    "word_errors",
]


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis differs from its reference, in words, characters or phonemes; counts add up over utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per word or other unit of the reference; of an empty one 0 without errors, infinite with any."""
        if self.reference_length == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.reference_length

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors between the words of two normal transcripts; an empty hypothesis deletes every word of the reference."""
    import jiwer

    return _counts(jiwer.process_words(" ".join(split_words(reference)), " ".join(split_words(hypothesis))))


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """As `word_errors`, over characters; single spaces between words count as characters."""
    import jiwer

    return _counts(jiwer.process_characters(" ".join(reference.split()), " ".join(hypothesis.split())))


def phoneme_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Errors between two sequences of phonemes."""
    import jiwer

    return _counts(jiwer.process_words(" ".join(reference), " ".join(hypothesis)))


def _counts(found: Any) -> ErrorCounts:
    """Those of jiwer's output."""
    length = found.hits + found.substitutions + found.deletions
    return ErrorCounts(found.substitutions, found.deletions, found.insertions, length)


def pool(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """The sum over utterances."""
    return sum(counts, ErrorCounts())


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Lowest and highest pooled rate at `confidence`, by resampling utterances (Bisani and Ney, 2004).

    Of fewer than two utterances, or of an infinite rate, nothing can be said: (0, inf).
    """
    if len(counts) < 2 or pool(counts).rate == float("inf"):
        return 0.0, float("inf")
    errors = [count.errors for count in counts]
    lengths = [count.reference_length for count in counts]
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(resampled_rates(errors, lengths, resamples, seed), [tail, 1 - tail])
    return float(low), float(high)


def resampled_rates(errors: Sequence[int], lengths: Sequence[int], resamples: int, seed: int = 0) -> numpy.ndarray:
    """(resamples,) pooled rates of as many utterances as there are, drawn with repetition.

    errors: of each utterance, or by how much one model's exceed another's; lengths: of each reference.
    """
    pairs = numpy.array([errors, lengths], dtype=numpy.float64)
    generator = numpy.random.default_rng(seed)
    draws = (generator.integers(len(errors), size=len(errors)) for _ in range(resamples))
    sums = numpy.array([pairs[:, drawn].sum(axis=1) for drawn in draws])
    rates: numpy.ndarray = sums[:, 0] / sums[:, 1].clip(min=1.0)
    return rates
