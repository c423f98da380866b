"""The log-probs of a recording of any length, in memory that does not grow with its samples: stretch by stretch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.model import CTCModel, check_evaluates
from asr.pauses import LONGEST_SECONDS, Stretch, cut_at_pauses

__all__ = ["BATCH_SECONDS", "stream_log_probs"]

BATCH_SECONDS = 160.0
"""Audio per batch, padding included; more is not faster on two cores."""


@torch.inference_mode()
def stream_log_probs(
    model: CTCModel,
    blocks: Iterable[Tensor],
    *,
    batch_seconds: float,
    with_phonemes: bool = False,
    only_speech: bool = False,
) -> Iterator[Tensor]:
    """(steps, vocabulary) log-probs of a recording, in consecutive parts, on the model's device.

    blocks: the recording, as consecutive (samples,) tensors at the model's rate. batch_seconds: audio that is computed
    at once. with_phonemes: whether those of the phonemes follow the tokens', where the model hears them.
    only_speech: leaves out the stretches that `transcribe` leaves out.
    Raises AsrError for a model in training mode.
    """
    check_evaluates(model)
    at_once = max(1, int(batch_seconds / LONGEST_SECONDS))
    cut = cut_at_pauses(blocks, model.sample_rate, model.step_samples)
    stretches = (stretch for stretch in cut if stretch.may_hold_speech or not only_speech)
    while batch := list(islice(stretches, at_once)):
        yield from _log_probs(model, batch, with_phonemes)


def _log_probs(model: CTCModel, stretches: list[Stretch], with_phonemes: bool) -> Iterator[Tensor]:
    """Those of each stretch: as many steps as it is long; the last of a recording has one more, on its edge."""
    samples = [stretch.samples.to(model.device) for stretch in stretches]
    lengths = torch.tensor([len(each) for each in samples], device=model.device)
    hear = model.all_log_probs if with_phonemes else model
    log_probs, steps = hear(pad_sequence(samples, batch_first=True), lengths)
    for stretch, row, count in zip(stretches, log_probs, steps.tolist(), strict=True):
        yield row[: count if stretch.is_last else len(stretch.samples) // model.step_samples]
