"""The table between transcripts and token ids: characters, or pieces of words."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from asr.errors import AsrError
from asr.text import ALPHABET, normalize_transcript
from asr.words import join_words, mark_edges, word_spans

__all__ = ["BLANK_ID", "CharacterVocabulary", "SentencePieceVocabulary", "Vocabulary", "vocabulary_from_dict"]

BLANK_ID = 0
"""CTC's "no token", in every vocabulary."""

LONGEST_LINE = 1_000_000
"""Bytes of a text that pieces are learned from; SentencePiece leaves longer ones out."""

_WORD_START = "\u2581"
"""What SentencePiece writes for a space."""


class Vocabulary(Protocol):
    """A two-way table between transcripts and token ids; id 0 is the blank and never comes out of `encode`."""

    @property
    def tokens(self) -> list[str]:
        """Each id's token, the blank first."""

    @property
    def alphabet(self) -> str:
        """The characters that the tokens write, the space included."""

    def normalize(self, text: str, dropped: Counter[str] | None = None) -> str:
        """`normalize_transcript` in this alphabet."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a normal transcript; raises AsrError for a character that has none."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids without blanks; words are joined by `join_words`, whatever spaces the model wrote."""

    def word_spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """First and behind-last index of the tokens of each word of `decode(token_ids)`."""

    def to_dict(self) -> dict[str, Any]:
        """What the model file keeps; `vocabulary_from_dict` reads it."""

    def __len__(self) -> int: ...


class CharacterVocabulary:
    """One token per character."""

    def __init__(self, characters: str = ALPHABET) -> None:
        if len(set(characters)) != len(characters):
            raise AsrError(f"vocabulary {characters!r} must hold each character once")
        self.tokens = ["<blank>", *characters]
        self._ids = {character: token_id for token_id, character in enumerate(characters, start=1)}
        self.alphabet = characters

    def normalize(self, text: str, dropped: Counter[str] | None = None) -> str:
        return normalize_transcript(text, dropped, alphabet=self.alphabet)

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise AsrError(f"character {error} is not in the vocabulary {''.join(self._ids)!r}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        return join_words("".join(self.tokens[token_id] for token_id in token_ids).split())

    def word_spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        return word_spans("".join(self.tokens[token_id] for token_id in token_ids))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": "".join(self._ids)}

    def __len__(self) -> int:
        return len(self.tokens)


class SentencePieceVocabulary:
    """Pieces of words, learned from text. The pieces' own unknown symbol has id 0 there and is the blank here."""

    def __init__(self, model_proto: bytes) -> None:
        self.model_proto = model_proto

    @classmethod
    def train(cls, sentences: Iterable[str], size: int, characters: str = "") -> SentencePieceVocabulary:
        """Learn `size` pieces (blank included) from normal transcripts, or fewer where the text has no more.

        characters: each of these is a piece even where the text lacks it.
        Raises AsrError for text without a word, or if its characters are more than `size`.
        """
        import io

        import sentencepiece

        proto = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(mark_edges(sentence, "\t") for sentence in sentences),
                pretokenization_delimiter="\t",  # a piece is of one word, and Chinese has a word for each character
                model_writer=proto,
                vocab_size=size,
                max_sentence_length=LONGEST_LINE,
                hard_vocab_limit=False,
                required_chars=characters.replace(" ", ""),
                model_type="unigram",
                character_coverage=1.0,
                normalization_rule_name="identity",
                unk_id=BLANK_ID,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2]  # in front of it stand SentencePiece's source lines
            reason = reason.partition(" Increase")[0] or "it has no word"  # behind it, options that are not ours
            raise AsrError(f"a vocabulary of {size} pieces does not suit the training text: {reason}") from error
        return cls(proto.getvalue())

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model_proto)

    @cached_property
    def tokens(self) -> list[str]:
        pieces = [self._processor.id_to_piece(token_id) for token_id in range(len(self))]
        return ["<blank>", *pieces[1:]]

    @cached_property
    def alphabet(self) -> str:
        return "".join(sorted({*"".join(self.tokens[1:]).replace(_WORD_START, " "), " "}))

    def normalize(self, text: str, dropped: Counter[str] | None = None) -> str:
        return normalize_transcript(text, dropped, alphabet=self.alphabet)

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._processor.encode(text)
        if BLANK_ID in token_ids:
            unknown = "".join(sorted(set(text) - set("".join(self.tokens[1:])) - {" "}))
            raise AsrError(f"characters {unknown!r} are not in the vocabulary")
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._processor.decode(list(token_ids))
        return join_words(text.split())

    def word_spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        pieces = [self.tokens[token_id].replace(_WORD_START, " ") for token_id in token_ids]
        text = "".join(pieces)
        places = [place for place, piece in enumerate(pieces) for _ in piece]
        inside = {places[start] for start, _ in word_spans(text) if text[start - 1 : start] != " "}
        starts = {place for place, piece in enumerate(pieces) if piece.startswith(" ")}
        pairs = pairwise(sorted({0, *starts, *inside, len(token_ids)}))
        return [(start, end) for start, end in pairs if self.decode(token_ids[start:end])]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model_proto": base64.b64encode(self.model_proto).decode("ascii")}

    def __len__(self) -> int:
        return int(self._processor.vocab_size())


def vocabulary_from_dict(values: dict[str, Any]) -> Vocabulary:
    """The inverse of `Vocabulary.to_dict`; raises KeyError or ValueError for anything else."""
    if values["kind"] == "characters":
        return CharacterVocabulary(values["characters"])
    if values["kind"] == "sentencepiece":
        return SentencePieceVocabulary(base64.b64decode(values["model_proto"], validate=True))
    raise ValueError(f"unknown vocabulary kind {values['kind']!r}")
