"""Maximum mutual information: what was said, against everything else that could have been.

CTC makes the right phonemes probable step by step and never looks at the wrong ones that a search would confuse them
with. Here the right sequence must win among all sequences of phonemes, each as likely beforehand as trigrams find it,
so the model need not learn what they know (lattice-free MMI: Povey et al., Interspeech 2016; with the paths of CTC,
CTC-CRF: H. Xiang, Z. Ou, ICASSP 2019).

The sum over all sequences is exact: of the paths that are alike in their last two phonemes, and in whether a blank
stands behind, one number is enough for each step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from asr.errors import AsrError
from asr.features import valid_positions
from asr.vocabulary import BLANK_ID

__all__ = ["learn_trigrams", "log_prior", "log_prob_of_all"]

EDGE = BLANK_ID
"""What no sequence holds stands before it, twice, and behind it."""

DISCOUNT = 0.75
"""Taken off each count and given to what was not seen (H. Ney, U. Essen, R. Kneser, 1994)."""

MOST_OUTPUTS = 256
"""With the blank, and those that begin a word beside the others; of more, a table of trigrams would fill the memory."""

MOST_BYTES = 2**30
"""Of the tables of what is computed at once; a batch with more is taken in parts."""


def learn_trigrams(sequences: Iterable[Sequence[int]], num_phonemes: int) -> Tensor:
    """P(next | one before, two before) in sequences of ids, with the smoothing of Kneser and Ney; none of them is 0.

    returns: (one before, two before, next), `num_phonemes` in each; EDGE stands for what is before and behind.
    Raises AsrError for too many phonemes.
    """
    if num_phonemes > MOST_OUTPUTS:
        counted = f"{num_phonemes} phonemes, the blank and those that begin a word counted apart"
        raise AsrError(f"{counted}, are more than {MOST_OUTPUTS}: set optimizer.mmi_share=0")
    counts = Counter[tuple[int, int, int]]()
    for sequence in sequences:
        ids = [EDGE, EDGE, *sequence, EDGE]
        counts.update(zip(ids, ids[1:], ids[2:]))
    trigrams = torch.zeros(3 * (num_phonemes,), dtype=torch.float64)
    for trigram, count in counts.items():
        trigrams[trigram] = count
    bigrams = (trigrams > 0).sum(0).double()
    phonemes = (bigrams > 0).sum(0).double()
    shares = torch.full_like(phonemes, 1 / num_phonemes)
    for ngrams in (phonemes, bigrams, trigrams):
        shares = _discount(ngrams, shares)
    return shares.transpose(0, 1).float().contiguous()


def _discount(counts: Tensor, of_shorter: Tensor) -> Tensor:
    """Shares of what comes next, the last axis; of_shorter: those where less is known of what was before."""
    totals, kinds = counts.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
    left = torch.where(totals > 0, DISCOUNT * kinds / totals.clamp(min=1), 1.0)
    return (counts - DISCOUNT).clamp(min=0) / totals.clamp(min=1) + left * of_shorter


def log_prior(phonemes: Tensor, phoneme_lengths: Tensor, trigrams: Tensor) -> Tensor:
    """The log-probability of sequences of phonemes, before anything is heard: (batch,), nats.

    phonemes: (batch, phonemes) ids, padded with any; phoneme_lengths: (batch,); trigrams: of `learn_trigrams`.
    """
    known = valid_positions(phoneme_lengths, phonemes.shape[1])
    ids = pad(phonemes.where(known, EDGE), (2, 1), value=EDGE)
    log_probs = trigrams[ids[:, 1:-1], ids[:, :-2], ids[:, 2:]].log()
    total: Tensor = log_probs.where(valid_positions(phoneme_lengths + 1, log_probs.shape[1]), 0.0).sum(1)
    return total


def log_prob_of_all(log_probs: Tensor, lengths: Tensor, trigrams: Tensor) -> Tensor:
    """log Σ P(sequence) P(what is heard | sequence) over all sequences of phonemes, by all their paths: (batch,), nats.

    log_probs: (batch, steps, phonemes), the blank first; lengths: (batch,) steps, at least 1; trigrams: of
    `learn_trigrams`. What was said has the share exp(log_prior - ctc_loss - log_prob_of_all) of it.
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        total: Tensor = _SumOfPaths.apply(log_probs, lengths, trigrams)  # type: ignore[no-untyped-call]
    return total


class _SumOfPaths(torch.autograd.Function):
    """The forward-backward algorithm, all in the forward pass: only the gradient is kept, not the tables."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, trigrams: Tensor) -> Tensor:
        """The arguments of `log_prob_of_all` → (batch,)."""
        parts = _split(trigrams.to(log_probs))
        _, steps, size = log_probs.shape
        rows = max(1, MOST_BYTES // (2 * log_probs.element_size() * steps * size**2))
        totals, shares = log_probs.new_empty(len(log_probs)), torch.empty_like(log_probs)
        for part in torch.arange(len(log_probs), device=lengths.device).split(rows):
            tables, totals[part] = _sum(log_probs[part], lengths[part], *parts)
            shares[part] = _find_shares(tables, log_probs[part], lengths[part], *parts)
        ctx.save_for_backward(shares)
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(batch,) → the share of the paths that pass through each phoneme at each step, times the gradient."""
        (shares,) = ctx.saved_tensors
        return shares * gradient[:, None, None], None, None


def _sum(
    log_probs: Tensor, lengths: Tensor, moves: Tensor, repeats: Tensor, ends: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The tables after each step, and `log_prob_of_all`; moves, repeats, ends: of `_split`.

    tables: (steps + 1, batch, one before, two before), of the paths that end in a phoneme, and of those that have a
    blank behind it. They are kept near 1 by a factor per step and utterance.
    """
    batch, steps, size = log_probs.shape
    sounding, silent = log_probs.new_zeros(2, steps + 1, batch, size, size)
    silent[0, :, EDGE, EDGE] = 1
    before, product = silent[0].clone(), log_probs.new_empty(size, batch, size)
    scales = [log_probs.new_ones(batch)]
    for step, probs in enumerate(log_probs.exp().unbind(1)):
        probs = probs / scales[-1][:, None]
        torch.bmm(before.transpose(0, 1), moves, out=product)  # (one before, batch, next)
        torch.add(sounding[step], product.permute(1, 2, 0), out=sounding[step + 1])
        sounding[step + 1].diagonal(0, 1, 2).add_((silent[step] * repeats).sum(2))
        sounding[step + 1].mul_(probs[:, :, None])
        torch.mul(before, probs[:, BLANK_ID, None, None], out=silent[step + 1])
        torch.add(sounding[step + 1], silent[step + 1], out=before)
        scales.append(before.sum((1, 2)))
    rows = torch.arange(batch, device=lengths.device)
    last = (sounding[lengths, rows] + silent[lengths, rows]) * ends
    return (sounding, silent), torch.stack(scales).log().cumsum(0)[lengths - 1, rows] + last.sum((1, 2)).log()


def _find_shares(
    tables: tuple[Tensor, Tensor], log_probs: Tensor, lengths: Tensor, moves: Tensor, repeats: Tensor, ends: Tensor
) -> Tensor:
    """The share of the paths that pass through each phoneme, or the blank, at each step; tables: of `_sum`."""
    sounding, silent = tables
    batch, steps, size = log_probs.shape
    moves_back = moves.transpose(1, 2).contiguous()
    behind_sounding, behind_silent = log_probs.new_ones(2, batch, size, size)
    ahead, product = torch.empty_like(behind_silent), log_probs.new_empty(size, batch, size)
    shares, heard = torch.zeros_like(log_probs), log_probs.exp().unbind(1)
    for step in reversed(range(steps)):
        if step + 1 < steps:
            probs = heard[step + 1] / behind_silent.sum((1, 2))[:, None]
            torch.mul(behind_sounding.transpose(1, 2), probs[:, None], out=ahead)  # (batch, one before, next)
            torch.bmm(ahead.transpose(0, 1), moves_back, out=product)
            behind_silent.mul_(probs[:, BLANK_ID, None, None]).add_(product.transpose(0, 1))
            # The same phoneme follows behind a blank alone: what is behind a sounding one lacks the repeats below.
            torch.add(behind_silent, ahead.transpose(1, 2), out=behind_sounding)
            behind_silent.addcmul_(repeats, ahead.diagonal(0, 1, 2)[:, :, None])
        is_last = (lengths == step + 1)[:, None, None]
        torch.where(is_last, ends, behind_sounding, out=behind_sounding)
        torch.where(is_last, ends, behind_silent, out=behind_silent)
        scratch = ahead  # which this step no longer needs
        through = torch.mul(sounding[step + 1], behind_sounding, out=scratch).sum(2)
        through[:, BLANK_ID] += torch.mul(silent[step + 1], behind_silent, out=scratch).sum((1, 2))
        shares[:, step] = through / through.sum(1, keepdim=True)
    return shares.masked_fill_(~valid_positions(lengths, steps)[:, :, None], 0.0)


def _split(trigrams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the trigrams those to another phoneme, in their shape; those to the same one, before which a blank must come;
    and those to the end: (one before, two before) both.
    """
    moves, ends = trigrams.clone(), trigrams[:, :, EDGE].clone()
    moves[:, :, EDGE] = 0
    same = moves.diagonal(0, 0, 2)
    repeats = same.T.clone()
    same.zero_()
    return moves, repeats, ends
