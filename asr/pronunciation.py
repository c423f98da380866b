"""Words to phonemes: a second way to write a transcript, nearer to its sound."""

from __future__ import annotations

import base64
import bz2
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any
from zlib import crc32

from asr.analogy import Analogy
from asr.errors import AsrError, reason_of
from asr.vocabulary import BLANK_ID
from asr.words import split_words

__all__ = ["START", "Pronunciations", "pronunciations_from_dict", "read_pronunciations"]

MOST_PHONEMES = 1000
"""Different ones; languages have some forty, Kaldi with marks for stress, tone and place in the word some hundred."""

MOST_CHARACTERS = 16_000_000
"""Letters and phonemes of all entries, with four more for each: more than 800,000 words of English."""

MOST_SHARED = 25
"""Letters or phonemes that an entry can take from the one before: a to z."""

Normalize = Callable[[str, Counter[str]], str]
"""A vocabulary's: a text to its normal form, and what is dropped of it."""

START = "▁"
"""Before a phoneme that begins a word, as SentencePiece marks a piece that does."""

_FURTHER = re.compile(r"\(\d+\)$")
"""Behind a word: another of its pronunciations."""


class Pronunciations:
    """Words to phonemes: by a pronouncing dictionary, and by analogy with it for a word that it lacks."""

    def __init__(self, entries: Mapping[str, Sequence[str]], *, marks_starts: bool = False) -> None:
        """
        entries: words as the model writes them, and their phonemes.
        marks_starts: a phoneme that begins a word is one of its own (Kaldi's word-position-dependent phones).
        Raises AsrError where there are none, and where they are too many to be a pronouncing dictionary.
        """
        self._entries = {word: list(phonemes) for word, phonemes in entries.items()}
        plain = sorted({each for phonemes in self._entries.values() for each in phonemes})
        self._name_phonemes(plain, marks_starts)
        size = sum(len(word) + len(phonemes) + 4 for word, phonemes in self._entries.items())
        if size > MOST_CHARACTERS:
            raise AsrError(f"{len(self._entries):,} words are too many; leave out those that the recordings lack")

    def _name_phonemes(self, phonemes: Sequence[str], marks_starts: bool) -> None:
        starts = [START + phoneme for phoneme in phonemes] if marks_starts else []
        self._plain, self._marks_starts = phonemes, marks_starts
        self.phonemes = ["<blank>", *phonemes, *starts]
        """Each id's phoneme, the blank first."""
        self._ids = {phoneme: number for number, phoneme in enumerate(self.phonemes) if number != BLANK_ID}
        self._encoded: dict[str, list[int]] = {}
        if not phonemes:
            raise AsrError("a pronouncing dictionary must hold at least one word and its phonemes")
        if len(phonemes) > MOST_PHONEMES:
            raise AsrError(
                f"{len(phonemes):,} different phonemes; a pronouncing dictionary has {MOST_PHONEMES:,} at most"
            )

    def __len__(self) -> int:
        return len(self.phonemes)

    def __contains__(self, word: object) -> bool:
        return word in self._entries

    def pronounce(self, word: str) -> list[str]:
        """Phonemes of a word; none where the dictionary has not one of its letters."""
        phonemes = list(self._entries[word]) if word in self._entries else self._analogy.pronounce(word)
        return [START + phonemes[0], *phonemes[1:]] if self._marks_starts and phonemes else phonemes

    def encode(self, text: str) -> list[int]:
        """Phoneme ids of all words of a normal transcript."""
        phoneme_ids: list[int] = []
        for word in split_words(text):
            if word not in self._encoded:
                self._encoded[word] = [self._ids[phoneme] for phoneme in self.pronounce(word)]
            phoneme_ids += self._encoded[word]
        return phoneme_ids

    def decode(self, phoneme_ids: Iterable[int]) -> list[str]:
        """Phonemes, whether or not they begin a word."""
        return [self.phonemes[phoneme_id].removeprefix(START) for phoneme_id in phoneme_ids]

    def written_by(self, normalize: Normalize) -> Pronunciations:
        """Those of the words that a vocabulary writes as one word, as it writes them; raises AsrError for none."""
        entries: dict[str, list[str]] = {}
        for word, phonemes in self._entries.items():
            if written := _write_word(word, normalize):
                entries.setdefault(written, phonemes)
        return Pronunciations(entries, marks_starts=self._marks_starts)

    def with_starts(self) -> Pronunciations:
        """The same words, with each phoneme that begins one as a phoneme of its own."""
        return Pronunciations(self._entries, marks_starts=True)

    def to_dict(self) -> dict[str, Any]:
        """What the model file keeps; `pronunciations_from_dict` reads it."""
        said = ("".join(_sign(self._ids[each]) for each in self._entries[word]) for word in sorted(self._entries))
        lines = zip(_shorten(sorted(self._entries)), _shorten(said))
        text = "\n".join(f"{word}\t{phonemes}" for word, phonemes in lines)
        entries = base64.b64encode(bz2.compress(text.encode())).decode("ascii")
        return {"phonemes": list(self._plain), "entries": entries, "marks_starts": self._marks_starts}

    @cached_property
    def checksum(self) -> int:
        """Another one for other words, or the same said otherwise."""
        return crc32(repr(sorted(self._entries.items())).encode())

    @cached_property
    def _analogy(self) -> Analogy:
        return Analogy(self._entries)


class _Packed(Pronunciations):
    """Those of a model file, unpacked when a word is pronounced: that takes longer than to recognise a sentence."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._name_phonemes(values["phonemes"], values["marks_starts"])

    @cached_property
    def _entries(self) -> dict[str, list[str]]:  # type: ignore[override]
        """Raises AsrError where they are damaged."""
        return _unpack_entries(self._values["entries"], tuple(self.phonemes))

    @cached_property
    def _analogy(self) -> Analogy:
        return _learn_packed(self._values["entries"], tuple(self.phonemes))

    def to_dict(self) -> dict[str, Any]:
        return self._values


@lru_cache(maxsize=2)
def _unpack_entries(packed: str, phonemes: tuple[str, ...]) -> dict[str, list[str]]:
    """Kept, for a model file is often read more than once; phonemes: by their ids, the blank first."""
    by_sign = {_sign(number): phoneme for number, phoneme in enumerate(phonemes) if number != BLANK_ID}
    try:
        text = _unpack(base64.b64decode(packed, validate=True))
        words, signs = zip(*(line.split("\t") for line in text.split("\n")), strict=True)
        return {word: [by_sign[sign] for sign in said] for word, said in zip(_lengthen(words), _lengthen(signs))}
    except (KeyError, ValueError) as error:
        raise AsrError(f"the pronunciations of the model file are damaged: {error}") from error


@lru_cache(maxsize=2)
def _learn_packed(packed: str, phonemes: tuple[str, ...]) -> Analogy:
    """Kept too: to learn from a whole dictionary takes seconds."""
    return Analogy(_unpack_entries(packed, phonemes))


def pronunciations_from_dict(values: dict[str, Any]) -> Pronunciations:
    """The inverse of `Pronunciations.to_dict`; raises AsrError, KeyError or TypeError for anything else.

    Words that are damaged are told when one is asked for.
    """
    phonemes, entries, marks_starts = values["phonemes"], values["entries"], values.get("marks_starts", False)
    has_types = isinstance(entries, str) and isinstance(phonemes, list) and isinstance(marks_starts, bool)
    if not (has_types and all(isinstance(one, str) for one in phonemes)):
        raise TypeError("these are no pronunciations")
    return _Packed({"phonemes": phonemes, "entries": entries, "marks_starts": marks_starts})


def read_pronunciations(path: str | Path, normalize: Normalize) -> Pronunciations:
    """A dictionary in the form of CMUdict and Kaldi's lexicon.txt: `QUILTER K W IH1 L T ER0`.

    A line holds a word and its phonemes, whose digits, for stress, are taken off. What stands behind a # is a comment,
    and so are lines that begin with ;;;. The first pronunciation of a word counts, and no further one (QUILTER(2)).
    Words of which `normalize` drops a sign are left out (<UNK>, U.S.), and so are those of which it makes several.

    normalize: the vocabulary's.
    Raises AsrError for a file that cannot be read, with each word that has no phonemes, and if no word is left.
    """
    entries: dict[str, list[str]] = {}
    problems = []
    for number, (written, *phonemes) in _read_fields(Path(path)):
        if not phonemes:
            problems.append(f"{path}:{number}: {written!r} has no phonemes")
        elif not _FURTHER.search(written) and (word := _write_word(written, normalize)):
            entries.setdefault(word, [each.rstrip("0123456789") or each for each in phonemes])
    if problems:
        raise AsrError.of_many(problems, "lines")
    try:
        return Pronunciations(entries)
    except AsrError as error:
        raise AsrError(f"{path}: {error}") from error


def _write_word(word: str, normalize: Normalize) -> str:
    """A word as `normalize` writes it; nothing where it loses a sign or becomes several words."""
    dropped: Counter[str] = Counter()
    words = split_words(normalize(word, dropped))
    return words[0] if len(words) == 1 and not dropped else ""


def _read_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not empty or a comment."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = "" if line.startswith((";;;", "#")) else re.split(r"\s#", line, maxsplit=1)[0]
                if fields.strip():
                    yield number, fields.split()
    except UnicodeDecodeError as error:
        raise AsrError(f"{path}: the pronunciations are not in UTF-8; save them in it") from error
    except OSError as error:
        raise AsrError(f"{path}: the pronunciations cannot be read: {reason_of(error)}") from error


def _sign(phoneme_id: int) -> str:
    """One printable character, above white space."""
    return chr(ord(" ") + phoneme_id)


def _shorten(texts: Iterable[str]) -> Iterator[str]:
    """In place of what each text shares with the one before at its beginning, a letter that says how much it is."""
    before = ""
    for text in texts:
        shared = sum(takewhile(bool, map(eq, before, text[:MOST_SHARED])))
        yield chr(ord("a") + shared) + text[shared:]
        before = text


def _lengthen(texts: Iterable[str]) -> Iterator[str]:
    """The inverse of `_shorten`; raises ValueError for anything else."""
    before = ""
    for text in texts:
        shared = ord(text[:1] or " ") - ord("a")
        if not 0 <= shared <= min(len(before), MOST_SHARED):
            raise ValueError(f"{text!r} shares nothing with {before!r}")
        before = before[:shared] + text[1:]
        yield before


def _unpack(data: bytes) -> str:
    """The text of compressed data; raises ValueError for data that is damaged or would fill the memory."""
    unpacker = bz2.BZ2Decompressor()
    try:
        text = unpacker.decompress(data, max_length=4 * MOST_CHARACTERS)
    except OSError as error:
        raise ValueError(f"the pronunciations are damaged: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("the pronunciations are cut short, or too many")
    return text.decode()
