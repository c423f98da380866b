"""Tokens to words with times and confidence, and words to segments: what was said in a recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp

from asr.decoder import DecodedTokens
from asr.model import CTCModel
from asr.words import join_words

__all__ = ["Segment", "Transcript", "Word", "end_by", "find_words", "word_at"]

PAUSE_SECONDS = 0.6
"""Between two words: as long a silence, or a longer one, ends a segment."""


@dataclass(frozen=True)
class Word:
    """One word and where it was heard."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float
    """The geometric mean of the probabilities of its tokens, in [0, 1]."""
    parts: tuple[Word, ...] = ()
    """Its tokens with their times; only an alignment has them."""


@dataclass(frozen=True)
class Segment:
    """Words without a long pause between them; at least one."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return join_words(word.text for word in self.words)

    @property
    def start_seconds(self) -> float:
        return self.words[0].start_seconds

    @property
    def end_seconds(self) -> float:
        return self.words[-1].end_seconds


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording."""

    name: str
    words: tuple[Word, ...]
    duration_seconds: float
    lm_log_prob: float | None = None
    """Natural log-probability of the words under the language model that was used; None without one, without words, and
    where a hotword took the place of any."""

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """All words, with single spaces between them where their script has spaces."""
        return join_words(word.text for word in self.words)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words, parted at pauses."""
        return tuple(Segment(tuple(words)) for words in _part(self.words))


def _part(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    first = 0
    for index in range(1, len(words) + 1):
        pause = words[index].start_seconds - words[index - 1].end_seconds if index < len(words) else PAUSE_SECONDS
        if round(pause, 3) >= PAUSE_SECONDS:  # of floats, most of 0.6 s would be a hair shorter
            yield words[first:index]
            first = index


def find_words(tokens: DecodedTokens, model: CTCModel, first_step: int = 0) -> tuple[Word, ...]:
    """The words that decoded tokens write, from the beginning of the first to the end of the last token of each.

    first_step: the recording's steps before the tokens' first one.
    """
    return tuple(
        word_at(tokens, start, end, model.vocabulary.decode(tokens.token_ids[start:end]), model, first_step)
        for start, end in model.vocabulary.word_spans(tokens.token_ids)
    )


def word_at(tokens: DecodedTokens, start: int, end: int, text: str, model: CTCModel, first_step: int = 0) -> Word:
    """The tokens from index `start` to before `end` as one word, written `text`.

    Step k stands for the samples around k × step_samples, half a step to either side; the last one may reach past the
    end of the recording, which `end_by` mends.
    """
    first, last = (
        max(0, 2 * (first_step + step) - 1) * model.step_samples
        for step in (tokens.steps[start], tokens.end_steps[end - 1])
    )
    confidence = exp(sum(tokens.log_probs[start:end]) / (end - start))
    return Word(text, first / (2 * model.sample_rate), last / (2 * model.sample_rate), confidence)


def end_by(word: Word, duration_seconds: float) -> Word:
    """The word and its parts, none of which ends behind the end of the recording."""
    if word.end_seconds <= duration_seconds:
        return word
    parts = tuple(end_by(part, duration_seconds) for part in word.parts)
    return replace(word, end_seconds=duration_seconds, parts=parts)
