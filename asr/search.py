"""Beam search for words under an n-gram language model: flashlight-text (J. Kahn et al., 2022) through torchaudio.

The model has learned how common each token is, and the language model knows it from whole words. So that it does not
count twice, part of a token's log-frequency is taken off what the model heard, as hybrid recognisers do and, for CTC,
EESEN (Y. Miao, M. Gowayyed, F. Metze, arXiv 1507.08240).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from threading import Lock
from typing import Any

import numpy

from asr.errors import AsrError
from asr.text import BLANK_ID

__all__ = ["SPACE", "Hypothesis", "LanguageModel", "WordSearch"]

TOKENS_TRIED, BEAM_NATS = 7, 20
"""The most probable tokens of a step that a hypothesis goes on with, and how far it may fall behind the best one."""

BLANK_SHARE, LEAST_SHARE = 0.5, 1e-3
"""Of the tokens that write a text: blanks, one behind each other token; and a token that its words do not have."""

SPACE = "|"
"""The space in the files of flashlight-text, whose fields are parted by spaces."""

IMPOSSIBLE = -1e4
"""Log-probability of everything but a space behind the last step."""

_stderr = Lock()
"""Of two that turned it away at once, the second would bring back the first one's nowhere, and for good."""

Hypothesis = tuple[list[str], float]
"""Words, and the language model's natural log-probability of them and the sentence's end."""


@dataclass
class LanguageModel:
    """An ARPA file, loaded by the first search that uses it."""

    path: str | Path
    unigrams: Mapping[str, float]
    """The log10-probabilities of its words."""
    words: list[str] = field(default_factory=list)
    """Those of the first search, in the order in which they are numbered."""
    loaded: Any = None
    """KenLM's model."""


class WordSearch:
    """The most probable words of one utterance after the other; what is being searched is kept in the decoder."""

    def __init__(
        self,
        tokens: Sequence[str],
        spellings: Mapping[str, list[str]],
        language_model: LanguageModel,
        *,
        beam_size: int,
        lm_weight: float,
        word_score: float,
        prior_weight: float,
    ) -> None:
        """tokens: names, the blank's first; spellings: the tokens of each word that can be found, all of them words of
        the language model as it was first used. For the settings see `BeamDecoder`.

        Raises AsrError where flashlight-text is not installed, and for a language model that KenLM refuses.
        """
        settings = {"beam_size": beam_size, "lm_weight": lm_weight * log(10), "word_score": word_score}
        self._decoder = _make_decoder(tokens, spellings, language_model, **settings)  # KenLM's logs are to base 10
        self.prior = prior_weight * _log_frequencies(tokens, spellings, language_model.unigrams)
        """(tokens,), taken off all log-probs."""
        self._turn = Lock()
        self._ending = numpy.full((tokens.count(SPACE), len(tokens)), IMPOSSIBLE)  # a space, where there is one
        self._ending[:, [token == SPACE for token in tokens]] = 0.0

    def __call__(self, log_probs: numpy.ndarray) -> Iterator[Hypothesis]:
        """The hypotheses that are left at the end, the best first; log_probs: (steps, tokens)."""
        # A word counts once the space behind it is there.
        emissions = numpy.concatenate([log_probs - self.prior, self._ending], dtype=numpy.float32)
        with self._turn:  # by its inner decoder, because torchaudio's keeps the language model's score to itself
            hypotheses = self._decoder.decoder.decode(emissions.ctypes.data, *emissions.shape)
        for found in hypotheses:
            words = [self._decoder.word_dict.get_entry(index) for index in found.words if index >= 0]
            yield words, found.lmScore * log(10)


def _make_decoder(
    tokens: Sequence[str], spellings: Mapping[str, list[str]], language_model: LanguageModel, **settings: float
) -> Any:
    """torchaudio's, which writes the words of these spellings."""
    make = _import_decoder()
    with tempfile.TemporaryDirectory() as folder:
        lexicon, words = Path(folder) / "lexicon.txt", Path(folder) / "words.txt"
        lines = [f"{word} {' '.join(spelling)}\n" for word, spelling in spellings.items()]
        lexicon.write_text("".join(lines), encoding="utf-8", newline="\n")
        language_model.words = language_model.words or [*spellings, "<unk>"]
        words.write_text("\n".join(language_model.words), encoding="utf-8", newline="\n")
        with _without_stderr(), _told_as_error(language_model.path):
            decoder = make(
                lexicon=str(lexicon),
                tokens=list(tokens),
                lm=language_model.loaded or str(language_model.path),
                lm_dict=str(words),
                beam_size_token=min(TOKENS_TRIED, len(tokens)),
                beam_threshold=BEAM_NATS,
                log_add=True,  # the paths of a text are summed, as CTC sums them
                blank_token=tokens[0],
                sil_token=SPACE if SPACE in tokens else tokens[0],
                **settings,
            )
    language_model.loaded = decoder.lm
    return decoder


def _log_frequencies(
    tokens: Sequence[str], spellings: Mapping[str, list[str]], unigrams: Mapping[str, float]
) -> numpy.ndarray:
    """The log-frequency of each token in words of these log10-probabilities and spellings: (tokens,)."""
    counts = dict.fromkeys(tokens, 0.0)
    for word, log10_probability in unigrams.items():
        probability = 10**log10_probability
        for token in spellings.get(word, ()):
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
        raise AsrError(f"{language_model}: the language model cannot be used: {reason}") from error


def _import_decoder() -> Any:
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError) as error:
        raise AsrError(
            'a language model needs flashlight-text: pip install "bigru-asr[lm]" (Python 3.10 to 3.12)'
        ) from error
    return ctc_decoder
