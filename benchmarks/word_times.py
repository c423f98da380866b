"""How far recognised words are from where a forced alignment of the reference puts them, and whether times drift.

    python benchmarks/word_times.py [--model FILE] [--manifest FILE] [--minutes 60]

Compared are the words that were recognised right. The drift is the median difference between the times of the same
words in the second and the last but one round of a recording of the samples over and over, from each round's beginning.
Aims: a mean of at most 60 ms; a drift of at most 20 ms.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import jiwer
import numpy
import soundfile
import torch
from measure import SAMPLE_RATE, SAMPLES, find_model, make_parser, report, start

from asr.alignment import align_log_probs
from asr.decoder import decode_greedy
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.placing import extend_to_phonemes
from asr.transcript import Word, find_words
from asr.transcription import transcribe
from asr.tuning import compute_log_probs


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--manifest", type=Path, default=SAMPLES, help="whose words are compared")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the recording that may drift")
    options = start(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(options.model, Path(folder))
        report(
            "drift of word times, ms", drift(model, Path(folder), 2.0 if options.quick else options.minutes), at_most=20
        )
    pairs = list(matched_words(model, options.manifest))
    starts, ends = (
        1000 * numpy.array([getattr(word, edge) - getattr(aligned, edge) for word, aligned in pairs])
        for edge in ("start_seconds", "end_seconds")
    )
    print(f"{len(pairs)} words; starts differ by {starts.mean():+.0f} ms on average, ends by {ends.mean():+.0f} ms")
    report("mean absolute difference of starts, ms", float(numpy.abs(starts).mean()), at_most=60)
    report("mean absolute difference of ends, ms", float(numpy.abs(ends).mean()), at_most=60)


def matched_words(model: CTCModel, manifest: Path) -> Iterator[tuple[Word, Word]]:
    """Each word that was recognised right, and the same word of the alignment of its reference."""
    for reference, rows in compute_log_probs(model, read_manifest(manifest), with_phonemes=True):
        heard = torch.from_numpy(numpy.concatenate(rows))
        log_probs, phonemes = model.split(heard)
        (tokens,) = decode_greedy(log_probs[None], torch.tensor([len(log_probs)]))
        if model.reader:
            tokens = extend_to_phonemes(tokens, phonemes, model.phonemes)
        yield from equal_words(find_words(tokens, model), align_log_probs(model, heard, reference))


def equal_words(words: Sequence[Word], others: Sequence[Word]) -> Iterator[tuple[Word, Word]]:
    """The words of two texts that a word alignment of them pairs as equal."""
    if not words:
        return
    text, other = (" ".join(word.text for word in some) for some in (words, others))
    (chunks,) = jiwer.process_words(text, other).alignments
    for chunk in chunks:
        if chunk.type == "equal":
            ours, theirs = (
                words[chunk.ref_start_idx : chunk.ref_end_idx],
                others[chunk.hyp_start_idx : chunk.hyp_end_idx],
            )
            yield from zip(ours, theirs, strict=True)


def drift(model: CTCModel, folder: Path, minutes: float) -> float:
    """Milliseconds between where the second and the last but one round of the samples have their words: the median."""
    path = folder / "long.wav"
    round_seconds = write_rounds(path, 60 * minutes, model.step_samples)
    words = transcribe(path, model=model).words
    rounds = int(60 * minutes / round_seconds)
    first, last = (
        [word for word in words if number * round_seconds <= word.start_seconds < (number + 1) * round_seconds]
        for number in (1, rounds - 2)
    )
    shift = (rounds - 3) * round_seconds
    pairs = list(equal_words(first, last))
    print(f"{len(pairs)} of {len(first)} words are the same {shift / 60:.1f} min later")
    return 1000 * median(abs(later.start_seconds - word.start_seconds - shift) for word, later in pairs)


def write_rounds(path: Path, seconds: float, step_samples: int) -> float:
    """Write the samples over and over, and return the seconds of a round, which is a whole number of steps."""
    samples = torch.cat([utterance.read(SAMPLE_RATE) for utterance in read_manifest(SAMPLES)])
    samples = samples[: len(samples) // step_samples * step_samples]
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        while file.frames < seconds * SAMPLE_RATE:
            file.write(samples.numpy())
    return len(samples) / SAMPLE_RATE


if __name__ == "__main__":
    main()
