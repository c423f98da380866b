"""Words with times and confidence, out of the tokens of a path; segments out of words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.decoder import DecodedTokens
from asr.model import CTCModel
from asr.transcript import PAUSE_SECONDS, Transcript, Word, end_by, find_words
from asr.transcription import transcribe
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary

STEP = 0.04
CHARACTERS = CharacterVocabulary()


def tokens_of(text: str, first_step: int = 10) -> DecodedTokens:
    """Each character two steps long, a blank behind each."""
    steps = [first_step + 3 * place for place in range(len(text))]
    return DecodedTokens(CHARACTERS.encode(text), steps, [step + 2 for step in steps], [math.log(0.5)] * len(text))


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 1.0)


def test_a_word_goes_from_its_first_token_to_the_end_of_its_last(model: CTCModel) -> None:
    one, two = find_words(tokens_of("HI YOU"), model)
    assert (one.text, two.text) == ("HI", "YOU")
    assert (one.start_seconds, one.end_seconds) == pytest.approx((9.5 * STEP, 14.5 * STEP))
    assert (two.start_seconds, two.end_seconds) == pytest.approx((18.5 * STEP, 26.5 * STEP))


def test_no_word_begins_before_the_recording(model: CTCModel) -> None:
    (only,) = find_words(tokens_of("HI", first_step=0), model)
    assert (only.start_seconds, only.end_seconds) == pytest.approx((0.0, 4.5 * STEP))


def test_the_confidence_is_the_geometric_mean_of_the_tokens_probabilities(model: CTCModel) -> None:
    tokens = DecodedTokens(
        CHARACTERS.encode("AB C"), [0, 1, 2, 3], [1, 2, 3, 4], [math.log(x) for x in (1, 0.25, 0.1, 0.9)]
    )
    assert [word.confidence for word in find_words(tokens, model)] == pytest.approx([0.5, 0.9])


def test_nothing_of_a_word_ends_behind_the_recording(model: CTCModel, speech: list[Tensor]) -> None:
    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        return [DecodedTokens([3], [steps - 1], [steps], [0.0]) for steps in lengths.tolist()]

    transcript = transcribe(speech[0][:6401], sample_rate=16000, model=model, decode=decode)
    assert transcript.words[-1].end_seconds == transcript.duration_seconds == 6401 / 16000
    parts = (word("H", 9.5, 9.7), word("I", 9.8, 10.02))
    assert end_by(Word("HI", 9.5, 10.02, 1.0, parts), 10.0) == Word(
        "HI", 9.5, 10.0, 1.0, (parts[0], word("I", 9.8, 10.0))
    )


@given(st.text("ABC' ", max_size=12))
def test_the_words_are_those_of_the_text_wherever_the_spaces_are(model: CTCModel, text: str) -> None:
    words = find_words(tokens_of(text), model)
    assert " ".join(word.text for word in words) == CHARACTERS.decode(CHARACTERS.encode(text))
    assert [word.text for word in words] == text.split()


@given(st.lists(st.integers(1, 17), max_size=12))
def test_the_words_of_pieces_are_those_of_the_text(pieces: list[int]) -> None:
    vocabulary = pieces_vocabulary()
    words = [vocabulary.decode(pieces[start:end]) for start, end in vocabulary.word_spans(pieces)]
    assert " ".join(words) == vocabulary.decode(pieces)


def pieces_vocabulary(cache: list[SentencePieceVocabulary] = []) -> SentencePieceVocabulary:  # noqa: B006
    if not cache:
        sentences = ["THE CAT SAT ON THE MAT", "THE DOG ATE THE CAT AND SAT", "A MAT IS ON A DOG"] * 20
        cache.append(SentencePieceVocabulary.train(sentences, 18))
    return cache[0]


def test_words_of_real_speech_come_in_order_without_overlap_and_where_it_is_loud(
    sample_paths: list[Path], speech: list[Tensor]
) -> None:
    for path, samples in zip(sample_paths, speech, strict=True):
        words = transcribe(path).words
        edges = [time for word in words for time in (word.start_seconds, word.end_seconds)]
        assert edges == sorted(edges)
        assert 0 <= edges[0] < edges[-1] <= len(samples) / 16000 + STEP / 2
        assert all(0 < word.confidence <= 1 for word in words)
        spoken = sum(
            samples[int(16000 * word.start_seconds) : int(16000 * word.end_seconds)].square().sum() for word in words
        )
        assert spoken > 0.7 * samples.square().sum()


def test_segments_are_parted_at_pauses_and_hold_every_word() -> None:
    words = (word("A", 0.0, 1.0), word("B", 1.0 + PAUSE_SECONDS, 2.0), word("C", 2.5, 3.0), word("D", 9.0, 9.5))
    segments = Transcript("a", words, 10.0).segments
    assert [segment.text for segment in segments] == ["A", "B C", "D"]
    assert [(segment.start_seconds, segment.end_seconds) for segment in segments] == [(0, 1), (1.6, 3.0), (9.0, 9.5)]


@given(first_step=st.integers(0, 10_000))
def test_segments_are_parted_alike_wherever_they_are_in_a_recording(model: CTCModel, first_step: int) -> None:
    tokens = DecodedTokens(CHARACTERS.encode("A B C"), [3, 4, 19, 20, 34], [4, 5, 20, 21, 35], [0.0] * 5)
    words = find_words(tokens, model, first_step)  # behind the first is a pause of 15 steps, and then one of 14
    assert [segment.text for segment in Transcript("a", words, 1000.0).segments] == ["A", "B C"]


def test_a_transcript_without_words_has_no_segments_and_an_empty_text() -> None:
    transcript = Transcript("a", (), 10.0)
    assert (transcript.segments, transcript.text, str(transcript)) == ((), "", "")
