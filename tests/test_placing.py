"""Where the pieces of words end that a reader wrote: behind their last phonemes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.decoder import DecodedTokens
from asr.placing import LONGEST_GAP, extend_to_phonemes

NAMES = ["<blank>", "a", "b", "▁a", "▁b"]
"""Two phonemes, and the same where they begin a word."""


def extended(heard: list[int], *spans: tuple[int, int]) -> list[tuple[int, int]]:
    """The spans of tokens where these phonemes are heard, step by step."""
    log_probs = torch.nn.functional.one_hot(torch.tensor(heard), len(NAMES)).double().log_softmax(1)
    steps, end_steps = ([span[edge] for span in spans] for edge in (0, 1))
    tokens = extend_to_phonemes(
        DecodedTokens([5] * len(spans), steps, end_steps, [-1.0] * len(spans)), log_probs, NAMES
    )
    assert (tokens.token_ids, tokens.log_probs) == ([5] * len(spans), [-1.0] * len(spans))
    return [*zip(tokens.steps, tokens.end_steps, strict=True)]


def test_a_piece_lasts_to_its_last_phoneme() -> None:
    assert extended([0, 3, 0, 2, 2, 0, 0, 4, 1, 0], (1, 2), (7, 8)) == [(1, 5), (7, 9)]


def test_the_beginning_of_a_word_belongs_to_the_token_behind_it() -> None:
    assert extended([3, 2, 4, 1, 0], (0, 1), (3, 4)) == [(0, 2), (3, 4)]


def test_what_is_heard_behind_a_silence_is_no_part_of_the_word_before() -> None:
    for gap in (LONGEST_GAP, LONGEST_GAP + 1):
        assert extended([3, *[0] * gap, 1], (0, 1)) == [(0, 1) if gap > LONGEST_GAP else (0, gap + 2)]


@given(st.lists(st.integers(0, 4), min_size=4, max_size=40), st.data())
def test_pieces_keep_their_order_and_never_overlap(heard: list[int], data: st.DataObject) -> None:
    edges = data.draw(st.lists(st.integers(0, len(heard)), min_size=4, max_size=4, unique=True).map(sorted))
    spans = [(edges[0], edges[1]), (edges[2], edges[3])]
    first, second = extended(heard, *spans)
    assert first[0] == edges[0] < edges[1] <= first[1] <= second[0] == edges[2]
    assert edges[3] <= second[1] <= len(heard)
    assert extended(heard, first, second) == [first, second]
