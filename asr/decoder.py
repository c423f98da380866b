"""Log-probs to token ids: the most probable token of each step, repeats merged, blanks dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.features import valid_positions
from asr.text import BLANK_ID

__all__ = ["GreedyTokens", "decode_greedy"]


@dataclass(frozen=True)
class GreedyTokens:
    """One utterance, decoded."""

    token_ids: list[int]
    """Without blanks and merged repeats."""
    steps: list[int]
    """The step at which each token begins."""


def decode_greedy(log_probs: Tensor, lengths: Tensor) -> list[GreedyTokens]:
    """Best-path decoding (Graves et al., 2006), computed on the tensors' device, with one transfer per batch.

    log_probs: (batch, steps, vocabulary); lengths: (batch,) steps.
    """
    best = log_probs.argmax(dim=2)
    starts = torch.ones_like(best, dtype=torch.bool)
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    kept = starts & (best != BLANK_ID) & valid_positions(lengths, best.shape[1])
    rows = torch.where(kept, best, BLANK_ID).cpu().numpy()
    return [GreedyTokens(row[row != BLANK_ID].tolist(), row.nonzero()[0].tolist()) for row in rows]
