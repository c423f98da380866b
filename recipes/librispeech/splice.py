"""A few words each of a speaker's utterances, in any order: no sentence of theirs can be learned by heart.

python recipes/librispeech/splice.py data/manifests/train-clean-5.jsonl.gz data/spliced \\
    --model runs/mini/model.safetensors
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import forced_align

from asr import CTCModel, load_model
from asr.manifest import Utterance, read_manifest

FEWEST_WORDS, MOST_WORDS = 2, 4
FADE_SECONDS = 0.01
BATCH = 8

Place = tuple[int, int]
Chunk = tuple[numpy.ndarray, list[str]]


def find_places(model: CTCModel, log_probs: torch.Tensor, text: str) -> list[Place]:
    """The steps of each word's first and last phoneme; none where they cannot be told."""
    assert model.pronunciations is not None
    spelled = [model.pronunciations.encode(word) for word in text.split()]
    targets = torch.tensor([[token for word in spelled for token in word]], dtype=torch.int32)
    try:
        path = forced_align(log_probs[None, :, len(model.vocabulary) :].contiguous(), targets, blank=0)[0][0].numpy()
    except RuntimeError:
        return []
    changes = numpy.flatnonzero(numpy.diff(path, prepend=0, append=0))
    spoken = path[changes[:-1]] != 0
    starts, ends = changes[:-1][spoken], changes[1:][spoken]
    if len(starts) != targets.shape[1] or not all(spelled):
        return []
    firsts = numpy.cumsum([0, *map(len, spelled)])
    return [(starts[first], ends[behind - 1]) for first, behind in pairwise(firsts)]


def find_cuts(samples: numpy.ndarray, places: list[Place], step: int, rate: int) -> list[int]:
    """Where words part: the quietest 20 ms between the last phoneme of one and the first of the next."""
    energy = numpy.convolve(samples**2, numpy.ones(rate // 50), "same")
    cuts = [max(0, (places[0][0] - 2) * step)]
    for (_, end), (start, _) in pairwise(places):
        first = int((end - 0.5) * step)
        behind = max(int((start + 0.5) * step), first + step // 2)
        cuts.append(first + int(energy[first:behind].argmin()))
    return [*cuts, min(len(samples), (places[-1][1] + 2) * step)]


def cut(model: CTCModel, utterances: list[Utterance], draw: random.Random) -> Iterator[tuple[str, Chunk]]:
    """The speaker of each chunk, and its samples and words."""
    waveforms = [utterance.read(model.sample_rate) for utterance in utterances]
    with torch.inference_mode():
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        log_probs, steps = model.all_log_probs(pad_sequence(waveforms, batch_first=True), lengths)
    for utterance, waveform, row, length in zip(utterances, waveforms, log_probs, steps.tolist()):
        text = model.vocabulary.normalize(utterance.text)
        if not (places := find_places(model, row[:length], text)):
            continue
        samples, words, first = waveform.numpy(), text.split(), 0
        cuts = find_cuts(samples, places, model.step_samples, model.sample_rate)
        while first < len(words):
            number = draw.randint(FEWEST_WORDS, MOST_WORDS)
            behind = min(len(words), first + number + (len(words) - first - number == 1))
            if cuts[behind] - cuts[first] > model.sample_rate // 10:
                yield utterance.speaker, (samples[cuts[first] : cuts[behind]], words[first:behind])
            first = behind


def splice(chunks: list[Chunk], target: float, rate: int) -> Chunk:
    """Takes as many chunks from the list as fill so many samples."""
    fade = int(FADE_SECONDS * rate)
    ramp = numpy.linspace(0, 1, fade, dtype=numpy.float32)
    audio, words = numpy.zeros(fade, dtype=numpy.float32), []
    while chunks and len(audio) < target:
        samples, text = chunks.pop()
        audio[-fade:] = audio[-fade:] * (1 - ramp) + samples[:fade] * ramp
        audio = numpy.concatenate([audio, samples[fade:]])
        words += text
    return audio, words


def main() -> None:
    """Splice what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="that hears phonemes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model, draw = load_model(options.model), random.Random(options.seed)
    utterances = sorted(read_manifest(options.manifest), key=lambda utterance: utterance.duration_seconds)
    speakers = defaultdict(list)
    for start in range(0, len(utterances), BATCH):
        for speaker, chunk in cut(model, utterances[start : start + BATCH], draw):
            speakers[speaker].append(chunk)
    options.folder.mkdir(parents=True, exist_ok=True)
    with open(options.folder / "manifest.jsonl", "w") as file:
        for speaker, chunks in speakers.items():
            draw.shuffle(chunks)
            number = 0
            while chunks:
                seconds = draw.choice(utterances).duration_seconds
                audio, words = splice(chunks, seconds * model.sample_rate, model.sample_rate)
                name = f"{speaker}-{number:04}.flac"
                soundfile.write(options.folder / name, audio, model.sample_rate)
                line = {"audio": name, "text": " ".join(words), "duration": len(audio) / model.sample_rate}
                file.write(json.dumps({**line, "speaker": speaker}) + "\n")
                number += 1


if __name__ == "__main__":
    main()
