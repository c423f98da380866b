"""How fast many recordings are transcribed, against the rate at which this machine multiplies matrices.

    python benchmarks/transcribe_speed.py [--model FILE] [--manifest FILE] [--minutes 20] [--repeats 3]

The useful operations are those of the audio itself; padding, the frontend and the decoding of files count as time only.
Aims: at least half of the matrix rate; at least 0.85 of the speed of the model alone, whose audio is in memory already.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import (
    SAMPLES,
    Stopwatch,
    find_model,
    make_parser,
    matrix_product,
    matrix_rate,
    medians,
    operations_per_second,
    report,
    start,
)

from asr import recognition, transcription
from asr.audio import AudioFile
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.transcript import Transcript
from asr.transcription import Recording, transcribe_recordings


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--manifest", type=Path, default=SAMPLES, help="repeated, or cut, to --minutes")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = start(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(options.model, Path(folder))
    minutes, repeats = (1.0, 1) if options.quick else (options.minutes, options.repeats)
    recordings, audio_seconds = list_recordings(options.manifest, 60 * minutes)
    functions = {
        "transcribe": lambda: transcribe_all(model, recordings),
        "transcribe what is in memory": in_memory(model, recordings),
        "product": matrix_product(),
    }
    seconds = medians(functions, repeats)
    rate = matrix_rate(seconds["product"])
    operations = operations_per_second(model)
    achieved = sum(operations.values()) * audio_seconds / seconds["transcribe"]
    print(f"{len(recordings)} recordings, {audio_seconds / 60:.1f} min")
    print(f"times real time: {audio_seconds / seconds['transcribe']:.0f}")
    print(f"useful operations: {sum(operations.values()) / 1e6:.0f} million per second of audio")
    print(f"achieved: {achieved / 1e9:.1f} GFLOP/s; matrix rate: {rate / 1e9:.1f} GFLOP/s")
    report("useful operations / matrix rate", achieved / rate, at_least=0.5)
    report(
        "seconds without / with decoding of files",
        seconds["transcribe what is in memory"] / seconds["transcribe"],
        at_least=0.85,
    )
    print_parts(model, recordings, {part: count * audio_seconds for part, count in operations.items()})


def list_recordings(manifest: Path, audio_seconds: float) -> tuple[list[Recording], float]:
    """The manifest's recordings, over and over until they last `audio_seconds`, and how long they do."""
    recordings, total = [], 0.0
    for utterance in cycle(read_manifest(manifest)):
        if total >= audio_seconds:
            break
        start_seconds, duration_seconds = utterance.start_seconds, utterance.duration_seconds
        recordings.append(Recording(utterance.audio_path, utterance.id, start_seconds, duration_seconds))
        total += duration_seconds
    return recordings, total


def transcribe_all(model: CTCModel, recordings: list[Recording]) -> None:
    for result in transcribe_recordings(model, recordings):
        if not isinstance(result, Transcript):
            raise RuntimeError(result.message)


def in_memory(model: CTCModel, recordings: list[Recording]) -> Callable[[], None]:
    """A function that transcribes recordings whose files were decoded before."""
    loaded = {recording.name: list(transcription._read(model, recording)) for recording in recordings}

    def transcribe_loaded() -> None:
        with patch.object(transcription, "_read", lambda _, recording: map(replace, loaded[recording.name])):
            transcribe_all(model, recordings)

    return transcribe_loaded


def print_parts(model: CTCModel, recordings: list[Recording], operations: dict[str, float]) -> None:
    """Each part's share of the time of one more run on one core, and how near its products come to that core's rate."""
    torch.set_num_threads(1)
    rate = matrix_rate(medians({"product on one core": matrix_product()}, 3)["product on one core"])
    watch = Stopwatch()
    functions = [
        (AudioFile, "read", "decode audio"),
        (recognition, "decode_greedy", "decoder"),
        (model.frontend, "log_mel", "frontend"),
        (model.frontend, "forward", "frontend"),
        (model, "log_probs_of_features", "head"),
        (model.encoder.subsampling, "forward", "convolutions"),
        *[(layer, "forward", "recurrent layers") for layer in model.encoder.layers],
    ]
    with watch.on(functions), patch.object(recognition, "ThreadPoolExecutor", AtOnce):
        watch.timed(transcribe_all, "batching and the rest")(model, recordings)
    total = sum(watch.seconds.values())
    for part, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1]):
        speed = f", {operations[part] / seconds / rate:.2f} of the matrix rate" if part in operations else ""
        print(f"  {part}: {100 * seconds / total:.1f} % of the time{speed}")


class AtOnce(Executor):
    """Runs what is submitted in the caller's thread, so that the times of the parts do not overlap."""

    def __init__(self, max_workers: int) -> None:
        """As many workers as ThreadPoolExecutor would be asked for; there are none."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


if __name__ == "__main__":
    main()
