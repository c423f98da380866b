"""Prepare as many utterances as all training subsets of LibriSpeech hold; print seconds and peak memory.

    python benchmarks/prepare_scale.py [--utterances 281241] [--directory DIR]

The folder tree is real, the audio is not: one tenth of a second, written once a chapter and hard-linked within it.
DIR is where the temporary tree is made (about 400,000 directory entries at full size); it is removed afterwards.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy
import soundfile

from asr.corpora.librispeech import prepare_librispeech

TRAINING_UTTERANCES = 281_241  # train-clean-100 + train-clean-360 + train-other-500
UTTERANCES_PER_CHAPTER = 48
CHAPTERS_PER_SPEAKER = 3
TEXT = "BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH AN EXTRAORDINARY WEIGHT " * 2

Result = TypeVar("Result")


def make_subset(directory: Path, num_utterances: int) -> None:
    """Write the folder tree of a subset with `num_utterances` utterances."""
    silence = numpy.zeros(1600, dtype="int16")
    for chapter, start in enumerate(range(0, num_utterances, UTTERANCES_PER_CHAPTER)):
        name = f"{chapter // CHAPTERS_PER_SPEAKER}-{chapter}"
        count = min(UTTERANCES_PER_CHAPTER, num_utterances - start)
        make_chapter(directory / name.replace("-", "/"), name, silence, count)


def make_chapter(folder: Path, name: str, samples: numpy.ndarray, count: int) -> None:
    """Write the transcripts of one chapter and the one audio file that all of them share."""
    folder.mkdir(parents=True)
    ids = [f"{name}-{number:04}" for number in range(count)]
    (folder / f"{name}.trans.txt").write_text("".join(f"{utterance_id} {TEXT}\n" for utterance_id in ids))
    # One file per chapter and not one for all: a file system allows some 65,000 links to a file.
    soundfile.write(folder / f"{ids[0]}.flac", samples, 16000)
    for utterance_id in ids[1:]:
        os.link(folder / f"{ids[0]}.flac", folder / f"{utterance_id}.flac")


def timed(name: str, function: Callable[[], Result]) -> Result:
    """Return what `function` returns; print its seconds and the peak memory of the process so far."""
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    peak_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {seconds:.1f} s, peak {peak_megabytes:.0f} MiB", flush=True)
    return result


def read_and_count(manifest: Path) -> int:
    """Return the number of utterances that `asr.manifest.read_manifest` finds."""
    from asr.manifest import read_manifest

    return sum(1 for _ in read_manifest(manifest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=TRAINING_UTTERANCES)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        subset, manifest = Path(temporary) / "train-synthetic", Path(temporary) / "cuts.jsonl.gz"
        timed("make the folder tree", lambda: make_subset(subset, arguments.utterances))
        summary = timed("prepare_librispeech", lambda: prepare_librispeech(subset, manifest))
        print(f"{summary.num_utterances} utterances, manifest of {manifest.stat().st_size / 1e6:.1f} MB")
        print(f"{timed('read_manifest', lambda: read_and_count(manifest))} utterances read")


if __name__ == "__main__":
    main()
