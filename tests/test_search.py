"""The search for words where no token parts them: it finds the text that CTC finds likeliest."""

from __future__ import annotations

from itertools import chain, islice, product

import numpy
import pytest
import torch

from asr.likelihood import ctc_log_likelihoods
from asr.ngrams import build_ngrams, read_arpa_unigrams, write_arpa
from asr.search import WordSearch, load_ngrams

TOKENS = ["_", "A-", "B-", "a", "b"]
SPELLINGS = {"AA": [["A-", "a"]], "AB": [["A-", "b"]], "BA": [["B-", "a"]], "ABA": [["A-", "b", "a"]]}
"""Of tokens that begin a word and tokens that do not, as phonemes with marked starts are."""


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> WordSearch:
    """By what is heard alone."""
    arpa = tmp_path_factory.mktemp("lm") / "lm.arpa"
    # It knows all texts of four words, so that texts of three stay apart: those that go on alike are searched as one.
    write_arpa(build_ngrams(map(" ".join, product(SPELLINGS, repeat=4)), 4), arpa)
    ngrams = load_ngrams(arpa, dict(read_arpa_unigrams(arpa)), SPELLINGS)
    settings = {"lm_weight": 0.0, "word_score": 0.0, "prior_weight": 0.0}
    return WordSearch(TOKENS, SPELLINGS, ngrams, beam_size=10_000, **settings)


def first_text(search: WordSearch, log_probs: numpy.ndarray) -> tuple[str, ...]:
    return tuple(next(search(log_probs), ([], 0.0))[0])


def likeliest_text(log_probs: numpy.ndarray) -> tuple[str, ...]:
    """By all alignments of all texts that fit into the steps."""
    texts = [*chain.from_iterable(product(SPELLINGS, repeat=length) for length in range(1 + len(log_probs) // 2))]
    targets = [[TOKENS.index(token) for word in text for token in SPELLINGS[word][0]] for text in texts]
    return texts[int(numpy.argmax(ctc_log_likelihoods(torch.from_numpy(log_probs), targets)))]


@pytest.mark.parametrize("seed", range(40))
def test_the_likeliest_text_is_among_the_first_ones(search: WordSearch, seed: int) -> None:
    logits = torch.randn(7, len(TOKENS), generator=torch.Generator().manual_seed(seed)) * 1.5
    log_probs = logits.log_softmax(1).numpy()
    first = [tuple(words) for words, _ in islice(search(log_probs), 3)]
    assert likeliest_text(log_probs) in first


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("A- a a a", "AA"),
        ("A- A- a _", "AA"),
        ("_ A- _ a a a a _", "AA"),
        ("A- a _ _ _ _ _ _ _ _ A- b", "AA AB"),
        ("A- b b a a _", "ABA"),
        ("A- b b b B- a", "AB BA"),
    ],
)
def test_a_words_last_token_may_last_and_blanks_may_follow(search: WordSearch, heard: str, text: str) -> None:
    numbers = [TOKENS.index(token) for token in heard.split()]
    probabilities = torch.full((len(numbers), len(TOKENS)), 0.02)
    probabilities[range(len(numbers)), numbers] = 0.92
    assert first_text(search, probabilities.log().numpy()) == tuple(text.split())
