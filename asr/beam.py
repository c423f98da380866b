"""Beam search with a word n-gram language model: flashlight-text (J. Kahn et al., 2022) through torchaudio's decoder.

Only words of the language model, or of a lexicon, are written. The search finds the words; where they are is then found
by alignment, so times and confidences mean what they mean without a language model.

The model has learned how common each letter is, and the language model knows it from whole words. So that it does not
count twice, part of a letter's log-frequency is taken off what the model heard, as hybrid recognisers do and, for CTC,
EESEN (Y. Miao, M. Gowayyed, F. Metze, arXiv 1507.08240).
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite, log
from pathlib import Path
from threading import Lock
from typing import Any

import numpy
from torch import Tensor

from asr.alignment import align_tokens
from asr.decoder import DecodedTokens, check_vocabulary
from asr.errors import AsrError, reason_of
from asr.forks import Forks
from asr.modelfile import PACKAGED, PACKAGED_MODEL
from asr.text import BLANK_ID, Vocabulary
from asr.words import is_unspaced, join_words

__all__ = ["PACKAGED_LANGUAGE_MODEL", "PRIOR_WEIGHT", "BeamDecoder", "read_arpa_unigrams"]

PACKAGED_LANGUAGE_MODEL = PACKAGED_MODEL.with_name("base.arpa.gz")

BEAM_SIZE = 300
LM_WEIGHT, WORD_SCORE, PRIOR_WEIGHT = 1.2, 0.0, 0.5
"""Found for the packaged models on dev-clean half."""

LM_WEIGHT_OF_PIECES = 0.8
"""Found there for models of 256 pieces: a piece is heard or missed as a whole, so beside them the language model must
say less, else words are lost."""

TOKENS_TRIED, BEAM_NATS = 10, 20
"""The most probable tokens of a step that a hypothesis goes on with, and how far it may fall behind the best one."""

BLANK_SHARE, LEAST_SHARE = 0.5, 1e-3
"""Of the tokens that write a text: blanks, one behind each other token; and a token that its words do not have."""

SPACE = "|"
"""The space in the files of flashlight-text, whose fields are parted by spaces."""

_stderr = Lock()
"""Of two that turned it away at once, the second would bring back the first one's nowhere, and for good."""

LONGEST_WORD = 1000
"""Tokens of a word that can be written; the search's tree of words ends the process at some tens of thousands."""

IMPOSSIBLE = -1e4
"""Log-probability of everything but a space behind the last step."""


class BeamDecoder:
    """Decodes as `decode_greedy` does, to the most probable words under a language model."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        language_model: str | Path = PACKAGED_LANGUAGE_MODEL,
        *,
        lexicon: Iterable[str] | None = None,
        beam_size: int = BEAM_SIZE,
        lm_weight: float | None = None,
        word_score: float = WORD_SCORE,
        prior_weight: float = PRIOR_WEIGHT,
        processes: int = 1,
    ) -> None:
        """The decoder of a language model's ARPA file, which may be compressed (.gz); `packaged` is the packaged one.

        Its words are written as texts are for the model: in capitals by a model of capitals.
        lexicon: the words that can be written; by default those of the language model.
        beam_size: hypotheses that are kept at every step. lm_weight: of the language model's natural log-probability
        beside the model's; by default 1.2, and 0.8 where the model writes pieces of words. word_score: added for every
        word; more than 0 makes words shorter and more. prior_weight: of the log-frequency of each token in the language
        model's words, which is taken off the model's log-probability.
        processes: searches side by side, in copies of this process (Linux only).
        Raises AsrError where flashlight-text is not installed, for a file that is not ARPA, and for settings out of
        range.
        """
        if str(language_model) == PACKAGED:
            language_model = PACKAGED_LANGUAGE_MODEL
        if isinstance(lexicon, str):
            raise AsrError(f"lexicon={lexicon!r} must be a list of words; of a file, give its lines")
        if lm_weight is None:
            lm_weight = LM_WEIGHT if " " in vocabulary.tokens else LM_WEIGHT_OF_PIECES
        if beam_size < 1:
            raise AsrError(f"beam_size={beam_size} must be at least 1")
        for name, weight in (("lm_weight", lm_weight), ("word_score", word_score), ("prior_weight", prior_weight)):
            if not isfinite(weight):
                raise AsrError(f"{name}={weight} must be a finite number")
        if SPACE in vocabulary.tokens:
            raise AsrError(f"a model that writes {SPACE!r} cannot be used with a language model, where it is the space")
        self.vocabulary = vocabulary
        self._tokens = [SPACE if token == " " else token for token in vocabulary.tokens]
        unigrams = dict(read_arpa_unigrams(language_model))
        words = set(unigrams if lexicon is None else lexicon)
        forms = {word: form for word in unigrams.keys() | words if (form := self._write(word))}
        written = {word: text for word, (text, _) in forms.items()}
        spellings = {word: spelling for word, (_, spelling) in forms.items()}
        writable = _choose(written, words, unigrams)
        if not writable:
            source = language_model if lexicon is None else "the lexicon"
            like = f" ({min(words)!r})" if words else ""
            how = "; `asr lm build --model MODEL` writes a text's words in it" if lexicon is None else ""
            raise AsrError(f"{source}: none of its words{like} can be written with the model's vocabulary{how}")
        prior = prior_weight * self._log_frequencies(unigrams, spellings)
        decoder = self._make_decoder(
            language_model,
            {word: spellings[word] for word in sorted(writable)},
            beam_size=beam_size,
            lm_weight=lm_weight * log(10),  # KenLM's logarithms are to base 10
            word_score=word_score,
        )
        self.search = _Search(decoder, self._tokens, prior, writable)
        self._forks = Forks(self.search, processes)

    def _make_decoder(self, language_model: str | Path, spellings: Mapping[str, list[str]], **settings: float) -> Any:
        """torchaudio's, which writes the words of these spellings."""
        make = _import_decoder()
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"{word} {' '.join(spelling)}\n" for word, spelling in spellings.items()]
            path = Path(folder) / "lexicon.txt"
            path.write_text("".join(lines), encoding="utf-8", newline="\n")
            with _without_stderr(), _told_as_error(language_model):
                return make(
                    lexicon=str(path),
                    tokens=self._tokens,
                    lm=str(language_model),
                    beam_size_token=min(TOKENS_TRIED, len(self._tokens)),
                    beam_threshold=BEAM_NATS,
                    log_add=True,  # the paths of a text are summed, as CTC sums them
                    blank_token=self._tokens[0],
                    sil_token=SPACE if SPACE in self._tokens else self._tokens[0],
                    **settings,
                )

    def _write(self, word: str) -> tuple[str, list[str]] | None:
        """A word as the model writes it, in the other case or without accents where need be, and its tokens."""
        if spelling := self._spell(word):
            return word, spelling
        lost: Counter[str] = Counter()
        text = self.vocabulary.normalize(word, lost)
        is_same_word = text and not lost and " " not in text
        return (text, spelling) if is_same_word and (spelling := self._spell(text)) else None

    def _spell(self, word: str) -> list[str]:
        """A word's tokens, and the space behind it where it has one; none where it cannot be written or is too long."""
        try:
            spelling = [self._tokens[token_id] for token_id in self.vocabulary.encode(word)]
        except AsrError:
            return []
        if len(spelling) > LONGEST_WORD:
            return []
        return [*spelling, SPACE] if SPACE in self._tokens and not is_unspaced(word[-1:]) else spelling

    def _log_frequencies(self, unigrams: Mapping[str, float], spellings: Mapping[str, list[str]]) -> numpy.ndarray:
        """The log-frequency of each token in words of these log10-probabilities and spellings: (vocabulary,)."""
        counts = dict.fromkeys(self._tokens, 0.0)
        for word, log10_probability in unigrams.items():
            probability = 10**log10_probability
            for token in spellings.get(word, ()):
                counts[token] += probability
        shares = numpy.array(list(counts.values()), dtype=numpy.float32)
        shares = (1 - BLANK_SHARE) * (shares / shares.sum().clip(min=LEAST_SHARE)).clip(min=LEAST_SHARE)
        shares[BLANK_ID] = BLANK_SHARE
        log_shares: numpy.ndarray = numpy.log(shares)
        return log_shares

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        """log_probs: (batch, steps, vocabulary); lengths: (batch,) steps."""
        check_vocabulary(log_probs, self.vocabulary)
        rows = [row[:length] for row, length in zip(log_probs.cpu(), lengths.tolist(), strict=True)]
        found = self._forks.map(row.numpy() for row in rows)
        return [self._place(row, *found_here) for row, found_here in zip(rows, found, strict=True)]

    def _place(self, log_probs: Tensor, words: Sequence[str], lm_log_prob: float) -> DecodedTokens:
        """The words' tokens where they are heard."""
        tokens = align_tokens(log_probs, self.vocabulary.encode(join_words(words)))
        return replace(tokens, lm_log_prob=lm_log_prob)


def _choose(written: Mapping[str, str], words: Iterable[str], known: Container[str]) -> dict[str, str]:
    """Each word of the search and what is written for it: of these words, as the language model has them.

    written: what is written for each word that can be; known: the words of the language model, of which some may be
    written alike, as `The` and `the` are.
    """
    chosen = {written[word] for word in words if word in written}
    scored = {text for word, text in written.items() if word in known}
    return {word: text for word, text in written.items() if text in chosen and (word in known or text not in scored)}


class _Search:
    """The words of one utterance after the other; what is being searched is kept in the decoder."""

    def __init__(self, decoder: Any, tokens: Sequence[str], prior: numpy.ndarray, written: Mapping[str, str]) -> None:
        """decoder: torchaudio's; prior: (vocabulary,), taken off all log-probs; written: for each of its words."""
        self._decoder, self._prior, self._written, self._turn = decoder, prior, written, Lock()
        self._ending = numpy.full((tokens.count(SPACE), len(tokens)), IMPOSSIBLE)  # a space, where there is one
        self._ending[:, [token == SPACE for token in tokens]] = 0.0

    def __call__(self, log_probs: numpy.ndarray) -> tuple[list[str], float]:
        """The most probable words, and the language model's natural log-probability of them and the sentence's end.

        log_probs: (steps, vocabulary).
        """
        # A word counts once the space behind it is there.
        emissions = numpy.concatenate([log_probs - self._prior, self._ending], dtype=numpy.float32)
        with self._turn:  # by its inner decoder, because torchaudio's keeps the language model's score to itself
            hypotheses = self._decoder.decoder.decode(emissions.ctypes.data, *emissions.shape)
        if not hypotheses:
            return [], 0.0
        best = hypotheses[0]
        words = [self._written[self._decoder.word_dict.get_entry(index)] for index in best.words if index >= 0]
        return words, best.lmScore * log(10)


def read_arpa_unigrams(path: str | Path) -> Iterator[tuple[str, float]]:
    """The words of an ARPA file, without <s>, </s> and <unk>, and their log10-probabilities.

    Raises AsrError for any other file.
    """
    begun, is_compressed = False, str(path).endswith(".gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if is_compressed else open(path, encoding="utf-8") as file:
            for line in file:
                if begun and line.startswith("\\"):
                    return
                fields = line.split()
                if begun and len(fields) >= 2 and not fields[1].startswith("<"):
                    yield fields[1], min(0.0, float(fields[0]))  # KenLM tells of one above 0
                if not begun and line.startswith("ngram ") and "-" in line:
                    raise ValueError(f"{line.strip()!r} is no count")  # it would end the process in KenLM
                begun = begun or line.strip() == "\\1-grams:"
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise AsrError(f"{path}: the language model cannot be read: {reason_of(error)}") from error
    raise AsrError(f"{path}: not a language model in ARPA form; `asr lm` makes one")


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
