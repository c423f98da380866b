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
from asr.decoder import Decode, DecodedTokens, decode_greedy
from asr.errors import AsrError
from asr.longform import BATCH_SECONDS
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.pauses import cut_at_pauses, is_silent
from asr.plan import fill_batches
from asr.threads import lent_threads
from asr.transcript import Transcript, Word, find_words

__all__ = ["Failure", "Recording", "transcribe", "transcribe_files", "transcribe_recordings"]

log = logging.getLogger(__name__)

POOL_BATCHES = 4
"""Recordings are read ahead for so many batches, and sorted by length among themselves."""

SHORTEST_SECONDS = 0.05
"""Below it there is less than one analysis window and nothing to hear."""

LONG_SECONDS = 40.0
"""Longer recordings are cut at their pauses, shorter ones recognised whole."""


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
    model: CTCModel | str | Path | None = None,
    decode: Decode | None = None,
) -> Transcript:
    """The transcript of one recording of any length.

    source: a path, a binary file object, or floating-point samples in [-1, 1] at `sample_rate` Hz: (samples,) or
    (samples, channels).
    model: it or its file, by default the packaged one, which is loaded at the first call. decode: a BeamDecoder or
    HotwordDecoder; None decodes greedily.
    Raises AsrError for audio that cannot be transcribed.
    """
    if isinstance(source, list | tuple):
        raise AsrError("one recording is transcribed; a list of files is for transcribe_files")
    if isinstance(source, Tensor | numpy.ndarray):
        source = samples_as_file(source, sample_rate)
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "audio"))
    (result,) = transcribe_recordings(_model_of(model), [Recording(source, name)], decode=decode)
    if isinstance(result, Failure):
        raise AsrError(result.message)
    return result


def transcribe_files(
    paths: Iterable[str | Path],
    *,
    model: CTCModel | str | Path | None = None,
    batch_seconds: float = BATCH_SECONDS,
    decode: Decode | None = None,
) -> Iterator[Transcript | Failure]:
    """One result per file, as `transcribe_recordings` gives them; a file that cannot be read becomes a Failure.

    model, decode: as for `transcribe`; batch_seconds: as for `transcribe_recordings`.
    """
    if isinstance(paths, str | Path):
        raise AsrError(f"{paths}: is one file; transcribe_files takes a list of them")
    recordings = (Recording(path, str(path)) for path in paths)
    return transcribe_recordings(_model_of(model), recordings, batch_seconds=batch_seconds, decode=decode)


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
    recogniser = _Recogniser(model, decode, batch_seconds)
    parts = (part for recording in recordings for part in _read(model, recording))
    begun: list[_Part] = []
    for part in _recognise(recogniser, parts):
        progress(part.seconds)
        begun.append(part)
        if part.failure or part.duration_seconds:
            yield part.failure or _join(begun)
            begun = []


def _join(parts: Sequence[_Part]) -> Transcript:
    """The transcript of a recording's parts, in their order."""
    words = tuple(word for part in parts for word in part.words or ())
    scores = [part.lm_log_prob for part in parts if part.words or part.lm_log_prob is not None]
    lm_log_prob = None if None in scores or not scores else sum(score or 0.0 for score in scores)
    return Transcript(parts[-1].name, words, parts[-1].duration_seconds or 0.0, lm_log_prob)


def _recognise(recogniser: _Recogniser, parts: Iterable[_Part]) -> Iterator[_Part]:
    """The parts with their words, in their order, each as soon as it and all before it are ready."""
    with lent_threads() as threads:
        executor = ThreadPoolExecutor(threads if recogniser.model.device.type == "cpu" else 1)
        submitted: deque[_Pool] = deque()
        try:
            for pool in _pools(recogniser, parts):
                submitted.append(_submit(executor, recogniser, pool, threads))
                while len(submitted) > 1 or (submitted and submitted[0].is_done()):
                    yield from submitted.popleft().results()
            while submitted:
                yield from submitted.popleft().results()
        finally:
            executor.shutdown(cancel_futures=True)


def _pools(recogniser: _Recogniser, parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """The parts in lists of some batches each; what needs no batch ends its list."""
    pool: list[_Part] = []
    pooled_seconds = 0.0
    for part in parts:
        pool.append(part)
        pooled_seconds += part.seconds
        if pooled_seconds >= POOL_BATCHES * recogniser.batch_seconds or pool[0].is_done:
            yield pool
            pool, pooled_seconds = [], 0.0
    yield pool


def _model_of(model: CTCModel | str | Path | None) -> CTCModel:
    if model is None:
        return _packaged_model()
    return model if isinstance(model, CTCModel) else load_model(model)


@lru_cache(maxsize=1)
def _packaged_model() -> CTCModel:
    return load_model()


@dataclass(frozen=True)
class _Recogniser:
    """What turns samples into words."""

    model: CTCModel
    decode: Decode | None
    batch_seconds: float

    @torch.inference_mode()
    def decode_batch(self, parts: Sequence[_Part], threads: int) -> list[DecodedTokens]:
        """The tokens of each of some parts, computed together on so many cores; it takes their samples."""
        torch.set_num_threads(threads)
        lengths = torch.tensor([len(part.samples) for part in parts], device=self.model.device)
        waveforms = pad_sequence([part.samples for part in parts], batch_first=True).to(self.model.device)
        goes_on = torch.tensor([part.duration_seconds is None for part in parts], device=self.model.device)
        for part in parts:
            part.samples = torch.empty(0)
        log_probs, steps = self.model(waveforms, lengths)
        steps = torch.where(goes_on, lengths // self.model.step_samples, steps)  # the next stretch has the edge's step
        return (self.decode or decode_greedy)(log_probs, steps)


@dataclass
class _Part:
    """What is recognised at once: a short recording, or a stretch of a long one."""

    name: str
    samples: Tensor
    seconds: float = 0.0
    first_step: int = 0
    """The recording's steps before it."""
    duration_seconds: float | None = None
    """Of the recording; its last part knows it."""
    words: tuple[Word, ...] | None = None
    """None while they are not known."""
    lm_log_prob: float | None = None
    failure: Failure | None = None
    """Ends the recording."""

    @property
    def is_done(self) -> bool:
        return self.words is not None or self.failure is not None


def _read(model: CTCModel, recording: Recording) -> Iterator[_Part]:
    """A recording's parts, one after the other; what holds no speech has its words, which are none."""
    is_heard = False
    try:
        with open_audio(recording.source, model.sample_rate) as audio:
            for part in _parts(model, audio, recording):
                is_heard = is_heard or not part.is_done
                yield part
    except AsrError as error:
        yield _Part(recording.name, torch.empty(0), failure=Failure(recording.name, str(error)))
        return
    if not is_heard:
        log.warning("%s: holds nothing but silence", recording.name)


def _parts(model: CTCModel, audio: AudioFile, recording: Recording) -> Iterator[_Part]:
    name, rate = recording.name, model.sample_rate
    span = recording.start_seconds, recording.duration_seconds
    seconds = recording.duration_seconds or audio.duration_seconds - recording.start_seconds
    if seconds <= LONG_SECONDS:
        samples = audio.read(*span)
        if len(samples) < SHORTEST_SECONDS * rate:
            least = f"at least {SHORTEST_SECONDS:g} s is needed"
            raise AsrError(f"{audio.name}: {len(samples) / rate:g} s of audio is too short to recognise; {least}")
        yield _Part(name, samples, seconds, duration_seconds=seconds, words=() if is_silent(samples) else None)
        return
    for stretch in cut_at_pauses(audio.blocks(*span), rate, model.step_samples):
        yield _Part(
            name,
            stretch.samples if stretch.may_hold_speech else torch.empty(0),  # a day of silence must not be held
            len(stretch.samples) / rate,
            stretch.start // model.step_samples,
            duration_seconds=seconds if stretch.is_last else None,
            words=None if stretch.may_hold_speech else (),
        )


@dataclass
class _Pool:
    """Parts that are being recognised: each batch's places in `parts`, and its tokens to come."""

    parts: list[_Part]
    batches: list[tuple[list[int], Future[list[DecodedTokens]]]]
    model: CTCModel

    def is_done(self) -> bool:
        return all(future.done() for _, future in self.batches)

    def results(self) -> Iterator[_Part]:
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


def _submit(executor: Executor, recogniser: _Recogniser, pool: list[_Part], threads: int) -> _Pool:
    """Have a pool's batches recognised side by side, those with the earliest parts first.

    One batch per core is a third faster than one batch on all cores, where each small product waits for the last core.
    """
    is_long = any(part.duration_seconds is None for part in pool)
    # An hour would take 300 MB more than two minutes, and takes half of that so.
    batches = sorted(_batches(pool, recogniser.batch_seconds / (3 if is_long else 1)), key=min)
    share = max(1, threads // max(1, len(batches)))
    futures = []
    for batch in batches:
        parts = [pool[index] for index in batch]
        futures.append((batch, executor.submit(recogniser.decode_batch, parts, share)))
    return _Pool(pool, futures, recogniser.model)


def _batches(pool: list[_Part], batch_seconds: float) -> list[list[int]]:
    """Indices of the parts without words, in batches of like length, each with at most `batch_seconds` padded."""
    seconds = [part.seconds for part in pool]
    waiting = (index for index, part in enumerate(pool) if not part.is_done)
    return fill_batches(seconds, sorted(waiting, key=seconds.__getitem__), batch_seconds)
