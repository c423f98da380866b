"""Normal transcripts, and both vocabularies there and back."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import AsrError
from asr.text import ALPHABET, count_lost, normalize_transcript
from asr.vocabulary import BLANK_ID, CharacterVocabulary, SentencePieceVocabulary, Vocabulary, vocabulary_from_dict

normal_transcripts = st.text(ALPHABET).map(lambda text: " ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello World", "HELLO WORLD"),
        ("don’t ‘quote’ it`s rock´n´roll ʼtis", "DON'T QUOTE IT'S ROCK'N'ROLL 'TIS"),
        ("But...why? I...I don't; yes,no", "BUT WHY I I DON'T YES NO"),
        ("The end.Next, the U.S. e.g. at 7 p.m.", "THE END NEXT THE US EG AT PM"),
        ("the U.S. at 5 a.m., and S:t", "THE US AT AM AND ST"),
        ("'Yes,' she said, 'and...'", "YES SHE SAID AND"),
        ("‘Yes’ and ‘no, the boy’s’ he said", "YES AND NO THE BOY'S HE SAID"),
        ("'Twas the boys' own: 'Go.'", "'TWAS THE BOYS' OWN GO"),
        ("'TIS THE BOYS' OWN ROCK 'N' ROLL", "'TIS THE BOYS' OWN ROCK 'N' ROLL"),
        ("well-known — and/or 1984–85…yes", "WELL KNOWN AND OR YES"),
        ("non\u2011breaking", "NON BREAKING"),
        ("full\uff0dwidth and \u2212 minus", "FULL WIDTH AND MINUS"),
        ("lone\u00a8accent", "LONEACCENT"),
        ("Café naïve Ångström", "CAFE NAIVE ANGSTROM"),
        ("straße", "STRASSE"),
        ("ﬁne ﬂow", "FINE FLOW"),
        ("  two \t words\r\nand\u00a0lines \n", "TWO WORDS AND LINES"),
        ("Hello, world!", "HELLO WORLD"),
        ("３ ＡＢＣ", "ABC"),
        ("", ""),
        ("123 !?", ""),
        ("Привет", ""),
    ],
)
def test_a_transcript_becomes_upper_case_letters_apostrophes_and_single_spaces(text: str, normal: str) -> None:
    assert normalize_transcript(text) == normal


@pytest.mark.parametrize(
    ("text", "letters", "normal"),
    [
        ("Café naïve", "abcdefghijklmnopqrstuvwxyz", "cafe naive"),
        ("İyi Iğdır, ılık", "abcçdefgğhıijklmnoöprsştuüvyz", "iyi ığdır ılık"),
        ("iyi ışık, Isparta", "ABCÇDEFGĞHIİJKLMNOÖPRSŞTUÜVYZ", "İYİ IŞIK ISPARTA"),
        ("Straße, Äpfel", "ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜß", "STRAßE ÄPFEL"),
        ("كتاب،قلم؛نعم؟لا", "كتابقلمنعملا", "كتاب قلم نعم لا"),
        ("क़लम।नाम", "कलमना़", "क़लम नाम"),
    ],
)
def test_other_alphabets_have_their_own_cases_accents_and_stops(text: str, letters: str, normal: str) -> None:
    alphabet = " " + "".join(sorted(set(letters)))
    assert normalize_transcript(text, alphabet=alphabet) == normal


def test_letters_digits_and_signs_that_are_spoken_are_missing_where_they_are_dropped() -> None:
    assert count_lost(Counter("50 % – “é” £, #!&&")) == Counter("50%é£&&")


def test_vowels_that_are_marks_count_as_lost_letters_and_accents_do_not() -> None:
    dropped = Counter("\u093f\u094d\u0e34\u0301\u064e\ufe0f\u093cक1!")
    assert set(count_lost(dropped)) == set("\u093f\u094d\u0e34क1")


@pytest.mark.parametrize("text", ["Café naïve", "Ångström", "ñandú", "Ćwikła", "x̂ ŷ"])
def test_composed_and_decomposed_accents_are_the_same(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert normalize_transcript(composed) == normalize_transcript(decomposed)


def test_what_is_dropped_is_counted_as_it_stood_in_the_text() -> None:
    dropped: Counter[str] = Counter()
    assert normalize_transcript("Œuvre 22, œuf — 50 %!", dropped) == "UVRE UF"
    assert dropped == {"Œ": 1, "œ": 1, "2": 2, ",": 1, "5": 1, "0": 1, "%": 1, "!": 1}


def test_what_is_kept_or_replaced_is_not_counted() -> None:
    dropped: Counter[str] = Counter()
    normalize_transcript("Cafe\u0301 – it’s a ‘straße’\r\n", dropped)
    assert not dropped


@given(st.text())
def test_a_normal_transcript_is_in_the_alphabet_and_stays_as_it_is(text: str) -> None:
    normal = normalize_transcript(text)
    assert set(normal) <= set(ALPHABET)
    assert normal == " ".join(normal.split())
    assert normalize_transcript(normal) == normal


@given(st.text())
def test_a_transcript_says_the_same_in_every_unicode_form_and_line_ending(text: str) -> None:
    forms = {normalize_transcript(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert len(forms) == 1
    assert normalize_transcript(text.replace("\n", "\r\n")) == normalize_transcript(text)


GERMAN = " ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜß"


@pytest.mark.parametrize(
    ("alphabet", "text", "normal"),
    [
        (GERMAN, "Straße für Äpfel – naïve", "STRAßE FÜR ÄPFEL NAIVE"),
        (GERMAN, "Tom’s", "TOMS"),
        (" абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "Привет, МИР!", "привет мир"),
        (" -'abcdefghijklmnopqrstuvwxyz", "Well-known, it’s", "well-known it's"),
        (" ABC0123456789", "A 12 b", "A 12 B"),
    ],
)
def test_another_alphabet_keeps_what_it_has(alphabet: str, text: str, normal: str) -> None:
    assert CharacterVocabulary(alphabet).normalize(text) == normal


@given(st.text(), st.sets(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"])))
def test_a_transcript_in_any_alphabet_is_in_it_and_stays_as_it_is(text: str, letters: set[str]) -> None:
    vocabulary = CharacterVocabulary(" " + "".join(sorted(letters)))
    normal = vocabulary.normalize(text)
    assert set(normal) <= {" ", *letters}
    assert BLANK_ID not in vocabulary.encode(normal)
    if unicodedata.is_normalized("NFC", normal):  # letters may meet an accent that stood behind something dropped
        assert vocabulary.normalize(normal) == normal


def test_pieces_normalize_in_the_alphabet_of_the_text_they_were_learned_from() -> None:
    vocabulary = SentencePieceVocabulary.train(["STRAßE FÜR ÄPFEL", "ÄPFEL UND STRAßE"] * 20, 18)
    assert vocabulary.normalize("Äpfel, Straße & Øre") == "ÄPFEL STRAßE RE"


@given(st.lists(st.text(st.characters(categories=["Nd", "Lo", "So"]), min_size=1), min_size=1))
def test_nothing_vanishes_uncounted(words: list[str]) -> None:
    dropped: Counter[str] = Counter()
    text = unicodedata.normalize("NFC", "".join(words))
    kept = sum(bool(normalize_transcript(character)) or character.isspace() for character in text)
    normalize_transcript(text, dropped)
    assert kept + dropped.total() == len(text)


@given(normal_transcripts)
def test_characters_encode_and_decode_to_the_same_text(text: str) -> None:
    vocabulary = CharacterVocabulary()
    token_ids = vocabulary.encode(text)
    assert len(token_ids) == len(text)
    assert BLANK_ID not in token_ids
    assert vocabulary.decode(token_ids) == text


def test_a_character_vocabulary_is_the_blank_and_the_alphabet() -> None:
    vocabulary = CharacterVocabulary()
    assert len(vocabulary) == 29
    assert vocabulary.tokens == ["<blank>", *ALPHABET]
    assert vocabulary.tokens[BLANK_ID] == "<blank>"


def test_decoding_puts_single_spaces_whatever_the_model_wrote() -> None:
    assert CharacterVocabulary("AB ").decode([3, 1, 3, 3, 2, 3]) == "A B"


@pytest.mark.parametrize("text", ["HELLO WORLd", "É", "A\tB", "1"])
def test_an_unknown_character_is_named(text: str) -> None:
    with pytest.raises(AsrError, match=r"character '.*' is not in the vocabulary"):
        CharacterVocabulary().encode(text)


def test_a_doubled_character_is_refused() -> None:
    with pytest.raises(AsrError, match="'ABA' must hold each character once"):
        CharacterVocabulary("ABA")


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    manifest = Path(__file__).parents[1] / "samples" / "manifest.jsonl"
    return [json.loads(line)["text"] for line in manifest.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pieces(sentences: list[str]) -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(sentences, 40)


def test_sentencepiece_learns_as_many_pieces_as_asked_with_the_blank_first(pieces: SentencePieceVocabulary) -> None:
    assert len(pieces) == len(pieces.tokens) == 40
    assert pieces.tokens[BLANK_ID] == "<blank>"
    assert any(len(token.strip("▁")) > 1 for token in pieces.tokens[1:])


def test_sentencepiece_learns_the_same_from_the_same_text(
    sentences: list[str], pieces: SentencePieceVocabulary
) -> None:
    assert SentencePieceVocabulary.train(sentences, 40).tokens == pieces.tokens


@given(st.data())
def test_sentencepiece_encodes_and_decodes_to_the_same_text_without_a_blank(
    pieces: SentencePieceVocabulary, sentences: list[str], data: st.DataObject
) -> None:
    letters = "".join(sorted(set("".join(sentences))))
    text = " ".join(data.draw(st.text(letters)).split())
    token_ids = pieces.encode(text)
    assert BLANK_ID not in token_ids
    assert all(type(token_id) is int for token_id in token_ids)
    assert pieces.decode(token_ids) == text


def test_sentencepiece_names_the_characters_it_does_not_know(pieces: SentencePieceVocabulary) -> None:
    with pytest.raises(AsrError, match="characters '1É' are not in the vocabulary"):
        pieces.encode("THE É AND 1")


def test_sentencepiece_learns_fewer_pieces_where_the_text_has_no_more(sentences: list[str]) -> None:
    few = SentencePieceVocabulary.train(sentences, 5000)
    assert 40 < len(few) < 500
    assert few.decode(few.encode(sentences[0])) == sentences[0]


def test_sentencepiece_writes_the_characters_it_is_given_though_no_text_has_them(sentences: list[str]) -> None:
    pieces = SentencePieceVocabulary.train(sentences, 60, " 'ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜ")
    assert pieces.decode(pieces.encode("ÜBER ÖL")) == "ÜBER ÖL"
    assert pieces.normalize("Über Öl") == "ÜBER ÖL"


def test_a_size_below_the_number_of_characters_is_an_error_that_says_so(sentences: list[str]) -> None:
    with pytest.raises(AsrError, match="a vocabulary of 3 pieces ") as caught:
        SentencePieceVocabulary.train(sentences, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("characters", ["", " ABC"])
def test_training_text_without_a_word_is_an_error(characters: str) -> None:
    with pytest.raises(AsrError, match=r"^a vocabulary of 40 pieces does not suit the training text: it has no word$"):
        SentencePieceVocabulary.train(["", " "], 40, characters)


@pytest.mark.parametrize("kind", ["characters", "sentencepiece"])
def test_a_vocabulary_comes_back_from_its_json(
    kind: str, pieces: SentencePieceVocabulary, sentences: list[str]
) -> None:
    vocabulary: Vocabulary = pieces if kind == "sentencepiece" else CharacterVocabulary("".join(sorted(ALPHABET)))
    again = vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert type(again) is type(vocabulary)
    assert again.tokens == vocabulary.tokens
    assert [again.encode(text) for text in sentences] == [vocabulary.encode(text) for text in sentences]


@pytest.mark.parametrize(
    "values", [{}, {"kind": "words"}, {"kind": "characters"}, {"kind": "sentencepiece", "model_proto": "not base64!"}]
)
def test_what_is_no_vocabulary_is_refused(values: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        vocabulary_from_dict(values)


@pytest.mark.parametrize("piece", ["\u2018a ", "\u2018a\u2019b ", "'a. ", ",;!?"])
def test_the_time_for_a_text_of_marks_grows_with_its_length_alone(piece: str) -> None:
    def seconds(pieces: int) -> float:
        begin = process_time()
        normalize_transcript(piece * pieces)
        return process_time() - begin

    assert seconds(16_000) < 10 * seconds(4_000) + 0.1
