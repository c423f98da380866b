"""Greedy decoding against CTC's collapse in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.decoder import DecodedTokens, collapse_paths, decode_greedy
from asr.model import steps_needed
from asr.vocabulary import BLANK_ID


def reference_collapse(path: list[int], scores: list[float]) -> DecodedTokens:
    tokens: list[tuple[int, int, int, float]] = []
    for step, (token_id, score) in enumerate(zip(path, scores, strict=True)):
        if token_id == BLANK_ID:
            continue
        if tokens and tokens[-1][2] == step and tokens[-1][0] == token_id:
            _, first, _, highest = tokens.pop()
            tokens.append((token_id, first, step + 1, max(highest, score)))
        else:
            tokens.append((token_id, step, step + 1, score))
    columns = [list(column) for column in zip(*tokens)] or [[], [], [], []]
    return DecodedTokens(*columns)  # type: ignore[arg-type]


def log_probs_of(paths: list[list[int]], vocabulary: int = 5) -> Tensor:
    """(batch, steps, vocabulary) whose most probable tokens are `paths`, all of one length."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(paths), vocabulary)
    return (one_hot * 4.0).log_softmax(2)


@pytest.mark.parametrize(
    ("path", "token_ids", "steps"),
    [
        ([1, 1, 1], [1], [0]),
        ([1, 0, 1], [1, 1], [0, 2]),
        ([0, 0, 0], [], []),
        ([0, 2, 2, 0, 0, 2, 3, 3, 1], [2, 2, 3, 1], [1, 5, 6, 8]),
        ([4], [4], [0]),
        ([1, 2, 1, 2], [1, 2, 1, 2], [0, 1, 2, 3]),
    ],
)
def test_repeats_merge_blanks_go_and_each_token_has_its_first_step(
    path: list[int], token_ids: list[int], steps: list[int]
) -> None:
    (decoded,) = decode_greedy(log_probs_of([path]), torch.tensor([len(path)]))
    assert (decoded.token_ids, decoded.steps) == (token_ids, steps)


def test_a_token_ends_behind_its_run_and_is_as_probable_as_its_surest_step() -> None:
    probabilities = torch.tensor([[0.1, 0.9], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2], [0.5, 0.5001]])
    (decoded,) = decode_greedy(probabilities.log()[None], torch.tensor([5]))
    assert (decoded.steps, decoded.end_steps) == ([0, 4], [3, 5])
    assert [math.exp(log_prob) for log_prob in decoded.log_probs] == pytest.approx([0.9, 0.5001])


def test_the_shorter_of_a_batch_loses_the_token_past_its_length() -> None:
    path = [0, 1, 1, 0, 2, 0, 3]
    longer, shorter = decode_greedy(log_probs_of([path, path]), torch.tensor([7, 6]))
    assert (longer.token_ids, longer.steps, longer.end_steps) == ([1, 2, 3], [1, 4, 6], [3, 5, 7])
    assert (shorter.token_ids, shorter.steps, shorter.end_steps) == ([1, 2], [1, 4], [3, 5])


def test_a_length_of_zero_decodes_to_nothing() -> None:
    empty, full = decode_greedy(log_probs_of([[1, 2], [1, 2]]), torch.tensor([0, 2]))
    assert empty == DecodedTokens([], [], [], [])
    assert full.token_ids == [1, 2]


def test_a_batch_without_steps_decodes_to_nothing() -> None:
    assert decode_greedy(torch.empty(2, 0, 5), torch.tensor([0, 0])) == [DecodedTokens([], [], [], [])] * 2


paths_and_lengths = st.integers(1, 12).flatmap(
    lambda steps: st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=steps, max_size=steps), st.integers(0, steps)),
        min_size=1,
        max_size=5,
    )
)


@given(paths_and_lengths)
def test_every_batch_decodes_as_the_reference_collapse_does_row_by_row(batch: list[tuple[list[int], int]]) -> None:
    paths, lengths = [path for path, _ in batch], [length for _, length in batch]
    log_probs = log_probs_of(paths) - torch.arange(len(paths[0]))[:, None] / 16
    scores = log_probs.max(2).values
    expected = [
        reference_collapse(path[:length], row[:length])
        for (path, length), row in zip(batch, scores.tolist(), strict=True)
    ]
    assert decode_greedy(log_probs, torch.tensor(lengths)) == expected
    assert collapse_paths(torch.tensor(paths), scores, torch.tensor(lengths)) == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_no_path_writes_tokens_that_need_more_steps_than_it_has(path: list[int]) -> None:
    (decoded,) = collapse_paths(torch.tensor([path]), torch.zeros(1, len(path)), torch.tensor([len(path)]))
    assert steps_needed(decoded.token_ids) <= len(path)
    assert all(type(number) is int for number in decoded.token_ids + decoded.steps + decoded.end_steps)


def test_a_batch_is_transferred_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transfer from a GPU waits for it; more than one a batch costs more than decoding."""
    calls: list[str] = []
    for name in ("cpu", "item", "tolist", "to", "__bool__", "__int__"):
        original = getattr(Tensor, name)

        def counted(*arguments: object, name: str = name, original: object = original, **options: object) -> object:
            calls.append(name)
            return original(*arguments, **options)  # type: ignore[operator]

        monkeypatch.setattr(Tensor, name, counted)
    log_probs, lengths = log_probs_of([[1, 0, 2, 2]] * 8), torch.full((8,), 4)
    calls.clear()
    assert len(decode_greedy(log_probs, lengths)) == 8
    assert calls == ["cpu"]


def test_log_probs_with_a_gradient_are_decoded_as_those_without() -> None:
    log_probs, lengths = torch.randn(2, 9, 5).log_softmax(2), torch.tensor([9, 4])
    assert decode_greedy(log_probs.clone().requires_grad_(), lengths) == decode_greedy(log_probs, lengths)


def test_decoding_changes_neither_log_probs_nor_paths() -> None:
    paths = torch.tensor([[1, 1, 0, 2]])
    collapse_paths(paths, torch.zeros(1, 4), torch.tensor([2]))
    assert paths.tolist() == [[1, 1, 0, 2]]
