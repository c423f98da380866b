"""Durations to the batches of an epoch, planned so that a seed and an epoch give the same ones every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy
from torch.utils.data import Sampler

__all__ = ["DurationBatchSampler", "Place", "fill_batches", "plan_batches"]

DURATION_JITTER = 0.03
"""Sorting key noise, share of the duration: batches mix anew each epoch and padding stays at a few percent."""


def fill_batches(
    durations: Sequence[float], order: Iterable[int], batch_seconds: float, world_size: int = 1
) -> list[list[int]]:
    """The indices in this order, in batches of which each of `world_size` equal parts has at most `batch_seconds`.

    Padding to a batch's longest is included; what is longer alone is a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, durations[index])
        if not batches or longest * (len(batches[-1]) // world_size + 1) > batch_seconds:
            batches.append([])
            longest = durations[index]
        batches[-1].append(index)
    return batches


def plan_batches(
    durations: Sequence[float], batch_seconds: float, generator: numpy.random.Generator, world_size: int = 1
) -> list[list[int]]:
    """Every index once, in batches of like durations, from short to long, each to be dealt out to `world_size` ranks.

    A rank's part has at most `batch_seconds`, padding included, and at least one utterance: a short last batch takes
    the missing ones from its neighbour, and where there are too few for all, some are repeated.
    """
    noise = generator.uniform(1 - DURATION_JITTER, 1 + DURATION_JITTER, len(durations))
    order = numpy.argsort(numpy.asarray(durations) * noise, kind="stable")
    batches = fill_batches(durations, order.tolist(), batch_seconds, world_size)
    for earlier, later in zip(batches[-2::-1], batches[::-1]):
        while len(later) < world_size and earlier:
            later.append(earlier.pop())
    return [(batch * world_size)[: max(len(batch), world_size)] for batch in batches]


class Place(NamedTuple):
    """Between two steps of a training."""

    epoch: int
    """As many epochs are over; the first one is 0."""
    batches_done: int
    """Of this epoch, in each process."""

    def batches_done_of(self, epoch: int) -> int:
        """What a resume from here leaves out of an epoch."""
        return self.batches_done if epoch == self.epoch else 0


class DurationBatchSampler(Sampler[list[int]]):
    """The batches of one rank, epoch after epoch; an epoch's plan is a function of (seed, epoch) alone.

    Across ranks a plan is made of batches `world_size` times as long, and each rank takes its part of every one, so
    that all have as many batches, of like durations, and every utterance is seen.
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_seconds: float,
        *,
        seed: int,
        shortest_first: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.durations = durations
        self.shortest_first = shortest_first
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.resumed_at = Place(0, 0)
        self._planned: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch."""
        self.epoch = epoch

    def count_batches(self, epochs: Iterable[int]) -> int:
        """Of these epochs together, whose plans differ in length."""
        return sum(len(self._batches(self._generator(epoch))) for epoch in epochs)

    def _generator(self, epoch: int) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, epoch])

    def _batches(self, generator: numpy.random.Generator) -> list[list[int]]:
        """Of all ranks, from short to long."""
        return plan_batches(self.durations, self.batch_seconds, generator, self.world_size)

    def _plan(self) -> list[list[int]]:
        if self._planned is None or self._planned[0] != self.epoch:
            generator = self._generator(self.epoch)
            batches = self._batches(generator)
            if self.epoch > 0 or not self.shortest_first:
                batches = [batches[place] for place in generator.permutation(len(batches))]
            self._planned = self.epoch, [batch[self.rank :: self.world_size] for batch in batches]
        return self._planned[1]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._plan()[self.resumed_at.batches_done_of(self.epoch) :]

    def __len__(self) -> int:
        return len(self._plan())
