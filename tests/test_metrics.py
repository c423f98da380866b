"""WER and CER: pooled, defined for empty texts, and with an interval that means something."""

from __future__ import annotations

import math

import jiwer
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.metrics import ErrorCounts, bootstrap_interval, character_errors, pool, word_errors

texts = st.lists(st.sampled_from(["A", "B", "AB", "BA", "IT'S"]), max_size=6).map(" ".join)
pairs = st.tuples(texts, texts)


def test_rates_are_pooled_and_not_averaged() -> None:
    counts = [word_errors("A", "B"), word_errors("A B C D E F G H I", "A B C D E F G H I")]
    assert [count.rate for count in counts] == [1.0, 0.0]
    assert pool(counts).rate == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("A B C", "A B C", ErrorCounts(0, 0, 0, 3)),
        ("A B C", "A X C", ErrorCounts(1, 0, 0, 3)),
        ("A B C", "A C", ErrorCounts(0, 1, 0, 3)),
        ("A C", "A B C", ErrorCounts(0, 0, 1, 2)),
        ("A B C", "", ErrorCounts(0, 3, 0, 3)),
        ("", "A B", ErrorCounts(0, 0, 2, 0)),
        (" ", "A", ErrorCounts(0, 0, 1, 0)),
        ("", "", ErrorCounts()),
    ],
)
def test_word_errors_by_kind(reference: str, hypothesis: str, expected: ErrorCounts) -> None:
    assert word_errors(reference, hypothesis) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("AB", "AB", ErrorCounts(0, 0, 0, 2)),
        ("A B", "AB", ErrorCounts(0, 1, 0, 3)),
        ("A  B ", "A B", ErrorCounts(0, 0, 0, 3)),
        ("ABC", "", ErrorCounts(0, 3, 0, 3)),
        ("", "AB", ErrorCounts(0, 0, 2, 0)),
        ("CAT", "CUT", ErrorCounts(1, 0, 0, 3)),
    ],
)
def test_character_errors_by_kind(reference: str, hypothesis: str, expected: ErrorCounts) -> None:
    assert character_errors(reference, hypothesis) == expected


def test_an_empty_reference_has_rate_0_without_errors_and_infinite_with_any() -> None:
    assert word_errors("", "").rate == 0.0
    assert word_errors("", "A").rate == float("inf")
    assert pool([]).rate == 0.0


def test_an_insertion_counts_where_its_neighbours_have_words() -> None:
    assert pool([word_errors("", "A"), word_errors("A B", "A B")]).rate == 0.5


@given(st.lists(pairs.filter(lambda pair: bool(pair[0])), min_size=1, max_size=5))
def test_pooled_rates_equal_jiwers_over_lists(corpus: list[tuple[str, str]]) -> None:
    references, hypotheses = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    words, characters = (pool([count(*pair) for pair in corpus]) for count in (word_errors, character_errors))
    assert words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses))
    assert words.reference_length == sum(len(reference.split()) for reference in references)


@given(pairs)
def test_errors_are_at_least_the_difference_of_the_lengths_and_at_most_the_longer(pair: tuple[str, str]) -> None:
    for counts, reference, hypothesis in (
        (word_errors(*pair), pair[0].split(), pair[1].split()),
        (character_errors(*pair), list(pair[0]), list(pair[1])),
    ):
        assert abs(len(reference) - len(hypothesis)) <= counts.errors <= max(len(reference), len(hypothesis))
        assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)
        assert (counts.errors == 0) == (reference == hypothesis)


def test_counts_add_up_by_kind() -> None:
    assert ErrorCounts(1, 2, 3, 10) + ErrorCounts(10, 20, 30, 100) == ErrorCounts(11, 22, 33, 110)
    assert pool([ErrorCounts(1, 0, 0, 2)] * 3) == ErrorCounts(3, 0, 0, 6)
    assert ErrorCounts(1, 2, 3, 12).rate == 0.5


def corpus_of(size: int) -> list[ErrorCounts]:
    return [ErrorCounts(substitutions=index % 4, reference_length=5 + index % 7) for index in range(size)]


def test_the_interval_contains_the_rate_and_narrows_with_more_data() -> None:
    widths = []
    for size in (20, 200, 2000):
        low, high = bootstrap_interval(corpus_of(size), resamples=300)
        assert low < pool(corpus_of(size)).rate < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]  # each tenfold should narrow it about √10 = 3.2 times


def test_the_interval_is_the_same_for_the_same_seed_and_wider_for_more_confidence() -> None:
    corpus = corpus_of(50)
    assert bootstrap_interval(corpus) == bootstrap_interval(corpus)
    assert bootstrap_interval(corpus, seed=1) != bootstrap_interval(corpus, seed=2)
    (low, high), (lower, higher) = (bootstrap_interval(corpus, confidence=level) for level in (0.5, 0.99))
    assert lower < low < high < higher


@pytest.mark.parametrize("reference_length", [9, 0])
def test_a_perfect_corpus_has_an_interval_of_zero_width(reference_length: int) -> None:
    assert bootstrap_interval([ErrorCounts(reference_length=reference_length)] * 20) == (0.0, 0.0)


@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_utterances_say_nothing(size: int) -> None:
    assert bootstrap_interval(corpus_of(size)) == (0.0, float("inf"))


def test_words_where_none_was_said_say_nothing_of_how_many_there_will_be() -> None:
    assert bootstrap_interval([ErrorCounts(insertions=1), ErrorCounts()]) == (0.0, float("inf"))


def test_the_interval_is_as_wide_as_that_of_a_proportion() -> None:
    wrong = numpy.random.default_rng(0).random(400) < 0.3
    low, high = bootstrap_interval([ErrorCounts(int(each), 0, 0, 1) for each in wrong], resamples=4000)
    rate = wrong.mean()
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(rate * (1 - rate) / 400), rel=0.06)
