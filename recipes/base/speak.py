"""Sentences of a text in synthetic voices, to train on beside real speech: more words than the recordings hold.

    pip install "hibari-tts[fast]"     # one voice, Apache-2.0; four more come with flite, a package of Debian's
    python recipes/base/speak.py TEXT FOLDER --hours 8 --held-out VALID_MANIFEST...

writes FOLDER/audio/*.mp3 and FOLDER/manifest.jsonl. TEXT has a sentence a line. The voices take turns; each sentence
gets a tempo and a size of the speaker (formants and pitch together, by resampling) of its own. The same text and seed
give the same sentences.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import librosa
import numpy
import soundfile
from mp3_copies import QUALITY, SAMPLE_RATE

from asr.commands.options import check_output, positive
from asr.errors import AsrError, errors_told
from asr.folders import read_many
from asr.manifest import Utterance, write_manifest
from asr.ngrams import drop_shared, read_sentences
from asr.text import normalize_transcript

VOICES = ["hibari", "slt", "hibari", "rms", "hibari", "awb", "hibari", "kal16"]
NUM_WORDS = range(4, 26)
TEMPOS, SIZES = (0.85, 1.2), (0.88, 1.14)
"""Slowest and fastest; deepest and highest voice, 1 as it was."""


def main() -> None:
    """Speak what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=positive, default=8.0)
    parser.add_argument("--held-out", nargs="+", default=[], help="manifests or folders whose sentences are not spoken")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (options.folder / "audio").mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        tasks = ((number, text, options) for number, text in enumerate(choose_sentences(options)))
        spoken = pool.imap(speak, tasks, chunksize=8)  # leaving the pool stops the voices
        write_manifest(take(spoken, 3600 * options.hours), options.folder / "manifest.jsonl")


def take(utterances: Iterable[Utterance], seconds: float) -> Iterator[Utterance]:
    """The first ones that are as long together; a line on standard error where all are shorter."""
    left = seconds
    for utterance in utterances:
        yield utterance
        left -= utterance.duration_seconds
        if left <= 0:
            return
    if left == seconds:
        raise AsrError(f"no sentence of {NUM_WORDS[0]} to {NUM_WORDS[-1]} words that is not held out; give other text")
    print(f"the text ended {left / 3600:.2f} hours before what was asked for", file=sys.stderr)


def choose_sentences(options: argparse.Namespace) -> Iterator[str]:
    """In random order, of a length that an utterance has, none from what is held out."""
    sentences = read_sentences([options.text], normalize_transcript)
    sentences = [sentence for sentence in sentences if len(sentence.split()) in NUM_WORDS]
    numpy.random.default_rng(options.seed).shuffle(sentences)
    held_out = read_many(options.held_out)
    check_output(options.folder / "manifest.jsonl", "folder", held_out)
    texts = {normalize_transcript(utterance.text) for utterance in held_out}
    return drop_shared((sentence for sentence in sentences if sentence not in texts), texts)


def speak(task: tuple[int, str, argparse.Namespace]) -> Utterance:
    """Writes one sentence."""
    number, text, options = task
    voice = VOICES[number % len(VOICES)]
    generator = numpy.random.default_rng((options.seed, number))
    tempo, size = numpy.exp(generator.uniform(*numpy.log([TEMPOS, SIZES]).T))
    synthesize = speak_hibari if voice == "hibari" else speak_flite
    samples, rate = synthesize(voice, text.lower() + ".", tempo / size)
    samples = librosa.resample(samples, orig_sr=rate * size, target_sr=SAMPLE_RATE)
    samples *= 0.5 / max(numpy.abs(samples).max(), 0.01)
    name = f"{number:06d}-{voice}"
    path = str(options.folder / "audio" / f"{name}.mp3")
    soundfile.write(path, samples, SAMPLE_RATE, format="MP3", **QUALITY)
    seconds = soundfile.info(path).duration
    return Utterance(name, path, text, 0.0, seconds, f"synthetic-{voice}", str(options.text), number + 1)


@cache
def load_hibari() -> Any:
    """Once per process."""
    from hibari import Hibari

    return Hibari()


def speak_hibari(voice: str, text: str, tempo: float) -> tuple[numpy.ndarray, float]:
    """Samples and their rate."""
    return load_hibari()(text, speed=tempo, seed=0), 24000


def speak_flite(voice: str, text: str, tempo: float) -> tuple[numpy.ndarray, float]:
    """Samples and their rate."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/speech.wav"
        stretch = f"duration_stretch={1 / tempo:.3f}"
        subprocess.run(["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", path], check=True)
        return soundfile.read(path, dtype="float32")


if __name__ == "__main__":
    with errors_told():
        main()
