"""How probable texts are: CTC's sum over all alignments."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import ctc_loss

from asr.likelihood import ctc_log_likelihoods


def test_texts_are_as_probable_as_ctc_sums_their_alignments() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = (4 * torch.randn(60, 20, generator=generator)).log_softmax(1).double()
    texts = [torch.randint(1, 20, (length,), generator=generator).tolist() for length in range(0, 40, 3)]
    texts += [[3, 3, 3], [5] * 30, [5] * 31]  # 31 equal ones need 61 steps
    for rows in (log_probs, log_probs[:2], log_probs[:1], log_probs - 500):
        expected = [
            -ctc_loss(
                rows[:, None],
                torch.tensor([text], dtype=torch.long),
                torch.tensor([len(rows)]),
                torch.tensor([len(text)]),
                reduction="none",
            ).item()
            for text in texts
        ]
        assert ctc_log_likelihoods(rows, texts) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == -math.inf
    assert ctc_log_likelihoods(log_probs, []) == []


def test_a_text_is_as_probable_beside_a_much_longer_one() -> None:
    log_probs = torch.full((1500, 5), -8.0)
    log_probs[:, 0] = 0  # blanks throughout, as in a pause
    log_probs = log_probs.log_softmax(1)
    alone = ctc_log_likelihoods(log_probs, [[1], []])
    assert ctc_log_likelihoods(log_probs, [[1], [], [1, 2] * 300])[:2] == pytest.approx(alone, rel=1e-12)
