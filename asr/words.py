"""The words of a text: what spaces part, and in Chinese and Japanese, which know no spaces, each character."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_unspaced", "join_words", "mark_edges", "split_words", "word_spans"]

_UNSPACED = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Kana and Chinese characters, as a regular expression's class has them."""

_ALONE = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_GAP = re.compile(rf" (?=[{_UNSPACED}])|(?<=[{_UNSPACED}]) ")
_EDGE = re.compile(rf"(?<=[{_UNSPACED}])(?=\S)|(?<=\S)(?=[{_UNSPACED}])")


def is_unspaced(character: str) -> bool:
    """Whether it is one of the characters that are words by themselves."""
    return _ALONE.match(character) is not None


def word_spans(text: str) -> list[tuple[int, int]]:
    """First and behind-last place of each word."""
    return [match.span() for match in _WORD.finditer(text)]


def split_words(text: str) -> list[str]:
    """The words, as the WER counts them: it is the CER of Chinese."""
    return text.split() if text.isascii() else _WORD.findall(text)


def join_words(words: Iterable[str]) -> str:
    """Words with single spaces between them, and none beside a character that is a word by itself."""
    text = " ".join(words)
    return text if text.isascii() else _GAP.sub("", text)


def mark_edges(text: str, mark: str) -> str:
    """The text with a mark where two words meet without a space."""
    return text if text.isascii() else _EDGE.sub(mark, text)
