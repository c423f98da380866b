"""How a model writes and pronounces the words of a language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from math import inf
from pathlib import Path

from asr.errors import AsrError
from asr.pronunciation import Pronunciations
from asr.search import SPACE
from asr.vocabulary import Vocabulary
from asr.words import is_unspaced

__all__ = ["Speller", "pronounce"]

LONGEST_WORD = 1000
"""Tokens of a word that can be written; the search's tree of words ends the process at some tens of thousands."""

MOST_HOMOPHONES = 6
"""Words of one spelling or pronunciation that are searched for, the most frequent ones: flashlight-text holds no
more."""

Spellings = list[tuple[str, ...]]
"""The ways to write a word, in names of tokens."""


class Speller:
    """Spells words in a model's tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises AsrError for a vocabulary that a search cannot tell from its own space."""
        if SPACE in vocabulary.tokens:
            raise AsrError(f"a model that writes {SPACE!r} cannot be used with a language model, where it is the space")
        self.vocabulary = vocabulary
        self.tokens = [SPACE if token == " " else token for token in vocabulary.tokens]
        """Their names in a search."""
        self._has_space = SPACE in self.tokens
        self._unspaced = next(filter(is_unspaced, vocabulary.alphabet), "")
        """A character that is written without spaces, if the model writes any."""

    def find_writable(
        self, unigrams: Mapping[str, float], lexicon: Iterable[str] | None, *, source: str | Path
    ) -> tuple[dict[str, str], dict[str, Spellings]]:
        """What is written for each word that is searched for, and how it is spelled.

        unigrams: the language model's words; lexicon: those that may be found, None for all of them; source: the
        language model's file, for errors.
        Of words that are written alike, as `The` and `the` are, the language model's are searched for, which have a
        probability, the most frequent of them. Raises AsrError where no word can be written.
        """
        if isinstance(lexicon, str):
            raise AsrError(f"lexicon={lexicon!r} must be a list of words; of a file, give its lines")
        words = set(unigrams if lexicon is None else lexicon)
        forms = {word: form for word in sorted(unigrams.keys() | words) if (form := self._write(word))}
        written = {word: text for word, (text, _) in forms.items()}
        may_be_found = {written[word] for word in words & written.keys()}
        have_probability = {text for word, text in written.items() if word in unigrams}
        if not may_be_found:
            where = source if lexicon is None else "the lexicon"
            like = f" ({min(words)!r})" if words else ""
            how = "; `asr lm build --model MODEL` writes a text's words in it" if lexicon is None else ""
            raise AsrError(f"{where}: none of its words{like} can be written with the model's vocabulary{how}")
        searched = {
            word: text
            for word, text in written.items()
            if text in may_be_found and (word in unigrams or text not in have_probability)
        }
        kept = set(_frequent(searched, unigrams))
        searched = {word: text for word, text in searched.items() if word in kept}
        return searched, {word: forms[word][1] for word in searched}

    def _write(self, word: str) -> tuple[str, Spellings] | None:
        """A word as the model writes it, in the other case or without accents where need be, and its spellings."""
        if " " not in word and (spellings := self._spell(word)):
            return word, spellings
        lost: Counter[str] = Counter()
        text = self.vocabulary.normalize(word, lost)
        is_same_word = text and not lost and " " not in text
        return (text, spellings) if is_same_word and (spellings := self._spell(text)) else None

    def _spell(self, word: str) -> Spellings:
        """A word's tokens, and the space behind it where it has one.

        Beside characters that know no spaces it is written without any too. Empty where it cannot be written or is
        too long.
        """
        before = self._unspaced
        try:
            found = [self.vocabulary.encode(word)]
            if before:
                found.append(self.vocabulary.encode(before + word)[len(self.vocabulary.encode(before)) :])
        except AsrError:
            return []
        ends: list[list[str]] = [[]]
        if self._has_space and not is_unspaced(word[-1:]):
            ends = [[SPACE], []] if before else [[SPACE]]
        short = [token_ids for token_ids in found if 0 < len(token_ids) <= LONGEST_WORD]
        ways = ((*(self.tokens[token_id] for token_id in token_ids), *end) for end in ends for token_ids in short)
        return list(dict.fromkeys(ways))


def pronounce(
    written: Mapping[str, str], pronunciations: Pronunciations, unigrams: Mapping[str, float]
) -> dict[str, Spellings]:
    """The phonemes of each word that has some, by what is written for it; of homophones those of the most frequent."""
    phonemes = {word: tuple(pronunciations.pronounce(text)) for word, text in written.items()}
    return {word: [phonemes[word]] for word in _frequent(phonemes, unigrams) if phonemes[word]}


def _frequent(forms: Mapping[str, Hashable], unigrams: Mapping[str, float]) -> Iterator[str]:
    """The words, the most frequent first, without those whose form MOST_HOMOPHONES others before them have."""
    alike = Counter[Hashable]()
    for word in sorted(forms, key=lambda word: -unigrams.get(word, -inf)):
        alike[forms[word]] += 1
        if alike[forms[word]] <= MOST_HOMOPHONES:
            yield word
