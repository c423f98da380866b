"""Log-probs to token ids: the most probable token of each step, repeats merged, blanks dropped.

What a decoder is, so that others can take the place of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import numpy
import torch
from torch import Tensor

from asr.errors import AsrError
from asr.features import valid_positions
from asr.vocabulary import BLANK_ID, Vocabulary

__all__ = [
    "Decode",
    "DecodedTokens",
    "PhonemeDecoder",
    "check_vocabulary",
    "collapse_paths",
    "decode_greedy",
    "reads_phonemes",
    "split_phonemes",
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


Decode = Callable[[Tensor, Tensor], list[DecodedTokens]]
"""log_probs (batch, steps, vocabulary), lengths (batch,) to tokens: `decode_greedy` or what takes its place."""


@runtime_checkable
class PhonemeDecoder(Protocol):
    """A decoder that may read phonemes behind the tokens, as `CTCModel.all_log_probs` returns both."""

    reads_phonemes: bool
    """Whether it does: (batch, steps, vocabulary + phonemes)."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]: ...

    def score_texts(self, log_probs: Tensor, texts: Sequence[str]) -> list[float]:
        """How probable each normal transcript is by all that it reads, nats; log_probs: (steps, what it reads)."""
        ...


def decode_greedy(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
    """Best-path decoding (Graves et al., 2006), computed on the tensors' device, with one transfer per batch.

    log_probs: (batch, steps, vocabulary); lengths: (batch,) steps.
    """
    path_log_probs, paths = log_probs.max(dim=2)
    return collapse_paths(paths, path_log_probs, lengths)


def reads_phonemes(decode: Decode) -> TypeGuard[PhonemeDecoder]:
    """Whether a decoder wants what `CTCModel.all_log_probs` returns, with the phonemes behind the tokens."""
    return isinstance(decode, PhonemeDecoder) and decode.reads_phonemes


def check_vocabulary(log_probs: Tensor, vocabulary: Vocabulary) -> None:
    """Raise AsrError where (batch, steps, vocabulary) log_probs are of more or fewer tokens than a decoder's."""
    if log_probs.shape[2] != len(vocabulary):
        tokens = f"the decoder was made for {len(vocabulary)} tokens, and the model has {log_probs.shape[2]}"
        raise AsrError(f"{tokens}; make it with that model's vocabulary")


def split_phonemes(log_probs: Tensor, vocabulary: Vocabulary, num_phonemes: int) -> tuple[Tensor, Tensor]:
    """What `CTCModel.all_log_probs` returns, parted: (batch, steps, vocabulary) and (batch, steps, phonemes).

    Raises AsrError where there are more or fewer of either than a decoder was made for.
    """
    tokens, phonemes = log_probs.tensor_split([len(vocabulary)], dim=2)
    if phonemes.shape[2] != num_phonemes:
        heard = f"{phonemes.shape[2]} of them are there, and the pronunciations have {num_phonemes}"
        raise AsrError(f"the decoder reads phonemes too: {heard}; give it what model.all_log_probs returns")
    check_vocabulary(tokens, vocabulary)
    return tokens, phonemes


def collapse_paths(paths: Tensor, path_log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
    """CTC's collapse: each run of equal tokens becomes one, and the blanks go.

    paths: (batch, steps) token ids; path_log_probs: (batch, steps), theirs; lengths: (batch,) steps.
    """
    valid = valid_positions(lengths, paths.shape[1])
    shown = torch.where(valid, paths, BLANK_ID).float()  # exact: there are fewer than 2²⁴ tokens
    rows = torch.stack([shown, path_log_probs], dim=1).detach().cpu().numpy()
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
