"""Beam search for words under an n-gram language model, by flashlight-text (J. Kahn et al., 2022).

The model has learned how common each token is, and the language model knows it from whole words. So that it does not
count twice, part of a token's log-frequency is taken off what the model heard, as hybrid recognisers do and, for CTC,
EESEN (Y. Miao, M. Gowayyed, F. Metze, arXiv 1507.08240).

flashlight-text takes a word for over at its last token, and what is heard from there to the next word for silence.
Where a space ends the words, that is right. Where none does, as among phonemes, the last token could not last, and each
blank behind it would count twice, as silence and as blank: so each word may end in its last token once more, held, and
of silence nothing is ever heard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy

from asr.errors import AsrError
from asr.vocabulary import BLANK_ID

__all__ = ["SPACE", "Hypothesis", "NGrams", "WordSearch", "load_ngrams"]


@dataclass(frozen=True)
class Pruning:
    """What a search leaves out."""

    tokens_tried: int
    """The most probable tokens of a step that a hypothesis goes on with."""
    beam_nats: float
    """How far it may fall behind the best one."""


WITH_SPACE, WITHOUT_SPACE = Pruning(7, 20), Pruning(16, 16)
"""Found on dev-clean half; in the second most tokens stand twice, the second time as held ones."""

BLANK_SHARE, LEAST_SHARE = 0.5, 1e-3
"""Of the tokens that write a text: blanks, one behind each other token; and a token that its words do not have."""

SPACE = "|"
"""The space among the tokens of a search."""

UNKNOWN = "<unk>"
"""KenLM's name of all other words, which are not written."""

KENLM_ADVICE = " (and the model is configured to reject|This is a bug in IRSTLM|Byte: )"
"""With these words it goes on, behind what is wrong with a file, to its own commands and their settings."""

IMPOSSIBLE = -1e4
"""Log-probability of silence where no space is, and behind the last step of everything but what ends a text."""

_stderr = Lock()
"""Of two that turned it away at once, the second would bring back the first one's nowhere, and for good."""

Hypothesis = tuple[list[str], float]
"""Words, and the language model's natural log-probability of them and the sentence's end."""


@dataclass(frozen=True)
class NGrams:
    """A word n-gram language model, loaded for the words that are searched for."""

    kenlm: Any
    words: list[str]
    """In the order of their numbers; the last is UNKNOWN."""
    scores: dict[str, float]
    """Of each word at the beginning of a sentence."""
    unigrams: Mapping[str, float]
    """The log10-probability of each of its words."""


def load_ngrams(path: str | Path, unigrams: Mapping[str, float], words: Iterable[str]) -> NGrams:
    """The language model of an ARPA file, and its unigrams, for searches for these words or some of them.

    Raises AsrError where flashlight-text is not installed, and for a file that KenLM refuses.
    """
    flashlight = _import_flashlight()
    numbered = [*words, UNKNOWN]
    with _without_stderr(), _told_as_error(path):
        kenlm = flashlight.KenLM(str(path), flashlight.Dictionary(numbered))
        start = kenlm.start(False)
        scores = {word: kenlm.score(start, number)[1] for number, word in enumerate(numbered)}
    return NGrams(kenlm, numbered, scores, unigrams)


class WordSearch:
    """The most probable words of one utterance after the other; what is being searched is kept in the decoder."""

    def __init__(
        self,
        tokens: Sequence[str],
        spellings: Mapping[str, Sequence[Sequence[str]]],
        ngrams: NGrams,
        *,
        beam_size: int,
        lm_weight: float,
        word_score: float,
        prior_weight: float,
    ) -> None:
        """tokens: names, the blank's first; spellings: the ways to write each word that can be found, in tokens;
        ngrams: loaded for these words at least. For the settings see `BeamDecoder`.
        """
        flashlight = _import_flashlight()
        columns = [*range(len(tokens))]
        held: dict[str, int] = {}
        if SPACE in tokens:
            pruning, silence = WITH_SPACE, tokens.index(SPACE)
            ending = silence
        else:
            last_tokens = {spelling[-1] for ways in spellings.values() for spelling in ways}
            ends = sorted(map(tokens.index, last_tokens))
            held = {tokens[end]: number for number, end in enumerate(ends, len(tokens))}
            columns += [*ends, len(tokens)]
            pruning, silence = WITHOUT_SPACE, len(columns) - 1
            ending = BLANK_ID
        self._columns = columns
        """The token that each column of the search is heard by; behind the last token, one that is never heard."""
        self._ending = numpy.full((1, len(columns)), IMPOSSIBLE)
        self._ending[:, ending] = 0.0
        options = flashlight.LexiconDecoderOptions(
            beam_size=beam_size,
            beam_size_token=min(pruning.tokens_tried, len(columns)),
            beam_threshold=pruning.beam_nats,
            lm_weight=lm_weight * log(10),  # KenLM's logarithms are to base 10
            word_score=word_score,
            unk_score=-inf,
            sil_score=0.0,
            log_add=True,  # the paths of a text are summed, as CTC sums them
            criterion_type=flashlight.CriterionType.CTC,
        )
        self._words, unknown = ngrams.words, len(ngrams.words) - 1
        self._kept = trie, lm = _grow_trie(tokens, held, spellings, ngrams, silence), ngrams.kenlm
        self._decoder = flashlight.LexiconDecoder(options, trie, lm, silence, BLANK_ID, unknown, [], False)
        self.prior = prior_weight * _log_frequencies(tokens, spellings, ngrams.unigrams)
        """(tokens,), taken off all log-probs."""
        self._turn = Lock()

    def __call__(self, log_probs: numpy.ndarray) -> Iterator[Hypothesis]:
        """The hypotheses that are left at the end, the best first; log_probs: (steps, tokens)."""
        heard = numpy.pad(log_probs - self.prior, ((0, 0), (0, 1)), constant_values=IMPOSSIBLE)
        # A word counts once the space behind it is there; where none is, a blank makes one of a text's alignments.
        emissions = numpy.concatenate([heard.take(self._columns, axis=1), self._ending], dtype=numpy.float32)
        with self._turn:
            hypotheses = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
        for found in hypotheses:
            yield [self._words[number] for number in found.words if number >= 0], found.lmScore * log(10)


def _grow_trie(
    tokens: Sequence[str],
    held: Mapping[str, int],
    spellings: Mapping[str, Sequence[Sequence[str]]],
    ngrams: NGrams,
    silence: int,
) -> Any:
    """The tree of words that the search walks through, token by token.

    held: the numbers of last tokens that are held; a word may then end in its own once more. Only the token before that
    may last, so an alignment of a word is found once. Two things are found that CTC has not: a blank between a last
    token and the held one, and a word behind one that ends as it begins, without a blank.
    """
    flashlight = _import_flashlight()
    trie = flashlight.Trie(len(tokens) + len(held), silence)
    token_ids = {token: token_id for token_id, token in enumerate(tokens)}
    numbers = {word: number for number, word in enumerate(ngrams.words)}
    for word, ways in spellings.items():
        for spelling in ways:
            path = [token_ids[token] for token in spelling]
            trie.insert(path, numbers[word], ngrams.scores[word])
            if held:
                trie.insert([*path, held[spelling[-1]]], numbers[word], ngrams.scores[word])
    trie.smear(flashlight.SmearingMode.MAX)
    return trie


def _log_frequencies(
    tokens: Sequence[str], spellings: Mapping[str, Sequence[Sequence[str]]], unigrams: Mapping[str, float]
) -> numpy.ndarray:
    """The log-frequency of each token in words of these log10-probabilities and spellings: (tokens,)."""
    counts = dict.fromkeys(tokens, 0.0)
    for word, log10_probability in unigrams.items():
        ways = spellings.get(word, [])
        for spelling in ways:
            probability = 10**log10_probability / len(ways)
            for token in spelling:
                counts[token] += probability
    shares = numpy.array(list(counts.values()), dtype=numpy.float32)
    shares = (1 - BLANK_SHARE) * (shares / shares.sum().clip(min=LEAST_SHARE)).clip(min=LEAST_SHARE)
    shares[BLANK_ID] = BLANK_SHARE
    log_shares: numpy.ndarray = numpy.log(shares)
    return log_shares


@contextmanager
def _without_stderr() -> Iterator[None]:
    """KenLM writes a progress bar of its own there, from C++."""
    with _stderr:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # it is 2 itself where that was closed, and closes it again
        saved = os.dup(2)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


@contextmanager
def _told_as_error(language_model: str | Path) -> Iterator[None]:
    """KenLM's refusal of a file, as an error of the user."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^.* threw .*?\. ", "", " ".join(str(error).split()))  # in front of it stand KenLM's sources
        reason = re.sub(f"{KENLM_ADVICE}.*", "", reason).rstrip(".")
        mend = "mend the file, or make one by `asr lm build`"
        raise AsrError(f"{language_model}: the language model cannot be used: {reason}; {mend}") from error


def _import_flashlight() -> Any:
    """Its classes, from where its releases have them."""
    try:
        from flashlight.lib.text import decoder
        from flashlight.lib.text.decoder import kenlm
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise AsrError(
            'a language model needs flashlight-text: pip install "bigru-asr[lm]" (Python 3.10 to 3.12)'
        ) from error
    return SimpleNamespace(**vars(decoder), KenLM=kenlm.KenLM, Dictionary=Dictionary)
