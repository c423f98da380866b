"""Recordings, taken apart phoneme by phoneme, and sentences that nobody said, put together from their parts.

As concatenative synthesis selects units (A. Hunt, A. Black, ICASSP 1996), but of what a model hears, not of sound: its
log-probabilities of phonemes, doubts and mistakes included.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile, zip_longest

import numpy
import torch
from torch import distributed

from asr.alignment import align_tokens
from asr.augment import augment_features, augment_waveforms
from asr.check import Example
from asr.config import AugmentConfig
from asr.data import Batch, SpeechDataset
from asr.errors import AsrError
from asr.model import CTCModel, steps_needed
from asr.plan import fill_batches

__all__ = ["Heard", "Units", "hear", "vary_sureness"]

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 3, 14
"""Phonemes that are taken from one recording in a row; fewer where none holds so many."""

MARGIN_STEPS = 2
"""Of silence that a sentence may have before its first phoneme and behind its last."""

SURENESS = (0.9, 1.5)
"""By what the log-probabilities of a sentence are multiplied, lowest and highest: there are speakers whose phonemes a
model takes for others more surely than it does those that it has learned from.
"""

BATCH_SECONDS = 160.0

BETWEEN = "\0"
"""Two recordings, where each phoneme is a character; the blank, which no sentence holds, has this number."""


class Heard:
    """What a model heard of one recording."""

    def __init__(self, log_probs: numpy.ndarray, reference: str, phoneme_ids: list[int]) -> None:
        """log_probs: (steps, phonemes) float16; phoneme_ids: of the reference."""
        self.log_probs, self.reference, self.phoneme_ids = log_probs, reference, phoneme_ids

    def cuts(self) -> list[int]:
        """The step where each phoneme begins, half way from the one before, and where the last ends."""
        aligned = align_tokens(torch.from_numpy(self.log_probs).float(), self.phoneme_ids)
        between = [(end + start + 1) // 2 for end, start in zip(aligned.end_steps, aligned.steps[1:])]
        first, last = aligned.steps[0] - MARGIN_STEPS, aligned.end_steps[-1] + MARGIN_STEPS
        return [max(0, first), *between, min(len(self.log_probs), last)]


class Units:
    """The parts of recordings, found by their phonemes."""

    def __init__(self, recordings: Sequence[Heard]) -> None:
        """recordings: in each of which its phonemes have steps enough; raises AsrError where there are none."""
        if not recordings:
            raise AsrError("of no recording all phonemes of its text can be heard; take others")
        self._starts = [*accumulate((len(heard.log_probs) for heard in recordings), initial=0)]
        self.log_probs = numpy.concatenate([heard.log_probs for heard in recordings])
        """(steps, phonemes) of all recordings."""
        self._cuts = [start + cut for start, heard in zip(self._starts, recordings) for cut in heard.cuts()]
        self._stream = "".join("".join(map(chr, heard.phoneme_ids)) + BETWEEN for heard in recordings)
        """A character for each of the cuts: the phoneme behind it."""
        self._places = sorted(range(len(self._stream)), key=lambda place: self._stream[place : place + LONGEST])
        """In the alphabetical order of what follows."""

    def missing(self, phonemes: Sequence[str]) -> list[str]:
        """Of the names of all phonemes, the blank first, those that no recording holds."""
        return [name for number, name in enumerate(phonemes) if chr(number) not in self._stream]

    def recording(self, number: int) -> numpy.ndarray:
        """All that was heard of one: (steps, phonemes)."""
        return self.log_probs[self._starts[number] : self._starts[number + 1]]

    def say(self, phoneme_ids: Sequence[int], generator: numpy.random.Generator) -> numpy.ndarray | None:
        """Log-probabilities (steps, phonemes) of a sentence; None for no phonemes, or where no recording has one."""
        sentence, parts, said = "".join(map(chr, phoneme_ids)), [], 0
        while said < len(sentence):
            wanted = sentence[said : said + int(generator.integers(SHORTEST, LONGEST + 1))]
            if not (found := self._longest(wanted)):
                return None
            first, behind = self._range(found)
            place = self._places[int(generator.integers(first, behind))]
            parts.append(self.log_probs[self._cuts[place] : self._cuts[place + len(found)]])
            said += len(found)
        return numpy.concatenate(parts) if parts else None

    def _longest(self, wanted: str) -> str:
        """The most of its beginning that one recording has: what stands beside it in the alphabetical order."""
        place = bisect_left(self._places, wanted, key=lambda place: self._stream[place : place + len(wanted)])
        neighbours = self._places[max(0, place - 1) : place + 1]
        return max((_shared_start(wanted, self._stream[near : near + len(wanted)]) for near in neighbours), key=len)

    def _range(self, found: str) -> tuple[int, int]:
        """Of the places that begin so."""
        key = lambda place: self._stream[place : place + len(found)]  # noqa: E731 - it is used twice
        return bisect_left(self._places, found, key=key), bisect_right(self._places, found, key=key)


def vary_sureness(log_probs: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:
    """The same phonemes, heard with other certainty: (steps, phonemes) float32."""
    powers = log_probs.astype(numpy.float32) * generator.uniform(*SURENESS)
    varied: numpy.ndarray = powers - numpy.logaddexp.reduce(powers, axis=1, keepdims=True)
    return varied


def _shared_start(one: str, other: str) -> str:
    return "".join(mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))


@torch.inference_mode()
def hear(
    model: CTCModel, examples: Sequence[Example], augment: AugmentConfig | None = None, seed: int = 1
) -> list[Heard]:
    """What a model that hears phonemes hears of each recording, in any order, the same however many processes hear:
    of a training with several, each hears some and gets what the others did.

    augment: done to them before, so that it errs as it does with recordings that it has not learned from.
    What cannot be read, or is too short for its phonemes, is left out and told.
    """
    assert model.pronunciations is not None
    dataset = SpeechDataset(examples, model.vocabulary, model.sample_rate, pronunciations=model.pronunciations)
    seconds = [example.utterance.duration_seconds for example in examples]
    batches = fill_batches(seconds, numpy.argsort(seconds, kind="stable").tolist(), BATCH_SECONDS)
    are_several, on_cpu = distributed.is_initialized(), model.device.type == "cpu"
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if are_several else (0, 1)
    mine, told = [], 0
    for number in range(rank, len(batches), processes):
        if number * 10 // len(batches) >= told:
            log.info("hearing recordings: %d of %d", sum(map(len, batches[:number])), len(examples))
            told += 1
        batch = dataset[batches[number]]
        generator = torch.Generator().manual_seed((seed * len(batches) + number) % 2**63)
        with torch.autocast("cpu", torch.bfloat16, enabled=on_cpu and torch.cpu._is_avx512_bf16_supported()):
            mine.append(list(_hear_batch(model, batch, augment, generator)))
    parts = [mine] * processes
    if are_several:
        distributed.all_gather_object(parts, mine)
    heard = [one for batches_heard in zip_longest(*parts, fillvalue=[]) for batch in batches_heard for one in batch]
    if left_out := len(examples) - len(heard):
        log.warning("%d recordings are left out: they cannot be read, or are too short for their texts", left_out)
    return heard


def _hear_batch(
    model: CTCModel, batch: Batch, augment: AugmentConfig | None, generator: torch.Generator
) -> Iterator[Heard]:
    waveforms, sample_lengths = batch.waveforms, batch.sample_lengths
    if augment:
        waveforms, sample_lengths = augment_waveforms(waveforms, sample_lengths, augment, generator)
    features, feature_lengths = model.frontend(waveforms.to(model.device), sample_lengths.to(model.device))
    if augment:
        features = augment_features(features, feature_lengths, augment, generator)
    log_probs, lengths = model.log_probs_of_phonemes(features, feature_lengths)
    rows = log_probs.transpose(0, 1).half().cpu()
    assert model.pronunciations is not None
    for row, length, reference in zip(rows, lengths.tolist(), batch.references, strict=True):
        phoneme_ids = model.pronunciations.encode(reference)
        if phoneme_ids and steps_needed(phoneme_ids) <= length:
            yield Heard(row[:length].numpy().copy(), reference, phoneme_ids)
