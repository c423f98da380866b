"""Log-probs to token ids: the most probable token of each step, repeats merged, blanks dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asr.features import valid_positions
from asr.text import BLANK_ID

__all__ = ["GreedyTokens", "collapse_paths", "decode_greedy"]


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
    return collapse_paths(log_probs.argmax(dim=2), lengths)


def collapse_paths(paths: Tensor, lengths: Tensor) -> list[GreedyTokens]:
    """CTC's collapse: of each run of equal tokens the first, without the blanks.

    paths: (batch, steps) token ids; lengths: (batch,) steps.
    """
    starts = torch.ones_like(paths, dtype=torch.bool)
    starts[:, 1:] = paths[:, 1:] != paths[:, :-1]
    kept = starts & valid_positions(lengths, paths.shape[1])
    rows = torch.where(kept, paths, BLANK_ID).cpu().numpy()
    return [GreedyTokens(row[row != BLANK_ID].tolist(), row.nonzero()[0].tolist()) for row in rows]
