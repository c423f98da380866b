"""Recordings of any length to log-probs or one path of tokens, in memory that does not grow with their samples.

The audio is read twice in blocks: once for each band's mean and deviation, once for the model, in windows that overlap.
The steps of the overlap are dropped before the path is put together, so that nothing is lost or doubled at a join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.features import VARIANCE_FLOOR, LogMelFrontend
from asr.model import CTCModel

__all__ = ["best_path", "stream_log_mel", "stream_log_probs"]

WINDOW_SECONDS = 24.0
"""Of each window, what is kept."""

CONTEXT_SECONDS = 4.0
"""On both sides of it, what the model hears besides."""


@torch.inference_mode()
def best_path(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The most probable token of every step of a recording, and its log-probability: (steps,), on the model's device.

    parts: what `stream_log_probs` yields; only one is in memory at a time.
    """
    highest = [log_probs.max(dim=1) for log_probs in parts]
    return torch.cat([each.indices for each in highest]), torch.cat([each.values for each in highest])


def stream_log_probs(
    model: CTCModel,
    blocks: Callable[[], Iterable[Tensor]],
    *,
    batch_seconds: float,
    window_seconds: float = WINDOW_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Iterator[Tensor]:
    """(steps, vocabulary) log-probabilities of a recording, in consecutive parts, on the model's device.

    blocks: each call reads the recording anew, as consecutive (samples,) tensors at the model's rate.
    batch_seconds: audio that is computed at once.
    """

    def log_mel_blocks() -> Iterator[Tensor]:
        return stream_log_mel(model.frontend, (block.to(model.device) for block in blocks()))

    mean, deviation = _statistics(log_mel_blocks())
    features = (((block - mean) / deviation).float() for block in log_mel_blocks())
    factor = model.encoder.subsampling.subsampling_factor
    core, context = (
        factor * max(1, round(seconds * model.sample_rate / model.step_samples))
        for seconds in (window_seconds, context_seconds)
    )
    windows = _windows(features, core, context)
    at_once = max(1, int(batch_seconds / (window_seconds + 2 * context_seconds)))
    while batch := list(islice(windows, at_once)):
        yield from _kept_log_probs(model, batch, factor)


def stream_log_mel(frontend: LogMelFrontend, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """(frames, num_mels) log-mel energies of consecutive (samples,) blocks; together those of the whole audio."""
    hop = frontend.hop_samples
    margin = ceil(frontend.fft_samples / 2 / hop)  # frames at an edge whose window reaches past it
    left, pending = 0, torch.empty(0)
    for block in blocks:
        pending = torch.cat([pending.to(block), block])
        complete = len(pending) // hop - margin
        if complete <= left + margin:
            continue
        yield frontend.log_mel(pending[None, : (complete + margin) * hop])[0, left:complete]
        pending, left = pending[(complete - margin) * hop :], margin
    yield frontend.log_mel(pending[None])[0, left:]


def _statistics(log_mel_blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Each band's mean and deviation over all frames, in double precision, as `normalize_features` computes them."""
    count = 0
    total = squares = torch.zeros(1, dtype=torch.float64)
    for block in log_mel_blocks:
        precise = block.double()
        count += len(block)
        total = total.to(precise.device) + precise.sum(0)
        squares = squares.to(precise.device) + precise.square().sum(0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


@dataclass(frozen=True)
class _Window:
    """A stretch of features, and which of its frames are kept."""

    features: Tensor
    """(frames, num_mels), context included."""
    start: int
    end: int


def _windows(blocks: Iterable[Tensor], core: int, context: int) -> Iterator[_Window]:
    """Windows that keep `core` frames each, the last one what is left, with up to `context` frames on both sides."""
    start, pending = 0, torch.empty(0)
    for block in blocks:
        pending = torch.cat([pending.reshape(-1, block.shape[1]).to(block), block])
        while len(pending) > start + core + context:
            yield _Window(pending[: start + core + context], start, start + core)
            first = max(0, start + core - context)
            start, pending = start + core - first, pending[first:]
    yield _Window(pending, start, len(pending))


def _kept_log_probs(model: CTCModel, windows: list[_Window], factor: int) -> Iterator[Tensor]:
    """(steps, vocabulary) of the frames that each window keeps."""
    features = [window.features for window in windows]
    lengths = torch.tensor([len(frames) for frames in features], device=features[0].device)
    log_probs, _ = model.log_probs(pad_sequence(features, batch_first=True), lengths)
    for window, steps in zip(windows, log_probs, strict=True):
        yield steps[window.start // factor : ceil(window.end / factor)]
