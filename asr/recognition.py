"""Parts of recordings to their words: in batches of like length, side by side on the cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.decoder import Decode, DecodedTokens, decode_greedy, reads_phonemes
from asr.errors import AsrError
from asr.model import CTCModel, check_evaluates
from asr.placing import extend_to_phonemes
from asr.plan import fill_batches
from asr.threads import lent_threads
from asr.transcript import Word, find_words

__all__ = ["Failure", "Heard", "Part", "Recogniser"]

POOL_BATCHES = 4
"""Recordings are read ahead for so many batches, and sorted by length among themselves."""

SHARE_OF_LONG = 1 / 3
"""Of `batch_seconds`, where stretches of a long recording are in a pool: an hour would take 300 MB more than two
minutes, and takes half of that so."""


@dataclass(frozen=True)
class Failure:
    """Why a recording has no transcript, in one sentence that names its audio."""

    name: str
    message: str


@dataclass(frozen=True)
class Part:
    """What is recognised at once: a short recording, or a stretch of a long one."""

    name: str
    samples: Tensor | None
    """(samples,) at the model's rate; None where there is nothing to hear."""
    seconds: float = 0.0
    first_step: int = 0
    """The recording's steps before it."""
    recording_seconds: float | None = None
    """How long the whole recording is; its last part knows it."""
    failure: Failure | None = None
    """Ends the recording."""

    @property
    def is_last(self) -> bool:
        """Whether the recording has no other part behind it."""
        return self.recording_seconds is not None or self.failure is not None


@dataclass(frozen=True)
class Heard:
    """What became of a part."""

    part: Part
    """Without its samples."""
    words: tuple[Word, ...] = ()
    lm_log_prob: float | None = None


@dataclass(frozen=True)
class Recogniser:
    """What turns samples into words."""

    model: CTCModel
    decode: Decode | None
    batch_seconds: float

    def __post_init__(self) -> None:
        check_evaluates(self.model)
        if self.decode is not None and not callable(self.decode):
            raise AsrError(f"decode={self.decode!r} must be a BeamDecoder or a HotwordDecoder; None decodes greedily")
        if not self.batch_seconds > 0:
            raise AsrError(f"batch_seconds={self.batch_seconds} must be above 0 seconds")

    @torch.inference_mode()
    def decode_batch(self, waveforms: list[Tensor], goes_on: Sequence[bool], threads: int) -> list[DecodedTokens]:
        """The tokens of each of some waveforms, computed together on so many cores; it empties the list.

        goes_on: whether another stretch of the same recording follows.
        """
        torch.set_num_threads(threads)
        lengths = torch.tensor([len(samples) for samples in waveforms], device=self.model.device)
        padded = pad_sequence(waveforms, batch_first=True).to(self.model.device)
        waveforms.clear()
        decode, model = self.decode or decode_greedy, self.model
        hear = model.all_log_probs if reads_phonemes(decode) or model.reader else model
        log_probs, steps = hear(padded, lengths)
        without_edge = lengths // model.step_samples  # the next stretch has the edge's step
        steps = torch.where(torch.tensor(goes_on, device=model.device), without_edge, steps)
        if model.reader is None:
            return decode(log_probs, steps)
        tokens, phonemes = model.split(log_probs)
        decoded = decode(log_probs if reads_phonemes(decode) else tokens, steps)
        rows = zip(decoded, phonemes, steps.tolist(), strict=True)
        return [extend_to_phonemes(each, row[:count], model.phonemes) for each, row, count in rows]

    def recognise(self, parts: Iterable[Part]) -> Iterator[Heard]:
        """What was heard in the parts, in their order, each as soon as it and all before it are ready."""
        with lent_threads() as threads:
            executor = ThreadPoolExecutor(threads if self.model.device.type == "cpu" else 1)
            submitted: deque[_Pool] = deque()
            try:
                for pool in self._pools(parts):
                    submitted.append(self._submit(executor, pool, threads))
                    while len(submitted) > 1 or (submitted and submitted[0].is_done()):
                        yield from submitted.popleft().results(self.model)
                while submitted:
                    yield from submitted.popleft().results(self.model)
            finally:
                executor.shutdown(cancel_futures=True)

    def _pools(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """The parts in lists of some batches each; what needs no batch is a list by itself where it comes first."""
        pool: list[Part] = []
        pooled_seconds = 0.0
        for part in parts:
            pool.append(part)
            pooled_seconds += part.seconds
            if pooled_seconds >= POOL_BATCHES * self.batch_seconds or pool[0].samples is None:
                yield pool
                pool, pooled_seconds = [], 0.0
        yield pool

    def _submit(self, executor: Executor, pool: list[Part], threads: int) -> _Pool:
        """Have a pool's batches recognised side by side, those with the earliest parts first; it empties the list.

        One batch per core is a third faster than one batch on all cores, where each small product waits for the last
        core.
        """
        is_long = any(not part.is_last and part.samples is not None for part in pool)
        batches = sorted(_batches(pool, self.batch_seconds * (SHARE_OF_LONG if is_long else 1)), key=min)
        share = max(1, threads // max(1, len(batches)))
        submitted = []
        for batch in batches:
            waveforms = [samples for index in batch if (samples := pool[index].samples) is not None]
            goes_on = [not pool[index].is_last for index in batch]
            submitted.append((batch, executor.submit(self.decode_batch, waveforms, goes_on, share)))
        parts = [replace(part, samples=None) for part in pool]
        pool.clear()
        return _Pool(parts, submitted)


@dataclass(frozen=True)
class _Pool:
    """Parts that are being recognised: each batch's places in `parts`, and its tokens to come."""

    parts: list[Part]
    batches: list[tuple[list[int], Future[list[DecodedTokens]]]]

    def is_done(self) -> bool:
        return all(future.done() for _, future in self.batches)

    def results(self, model: CTCModel) -> Iterator[Heard]:
        """In the order of `parts`, each as soon as it and all before it are ready."""
        awaited = {index for batch, _ in self.batches for index in batch}
        heard: dict[int, DecodedTokens] = {}
        waiting = iter(self.batches)
        for index, part in enumerate(self.parts):
            while index in awaited and index not in heard:
                batch, future = next(waiting)
                heard.update(zip(batch, future.result(), strict=True))
            if tokens := heard.pop(index, None):
                yield Heard(part, find_words(tokens, model, part.first_step), tokens.lm_log_prob)
            else:
                yield Heard(part)


def _batches(pool: list[Part], batch_seconds: float) -> list[list[int]]:
    """Indices of the parts with something to hear, in batches of like length, of at most `batch_seconds` padded."""
    seconds = [part.seconds for part in pool]
    waiting = (index for index, part in enumerate(pool) if part.samples is not None)
    return fill_batches(seconds, sorted(waiting, key=seconds.__getitem__), batch_seconds)
