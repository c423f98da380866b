"""Transcripts in their normal form: what is written of a text in an alphabet."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from asr.words import join_words

__all__ = [
    "ALPHABET",
    "WORDS_FOR",
    "Normalize",
    "count_lost",
    "is_letter",
    "normalize_transcript",
    "without_quotes",
]

Normalize = Callable[[str, Counter[str]], str]
"""A text to its normal form; what is lost of it is counted."""

ALPHABET = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What LibriSpeech's transcripts are written with."""

WORDS_FOR = {
    "&": "AND",
    "%": "PERCENT",
    "@": "AT",
    "+": "PLUS",
    "=": "EQUALS",
    "$": "DOLLARS",
    "€": "EUROS",
    "£": "POUNDS",
}
"""What is usually said for characters that no alphabet has."""

_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u0060\u00b4\uff07"), "'")
_SEPARATORS = dict.fromkeys(map(ord, "-\uff0d\u2212\u2010\u2011\u2012\u2013\u2014\u2015/_\u2026"), " ")

_TURKISH = {"i": "\u0130", "\u0130": "i", "\u0131": "I", "I": "\u0131"}
"""With a dot or without in both cases."""

_MARKS = ",;!?\u060c\u061b\u061f\u0964\u3001\u3002\uff0c\uff1b\uff01\uff1f"
"""Arabic, Indic and Chinese ones too."""
_LETTER = r"[^\W\d_]"
_STOPS = re.compile(rf"\.{{2,}}|(?<={_LETTER}{_LETTER})\.(?={_LETTER})|(?<![{_MARKS}])[{_MARKS}]+(?={_LETTER})")
"""Signs that part words also where no space does: I...I, yes,no, end.Next; not U.S. or e.g."""

_QUOTED = re.compile(
    r"(?<!\w)(?:'(?=\w)((?:(?!(?<!\w)'\w).)*?[.,;:!?\u2026])'|\u2018(?=\w)(.{0,1000}?)\u2019)(?!\w)", re.DOTALL
)
"""What stands in single quotation marks: curved ones, or straight ones of which the second follows a stop. Others may
be apostrophes, as in 'tis the boys' own; a thousand characters on, the other mark is not looked for."""


def normalize_transcript(text: str, dropped: Counter[str] | None = None, *, alphabet: str = ALPHABET) -> str:
    """`text` in an alphabet, by default LibriSpeech's: upper case, A-Z, apostrophes and single spaces.

    A character that the alphabet lacks is written in the other case where that is there; else typographic apostrophes
    become ', dashes, slashes and ... become spaces, and so do stops inside words (yes,no but not U.S.), letters lose
    their accents. Single quotation marks are told from apostrophes where that can be. Whatever else is left is dropped,
    and counted in `dropped` by character as it stood in the text (in Unicode NFC).
    """
    table = _table(alphabet)
    text = unicodedata.normalize("NFC", text)
    if dropped is not None:
        lost = {character for character in set(text) if not table[ord(character)]}
        if lost:
            dropped.update(filter(lost.__contains__, text))
    if not table.has_marks:
        if "'" in text or "\u2018" in text:
            text = _QUOTED.sub(r"\1\2", text)
        text = _STOPS.sub(" ", text)
    return join_words(text.translate(table).split())


def without_quotes(text: str, alphabet: str) -> str:
    """The text in NFC, with double quotation marks for the single ones that `normalize_transcript` leaves out."""
    text = unicodedata.normalize("NFC", text)
    return text if _table(alphabet).has_marks else _QUOTED.sub(lambda found: f'"{found[0][1:-1]}"', text)


def count_lost(dropped: Counter[str]) -> Counter[str]:
    """The letters, the digits and `WORDS_FOR`'s signs among dropped characters: what was said for them is missing."""
    said = (each for each in dropped if each.isalnum() or is_letter(each) or each in WORDS_FOR)
    return Counter({each: dropped[each] for each in said})


def is_letter(character: str) -> bool:
    """Letters, and the vowels that scripts such as Devanagari and Thai write as marks; accents are none.

    Nor are the short vowels of Arabic and Hebrew, which texts may leave out, and what chooses the look of a sign.
    """
    if unicodedata.category(character) not in ("Mc", "Mn") or "VARIATION" in unicodedata.name(character, ""):
        return character.isalpha()
    accent = unicodedata.combining(character)  # the class of the mark: 9 the virama, 84 to 132 vowels and tones
    return accent in (0, 9) or 84 <= accent <= 132


class _Table(dict[int, str]):
    """What stands for a character, by its code point, in the form of str.translate; filled as characters come."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.has_marks = not set(f".:\u2018\u2019\u2026{_MARKS}").isdisjoint(alphabet)
        """Then texts hold them for themselves."""

    def __missing__(self, code_point: int) -> str:
        return self.setdefault(code_point, _in_alphabet(chr(code_point), self.alphabet))


_table = lru_cache(maxsize=100)(_Table)


def _in_alphabet(character: str, alphabet: str) -> str:
    """What stands for a character: letters of the alphabet, a space, or nothing."""
    if character.isspace():
        return " "
    replaced = _APOSTROPHES.get(ord(character)) or _SEPARATORS.get(ord(character)) or ""
    if form := _fitting((character, *_other_cases(character, alphabet), replaced), alphabet):
        return form
    parts = unicodedata.normalize("NFKD", character).replace(" ", "")
    return "".join(_fitting((part, *_other_cases(part, alphabet)), alphabet) for part in parts)


def _other_cases(character: str, alphabet: str) -> Sequence[str]:
    """A character in capitals and in small letters; where the alphabet is Turkish, its i is İ and its ı is I."""
    if character in _TURKISH and not {"İ", "ı"}.isdisjoint(alphabet):
        return (_TURKISH[character],)
    return character.upper(), character.lower()


def _fitting(forms: Iterable[str], alphabet: str) -> str:
    """The first that the alphabet can write, or nothing."""
    return next((form for form in forms if form and all(letter in alphabet for letter in form)), "")
