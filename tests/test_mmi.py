"""Maximum mutual information against its definition: sums over all sequences of few phonemes, one by one."""

from __future__ import annotations

from itertools import chain, product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from asr.errors import AsrError
from asr.mmi import EDGE, MOST_OUTPUTS, learn_trigrams, log_prior, log_prob_of_all

PHONEMES = 4
SEQUENCES = [[1, 2, 2, 3], [3, 1, 1], [2], [1, 3, 2], []]
TRIGRAMS = learn_trigrams(SEQUENCES, PHONEMES).double()


def outputs(lengths: list[int], sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random log-probs (batch, steps, phonemes) and their lengths."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(lengths), max(lengths), PHONEMES, generator=generator, dtype=torch.float64)
    return (sharpness * logits).log_softmax(2), torch.tensor(lengths)


def prior(sequence: list[int]) -> float:
    """Its log-probability, trigram by trigram."""
    ids = [EDGE, EDGE, *sequence, EDGE]
    return sum(float(TRIGRAMS[second, first, third].log()) for first, second, third in zip(ids, ids[1:], ids[2:]))


def sum_one_by_one(log_probs: Tensor) -> Tensor:
    """What `log_prob_of_all` gives for (steps, phonemes): no sequence is longer than its steps."""
    steps = len(log_probs)
    totals = []
    for sequence in chain.from_iterable(product(range(1, PHONEMES), repeat=count) for count in range(steps + 1)):
        targets, count = torch.tensor([sequence], dtype=torch.long), torch.tensor([len(sequence)])
        loss = ctc_loss(log_probs[:, None], targets.view(1, -1), torch.tensor([steps]), count, reduction="sum")
        totals.append(prior(list(sequence)) - loss)
    return torch.stack(totals).logsumexp(0)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 20.0])
def test_the_sum_is_over_all_sequences_whatever_the_batch(sharpness: float) -> None:
    log_probs, lengths = outputs([5, 1, 3], sharpness)
    expected = torch.stack([sum_one_by_one(row[:length]) for row, length in zip(log_probs, lengths, strict=True)])
    torch.testing.assert_close(log_prob_of_all(log_probs, lengths, TRIGRAMS), expected)


def test_its_gradient_is_that_of_the_sum() -> None:
    log_probs, lengths = outputs([6, 4])
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda each: log_prob_of_all(each, lengths, TRIGRAMS) * weights, log_probs.requires_grad_()
    )


def test_a_batch_that_is_taken_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, lengths = outputs([6, 4, 2, 5])
    in_parts = at_once.clone().requires_grad_()
    total = log_prob_of_all(at_once.requires_grad_(), lengths, TRIGRAMS)
    total.sum().backward()
    tables_of_one = 2 * 8 * 6 * PHONEMES**2
    for most in (0, tables_of_one, 3 * tables_of_one):
        monkeypatch.setattr("asr.mmi.MOST_BYTES", most)
        in_parts.grad = None
        parts = log_prob_of_all(in_parts, lengths, TRIGRAMS)
        parts.sum().backward()
        torch.testing.assert_close(parts, total)
        torch.testing.assert_close(in_parts.grad, at_once.grad)


def test_at_each_step_the_paths_have_shares_of_one() -> None:
    log_probs, lengths = outputs([6, 4])
    (shares,) = torch.autograd.grad(log_prob_of_all(log_probs.requires_grad_(), lengths, TRIGRAMS).sum(), log_probs)
    inside = torch.arange(6) < lengths[:, None]
    torch.testing.assert_close(shares.sum(2), inside.double())
    assert (shares >= 0).all()


def test_long_and_certain_outputs_stay_finite() -> None:
    """In float32, and at odds with the trigrams in every step."""
    steps = 2000
    log_probs = torch.full((1, steps, PHONEMES), -80.0)
    log_probs[0, torch.arange(steps), torch.arange(steps) % 3 + 1] = 0.0
    log_probs.requires_grad_()
    total = log_prob_of_all(log_probs, torch.tensor([steps]), TRIGRAMS.float())
    total.sum().backward()
    only = [step % 3 + 1 for step in range(steps)]
    assert total.item() == pytest.approx(prior(only), rel=1e-3)
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad.argmax(2)[0], torch.tensor(only))


def test_autocast_changes_nothing() -> None:
    log_probs, lengths = outputs([6, 4])
    arguments = log_probs.float(), lengths, TRIGRAMS.float()
    plain = log_prob_of_all(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_prob_of_all(*arguments), plain)


class TestTrigrams:
    def test_what_may_come_next_has_shares_of_one(self) -> None:
        torch.testing.assert_close(TRIGRAMS.sum(2), torch.ones(PHONEMES, PHONEMES, dtype=torch.float64))
        assert (TRIGRAMS > 0).all()

    def test_what_was_seen_is_likelier(self) -> None:
        assert TRIGRAMS[3, 1].argmax() == 2
        assert TRIGRAMS[1, 3].argmax() == 1
        assert TRIGRAMS[EDGE, EDGE].argmax() == 1  # two of five begin with it

    def test_without_sequences_all_are_as_likely(self) -> None:
        torch.testing.assert_close(learn_trigrams([], 3), torch.full((3, 3, 3), 1 / 3))

    def test_the_prior_of_a_sequence_is_the_product_of_its_trigrams(self) -> None:
        lengths = torch.tensor([len(sequence) for sequence in SEQUENCES])
        padded = torch.full((len(SEQUENCES), 6), 3)
        for row, sequence in zip(padded, SEQUENCES, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        expected = torch.tensor([prior(sequence) for sequence in SEQUENCES], dtype=torch.float64)
        torch.testing.assert_close(log_prior(padded, lengths, TRIGRAMS), expected)

    def test_too_many_phonemes_are_refused(self) -> None:
        with pytest.raises(AsrError, match="more than 256"):
            learn_trigrams([[1]], MOST_OUTPUTS + 1)
