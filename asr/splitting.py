"""A training batch that the memory does not hold: in parts, with the same loss and gradients but for dropout."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from asr.errors import AsrError
from asr.model import CTCModel

__all__ = ["FullMemoryError", "MemoryLimit"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class FullMemoryError(AsrError):
    """The memory does not hold a batch, and no part of it that could be computed."""


class MemoryLimit:
    """How much of a batch is computed at once: all of it, until that turns out to be too much."""

    def __init__(self) -> None:
        self.most_frames = math.inf
        """Utterances times frames, padding included."""
        self._tried: tuple[int, int] | None = None
        """Utterances, and frames of each, that were last computed at once; None where it did not come to that."""

    def log_probs(self, model: CTCModel, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `model.log_probs_of_features`; in parts, each of which is computed again in the backward pass."""
        size, frames = features.shape[:2]
        rows = max(1, int(min(size, self.most_frames / frames)))
        self._tried = rows, frames
        if rows == size:
            return model.log_probs_of_features(features, feature_lengths)
        parts = zip(features.split(rows), feature_lengths.split(rows))
        done = [checkpoint(model.log_probs_of_features, *part, use_reentrant=False) for part in parts]
        log_probs, lengths = zip(*done)
        return torch.cat(log_probs), torch.cat(lengths)

    def fit(
        self, compute: Callable[[], Result], frame_seconds: float, *, views: int = 1, may_split: bool = True
    ) -> Result:
        """What `compute` returns; while the memory does not hold it, again in parts of half the size.

        views: how often each utterance of a batch is computed.
        may_split: False where other processes wait for this one's gradients and would not compute again.
        Raises FullMemoryError where it may not, and where a single utterance is too long.
        """
        while True:
            self._tried = None
            try:
                return compute()
            except RuntimeError as error:
                if not is_oom_error(error):
                    raise
                reason = str(error).splitlines()[0]
            garbage_collection_cuda()  # out here the error, which holds on to tensors, is gone
            self._halve(frame_seconds, views, reason, may_split)

    def _halve(self, frame_seconds: float, views: int, reason: str, may_split: bool) -> None:
        if self._tried is None:
            whole = "the features of a batch do not fit into the memory"
            raise FullMemoryError(f"{whole}; lower data.batch_seconds: {reason}")
        rows, frames = self._tried
        seconds = rows * frames * frame_seconds
        if not may_split:
            raise FullMemoryError(
                f"a batch of {seconds / views:.0f} s does not fit into the memory; lower data.batch_seconds: {reason}"
            )
        if rows == 1:
            raise FullMemoryError(f"one utterance of {seconds:.0f} s does not fit; lower data.max_seconds: {reason}")
        self.most_frames = (rows + 1) // 2 * frames
        most_seconds = self.most_frames * frame_seconds
        log.warning(
            "%.0f s of audio do not fit into the memory: at most %.0f s are computed at once from now on; "
            "data.batch_seconds=%.0f saves computing the larger batches twice",
            seconds,
            most_seconds,
            most_seconds / views,
        )
