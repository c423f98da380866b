"""Sound of any length, cut at its pauses into stretches that can be recognised one by one.

A model that learned utterances hears utterances again: each stretch is normalized by itself, and two voices or two
rooms in one recording do not spoil each other. Nothing is left out, so no word is lost, whatever is taken for a pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

__all__ = ["LONGEST_SECONDS", "Stretch", "cut_at_pauses", "is_silent"]

PAUSE_SECONDS = 0.5
"""So long a quiet stretch behind speech ends an utterance."""

SHORT_SECONDS, SHORT_PAUSE_SECONDS = 5.0, 1.0
"""An utterance that is shorter waits for a longer pause: short stretches are recognised worse."""

LONGEST_SECONDS = 20.0
"""An utterance without a pause is cut where it is quietest in its second half."""

CHECK_FRAMES = 3
"""A pause is looked for whenever so many frames more are there."""

RANGE_DB = 50.0
"""What lies further below the loudest frame counts as silence, and tells nothing of the background."""

BACKGROUND_SHARE = 0.05
"""So many of the frames are no louder than the background."""

QUIET_SHARE = 0.1
"""Quiet is what lies, in dB, in this lowest part between the background and the loudest frame."""

LOWEST_DB = -120.0
"""Of a frame, beside full scale; a frame of zeros has this one too."""

SILENCE_PEAK = 1e-4
"""A recording whose loudest sample, without its offset, is below this (-80 dB) holds nothing to recognise."""

STEADY_DB = 3.0
"""Sound that is nowhere louder than its background by more is hiss or hum; speech rises and falls by 20 dB."""


@dataclass(frozen=True)
class Stretch:
    """Some of a recording's samples, (samples,)."""

    start: int
    """The recording's samples before it."""
    samples: Tensor
    is_last: bool
    may_hold_speech: bool
    """False for silence, and for a second or more of nothing but hiss or hum."""


def is_silent(samples: Tensor) -> bool:
    """Whether nothing in (samples,) but an offset is loud enough to be recognised."""
    return len(samples) == 0 or bool((samples - samples.mean()).abs().max() < SILENCE_PEAK)


def cut_at_pauses(blocks: Iterable[Tensor], sample_rate: int, frame_samples: int) -> Iterator[Stretch]:
    """Consecutive (samples,) blocks as stretches of speech, each as soon as the pause behind it is long enough.

    frame_samples: sound is loud or quiet frame by frame, and cut between two; the model's step.
    """
    frames_per_second = sample_rate / frame_samples
    start, pieces, levels = 0, [torch.empty(0)], numpy.empty(0)
    for piece in _pieces_of(blocks, CHECK_FRAMES * frame_samples):
        pieces.append(piece)
        levels = numpy.concatenate([levels, _levels(piece, frame_samples)])
        end = _find_end(levels, frames_per_second)
        if end is not None:
            utterance, rest = torch.cat(pieces).tensor_split([end * frame_samples])
            yield Stretch(start, utterance, False, _may_hold_speech(utterance, sample_rate, frame_samples))
            start, pieces, levels = start + len(utterance), [rest], levels[end:]
    rest = torch.cat(pieces)
    yield Stretch(start, rest, True, _may_hold_speech(rest, sample_rate, frame_samples))


def _pieces_of(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Blocks of any sizes as pieces of one size, the last one shorter."""
    rest = torch.empty(0)
    for block in blocks:
        samples = torch.cat([rest, block])
        whole = len(samples) // size * size
        yield from samples[:whole].view(-1, size)
        rest = samples[whole:]
    yield rest


def _levels(samples: Tensor, frame_samples: int) -> numpy.ndarray:
    """Decibels beside full scale of each whole frame."""
    frames = samples[: len(samples) // frame_samples * frame_samples].view(-1, frame_samples).numpy()
    powers = numpy.einsum("fs,fs->f", frames, frames, dtype=numpy.float64) / frame_samples
    decibels: numpy.ndarray = 10 * numpy.log10(powers.clip(min=10 ** (LOWEST_DB / 10)))
    return decibels


def _background(levels: numpy.ndarray) -> float:
    place = int(BACKGROUND_SHARE * (len(levels) - 1))
    return float(max(numpy.partition(levels, place)[place], levels.max() - RANGE_DB))


def _may_hold_speech(samples: Tensor, sample_rate: int, frame_samples: int) -> bool:
    if is_silent(samples):
        return False
    levels = _levels(samples.diff(), frame_samples)  # an offset or the mains' hum may be louder than who speaks
    is_long = len(levels) >= 2 * PAUSE_SECONDS * sample_rate / frame_samples
    return not is_long or bool(levels.max() - _background(levels) >= STEADY_DB)


def _find_end(levels: numpy.ndarray, frames_per_second: float) -> int | None:
    """The frame behind an utterance of which there is so much; None while it goes on."""
    is_short = len(levels) < SHORT_SECONDS * frames_per_second
    pause = max(1, round((SHORT_PAUSE_SECONDS if is_short else PAUSE_SECONDS) * frames_per_second))
    if len(levels) < pause:
        return None
    background = _background(levels)
    is_quiet = levels <= background + QUIET_SHARE * (levels.max() - background)
    if is_quiet[-pause:].all() and not is_quiet.all():
        return len(levels) - pause // 2
    if len(levels) < LONGEST_SECONDS * frames_per_second:
        return None
    half, width = len(levels) // 2, max(1, pause // 4)
    smooth = numpy.convolve(10 ** (levels[half:] / 10), numpy.ones(width), "valid")
    return int(half + smooth.argmin() + width // 2)
