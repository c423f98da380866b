"""Recordings to transcripts: many at once in batches of like length, and one of any length in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from asr.audio import AudioFile, open_audio
from asr.decoder import Decode
from asr.errors import AsrError
from asr.longform import BATCH_SECONDS
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.pauses import cut_at_pauses, is_silent
from asr.recognition import Failure, Heard, Part, Recogniser
from asr.sources import AudioSource, check_rate, name_of, samples_as_file
from asr.transcript import Transcript, end_by

__all__ = ["Failure", "Recording", "transcribe", "transcribe_files", "transcribe_live", "transcribe_recordings"]

log = logging.getLogger(__name__)

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
    Raises AsrError for audio that cannot be transcribed and for a model in training mode.
    """
    if isinstance(source, list | tuple):
        sorts = "a list of files is for transcribe_files, samples come as a NumPy array or a torch tensor"
        raise AsrError(f"one recording is transcribed; {sorts}")
    if isinstance(source, Tensor | numpy.ndarray):
        source, sample_rate = samples_as_file(source, sample_rate), None
    name = name_of(source)
    if sample_rate is not None:
        raise AsrError(f"{name}: sample_rate= is for samples (a NumPy array or a torch tensor); a file tells its own")
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
    """One result per file, in their order, each as soon as it and all before it are ready.

    A file that cannot be read becomes a Failure and stops nothing.
    paths: some ten minutes of audio are read ahead, so a generator that waits for new files holds results back.
    model, decode: as for `transcribe`. batch_seconds: audio per batch, padding included; it changes memory and speed,
    never a transcript.
    Raises AsrError for a path in place of the paths and for a model in training mode.
    """
    if isinstance(paths, str | Path):
        raise AsrError(f"{paths}: is one file; transcribe_files takes a list of them")
    recordings = (Recording(path, str(path)) for path in paths)
    return transcribe_recordings(_model_of(model), recordings, batch_seconds=batch_seconds, decode=decode)


def transcribe_live(
    blocks: Iterable[Tensor | numpy.ndarray],
    *,
    sample_rate: int,
    model: CTCModel | str | Path | None = None,
    decode: Decode | None = None,
) -> Iterator[Transcript]:
    """Each utterance of sound that is still coming in, as soon as the pause behind it is long enough.

    blocks: consecutive (samples,) mono floating-point samples in [-1, 1] at `sample_rate` Hz, some tenths of a second
    each, as tensors or NumPy arrays. The times of the words count from the first block on; so does the duration,
    to the end of the utterance. What holds no word gives no transcript.
    model, decode: as for `transcribe`. Raises AsrError as it does.
    """
    loaded = _model_of(model)
    check_rate("live sound", sample_rate)
    frame_samples = round(loaded.step_samples * sample_rate / loaded.sample_rate)
    is_heard = False
    for stretch in cut_at_pauses(map(_check_block, blocks), sample_rate, frame_samples):
        if not stretch.may_hold_speech or len(stretch.samples) < SHORTEST_SECONDS * sample_rate:
            continue
        is_heard = True
        transcript = transcribe(stretch.samples, sample_rate=sample_rate, model=loaded, decode=decode)
        before = stretch.start / sample_rate
        words = tuple(
            replace(word, start_seconds=before + word.start_seconds, end_seconds=before + word.end_seconds)
            for word in transcript.words
        )
        if words:
            yield replace(transcript, words=words, duration_seconds=before + transcript.duration_seconds)
    if not is_heard:
        log.warning("live sound: holds nothing but silence")


def _check_block(samples: Tensor | numpy.ndarray) -> Tensor:
    """A block of live sound; raises AsrError for what is none."""
    if isinstance(samples, numpy.ndarray) and samples.dtype.kind == "f":
        samples = torch.from_numpy(numpy.array(samples, numpy.float32, order="C"))  # of received bytes it is read-only
    if not isinstance(samples, Tensor) or samples.dim() != 1 or not samples.is_floating_point():
        is_array = isinstance(samples, Tensor | numpy.ndarray)
        shape = f" of shape {tuple(samples.shape)} and {samples.dtype}" if is_array else ""
        kind = "must be (samples,) mono, floating point in [-1, 1], in a NumPy array or a torch tensor"
        raise AsrError(f"live sound: a block {kind}, not {type(samples).__name__}{shape}")
    if not samples.isfinite().all():
        raise AsrError("live sound: a block holds samples that are not finite numbers")
    return samples.detach().float().cpu()


def transcribe_recordings(
    model: CTCModel,
    recordings: Iterable[Recording],
    *,
    batch_seconds: float = BATCH_SECONDS,
    decode: Decode | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Transcript | Failure]:
    """One result per recording, in their order, each as soon as it and all before it are ready.

    What cannot be transcribed becomes a Failure and stops nothing else; a model in training mode raises AsrError.
    batch_seconds: audio per batch, padding included; it changes memory and speed, never a transcript.
    decode: a BeamDecoder or HotwordDecoder; None decodes greedily.
    progress: is told how many more seconds of audio were recognised, many times for a long recording.
    """
    recogniser = Recogniser(model, decode, batch_seconds)
    parts = (part for recording in recordings for part in _read(model, recording))
    begun: list[Heard] = []
    for heard in recogniser.recognise(parts):
        progress(heard.part.seconds)
        begun.append(heard)
        if heard.part.is_last:
            yield heard.part.failure or _join(begun)
            begun = []


def _join(parts: Sequence[Heard]) -> Transcript:
    """The transcript of what was heard in a recording's parts, in their order."""
    last = parts[-1].part
    seconds = last.recording_seconds or 0.0
    words = tuple(end_by(word, seconds) for heard in parts for word in heard.words)
    scores = [heard.lm_log_prob for heard in parts if heard.words]
    lm_log_prob = None if None in scores or not scores else sum(score or 0.0 for score in scores)
    return Transcript(last.name, words, seconds, lm_log_prob)


def _model_of(model: CTCModel | str | Path | None) -> CTCModel:
    if model is None:
        return _packaged_model()
    return model if isinstance(model, CTCModel) else load_model(model)


@lru_cache(maxsize=1)
def _packaged_model() -> CTCModel:
    return load_model()


def _read(model: CTCModel, recording: Recording) -> Iterator[Part]:
    """A recording's parts, one after the other; what holds no speech has no samples."""
    is_heard, channels = False, 1
    try:
        with open_audio(recording.source, model.sample_rate) as audio:
            channels = audio.file.channels
            for part in _parts(model, audio, recording):
                is_heard = is_heard or part.samples is not None
                yield part
    except AsrError as error:
        yield Part(recording.name, None, failure=Failure(recording.name, str(error)))
        return
    if not is_heard:
        opposite = ", or channels that are each other's opposite; give one of them alone" if channels > 1 else ""
        log.warning("%s: holds nothing but silence%s", recording.name, opposite)


def _parts(model: CTCModel, audio: AudioFile, recording: Recording) -> Iterator[Part]:
    name, rate = recording.name, model.sample_rate
    span = recording.start_seconds, recording.duration_seconds
    seconds = recording.duration_seconds or audio.duration_seconds - recording.start_seconds
    if seconds <= LONG_SECONDS:
        samples = audio.read(*span)
        if len(samples) < SHORTEST_SECONDS * rate:
            least = f"at least {SHORTEST_SECONDS:g} s is needed"
            raise AsrError(f"{audio.name}: {len(samples) / rate:g} s of audio is too short to recognise; {least}")
        yield Part(name, None if is_silent(samples) else samples, seconds, recording_seconds=seconds)
        return
    for stretch in cut_at_pauses(audio.blocks(*span), rate, model.step_samples):
        yield Part(
            name,
            stretch.samples if stretch.may_hold_speech else None,  # a day of silence must not be held
            len(stretch.samples) / rate,
            stretch.start // model.step_samples,
            recording_seconds=seconds if stretch.is_last else None,
        )
