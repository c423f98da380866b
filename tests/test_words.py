"""Words of scripts with spaces and without, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from asr.alignment import align_log_probs
from asr.beam import BeamDecoder
from asr.config import EncoderConfig, ModelConfig
from asr.decoder import decode_greedy
from asr.formats import format_transcript
from asr.hotwords import HotwordDecoder
from asr.metrics import ErrorCounts, character_errors, word_errors
from asr.model import CTCModel
from asr.ngrams import build_ngrams, write_arpa
from asr.text import normalize_transcript
from asr.transcript import Transcript, Word
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary
from asr.words import join_words, split_words

MIXED = "我们用hello world吧"


def test_chinese_and_japanese_characters_are_words_and_stand_without_spaces() -> None:
    assert split_words("我 们用 hello world吧") == ["我", "们", "用", "hello", "world", "吧"]
    assert join_words(split_words("我 们用 hello world吧")) == MIXED
    assert split_words("私はTシャツ、") == ["私", "は", "T", "シ", "ャ", "ツ", "、"]


@pytest.mark.parametrize("text", ["wie geht's", "안녕 하세요", "हिन्दी में", "สวัสดี ครับ", "لا إله"])
def test_other_scripts_have_the_words_between_their_spaces(text: str) -> None:
    assert split_words(text) == text.split()
    assert join_words(split_words(text)) == text


def test_the_wer_of_chinese_is_its_cer() -> None:
    assert word_errors("今天天气很好", "今天气很坏") == ErrorCounts(1, 1, 0, 6)
    assert word_errors("今天天气很好", "今天气很坏") == character_errors("今天天气很好", "今天气很坏")


def test_a_normal_transcript_has_no_space_beside_a_chinese_character() -> None:
    alphabet = " 我们用吧今天helowrd"
    assert normalize_transcript("我们，用 Hello world 吧!今天", alphabet=alphabet) == "我们用hello world吧今天"


def test_both_vocabularies_find_the_words_of_mixed_text() -> None:
    characters = CharacterVocabulary(" " + "".join(sorted(set(MIXED) - {" "})))
    pieces = SentencePieceVocabulary.train([MIXED, "我们", "hello world", "我们 用"] * 9, 60)
    for vocabulary in (characters, pieces):
        token_ids = vocabulary.encode(MIXED)
        assert vocabulary.decode(token_ids) == MIXED
        spans = vocabulary.word_spans(token_ids)
        assert [vocabulary.decode(token_ids[start:end]) for start, end in spans] == split_words(MIXED)


def test_subtitles_of_chinese_break_after_twenty_one_characters() -> None:
    words = tuple(Word(each, place / 10, (place + 1) / 10, 1.0) for place, each in enumerate("今天天气很好" * 5))
    transcript = Transcript("a.wav", words, 3.0)
    assert transcript.text == "今天天气很好" * 5
    assert format_transcript(transcript, "srt") == (
        "1\n00:00:00,000 --> 00:00:03,000\n今天天气很好今天天气很好今天天\n气很好今天天气很好今天天气很好\n"
    )


CHINESE = CharacterVocabulary(" 今天气很好北京大学晴")


def log_probs_of(text: str, alternatives: dict[int, dict[str, float]] | None = None) -> Tensor:
    """(1, steps, vocabulary): each character surely for a step, then a blank, but for the given alternatives."""
    probabilities = torch.full((2 * len(text), len(CHINESE)), 1e-5)
    for place, character in enumerate(text):
        for other, probability in (alternatives or {}).get(place, {character: 1.0}).items():
            probabilities[2 * place, CHINESE.encode(other)[0]] = probability
        probabilities[2 * place + 1, 0] = 1.0
    return (probabilities / probabilities.sum(1, keepdim=True)).log()[None]


UNCLEAR = log_probs_of("今天天晴", {2: {"天": 0.6, "气": 0.4}})


def test_a_hotword_of_several_chinese_characters_takes_the_place_of_as_many() -> None:
    log_probs = log_probs_of("今北今大天好", {2: {"今": 0.7, "京": 0.3}, 4: {"天": 0.7, "学": 0.3}})
    (tokens,) = HotwordDecoder(decode_greedy, CHINESE, {"北京大学": 5.0})(log_probs, torch.tensor([12]))
    assert CHINESE.decode(tokens.token_ids) == "今北京大学好"
    clear = log_probs_of("今北京大学好")
    (tokens,) = HotwordDecoder(decode_greedy, CHINESE, {"北京大学": 50.0})(clear, torch.tensor([12]))
    assert CHINESE.decode(tokens.token_ids) == "今北京大学好"


def test_a_language_model_of_chinese_is_searched_without_spaces(tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    write_arpa(build_ngrams(["今天气很好", "今天气晴", "天气很好"], 2), tmp_path / "zh.arpa")
    (greedy,) = decode_greedy(UNCLEAR, torch.tensor([8]))
    (found,) = BeamDecoder(CHINESE, tmp_path / "zh.arpa", lm_weight=2.0)(UNCLEAR, torch.tensor([8]))
    assert [CHINESE.decode(tokens.token_ids) for tokens in (greedy, found)] == ["今天天晴", "今天气晴"]


def test_chinese_is_aligned_character_by_character() -> None:
    model = CTCModel(ModelConfig(encoder=EncoderConfig(num_layers=1, hidden_size=8)), CHINESE).eval()
    words = align_log_probs(model, log_probs_of("今天天气好")[0], "今天，天气 好。")
    assert [word.text for word in words] == list("今天天气好")
    assert [round(word.start_seconds / 0.08) for word in words] == [0, 1, 2, 3, 4]
