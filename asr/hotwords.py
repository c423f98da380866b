"""Words that a recording is likely to hold: names and terms that the model would spell otherwise.

A decoded word, or two in a row, is replaced by a hotword of similar spelling if the audio from the word before to the
word behind loses at most the hotword's boost, in nats of CTC's likelihood over all alignments. Of a model that hears
phonemes, its sound may be similar too, and counts as much as its tokens: a rare name is heard better than it is
spelled. Behind a decoder that reads both, they count as they do there. In Chinese, where each character is a word, as
many in a row as the longest hotword has are tried. Works behind any decoder.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy
from torch import Tensor

from asr.alignment import align_tokens
from asr.decoder import Decode, DecodedTokens, check_vocabulary, reads_phonemes, split_phonemes
from asr.errors import AsrError
from asr.likelihood import ctc_log_likelihoods
from asr.model import steps_needed
from asr.pronunciation import Pronunciations
from asr.text import count_lost
from asr.vocabulary import Vocabulary
from asr.words import join_words, split_words

__all__ = ["HotwordDecoder", "parse_hotword", "usual_boost"]

BOOST, BOOST_BEHIND_LM, BOOST_BEHIND_PHONEMES = 11.0, 5.0, 1.0
"""Nats: by so much may a hotword make what was heard less probable, and by less where a language model chose the words,
which are right more often, and by phonemes too more often still. With more, more names are found and more other words
lost."""

BOOST_BY_SOUND = 4.5
"""Where a model's phonemes count, and no language model."""

PHONEME_SHARE = 0.5
"""Of them in what was heard of a text there, of which the tokens have the rest."""

LEAST_SIMILARITY = 0.25
"""Share of letters, or phonemes, that what gives way has in common with the hotword; less is not tried (of letters, 0.2
found no more)."""

SIGNS = r"#*\§‰()[]{}"
"""Beside those of mathematics and money: without one of them, C# would be C. Other marks are not spoken."""

MOST_TRIED = 10
"""The most alike of many hotwords are tried, so that a list of thousands stays quick."""


@dataclass(frozen=True)
class _Change:
    """Words start to end, not included, give way to the hotword; gain: nats above what the boost allows to lose."""

    start: int
    end: int
    hotword: str
    gain: float


class HotwordDecoder:
    """Decodes as another decoder does, then tries the hotwords."""

    def __init__(
        self,
        decode: Decode,
        vocabulary: Vocabulary,
        hotwords: Mapping[str, float],
        *,
        pronunciations: Pronunciations | None = None,
    ) -> None:
        """hotwords: words, and how many nats less probable each may make what was heard.
        pronunciations: of a model that hears phonemes; this decoder then wants `model.all_log_probs`.

        Raises AsrError for what is not one word that the model can write, for less than 0 nats, and for words alone.
        """
        if not isinstance(hotwords, Mapping):
            raise AsrError(f"hotwords={hotwords!r} must be a dict of words and nats: {{'Quilter': {BOOST:g}}}")
        for word, boost in hotwords.items():
            if not 0 <= boost < inf:
                raise AsrError(f"hotword {word!r}: its boost of {boost} must be a number of at least 0")
        if pronunciations is not None and not reads_phonemes(decode):
            decode = _BySound(decode, vocabulary, pronunciations)
        self._decode, self._vocabulary = decode, vocabulary
        self.reads_phonemes = reads_phonemes(decode)
        self._score_texts = decode.score_texts if reads_phonemes(decode) else self._score_tokens
        self._hotwords = {_normal_word(word, vocabulary): boost for word, boost in hotwords.items()}
        self._forms: list[Callable[[str], Sequence[str]]] = [lambda text: text.replace(" ", "")]
        """In which words can be alike."""
        if pronunciations is not None:
            self._forms.append(lambda text: pronunciations.decode(pronunciations.encode(text)))

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        """log_probs: (batch, steps, vocabulary), with phonemes (batch, steps, vocabulary + phonemes); lengths: (batch,)
        steps.
        """
        log_probs = log_probs.detach()
        decoded = self._decode(log_probs, lengths)
        check_vocabulary(self._of_tokens(log_probs), self._vocabulary)
        rows = zip(log_probs.cpu(), lengths.tolist(), decoded, strict=True)
        return [self._improve(row[:length], tokens) for row, length, tokens in rows]

    def score_texts(self, log_probs: Tensor, texts: Sequence[str]) -> list[float]:
        """As the decoder does whose words it changes, and by the tokens where it scores none."""
        return self._score_texts(log_probs, texts)

    def _of_tokens(self, log_probs: Tensor) -> Tensor:
        return log_probs[..., : len(self._vocabulary)] if self.reads_phonemes else log_probs

    def _score_tokens(self, log_probs: Tensor, texts: Sequence[str]) -> list[float]:
        return ctc_log_likelihoods(log_probs, [self._vocabulary.encode(text) for text in texts])

    def _improve(self, log_probs: Tensor, tokens: DecodedTokens) -> DecodedTokens:
        """The tokens with the changes that gain most; of two that overlap, or have too few steps, the better one."""
        words = split_words(self._vocabulary.decode(tokens.token_ids))
        texts = list(words)
        for change in sorted(self._changes(log_probs, tokens, words), key=lambda change: -change.gain):
            if texts[change.start : change.end] == words[change.start : change.end]:
                new = [change.hotword, *[""] * (change.end - change.start - 1)]
                changed = [*texts[: change.start], *new, *texts[change.end :]]
                if steps_needed(self._encode(changed)) <= len(log_probs):
                    texts = changed
        if texts == words:
            return tokens
        return align_tokens(self._of_tokens(log_probs), self._encode(texts))

    def _encode(self, words: Sequence[str]) -> list[int]:
        """Empty ones are left out."""
        return self._vocabulary.encode(join_words(filter(None, words)))

    def _changes(self, log_probs: Tensor, tokens: DecodedTokens, words: Sequence[str]) -> Iterator[_Change]:
        """All changes of one or two words, or as many as a hotword has, by which nothing is lost."""
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        hotwords = list(self._hotwords)
        spelled = {tuple(split_words(hotword)) for hotword in hotwords}  # several words each in Chinese
        stretches = list(_stretches(words, max([2, *map(len, spelled)])))
        found = {place for span in stretches if tuple(words[slice(*span)]) in spelled for place in range(*span)}
        spans = [span for span in stretches if found.isdisjoint(range(*span))]
        heard = [join_words(words[start:end]) for start, end in spans]
        likeness = numpy.zeros((len(heard), len(hotwords)))
        for form, of_hotwords in zip(self._forms, self._hotword_forms, strict=True):
            of_form = cdist([*map(form, heard)], of_hotwords, scorer=Levenshtein.normalized_similarity)
            likeness = numpy.maximum(likeness, of_form)
        edges = self._edges(tokens)
        for (start, end), row in zip(spans, likeness, strict=True):
            most_alike = numpy.argsort(-row, kind="stable")[:MOST_TRIED]
            tried = [hotwords[index] for index in most_alike if row[index] >= LEAST_SIMILARITY]
            if not tried:
                continue
            first, last = max(0, start - 1), min(len(words), end + 1)
            middles = [words[start:end], *([hotword] for hotword in tried)]
            texts = [[*words[first:start], *middle, *words[end:last]] for middle in middles]
            steps = slice(edges[first - 1][1] if first else 0, edges[last][0] if last < len(words) else len(log_probs))
            before, *after = self._score_texts(log_probs[steps], [*map(join_words, texts)])
            if before == -inf:  # too few steps for what was decoded: nothing can be said of others
                continue
            for hotword, score in zip(tried, after, strict=True):
                gain = score + self._hotwords[hotword] - before
                if gain > 0:
                    yield _Change(start, end, hotword, gain)

    @cached_property
    def _hotword_forms(self) -> list[list[Sequence[str]]]:
        """Each form of all hotwords, made when the first recording comes: new names take seconds to pronounce."""
        return [[*map(form, self._hotwords)] for form in self._forms]

    def _edges(self, tokens: DecodedTokens) -> list[tuple[int, int]]:
        """The steps of each word, from the first token's to the last one's."""
        spans = self._vocabulary.word_spans(tokens.token_ids)
        return [(tokens.steps[start], tokens.end_steps[end - 1]) for start, end in spans]


class _BySound:
    """A decoder of tokens, which scores texts by phonemes too."""

    reads_phonemes = True

    def __init__(self, decode: Decode, vocabulary: Vocabulary, pronunciations: Pronunciations) -> None:
        self._decode, self._vocabulary, self._pronunciations = decode, vocabulary, pronunciations

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        tokens, _ = split_phonemes(log_probs, self._vocabulary, len(self._pronunciations))
        return self._decode(tokens, lengths)

    def score_texts(self, log_probs: Tensor, texts: Sequence[str]) -> list[float]:
        tokens, phonemes = log_probs.tensor_split([len(self._vocabulary)], dim=1)
        spelled = ctc_log_likelihoods(tokens, [*map(self._vocabulary.encode, texts)])
        said = ctc_log_likelihoods(phonemes, [*map(self._pronunciations.encode, texts)])
        return [(1 - PHONEME_SHARE) * one + PHONEME_SHARE * other for one, other in zip(spelled, said, strict=True)]


def _stretches(words: Sequence[str], longest: int) -> Iterator[tuple[int, int]]:
    """First and behind-last place of up to so many words in a row."""
    for start in range(len(words)):
        yield from ((start, end) for end in range(start + 1, min(start + longest, len(words)) + 1))


def usual_boost(*, with_language_model: bool, with_phonemes: bool) -> float:
    """Nats, where none are given; with_phonemes: whether these count too."""
    if not with_language_model:
        return BOOST_BY_SOUND if with_phonemes else BOOST
    return BOOST_BEHIND_PHONEMES if with_phonemes else BOOST_BEHIND_LM


def parse_hotword(text: str, vocabulary: Vocabulary, default_boost: float = BOOST) -> tuple[str, float]:
    """`WORD` or `WORD:BOOST` as a normal word and nats; raises AsrError for anything else."""
    written, _, given = text.partition(":")
    try:
        boost = float(given) if given else default_boost
    except ValueError:
        boost = -1.0
    if not 0 <= boost < inf:
        raise AsrError(f"hotword {text!r} must be a word, or a word, a colon and a number of at least 0")
    return _normal_word(written, vocabulary), boost


def _normal_word(word: str, vocabulary: Vocabulary) -> str:
    """As the model writes it."""
    dropped: Counter[str] = Counter()
    normal = vocabulary.normalize(word, dropped)
    letters = count_lost(dropped)
    if lost := "".join(sign for sign in dropped if sign in letters or _is_sign(sign)):
        raise AsrError(f"hotword {word!r}: the model cannot write {lost!r}; write the word as it is spoken")
    if not normal or " " in normal:
        raise AsrError(f"hotword {word!r} must be one word; give each of several by itself")
    return normal


def _is_sign(character: str) -> bool:
    """Whether it is a part of a word's name; quotes, stops, hyphens and accents are none."""
    return character in SIGNS or unicodedata.category(character) in ("Sc", "Sm", "So")
