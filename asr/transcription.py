"""Recordings to transcripts: many at once in batches of like length, and one of any length in bounded memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.audio import AudioFile, AudioSource, open_audio, samples_as_file
from asr.decoder import Decode, collapse_paths, decode_greedy
from asr.errors import AsrError
from asr.longform import best_path, stream_log_probs
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.transcript import Transcript, Word, find_words

__all__ = ["Failure", "Recording", "transcribe", "transcribe_files", "transcribe_recordings"]

log = logging.getLogger(__name__)

BATCH_SECONDS = 160.0
"""Audio per batch, padding included; more is not faster on two cores."""

POOL_BATCHES = 4
"""Recordings are read ahead for so many batches, and sorted by length among themselves."""

SHORTEST_SECONDS = 0.05
"""Below it there is less than one analysis window and nothing to hear."""

SILENCE_PEAK = 1e-4
"""Recordings whose loudest sample is below this (-80 dB) are not sent through the model."""

LONG_SECONDS = 60.0
"""Longer recordings are computed in windows, shorter ones whole."""


@dataclass(frozen=True)
class Recording:
    """A stretch of audio to transcribe."""

    source: AudioSource
    name: str
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    """None: to the end."""


@dataclass(frozen=True)
class Failure:
    """Why a recording has no transcript, in one sentence that names its audio."""

    name: str
    message: str


def transcribe(
    source: AudioSource | Tensor | numpy.ndarray,
    *,
    sample_rate: int | None = None,
    model: CTCModel | None = None,
    decode: Decode | None = None,
) -> Transcript:
    """The transcript of one recording of any length.

    source: a path, a binary file object, or floating-point samples in [-1, 1] at `sample_rate` Hz: (samples,) or
    (samples, channels).
    model: by default the packaged one, loaded at the first call. decode: a BeamDecoder or HotwordDecoder; None decodes
    greedily.
    Raises AsrError for audio that cannot be transcribed.
    """
    if isinstance(source, Tensor | numpy.ndarray):
        source = samples_as_file(source, sample_rate)
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "audio"))
    (result,) = transcribe_recordings(model or _packaged_model(), [Recording(source, name)], decode=decode)
    if isinstance(result, Failure):
        raise AsrError(result.message)
    return result


def transcribe_files(
    paths: Iterable[str | Path],
    *,
    model: CTCModel | None = None,
    batch_seconds: float = BATCH_SECONDS,
    decode: Decode | None = None,
) -> Iterator[Transcript | Failure]:
    """One result per file, as `transcribe_recordings` gives them; a file that cannot be read becomes a Failure.

    model, decode: as for `transcribe`; batch_seconds: as for `transcribe_recordings`.
    """
    recordings = (Recording(path, str(path)) for path in paths)
    return transcribe_recordings(model or _packaged_model(), recordings, batch_seconds=batch_seconds, decode=decode)


def transcribe_recordings(
    model: CTCModel,
    recordings: Iterable[Recording],
    *,
    batch_seconds: float = BATCH_SECONDS,
    decode: Decode | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Transcript | Failure]:
    """One result per recording, in their order, each as soon as it and all before it are ready.

    What cannot be transcribed becomes a Failure and stops nothing else.
    batch_seconds: audio per batch, padding included; it changes memory and speed, never a transcript.
    decode: a BeamDecoder or HotwordDecoder; None decodes greedily.
    progress: is told how many more seconds of audio were recognised, many times for a long recording.
    """
    recogniser = _Recogniser(model, decode, batch_seconds, progress)
    threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(threads if model.device.type == "cpu" else 1)
    submitted: deque[_Pool] = deque()
    try:
        for items in _pools(recogniser, recordings):
            submitted.append(_submit(executor, recogniser, items, threads))
            while len(submitted) > 1 or (submitted and submitted[0].is_done()):
                yield from submitted.popleft().results()
        while submitted:
            yield from submitted.popleft().results()
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # else threads that start later would have as few as the last batch


def _pools(recogniser: _Recogniser, recordings: Iterable[Recording]) -> Iterator[list[_Item]]:
    """The recordings, read, in lists of some batches each; what needs no batch ends its list."""
    items: list[_Item] = []
    pooled_seconds = 0.0
    for recording in recordings:
        items.append(_load(recogniser, recording))
        pooled_seconds += items[-1].seconds
        if pooled_seconds >= POOL_BATCHES * recogniser.batch_seconds or items[0].result is not None:
            yield items
            items, pooled_seconds = [], 0.0
    yield items


@lru_cache(maxsize=1)
def _packaged_model() -> CTCModel:
    return load_model()


@dataclass(frozen=True)
class _Recogniser:
    """What turns samples into words."""

    model: CTCModel
    decode: Decode | None
    batch_seconds: float
    progress: Callable[[float], None]

    @torch.inference_mode()
    def batch_words(self, samples: Sequence[Tensor], threads: int) -> list[tuple[Word, ...]]:
        """The words of each of some (samples,) tensors, computed together on so many cores."""
        torch.set_num_threads(threads)
        lengths = torch.tensor([len(utterance) for utterance in samples], device=self.model.device)
        waveforms = pad_sequence(list(samples), batch_first=True).to(self.model.device)
        decoded = (self.decode or decode_greedy)(*self.model(waveforms, lengths))
        return [find_words(tokens, self.model) for tokens in decoded]

    @torch.inference_mode()
    def long_words(self, audio: AudioFile, recording: Recording) -> tuple[Word, ...]:
        """The words of a recording of any length; greedily decoded, only its path is held in memory."""

        def blocks() -> Iterator[Tensor]:
            return audio.blocks(recording.start_seconds, recording.duration_seconds)

        if _is_silent(recording.name, blocks()):
            return ()
        # Half: the recurrence holds the gates of all steps, and an hour would take 300 MB more than two minutes.
        parts = self._counted(stream_log_probs(self.model, blocks, batch_seconds=self.batch_seconds / 2))
        if self.decode is None:
            path, highest = best_path(parts)
            (tokens,) = collapse_paths(path[None], highest[None], torch.tensor([len(path)], device=path.device))
        else:
            log_probs = torch.cat(list(parts))
            (tokens,) = self.decode(log_probs[None], torch.tensor([len(log_probs)]))
        return find_words(tokens, self.model)

    def _counted(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        for part in parts:
            yield part
            self.progress(len(part) * self.model.step_samples / self.model.sample_rate)


@dataclass
class _Item:
    """A recording on its way: short ones wait with their samples for a batch, all others have a result at once."""

    name: str
    samples: Tensor
    seconds: float = 0.0
    result: Transcript | Failure | None = None


def _load(recogniser: _Recogniser, recording: Recording) -> _Item:
    """Read a recording; a long one is transcribed here, window by window."""
    name, item, rate = recording.name, _Item(recording.name, torch.empty(0)), recogniser.model.sample_rate
    try:
        with open_audio(recording.source, rate) as audio:
            item.seconds = recording.duration_seconds or audio.duration_seconds - recording.start_seconds
            if item.seconds > LONG_SECONDS:
                item.result = Transcript(name, recogniser.long_words(audio, recording), item.seconds)
                return item
            item.samples = audio.read(recording.start_seconds, recording.duration_seconds)
        seconds = len(item.samples) / rate
        if seconds < SHORTEST_SECONDS:
            least = f"at least {SHORTEST_SECONDS:g} s is needed"
            raise AsrError(f"{audio.name}: {seconds:g} s of audio is too short to recognise; {least}")
    except AsrError as error:
        item.result = Failure(name, str(error))
        return item
    if _is_silent(name, [item.samples]):
        item.result = Transcript(name, (), item.seconds)
    return item


def _is_silent(name: str, blocks: Iterable[Tensor]) -> bool:
    """Whether a recording holds nothing to recognise, which is logged; reads on to the first sound only."""
    if any(block.abs().max() >= SILENCE_PEAK for block in blocks):
        return False
    log.warning("%s: holds nothing but silence", name)
    return True


@dataclass
class _Pool:
    """Recordings that are being recognised: each batch's places in `items`, and its words to come."""

    items: list[_Item]
    batches: list[tuple[list[int], Future[list[tuple[Word, ...]]]]]
    progress: Callable[[float], None]

    def is_done(self) -> bool:
        return all(future.done() for _, future in self.batches)

    def results(self) -> Iterator[Transcript | Failure]:
        """In the order of `items`, each as soon as it and all before it are ready."""
        done = 0
        for batch, future in self.batches:
            for index, words in zip(batch, future.result(), strict=True):
                item = self.items[index]
                item.result = Transcript(item.name, words, item.seconds)
                self.progress(item.seconds)
            while done < len(self.items) and (result := self.items[done].result) is not None:
                yield result
                done += 1
        yield from (item.result for item in self.items[done:] if item.result is not None)


def _submit(executor: Executor, recogniser: _Recogniser, items: list[_Item], threads: int) -> _Pool:
    """Have a pool's batches recognised side by side, those with the earliest recordings first.

    One batch per core is a third faster than one batch on all cores, where each small product waits for the last core.
    """
    batches = sorted(_batches(items, recogniser.batch_seconds), key=min)
    share = max(1, threads // max(1, len(batches)))
    futures = []
    for batch in batches:
        samples = [items[index].samples for index in batch]
        futures.append((batch, executor.submit(recogniser.batch_words, samples, share)))
        for index in batch:
            items[index].samples = torch.empty(0)
    return _Pool(items, futures, recogniser.progress)


def _batches(pool: list[_Item], batch_seconds: float) -> list[list[int]]:
    """Indices of the waiting items, in batches of like length, each with at most `batch_seconds` padded."""
    waiting = sorted((index for index, item in enumerate(pool) if item.result is None), key=lambda i: pool[i].seconds)
    batches: list[list[int]] = []
    for index in waiting:  # from short to long, so the newest is the longest
        if not batches or pool[index].seconds * (len(batches[-1]) + 1) > batch_seconds:
            batches.append([])
        batches[-1].append(index)
    return batches
