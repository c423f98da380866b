"""The best of the texts that the searches of a recording found, by what was heard and by the language models.

Each text is scored by every output of the model, summed over all its alignments, and by the n-grams. The best of them
are scored by a GRU language model too, which knows the whole sentence where the n-grams know two words back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy
import torch

from asr.likelihood import ctc_log_likelihoods
from asr.search import Hypothesis, WordSearch
from asr.sentences import GRULanguageModel
from asr.vocabulary import BLANK_ID
from asr.words import join_words

__all__ = ["Reading", "Rescorer"]

MOST_SCORED = 30
"""Hypotheses of each search that are scored by all outputs; with 100 the result is the same."""

MOST_RESCORED = 10
"""The best texts by then, which the GRU language model scores."""

SURELY_BLANK = -1e-3
"""Log-probability of a blank above which nothing is heard in a step; what a prior takes off may outweigh less."""

NGRAM_SHARE, GRU_SHARE = 0.75, 0.5
"""Of the language model's weight, where the GRU has a say: what the n-grams keep of it, and what the GRU gets."""


@dataclass(frozen=True)
class Reading:
    """An output of the model, and how words are found in it."""

    search: WordSearch
    encode: Callable[[str], list[int]]
    """A text to the output's tokens."""
    share: float = 1.0
    """In what was heard of a text, by all outputs together."""


@dataclass(frozen=True)
class Rescorer:
    """The best words of an utterance."""

    readings: Sequence[Reading]
    written: Mapping[str, str]
    """What is written for each word that is searched for."""
    lm_weight: float
    """Of the language model's natural log-probability beside what was heard."""
    word_score: float
    """Added for every word."""
    language_model: GRULanguageModel | None = None

    def __call__(self, log_probs: numpy.ndarray) -> Hypothesis:
        """log_probs: (steps, tokens of all readings); returns words and the n-grams' log-probability."""
        log_probs = self._shorten_silence(log_probs)
        searches = [self._found(reading.search, part) for reading, part in self._parts(log_probs)]
        if len(searches) == 1 and self.language_model is None:
            return next(searches[0], ([], 0.0))
        found = self._by_text(hypothesis for search in searches for hypothesis in islice(search, MOST_SCORED))
        if not found:
            return [], 0.0
        return [*found.values()][self._totals(self.score_texts(log_probs, [*found]), found).argmax()]

    def score_texts(self, log_probs: numpy.ndarray, texts: Sequence[str]) -> numpy.ndarray:
        """How probable each text is by all outputs, less their priors: (texts,), nats; log_probs as for a search."""
        total = numpy.zeros(len(texts))
        for reading, part in self._parts(log_probs):
            targets = [reading.encode(text) for text in texts]
            total += reading.share * numpy.array(
                ctc_log_likelihoods(torch.from_numpy(part - reading.search.prior), targets)
            )
        return total

    def _parts(self, log_probs: numpy.ndarray) -> Iterator[tuple[Reading, numpy.ndarray]]:
        """Each reading and its columns."""
        sizes = [len(reading.search.prior) for reading in self.readings]
        return zip(self.readings, numpy.split(log_probs, [*accumulate(sizes)][:-1], axis=1), strict=True)

    def _shorten_silence(self, log_probs: numpy.ndarray) -> numpy.ndarray:
        """Of steps in a row in which no output hears anything the first: all texts lose the others alike, and a search
        takes as long over silence as over speech.
        """
        is_silent = numpy.all([part[:, BLANK_ID] > SURELY_BLANK for _, part in self._parts(log_probs)], axis=0)
        is_further = numpy.zeros_like(is_silent)
        is_further[1:] = is_silent[1:] & is_silent[:-1]
        shorter: numpy.ndarray = log_probs[~is_further]
        return shorter

    def _by_text(self, hypotheses: Iterable[Hypothesis]) -> dict[str, Hypothesis]:
        """Of words that are written alike, those that the n-grams find likeliest."""
        found: dict[str, Hypothesis] = {}
        for words, lm_log_prob in hypotheses:
            _, known = found.get(text := join_words(words), ([], -numpy.inf))
            if lm_log_prob > known:
                found[text] = words, lm_log_prob
        return found

    def _found(self, search: WordSearch, log_probs: numpy.ndarray) -> Iterator[Hypothesis]:
        """The hypotheses of a search, the best first, as they are written."""
        return (([self.written[word] for word in words], lm_log_prob) for words, lm_log_prob in search(log_probs))

    def _totals(self, heard: numpy.ndarray, found: Mapping[str, Hypothesis]) -> numpy.ndarray:
        """The score of each text, and -inf for those that are out of the question; heard: (texts,)."""
        by_ngrams = numpy.array([lm_log_prob for _, lm_log_prob in found.values()])
        base = heard + self.word_score * numpy.array([len(words) for words, _ in found.values()])
        totals: numpy.ndarray = base + self.lm_weight * by_ngrams
        if self.language_model is None:
            return totals
        best = (-totals).argsort(kind="stable")[:MOST_RESCORED]
        texts = [*found]
        by_gru = numpy.array(self.language_model.text_log_probs([texts[index] for index in best]))
        rescored = numpy.full(len(totals), -numpy.inf)
        rescored[best] = base[best] + self.lm_weight * (NGRAM_SHARE * by_ngrams[best] + GRU_SHARE * by_gru)
        return rescored
