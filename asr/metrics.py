"""Word and character error rates, pooled over a corpus (never an average of percentages), with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

__all__ = ["ErrorCounts", "bootstrap_interval", "character_errors", "pool", "word_errors"]


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis differs from its reference, in words or characters; counts add up over utterances."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word or character; of an empty reference 0 without errors, infinite with any."""
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

    if not reference.split():
        return ErrorCounts(insertions=len(hypothesis.split()))
    counts = jiwer.process_words(reference, hypothesis)
    return ErrorCounts(counts.substitutions, counts.deletions, counts.insertions, len(reference.split()))


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """As `word_errors`, over characters; single spaces between words count as characters."""
    import jiwer

    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:
        return ErrorCounts(insertions=len(hypothesis))
    counts = jiwer.process_characters(reference, hypothesis)
    return ErrorCounts(counts.substitutions, counts.deletions, counts.insertions, len(reference))


def pool(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    """The sum over utterances."""
    return sum(counts, ErrorCounts())


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Lowest and highest pooled rate at `confidence`, by resampling utterances (Bisani and Ney, 2004).

    Of fewer than two utterances nothing can be said: (0, inf).
    """
    if len(counts) < 2:
        return 0.0, float("inf")
    errors = numpy.array([count.errors for count in counts])
    lengths = numpy.array([count.reference_length for count in counts])
    generator = numpy.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = generator.integers(len(counts), size=len(counts))
        rates.append(errors[drawn].sum() / max(1, lengths[drawn].sum()))
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)
