"""Parts of recordings to their words: in batches of like length, side by side on the cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.decoder import Decode, DecodedTokens, decode_greedy, reads_phonemes
from asr.model import CTCModel, check_evaluates
from asr.plan import fill_batches
from asr.threads import lent_threads
from asr.transcript import Word, find_words

__all__ = ["Failure", "Part", "Recogniser"]

POOL_BATCHES = 4
"""Recordings are read ahead for so many batches, and sorted by length among themselves."""


@dataclass(frozen=True)
class Failure:
    """Why a recording has no transcript, in one sentence that names its audio."""

    name: str
    message: str


@dataclass
class Part:
    """What is recognised at once: a short recording, or a stretch of a long one."""

    name: str
    samples: Tensor
    seconds: float = 0.0
    first_step: int = 0
    """The recording's steps before it."""
    recording_seconds: float | None = None
    """How long the whole recording is; its last part knows it."""
    words: tuple[Word, ...] | None = None
    """None while they are not known."""
    lm_log_prob: float | None = None
    failure: Failure | None = None
    """Ends the recording."""

    @property
    def is_done(self) -> bool:
        return self.words is not None or self.failure is not None


@dataclass(frozen=True)
class Recogniser:
    """What turns samples into words."""

    model: CTCModel
    decode: Decode | None
    batch_seconds: float

    def __post_init__(self) -> None:
        check_evaluates(self.model)

    @torch.inference_mode()
    def decode_batch(self, parts: Sequence[Part], threads: int) -> list[DecodedTokens]:
        """The tokens of each of some parts, computed together on so many cores; it takes their samples."""
        torch.set_num_threads(threads)
        lengths = torch.tensor([len(part.samples) for part in parts], device=self.model.device)
        waveforms = pad_sequence([part.samples for part in parts], batch_first=True).to(self.model.device)
        goes_on = torch.tensor([part.recording_seconds is None for part in parts], device=self.model.device)
        for part in parts:
            part.samples = torch.empty(0)
        decode = self.decode or decode_greedy
        hear = self.model.all_log_probs if reads_phonemes(decode) else self.model
        log_probs, steps = hear(waveforms, lengths)
        steps = torch.where(goes_on, lengths // self.model.step_samples, steps)  # the next stretch has the edge's step
        return decode(log_probs, steps)

    def recognise(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts with their words, in their order, each as soon as it and all before it are ready."""
        with lent_threads() as threads:
            executor = ThreadPoolExecutor(threads if self.model.device.type == "cpu" else 1)
            submitted: deque[_Pool] = deque()
            try:
                for pool in self._pools(parts):
                    submitted.append(_submit(executor, self, pool, threads))
                    while len(submitted) > 1 or (submitted and submitted[0].is_done()):
                        yield from submitted.popleft().results()
                while submitted:
                    yield from submitted.popleft().results()
            finally:
                executor.shutdown(cancel_futures=True)

    def _pools(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """The parts in lists of some batches each; what needs no batch ends its list."""
        pool: list[Part] = []
        pooled_seconds = 0.0
        for part in parts:
            pool.append(part)
            pooled_seconds += part.seconds
            if pooled_seconds >= POOL_BATCHES * self.batch_seconds or pool[0].is_done:
                yield pool
                pool, pooled_seconds = [], 0.0
        yield pool


@dataclass
class _Pool:
    """Parts that are being recognised: each batch's places in `parts`, and its tokens to come."""

    parts: list[Part]
    batches: list[tuple[list[int], Future[list[DecodedTokens]]]]
    model: CTCModel

    def is_done(self) -> bool:
        return all(future.done() for _, future in self.batches)

    def results(self) -> Iterator[Part]:
        """In the order of `parts`, each as soon as it and all before it are ready."""
        done = 0
        for batch, future in self.batches:
            for index, tokens in zip(batch, future.result(), strict=True):
                part = self.parts[index]
                part.words = find_words(tokens, self.model, part.first_step)
                part.lm_log_prob = tokens.lm_log_prob
            while done < len(self.parts) and self.parts[done].is_done:
                yield self.parts[done]
                done += 1
        yield from self.parts[done:]


def _submit(executor: Executor, recogniser: Recogniser, pool: list[Part], threads: int) -> _Pool:
    """Have a pool's batches recognised side by side, those with the earliest parts first.

    One batch per core is a third faster than one batch on all cores, where each small product waits for the last core.
    """
    is_long = any(part.recording_seconds is None and not part.is_done for part in pool)
    # An hour would take 300 MB more than two minutes, and takes half of that so.
    batches = sorted(_batches(pool, recogniser.batch_seconds / (3 if is_long else 1)), key=min)
    share = max(1, threads // max(1, len(batches)))
    futures = []
    for batch in batches:
        parts = [pool[index] for index in batch]
        futures.append((batch, executor.submit(recogniser.decode_batch, parts, share)))
    return _Pool(pool, futures, recogniser.model)


def _batches(pool: list[Part], batch_seconds: float) -> list[list[int]]:
    """Indices of the parts without words, in batches of like length, each with at most `batch_seconds` padded."""
    seconds = [part.seconds for part in pool]
    waiting = (index for index, part in enumerate(pool) if not part.is_done)
    return fill_batches(seconds, sorted(waiting, key=seconds.__getitem__), batch_seconds)
