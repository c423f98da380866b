"""Log-probs to token ids: the most probable token of each step, repeats merged, blanks dropped.

And the other way: how probable the token ids of a known text are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from asr.errors import AsrError
from asr.features import valid_positions
from asr.vocabulary import BLANK_ID, Vocabulary

__all__ = [
    "Decode",
    "DecodedTokens",
    "check_vocabulary",
    "collapse_paths",
    "decode_greedy",
    "reads_phonemes",
    "text_log_probs",
]


@dataclass(frozen=True)
class DecodedTokens:
    """One utterance, decoded: lists of the same length, without blanks and merged repeats."""

    token_ids: list[int]
    steps: list[int]
    """The step at which each token begins."""
    end_steps: list[int]
    """The step behind its last one."""
    log_probs: list[float]
    """Its log-probability where that is highest."""
    lm_log_prob: float | None = None
    """Natural log-probability of the words under the language model that was searched with; None without one."""


TINY = 1e-300
"""In place of a sum of 0, by which nothing could be divided."""

Decode = Callable[[Tensor, Tensor], list[DecodedTokens]]
"""log_probs (batch, steps, vocabulary), lengths (batch,) to tokens: `decode_greedy` or what takes its place."""


def decode_greedy(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
    """Best-path decoding (Graves et al., 2006), computed on the tensors' device, with one transfer per batch.

    log_probs: (batch, steps, vocabulary); lengths: (batch,) steps.
    """
    path_log_probs, paths = log_probs.max(dim=2)
    return collapse_paths(paths, path_log_probs, lengths)


def reads_phonemes(decode: Decode) -> bool:
    """Whether a decoder wants what `CTCModel.all_log_probs` returns, with the phonemes behind the tokens."""
    return bool(getattr(decode, "reads_phonemes", False))


def check_vocabulary(log_probs: Tensor, vocabulary: Vocabulary) -> None:
    """Raise AsrError where (batch, steps, vocabulary) log_probs are of more or fewer tokens than a decoder's."""
    if log_probs.shape[2] != len(vocabulary):
        tokens = f"the decoder was made for {len(vocabulary)} tokens, and the model has {log_probs.shape[2]}"
        raise AsrError(f"{tokens}; make it with that model's vocabulary")


def collapse_paths(paths: Tensor, path_log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
    """CTC's collapse: each run of equal tokens becomes one, and the blanks go.

    paths: (batch, steps) token ids; path_log_probs: (batch, steps), theirs; lengths: (batch,) steps.
    """
    valid = valid_positions(lengths, paths.shape[1])
    shown = torch.where(valid, paths, BLANK_ID).float()  # exact: there are fewer than 2²⁴ tokens
    rows = torch.stack([shown, path_log_probs], dim=1).cpu().numpy()
    return [_collapse(path.astype(int), scores) for path, scores in rows]


def _collapse(path: numpy.ndarray, scores: numpy.ndarray) -> DecodedTokens:
    """One path, (steps,), with blanks past its length."""
    changes = numpy.flatnonzero(numpy.diff(path, prepend=BLANK_ID, append=BLANK_ID))
    # Between two changes lies a run, or blanks; behind the last one nothing but blanks.
    starts, ends = changes[:-1], changes[1:]
    spoken = path[starts] != BLANK_ID
    starts, ends = starts[spoken], ends[spoken]
    highest = [float(scores[start:end].max()) for start, end in zip(starts, ends)]
    return DecodedTokens(path[starts].tolist(), starts.tolist(), ends.tolist(), highest)


def text_log_probs(log_probs: Tensor, texts: Sequence[list[int]]) -> list[float]:
    """The log-probability of each text's token ids, all alignments together; log_probs: (steps, vocabulary).

    -inf where there are too few steps. CTC's forward variables (Graves et al., 2006, equations 6 and 7) of all texts at
    once, as probabilities in float64 on the CPU, each text's scaled to a sum of 1 at every step: four times as fast as
    `ctc_loss` there, where one recording has many texts.
    """
    if not texts:
        return []
    rows = log_probs.cpu().double().numpy()
    states = _with_blanks(texts)
    may_skip = (states[:, 2:] != BLANK_ID) & (states[:, 2:] != states[:, :-2])
    forward = numpy.zeros(states.shape)
    forward[:, 0] = 1.0  # before the first step, all are at the blank before it
    totals = numpy.full(len(texts), rows.max(axis=1).sum())
    for step, probabilities in enumerate(numpy.exp(rows - rows.max(axis=1, keepdims=True))):
        moved = forward.copy()
        moved[:, 1:] += forward[:, :-1]
        if step > 0:
            moved[:, 2:] += forward[:, :-2] * may_skip
        forward = moved * probabilities.take(states)
        sums = forward.sum(axis=1).clip(min=TINY)
        forward /= sums[:, None]
        totals += numpy.log(sums)
    ends = [row[max(0, 2 * len(text) - 1) : 2 * len(text) + 1].sum() for row, text in zip(forward, texts)]
    with numpy.errstate(divide="ignore"):
        found: list[float] = (totals + numpy.log(ends)).tolist()
    return found


def _with_blanks(texts: Sequence[list[int]]) -> numpy.ndarray:
    """Each text's token ids with a blank before, between and behind them; blanks fill its row."""
    states = numpy.full((len(texts), 2 * max(map(len, texts)) + 1), BLANK_ID)
    for row, token_ids in zip(states, texts):
        row[1 : 2 * len(token_ids) : 2] = token_ids
    return states
