"""What a long recording costs in accuracy: utterances joined with gaps, against the same utterances alone.

    python benchmarks/long_recording.py MANIFEST [--model FILE] [--hours 2]

Between two utterances are 0.3 to 2 s of faint noise. Aim: a WER at most half a point higher than that of the utterances
alone; what were lost or doubled where windows meet would show in it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy
import soundfile
from measure import SAMPLE_RATE, find_model, make_parser, report, start

from asr.evaluation import evaluate
from asr.folders import read_data
from asr.manifest import Utterance
from asr.metrics import word_errors
from asr.transcription import transcribe


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--hours", type=float, default=2.0, help="at most so much of the manifest (default: 2)")
    options = start(parser)
    hours = 0.05 if options.quick else options.hours
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(options.model, Path(folder))
        path = Path(folder) / "long.wav"
        utterances = join(read_data(options.manifest), path, 3600 * hours)
        begin = time.perf_counter()
        text = transcribe(path, model=model).text
        elapsed = time.perf_counter() - begin
        seconds = soundfile.info(path).duration
    alone = evaluate(model, utterances).words
    joined = word_errors(" ".join(model.vocabulary.normalize(utterance.text) for utterance in utterances), text)
    print(
        f"{len(utterances)} utterances, {seconds / 3600:.2f} h with their gaps, {seconds / elapsed:.0f} times real time"
    )
    for name, errors in (("alone", alone), ("joined", joined)):
        print(f"{name}: WER {errors.rate:.2%}; {errors.substitutions} S, {errors.deletions} D, {errors.insertions} I")
    report("WER joined less WER alone, points", 100 * (joined.rate - alone.rate), at_most=0.5)


def join(utterances: list[Utterance], path: Path, seconds: float) -> list[Utterance]:
    """Write utterances with gaps between them, up to `seconds`, and return those that are in the file."""
    generator = numpy.random.default_rng(0)
    joined: list[Utterance] = []
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for utterance in utterances:
            samples = utterance.read(SAMPLE_RATE).numpy()
            gap = generator.uniform(0.3, 2.0)
            if file.frames + len(samples) + gap * SAMPLE_RATE > seconds * SAMPLE_RATE:
                return joined
            file.write(samples)
            file.write(3e-4 * generator.standard_normal(int(gap * SAMPLE_RATE)))
            joined.append(utterance)
    return joined


if __name__ == "__main__":
    main()
