"""Hotwords: they win where they are nearly as probable, and nowhere else."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asr.cli import main
from asr.decoder import decode_greedy, reads_phonemes
from asr.errors import AsrError
from asr.hotwords import BOOST, BOOST_BY_SOUND, HotwordDecoder, parse_hotword
from asr.modelfile import load_model
from asr.pronunciation import Pronunciations
from asr.transcription import transcribe
from asr.vocabulary import CharacterVocabulary

VOCABULARY = CharacterVocabulary()


def log_probs_of(text: str, alternatives: dict[int, dict[str, float]] | None = None) -> Tensor:
    """(1, steps, vocabulary): each character surely for two steps, then a blank, but for the given alternatives."""
    probabilities = torch.full((3 * len(text), len(VOCABULARY)), 1e-5)
    for place, character in enumerate(text):
        for other, probability in (alternatives or {}).get(place, {character: 1.0}).items():
            probabilities[3 * place : 3 * place + 2, VOCABULARY.encode(other)[0]] = probability
        probabilities[3 * place + 2, 0] = 1.0
    return (probabilities / probabilities.sum(1, keepdim=True)).log()[None]


def decode(log_probs: Tensor, hotwords: dict[str, float]) -> str:
    decoder = HotwordDecoder(decode_greedy, VOCABULARY, hotwords)
    (tokens,) = decoder(log_probs, torch.tensor([log_probs.shape[1]]))
    return VOCABULARY.decode(tokens.token_ids)


UNCLEAR = log_probs_of("MR CUILTER IS", {3: {"C": 0.7, "Q": 0.3}})


def test_a_hotword_wins_where_its_boost_makes_up_for_its_probability() -> None:
    assert decode(UNCLEAR, {}) == "MR CUILTER IS"
    assert decode(UNCLEAR, {"QUILTER": 5.0}) == "MR QUILTER IS"
    assert decode(UNCLEAR, {"QUILTER": 0.1}) == "MR CUILTER IS"


def test_a_hotword_of_which_nothing_was_heard_changes_nothing() -> None:
    clear = log_probs_of("MR CUILTER IS")
    assert decode(clear, {"ZANZIBAR": 8.0, "QUILTERS": 8.0, "MISSISSIPPI": 8.0}) == "MR CUILTER IS"


@pytest.mark.parametrize(
    ("text", "step", "heard", "hotword", "expected"),
    [
        ("ULTER IS", 0, "Q", "QULTER", "QULTER IS"),  # before the first word
        ("MR ULTER IS", 8, "Q", "QULTER", "MR QULTER IS"),  # between it and the word before
        ("MR ULTER IS", 23, "S", "ULTERS", "MR ULTERS IS"),  # between it and the word behind
        ("MR ULTER", 23, "S", "ULTERS", "MR ULTERS"),  # behind the last word
    ],
)
def test_what_was_heard_beside_a_word_counts_for_its_hotword(
    text: str, step: int, heard: str, hotword: str, expected: str
) -> None:
    log_probs = log_probs_of(text)
    if step == 0:
        log_probs = torch.cat([log_probs[:, 2:3], log_probs], dim=1)  # a blank
    log_probs[0, step, 0], log_probs[0, step, VOCABULARY.encode(heard)[0]] = math.log(0.6), math.log(0.4)
    assert decode(log_probs, {}) == text
    assert decode(log_probs, {hotword: 5.0}) == expected


def test_where_what_was_decoded_has_too_few_steps_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(decoder: HotwordDecoder, log_probs: Tensor, texts: list[str]) -> list[float]:
        return [-math.inf, *[-10.0] * (len(texts) - 1)]

    monkeypatch.setattr(HotwordDecoder, "_score_tokens", score)
    assert decode(UNCLEAR, {"QUILTER": 50.0}) == "MR CUILTER IS"


def test_a_stretch_reaches_to_the_words_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    def score(decoder: HotwordDecoder, log_probs: Tensor, texts: list[str]) -> list[float]:
        scored.append(len(log_probs))
        return [0.0] * len(texts)

    monkeypatch.setattr(HotwordDecoder, "_score_tokens", score)
    decode(log_probs_of("THE CAR IS MINE NOW"), {"CAT": 1.0})
    assert scored[0] == 3 * len("THE CAR IS "), "with the space behind IS, and nothing of MINE"


def test_two_words_can_be_one_hotword() -> None:
    parted = log_probs_of("MR QUIL TER IS")
    assert decode(parted, {"QUILTER": 20.0}) == "MR QUIL TER IS"
    assert decode(parted, {"QUILTER": 25.0}) == "MR QUILTER IS"  # two steps of 1e-5 without the space


def test_log_probs_with_a_gradient_are_decoded_as_those_without() -> None:
    assert decode(UNCLEAR.clone().requires_grad_(), {"Quilter": 9.0}) == decode(UNCLEAR, {"Quilter": 9.0})


def test_each_place_of_a_hotword_is_found() -> None:
    twice = log_probs_of("CUILTER CUILTER", {0: {"C": 0.7, "Q": 0.3}, 8: {"C": 0.7, "Q": 0.3}})
    assert decode(twice, {"QUILTER": 5.0}) == "QUILTER QUILTER"


def test_a_batch_decodes_as_each_of_it_alone() -> None:
    short = log_probs_of("A CAT")
    padded = torch.cat([short, UNCLEAR[:, short.shape[1] :]], dim=1)
    decoder = HotwordDecoder(decode_greedy, VOCABULARY, {"QUILTER": 5.0, "IS": 3.0})
    both = decoder(torch.cat([UNCLEAR, padded]), torch.tensor([UNCLEAR.shape[1], short.shape[1]]))
    assert [VOCABULARY.decode(tokens.token_ids) for tokens in both] == ["MR QUILTER IS", "A CAT"]


def test_real_speech_gets_its_word(sample_paths: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(sample_paths[3]), "--hotword", "Husband:20", "--hotword", "Zanzibar"]) == 0
    said = capsys.readouterr().out.split()
    assert "HUSBAND" in said
    assert "ZANZIBAR" not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Quilter", ("QUILTER", BOOST)), ("O’Neill:7.5", ("O'NEILL", 7.5)), ("naïve:0", ("NAIVE", 0.0))],
)
def test_a_hotword_is_read_in_its_normal_form(text: str, expected: tuple[str, float]) -> None:
    assert parse_hotword(text, VOCABULARY) == expected


@pytest.mark.parametrize("text", ["", "!", "two words", "word:many", "word:-1", "word:inf", "word:nan"])
def test_what_is_no_hotword_is_told(text: str) -> None:
    with pytest.raises(
        AsrError, match=r"^hotword .* must be (one word; give each|a word, or a word, a colon and a number)"
    ):
        parse_hotword(text, VOCABULARY)


def test_of_two_hotwords_the_better_one_is_taken() -> None:
    for names in (("QUILTER", "QUILTEN"), ("QUILTEN", "QUILTER")):
        assert decode(UNCLEAR, dict.fromkeys(names, 30.0)) == "MR QUILTER IS"


def test_the_most_alike_of_many_hotwords_are_tried() -> None:
    others = {f"QUIL{a}{b}{c}": 0.0 for a, b, c in product("XYZ", repeat=3)}
    assert decode(UNCLEAR, {**others, "QUILTER": 5.0}) == "MR QUILTER IS"


def test_a_hotword_that_was_heard_gives_way_to_no_other() -> None:
    assert decode(log_probs_of("MR QUILTER IS"), {"QUILTER": 5.0, "QUILTERS": 40.0}) == "MR QUILTER IS"


def test_hotwords_may_be_written_in_any_case_from_python_too() -> None:
    assert decode(UNCLEAR, {"Quilter": 5.0}) == "MR QUILTER IS"
    with pytest.raises(AsrError, match="must be one word; give each"):
        decode(UNCLEAR, {"Mr Quilter": 5.0})


@pytest.mark.parametrize(
    ("text", "lost"),
    [("C3PO", "3"), ("42:7", "42"), ("жизнь", "жизнь"), ("C++", "+"), ("C#:9", "#"), ("R&D", "&"), ("f(x)", "()")],
)
def test_a_hotword_that_cannot_be_written_is_not_shortened(text: str, lost: str) -> None:
    reason = f"hotword '{text.partition(':')[0]}': the model cannot write '{lost}'"
    with pytest.raises(AsrError, match=f"^{re.escape(reason)}"):
        parse_hotword(text, VOCABULARY)


@pytest.mark.parametrize("text", ["U.S.", "“Us”", '"us"', "us,", "u\u00ads", "¡us!", "us…"])
def test_marks_around_a_hotword_are_left_out(text: str) -> None:
    assert parse_hotword(text, VOCABULARY) == ("US", BOOST)


def test_of_two_changes_that_have_too_few_steps_one_is_made() -> None:
    heard = torch.full((1, 7, len(VOCABULARY)), -3.0)
    heard[0, range(7), [*VOCABULARY.encode("AB CD"), 0, 0]] = 0.0
    decoder = HotwordDecoder(decode_greedy, VOCABULARY, {"ABXX": 50.0, "CDEF": 50.0})
    (tokens,) = decoder(heard.log_softmax(2), torch.tensor([7]))
    assert VOCABULARY.decode(tokens.token_ids) == "AB CDEF"
    assert min(tokens.log_probs) > -math.inf


@pytest.mark.parametrize("boost", [-1.0, float("nan"), float("inf")])
def test_a_boost_that_is_none_is_told_from_python_too(boost: float) -> None:
    with pytest.raises(AsrError, match=rf"^hotword 'Quilter': its boost of {boost} must be a number of at least 0"):
        decode(UNCLEAR, {"Quilter": boost})


@pytest.mark.parametrize("hotwords", [["Quilter"], "Quilter", None])
def test_words_without_their_boosts_are_told(hotwords: Any) -> None:
    with pytest.raises(AsrError, match=r"^hotwords=.* must be a dict of words and nats: {'Quilter': 11}$"):
        decode(UNCLEAR, hotwords)


PRONUNCIATIONS = Pronunciations({"CAT": ["K", "AE", "T"], "KIT": ["K", "IH", "T"]})


def with_phonemes(log_probs: Tensor, phonemes: list[str]) -> Tensor:
    """Each phoneme surely for two steps beside the letters, then a blank."""
    numbers = [PRONUNCIATIONS.phonemes.index(each) for phoneme in phonemes for each in (phoneme, phoneme, "<blank>")]
    heard = torch.full((1, len(numbers), len(PRONUNCIATIONS)), -10.0)
    heard[0, range(len(numbers)), numbers] = 0.0
    return torch.cat([log_probs, heard.log_softmax(2)], dim=2)


@pytest.mark.parametrize(("vowel", "boost", "text"), [("IH", 0.1, "KIT"), ("AE", 4.0, "CAT")])
def test_how_a_hotword_sounds_counts_beside_how_it_is_spelled(vowel: str, boost: float, text: str) -> None:
    letters = log_probs_of("CAT", {0: {"C": 0.6, "K": 0.4}, 1: {"A": 0.6, "I": 0.4}})
    assert decode(letters, {"KIT": boost}) != text
    decoder = HotwordDecoder(decode_greedy, VOCABULARY, {"KIT": boost}, pronunciations=PRONUNCIATIONS)
    assert reads_phonemes(decoder)
    heard = with_phonemes(letters, ["K", vowel, "T"])
    (tokens,) = decoder(heard, torch.tensor([heard.shape[1]]))
    assert VOCABULARY.decode(tokens.token_ids) == text
    with pytest.raises(AsrError, match="reads phonemes too: 0 of them are there, and the pronunciations have"):
        decoder(letters, torch.tensor([heard.shape[1]]))


def test_a_word_of_real_speech_is_found_by_its_sound(sample_paths: list[Path]) -> None:
    """Which the model by itself spells otherwise."""
    model, name = load_model(), "PUNGENT"
    assert model.pronunciations is not None
    for pronunciations, found in ((None, False), (model.pronunciations, True)):
        decoder = HotwordDecoder(decode_greedy, model.vocabulary, {name: BOOST_BY_SOUND}, pronunciations=pronunciations)
        texts = [transcribe(path, model=model, decode=decoder).text for path in sample_paths]
        assert any(name in text.split() for text in texts) == found


def test_hotwords_for_another_model_are_told() -> None:
    with pytest.raises(AsrError, match="made for 29 tokens, and the model has 31; make it with that model's"):
        decode(torch.zeros(1, 9, 31), {"Quilter": 5.0})
