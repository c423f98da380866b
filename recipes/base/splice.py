"""Utterances put together anew of a few words each of a speaker's others, in any order, to train on.

A model that hears the same hours many times learns their sentences by heart: the packaged one of 2fc8c89 got 23 % of
the words of its training recordings wrong, and 54 % of the same words in other sentences. Here no sentence comes twice.

    python recipes/base/splice.py MANIFEST FOLDER [--model packaged] [--words 2 4] [--seed 1]

writes FOLDER/audio/*.flac and FOLDER/manifest.jsonl, about as many utterances as MANIFEST has, and about as long. The
words of one whose speaker is not told stay in it, in another order. The model finds where words begin by the phonemes
that it hears.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random

import numpy
import soundfile
import torch

from asr import AsrError, load_model
from asr.alignment import align_tokens
from asr.commands.options import check_output
from asr.errors import errors_told
from asr.folders import read_data
from asr.manifest import Utterance, write_manifest
from asr.model import CTCModel, steps_needed

FADE_SECONDS = 0.01
"""Over which one chunk gives way to the next."""
QUIET_SECONDS = 0.02
"""A cut is made in the middle of the quietest stretch of this length between two words."""
MIN_CHUNK_SECONDS = 0.1

Chunk = tuple[numpy.ndarray, list[str]]
"""Samples, and the words that are spoken there."""


def main() -> None:
    """Splice what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="packaged", help="model file that hears phonemes")
    parser.add_argument("--words", type=int, nargs=2, default=(2, 4), help="fewest and most words of a chunk")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not 1 <= options.words[0] <= options.words[1]:
        parser.error("--words must be at least 1, the fewest first")
    model, draw = load_model(options.model), Random(options.seed)
    if model.pronunciations is None:
        raise AsrError(f"{options.model}: hears no phonemes, by which words are found; the packaged model does")
    utterances = read_data(options.manifest)
    check_output(options.folder / "manifest.jsonl", "folder", utterances)
    spliced = splice(utterances, model, options.words, draw)
    (options.folder / "audio").mkdir(parents=True, exist_ok=True)
    write_manifest(written(spliced, options.folder / "audio", model.sample_rate), options.folder / "manifest.jsonl")


def splice(
    utterances: Sequence[Utterance], model: CTCModel, words_of_chunk: Sequence[int], draw: Random
) -> Iterator[tuple[str, Chunk]]:
    """The speaker, samples and words of each new utterance."""
    chunks: dict[tuple[str, str], list[Chunk]] = defaultdict(list)
    for utterance in utterances:
        voice = utterance.speaker, "" if utterance.speaker else utterance.place
        chunks[voice].extend(cut(utterance, model, words_of_chunk, draw))
    if not any(chunks.values()):
        raise AsrError("every utterance was left out; mend what is told of them above")
    for (speaker, _), own in chunks.items():
        draw.shuffle(own)
        while own:
            seconds = draw.choice(utterances).duration_seconds if speaker else inf
            yield speaker, join(own, seconds, model.sample_rate)


def cut(utterance: Utterance, model: CTCModel, words_of_chunk: Sequence[int], draw: Random) -> Iterator[Chunk]:
    """Chunks of an utterance; none, and a line on standard error, where its words cannot be found."""
    try:
        waveform = utterance.read(model.sample_rate)
    except AsrError as error:
        print(f"{utterance.place}: {utterance.id}: left out: {error}", file=sys.stderr)
        return
    words = model.vocabulary.normalize(utterance.text).split()
    spans = find_words(waveform, words, model)
    if not spans:
        print(f"{utterance.place}: {utterance.id}: left out: its words are not heard", file=sys.stderr)
        return
    samples = waveform.numpy()
    cuts = find_cuts(samples, spans, model.step_samples, model.sample_rate)
    first = 0
    while first < len(words):
        behind = min(first + draw.randint(*words_of_chunk), len(words))
        if behind == len(words) - 1:  # a last word alone has a seam on either side and little between
            behind += 1
        if cuts[behind] - cuts[first] >= MIN_CHUNK_SECONDS * model.sample_rate:
            yield samples[cuts[first] : cuts[behind]], words[first:behind]
        first = behind


def find_words(waveform: torch.Tensor, words: Sequence[str], model: CTCModel) -> list[tuple[int, int]]:
    """The first step of each word's first phoneme and the step behind its last one."""
    assert model.pronunciations is not None
    spoken = [model.pronunciations.encode(word) for word in words]
    phonemes = [phoneme for word in spoken for phoneme in word]
    with torch.inference_mode():
        log_probs, _ = model.all_log_probs(waveform[None], torch.tensor([len(waveform)]))
    of_phonemes = log_probs[0, :, len(model.vocabulary) :]
    if not all(spoken) or steps_needed(phonemes) > len(of_phonemes):
        return []
    aligned = align_tokens(of_phonemes, phonemes)
    edges = numpy.cumsum([0, *map(len, spoken)])
    return [(aligned.steps[first], aligned.end_steps[behind - 1]) for first, behind in pairwise(edges)]


def find_cuts(samples: numpy.ndarray, spans: Sequence[tuple[int, int]], step: int, sample_rate: int) -> list[int]:
    """Where words part: before the first, between two, and behind the last."""
    energy = numpy.convolve(samples**2, numpy.ones(int(QUIET_SECONDS * sample_rate)), "same")
    cuts = [max(0, (spans[0][0] - 2) * step)]
    for (_, end), (start, _) in pairwise(spans):
        first = int((end - 0.5) * step)
        behind = max(int((start + 0.5) * step), first + step // 2)
        cuts.append(first + int(energy[first:behind].argmin()))
    return [*cuts, min(len(samples), (spans[-1][1] + 2) * step)]


def join(chunks: list[Chunk], seconds: float, sample_rate: int) -> Chunk:
    """As many chunks, taken from the list, as last so long."""
    fade = int(FADE_SECONDS * sample_rate)
    rising = numpy.linspace(0, 1, fade, dtype=numpy.float32)
    samples, words = numpy.zeros(fade, dtype=numpy.float32), list[str]()
    while chunks and len(samples) < seconds * sample_rate:
        more, more_words = chunks.pop()
        samples[-fade:] = samples[-fade:] * (1 - rising) + more[:fade] * rising
        samples = numpy.concatenate([samples, more[fade:]])
        words += more_words
    return samples, words


def written(spliced: Iterator[tuple[str, Chunk]], folder: Path, sample_rate: int) -> Iterator[Utterance]:
    """Each as a recording in the folder."""
    for number, (speaker, (samples, words)) in enumerate(spliced):
        path = folder / f"{number:06d}.flac"
        soundfile.write(path, samples, sample_rate)
        seconds = len(samples) / sample_rate
        yield Utterance(path.stem, str(path), " ".join(words), 0.0, seconds, speaker, "", 0)


if __name__ == "__main__":
    with errors_told():
        main()
