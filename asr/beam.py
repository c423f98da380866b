"""From log-probs to the most probable words under a word n-gram language model.

Only words of the language model, or of a lexicon, are written. The search finds the words; where they are is then found
by alignment, so times and confidences mean what they mean without a language model.

A model that hears phonemes is searched twice, for words as it spells them and for words as they are pronounced. What
either search found is then scored by both, and by a GRU language model where there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from asr.alignment import align_tokens
from asr.decoder import DecodedTokens, check_vocabulary, split_phonemes
from asr.errors import AsrError
from asr.forks import Forks
from asr.model import CTCModel
from asr.modelfile import PACKAGED, PACKAGED_MODEL
from asr.ngrams import read_arpa_unigrams
from asr.pronunciation import Pronunciations
from asr.rescoring import Reading, Rescorer
from asr.search import NGrams, WordSearch, load_ngrams
from asr.sentences import GRULanguageModel, load_language_model
from asr.spelling import Speller, pronounce
from asr.text import count_lost
from asr.vocabulary import Vocabulary
from asr.words import join_words

__all__ = ["PACKAGED_LANGUAGE_MODEL", "PRIOR_WEIGHT", "BeamDecoder"]

PACKAGED_LANGUAGE_MODEL = PACKAGED_MODEL.with_name("base.arpa.gz")

NONE = "none"
"""In place of the path of a language model to rescore with."""

BEAM_SIZE, LARGEST_BEAM = 300, 1_000_000
LM_WEIGHT, WORD_SCORE, PRIOR_WEIGHT = 1.2, 0.0, 0.5
"""Found for the packaged models on dev-clean half."""

LM_WEIGHT_OF_PIECES = 0.8
"""Found there for models of 256 pieces: a piece is heard or missed as a whole, so beside them the language model must
say less, else words are lost."""

PHONEME_SHARE = 0.9
"""Found there: the phonemes' share in what was heard of a text, of which the tokens have the rest."""


@dataclass(frozen=True)
class PhonemeWeights:
    """What the language model and the prior weigh beside phonemes."""

    in_search: float
    """Of the language model, in the phonemes' search."""
    behind: float
    """Of the language model, where the texts of both searches are scored."""
    prior_share: float
    """Of the prior's weight."""


BY_CTC, BY_MMI = PhonemeWeights(0.75, 0.9, 1.0), PhonemeWeights(1.0, 1.2, 0.25)
"""Found there for phonemes learned by CTC alone, and by maximum mutual information: from these, most of what a language
model knows has been kept already, so it counts fully."""

BEAM_OF_PHONEMES, BEAM_OF_TOKENS_BESIDE = 2.0, 0.1
"""Hypotheses that the phonemes' search keeps, and the tokens' beside it, for each of `beam_size`: nearly all texts that
win are found by the phonemes."""


class BeamDecoder:
    """Decodes as `decode_greedy` does, to the most probable words under a language model."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        language_model: str | Path = PACKAGED_LANGUAGE_MODEL,
        *,
        rescore: str | Path | None = None,
        pronunciations: Pronunciations | None = None,
        phonemes_by_mmi: bool = False,
        lexicon: Iterable[str] | None = None,
        beam_size: int = BEAM_SIZE,
        lm_weight: float | None = None,
        word_score: float = WORD_SCORE,
        prior_weight: float = PRIOR_WEIGHT,
        processes: int = 1,
    ) -> None:
        """The decoder of a language model's ARPA file, which may be compressed (.gz); `packaged` is the packaged one.

        Its words are written as texts are for the model: in capitals by a model of capitals.
        rescore: the file of a GRU language model (`asr lm train`), which chooses among the best texts; `none` for none;
        by default `packaged` beside the packaged n-grams, and none beside others.
        pronunciations, phonemes_by_mmi: of a model that hears phonemes; the decoder then wants `model.all_log_probs`.
        lexicon: the words that can be written; by default those of the language model.
        beam_size: hypotheses that are kept at every step; with phonemes, twice as many of theirs and a tenth of the
        tokens'. lm_weight: of the language model's natural log-probability beside the model's; by default 1.2, and 0.8
        where the model writes pieces of words; beside phonemes as these were learned, and where it is given in
        proportion. word_score: added for every word; more than 0 makes words shorter and more.
        prior_weight: of the log-frequency of each token in the language model's words, which is taken off the model's
        log-probability; a quarter of it for phonemes learned by maximum mutual information.
        processes: searches side by side, in copies of this process (Linux only).
        Raises AsrError where flashlight-text is not installed, for a file that is not ARPA, and for settings out of
        range.
        """
        if str(language_model) == PACKAGED:
            language_model = PACKAGED_LANGUAGE_MODEL
        usual_weight = LM_WEIGHT if " " in vocabulary.tokens else LM_WEIGHT_OF_PIECES
        lm_weight = usual_weight if lm_weight is None else lm_weight
        _check_settings(beam_size, lm_weight=lm_weight, word_score=word_score, prior_weight=prior_weight)
        self.vocabulary, self.pronunciations = vocabulary, pronunciations
        self.reads_phonemes = pronunciations is not None
        speller, unigrams = Speller(vocabulary), dict(read_arpa_unigrams(language_model))
        written, spellings = speller.find_writable(unigrams, lexicon, source=language_model)
        ngrams = load_ngrams(language_model, unigrams, spellings)
        settings: dict[str, Any] = {"beam_size": beam_size, "word_score": word_score, "prior_weight": prior_weight}
        own_beam = beam_size if pronunciations is None else ceil(BEAM_OF_TOKENS_BESIDE * beam_size)
        own = settings | {"beam_size": own_beam, "lm_weight": lm_weight}
        by_tokens = WordSearch(speller.tokens, spellings, ngrams, **own)
        readings = [Reading(by_tokens, vocabulary.encode)]
        if pronunciations is not None:
            weights, given = BY_MMI if phonemes_by_mmi else BY_CTC, lm_weight / usual_weight
            lm_weight = weights.behind * given
            by_phonemes = _search_phonemes(pronunciations, written, ngrams, weights, given, settings)
            readings = [
                Reading(by_tokens, vocabulary.encode, 1 - PHONEME_SHARE),
                Reading(by_phonemes, pronunciations.encode, PHONEME_SHARE),
            ]
        rescoring_model = _load_rescoring_model(rescore, language_model, written.values())
        self.search = Rescorer(readings, written, lm_weight, word_score, rescoring_model)
        self._forks = Forks(self.search, processes)

    @classmethod
    def for_model(
        cls, model: CTCModel, language_model: str | Path = PACKAGED_LANGUAGE_MODEL, **settings: Any
    ) -> BeamDecoder:
        """The decoder of all that a model hears; settings: the others of BeamDecoder."""
        settings |= {"pronunciations": model.pronunciations, "phonemes_by_mmi": model.phonemes_by_mmi}
        return cls(model.vocabulary, language_model, **settings)

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        """log_probs: (batch, steps, vocabulary), with `pronunciations` (batch, steps, vocabulary + phonemes); lengths:
        (batch,) steps.
        """
        tokens = log_probs = log_probs.detach()
        if self.pronunciations is None:
            check_vocabulary(tokens, self.vocabulary)
        else:
            tokens, _ = split_phonemes(log_probs, self.vocabulary, len(self.pronunciations))
        steps = lengths.tolist()
        found = self._forks.map(row[:length].numpy() for row, length in zip(log_probs.cpu(), steps, strict=True))
        return [
            self._place(row[:length], *words) for row, length, words in zip(tokens.cpu(), steps, found, strict=True)
        ]

    def score_texts(self, log_probs: Tensor, texts: Sequence[str]) -> list[float]:
        """How probable each normal transcript is by all that was heard, nats.

        log_probs: (steps, vocabulary), with `pronunciations` (steps, vocabulary + phonemes).
        """
        found: list[float] = self.search.score_texts(log_probs.numpy(), texts).tolist()
        return found

    def _place(self, log_probs: Tensor, words: Sequence[str], lm_log_prob: float) -> DecodedTokens:
        """The words' tokens where they are heard."""
        tokens = align_tokens(log_probs, self.vocabulary.encode(join_words(words)))
        return replace(tokens, lm_log_prob=lm_log_prob)


def _search_phonemes(
    pronunciations: Pronunciations,
    written: Mapping[str, str],
    ngrams: NGrams,
    weights: PhonemeWeights,
    lm_share: float,
    settings: Mapping[str, Any],
) -> WordSearch:
    """The search for words as they are pronounced; lm_share: of the usual weight; settings: of the tokens' search."""
    spoken = pronounce(written, pronunciations, ngrams.unigrams)
    own = {
        **settings,
        "beam_size": ceil(BEAM_OF_PHONEMES * settings["beam_size"]),
        "lm_weight": weights.in_search * lm_share,
        "prior_weight": weights.prior_share * settings["prior_weight"],
    }
    return WordSearch(pronunciations.phonemes, spoken, ngrams, **own)


def _check_settings(beam_size: int, **weights: float) -> None:
    if not isinstance(beam_size, int) or not 1 <= beam_size <= LARGEST_BEAM:
        raise AsrError(f"beam_size={beam_size} must be a whole number from 1 to {LARGEST_BEAM:,}")
    for name, weight in weights.items():
        if not isfinite(weight):
            raise AsrError(f"{name}={weight} must be a finite number")


def _load_rescoring_model(
    path: str | Path | None, language_model: str | Path, written: Iterable[str]
) -> GRULanguageModel | None:
    """`BeamDecoder`'s; raises AsrError where it cannot read all letters of what is written."""
    if path is None:
        path = PACKAGED if Path(language_model) == PACKAGED_LANGUAGE_MODEL else NONE
    if str(path) == NONE:
        return None
    model = load_language_model(path)
    lost: Counter[str] = Counter()
    model.vocabulary.normalize(" ".join({*"".join(written)}), lost)
    if unknown := "".join(sorted(count_lost(lost))):
        raise AsrError(f"{path}: does not know {unknown!r}, which the model writes; `asr lm train --model MODEL` does")
    return model
