"""Words to phonemes, from a dictionary and by analogy with it."""

from __future__ import annotations

import base64
import bz2
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import AsrError
from asr.pronunciation import Pronunciations, pronunciations_from_dict, read_pronunciations
from asr.text import normalize_transcript
from asr.vocabulary import BLANK_ID, CharacterVocabulary

CMUDICT = """\
;;; the form of CMUdict
A  EY1
A(1)  AH0
CAN'T  K AE1 N T
QUILTER  K W IH1 L T ER0  # a name

!SIL SIL
<UNK>\tSPN
# Kaldi's
read\tr iy d
READ R EH1 D
U.S. Y UW1 EH2 S
US AH1 S
WELL-KNOWN W EH1 L N OW1 N
"""

CONSONANTS = {"B": "b", "D": "d", "K": "k", "N": "n", "T": "t"}
VOWELS = {"A": ("ae", "ey"), "I": ("ih", "ay"), "O": ("aa", "ow"), "U": ("ah", "uw")}
PREFIXES = {"": [], "RE": ["r", "ih"], "UN": ["ah", "n"]}


def regular_words() -> dict[str, list[str]]:
    """BAT and BATE: an E at the end is silent and makes the vowel long; SH is one phoneme, X two."""
    words = {}
    for prefix, first, vowel in product(PREFIXES, [*CONSONANTS, "SH"], VOWELS):
        for last, is_long in product([*CONSONANTS, "X"], (False, True)):
            onset, coda = CONSONANTS.get(first, "sh"), CONSONANTS.get(last, "k s")
            phonemes = [*PREFIXES[prefix], onset, VOWELS[vowel][is_long], *coda.split()]
            words[prefix + first + vowel + last + "E" * is_long] = phonemes
    return words


def read(path: Path, text: str) -> Pronunciations:
    path.write_text(text, encoding="utf-8")
    return read_pronunciations(path, normalize_transcript)


def test_a_dictionary_file_is_read_without_comments_stress_and_further_pronunciations(tmp_path: Path) -> None:
    pronunciations = read(tmp_path / "lexicon.txt", CMUDICT)
    said = {word: pronunciations.pronounce(word) for word in ("A", "CAN'T", "QUILTER", "READ")}
    assert said == {
        "A": ["EY"],
        "CAN'T": ["K", "AE", "N", "T"],
        "QUILTER": ["K", "W", "IH", "L", "T", "ER"],
        "READ": ["r", "iy", "d"],
    }


def test_words_that_the_model_writes_otherwise_are_left_out(tmp_path: Path) -> None:
    pronunciations = read(tmp_path / "lexicon.txt", CMUDICT)
    assert pronunciations.pronounce("US") == ["AH", "S"]
    assert not any(word in pronunciations for word in ("SIL", "UNK", "WELL", "WELL-KNOWN", "U.S.", "A(1)", "read"))


def test_words_are_written_as_the_vocabulary_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("ÜBER y: b 6\nÜber(2) u b\n", encoding="utf-8")
    pronunciations = read_pronunciations(path, CharacterVocabulary(" beruü").normalize)
    assert pronunciations.pronounce("über") == ["y:", "b", "6"]


def test_each_word_without_phonemes_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    with pytest.raises(AsrError) as caught:
        read(path, "# names\nQUILTER\nA ey\nLINNELL  # none\n")
    assert str(caught.value) == f"{path}:2: 'QUILTER' has no phonemes\n{path}:4: 'LINNELL' has no phonemes"


@pytest.mark.parametrize("text", ["", ";;; nothing\n", "<UNK> SPN\n"])
def test_a_dictionary_without_a_usable_word_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(AsrError, match=r"lexicon\.txt: a pronouncing dictionary must hold at least one word"):
        read(tmp_path / "lexicon.txt", text)


def test_a_text_is_no_dictionary(tmp_path: Path) -> None:
    lines = (f"HE heard {number}a sheep\n" for number in range(1100))
    with pytest.raises(AsrError, match=r"1,\d\d\d different phonemes"):
        read(tmp_path / "book.txt", "".join(line.replace("HE", "HE" + "E" * n) for n, line in enumerate(lines)))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"none\.txt: the pronunciations cannot be read: No such file"):
        read_pronunciations(tmp_path / "none.txt", normalize_transcript)
    with pytest.raises(AsrError, match="cannot be read"):
        read_pronunciations(tmp_path, normalize_transcript)
    (tmp_path / "latin.txt").write_bytes("CAFÉ k ae f ey\n".encode("latin-1"))
    with pytest.raises(AsrError, match="not in UTF-8"):
        read_pronunciations(tmp_path / "latin.txt", normalize_transcript)


def test_the_blank_comes_first_and_is_never_said() -> None:
    pronunciations = Pronunciations({"TO": ["t", "uw"], "OUT": ["aw", "t"]})
    assert pronunciations.phonemes == ["<blank>", "aw", "t", "uw"]
    assert len(pronunciations) == 4
    assert BLANK_ID not in pronunciations.encode("TO OUT TOUT")


def test_a_text_is_said_word_by_word() -> None:
    pronunciations = Pronunciations({"TO": ["t", "uw"], "OUT": ["aw", "t"]})
    assert pronunciations.encode("TO OUT TO") == [2, 3, 1, 2, 2, 3]
    assert pronunciations.encode("") == []
    assert Pronunciations({"你": ["n", "i"], "好": ["h", "ao"]}).encode("你好") == [4, 3, 2, 1]


def test_what_is_returned_may_be_changed() -> None:
    pronunciations = Pronunciations({"TO": ["t", "uw"]})
    pronunciations.pronounce("TO").clear()
    pronunciations.encode("TO").clear()
    assert pronunciations.encode("TO") == [1, 2]


def test_unknown_words_are_said_as_the_known_ones_are() -> None:
    words = regular_words()
    held_out = set(list(words)[3::5])  # their stems are known with other prefixes
    pronunciations = Pronunciations({word: words[word] for word in words if word not in held_out})
    wrong = [word for word in held_out if pronunciations.pronounce(word) != words[word]]
    assert len(held_out) > 150
    assert wrong == []


def test_an_apostrophe_is_said_as_in_known_words() -> None:
    words = {word: phonemes for word, phonemes in regular_words().items() if not word.endswith("E")}
    owned = {f"{word}'S": [*phonemes, "z"] for word, phonemes in words.items() if word != "BAT"}
    assert Pronunciations({**words, **owned}).pronounce("BAT'S") == ["b", "ae", "t", "z"]


def test_a_letter_of_no_known_word_says_nothing() -> None:
    pronunciations = Pronunciations(regular_words())
    assert pronunciations.pronounce("ÉBAT") == ["b", "ae", "t"]
    assert pronunciations.pronounce("ÉÉ") == pronunciations.pronounce("") == []


def test_letters_that_are_silent_elsewhere_are_said_where_they_are_alone() -> None:
    pronunciations = Pronunciations({"HATE": ["h", "ey", "t"], "HAT": ["h", "ae", "t"], "EAT": ["iy", "t"]})
    assert pronunciations.pronounce("EE") != []


def test_a_word_with_more_phonemes_than_its_letters_can_stand_for_teaches_nothing() -> None:
    pronunciations = Pronunciations({"W": ["d", "ah", "b", "ax", "l", "y", "uw"], "AT": ["ae", "t"]})
    assert pronunciations.pronounce("W") == ["d", "ah", "b", "ax", "l", "y", "uw"]
    assert pronunciations.pronounce("TA") == ["t", "ae"]


def test_the_order_of_a_dictionary_does_not_matter() -> None:
    words = regular_words()
    first, second = Pronunciations(words), Pronunciations(dict(reversed(words.items())))
    texts = ["SHELF", "FLAMBO", "TRAPEZE", "OX", "ALUMNI"]
    assert [first.pronounce(text) for text in texts] == [second.pronounce(text) for text in texts]
    assert first.to_dict() == second.to_dict()


def check_round_trip(entries: dict[str, list[str]]) -> None:
    for written in (Pronunciations(entries), Pronunciations(entries).with_starts()):
        found = pronunciations_from_dict(json.loads(json.dumps(written.to_dict())))
        assert found.phonemes == written.phonemes
        assert found.to_dict() == written.to_dict()
        assert {word: found.encode(word) for word in entries} == {word: written.encode(word) for word in entries}
    assert {word: Pronunciations(entries).pronounce(word) for word in entries} == entries


def test_a_dictionary_comes_back_from_the_model_file() -> None:
    check_round_trip(regular_words())
    check_round_trip({"A" * 40: ["a"] * 60, "A" * 41: ["a"] * 61, "ÄÖ": [], "你": ["nʲ", "i˥"]})
    check_round_trip({f"W{number}": [f"p{number}"] for number in range(1000)})


@given(
    st.dictionaries(
        st.text("ABC'É", min_size=1), st.lists(st.sampled_from(["a", "b", "ch", "ŋ"]), min_size=1), min_size=1
    )
)
def test_any_dictionary_comes_back(entries: dict[str, list[str]]) -> None:
    check_round_trip(entries)


def packed(text: str) -> str:
    return base64.b64encode(bz2.compress(text.encode())).decode()


@pytest.mark.parametrize(
    "change",
    [
        {"entries": "no base64!"},
        {"entries": base64.b64encode(b"no bz2").decode()},
        {"entries": Pronunciations(regular_words()).to_dict()["entries"][:200]},
        {"entries": packed("")},
        {"entries": packed("aTO")},
        {"entries": packed("aTO\ta!\ta!")},
        {"entries": packed("bTO\ta!")},
        {"entries": packed("\x00\ta!")},
        {"entries": packed("aTO\ta~")},
        {"entries": base64.b64encode(bz2.compress(b"a\xff\ta!")).decode()},
        {"entries": 3},
        {"phonemes": ["t"]},
        {"phonemes": [1, 2]},
        {"phonemes": 3},
        {"marks_starts": 1},
    ],
)
def test_what_to_dict_has_not_written_is_refused(change: dict[str, Any]) -> None:
    values = Pronunciations({"TO": ["t", "uw"]}).to_dict()
    with pytest.raises((AsrError, TypeError)):
        pronunciations_from_dict({**values, **change}).pronounce("TO")


def test_what_is_missing_is_a_missing_key() -> None:
    for key in ("phonemes", "entries"):
        values = Pronunciations({"TO": ["t", "uw"]}).to_dict()
        del values[key]
        with pytest.raises(KeyError):
            pronunciations_from_dict(values)


def test_a_bomb_does_not_fill_the_memory() -> None:
    packer = bz2.BZ2Compressor()
    data = b"".join(packer.compress(bytes(1_000_000)) for _ in range(65)) + packer.flush()
    assert len(data) < 1000
    bomb = pronunciations_from_dict({"phonemes": ["t"], "entries": base64.b64encode(data).decode()})
    with pytest.raises(AsrError, match=r"model file are damaged: .*too many"):
        bomb.pronounce("TO")


def test_more_than_the_model_file_can_hold_is_refused() -> None:
    with pytest.raises(AsrError, match="2 words are too many"):
        Pronunciations({"A" * 10_000_000: ["t"], "B": ["t"] * 7_000_000})


def test_an_empty_dictionary_is_refused() -> None:
    for entries in ({}, {"TO": []}):
        with pytest.raises(AsrError, match="must hold at least one word"):
            Pronunciations(entries)


def test_a_phoneme_that_begins_a_word_is_one_of_its_own() -> None:
    plain = Pronunciations(regular_words())
    marked = plain.with_starts()
    assert marked.pronounce("BAT") == ["▁b", "ae", "t"]
    assert [marked.phonemes[number] for number in marked.encode("BAT BAT")] == ["▁b", "ae", "t"] * 2
    for word in ("BAT", "SHELF", "FLAMBO", "OX", "ÉÉ"):  # known ones and such as are pronounced by analogy
        phonemes = marked.pronounce(word)
        assert [phoneme.removeprefix("▁") for phoneme in phonemes] == plain.pronounce(word)
        assert [phoneme.startswith("▁") for phoneme in phonemes] == [place == 0 for place in range(len(phonemes))]
    assert len(marked) == 2 * len(plain) - 1
    assert marked.with_starts().phonemes == marked.phonemes
    small = marked.written_by(CharacterVocabulary(" abcdefghijklmnopqrstuvwxyz").normalize)
    assert small.pronounce("bat") == ["▁b", "ae", "t"]


def test_a_model_file_of_before_marks_no_starts() -> None:
    values = Pronunciations({"TO": ["t", "uw"]}).to_dict()
    del values["marks_starts"]
    assert pronunciations_from_dict(values).pronounce("TO") == ["t", "uw"]


def test_words_are_written_as_another_vocabulary_writes_them() -> None:
    known = Pronunciations({"CAT": ["k"], "DON'T": ["d"], "CAFÉ": ["k", "f"]})
    small = known.written_by(CharacterVocabulary(" abcdefghijklmnopqrstuvwxyz").normalize)
    assert "cat" in small
    assert "CAT" not in small
    assert "cafe" in small
    assert "dont" not in small
    with pytest.raises(AsrError, match="must hold at least one word"):
        known.written_by(CharacterVocabulary(" я").normalize)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for flite's program")
def test_the_recipe_asks_flite_for_each_word(tmp_path: Path) -> None:
    speaker = tmp_path / "t2p"
    speaker.write_text('#!/bin/sh\n[ "$1" = urre ] && echo "pau pau" || echo "pau k ae1 $1 pau"\n')
    speaker.chmod(0o755)
    (tmp_path / "words.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "A Cat, urre", "duration": 1.0}))
    (tmp_path / "a.wav").write_bytes(b"")
    script = Path(__file__).parents[1] / "recipes/base/pronounce.py"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, script, "words.jsonl", "-o", "lexicon.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = (tmp_path / "lexicon.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["A\tax", "CAT\tk ae cat"]
    assert lines[2].startswith("URRE\t")  # like others
    assert "3 words, of which flite says nothing of 1" in done.stderr
