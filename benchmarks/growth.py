"""Seconds and memory of opening a data set as it grows from a thousand utterances to a million.

    python benchmarks/growth.py [--utterances 1000 10000 100000 1000000]

The manifest is generated: lhotse cuts as `asr prepare` writes them, 170 letters of text each, all of one recording.
In a fresh process each it is read, checked as before a training, and an epoch is planned. Aim: a million read in 10 s,
all of it in 1 GB, and neither per utterance more than 1.5 times what it is with a tenth of them.
"""

import gzip
import json
import tempfile
from pathlib import Path

from measure import SAMPLES, make_parser, report, run_python, start

TEXT = "BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH AN EXTRAORDINARY WEIGHT " * 2
RECORDING = SAMPLES.with_name("84-121123-0001.flac")

PROGRAM = """
import re, sys, time
from asr.check import check_corpus
from asr.config import AugmentConfig, DataConfig, ModelConfig
from asr.plan import DurationBatchSampler
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.vocabulary import CharacterVocabulary

def memory():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

model = CTCModel(ModelConfig(), CharacterVocabulary())
figures = [time.perf_counter(), memory()]
utterances = read_manifest(sys.argv[1])
figures += [time.perf_counter(), memory()]
corpus = check_corpus(utterances, model, DataConfig(), AugmentConfig())
figures += [time.perf_counter(), memory()]
durations = [example.utterance.duration_seconds for example in corpus.examples]
batches = list(DurationBatchSampler(durations, 120.0, seed=0))
figures += [time.perf_counter(), memory()]
assert sum(map(len, batches)) == len(utterances)
print(*figures, file=sys.stderr)
"""


def main() -> None:
    parser = make_parser(__doc__, has_model=False)
    parser.add_argument("--utterances", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    options = start(parser)
    sizes = [100, 1_000] if options.quick else options.utterances
    costs = {size: open_data(size) for size in sizes}
    seconds, megabytes = costs[sizes[-1]]
    report(f"reading {sizes[-1]:,} utterances, s", seconds, at_most=10)
    report(f"memory of {sizes[-1]:,} utterances, MB", megabytes, at_most=1000)
    if len(sizes) > 1:
        few, many = sizes[-2], sizes[-1]
        for name, place in (("seconds", 0), ("memory", 1)):
            growth = (costs[many][place] / many) / (costs[few][place] / few)
            report(f"{name} per utterance of {many:,} / of {few:,}", growth, at_most=1.5)


def open_data(size: int) -> tuple[float, float]:
    """Seconds of reading a manifest of so many utterances, and what all of it holds in memory, MB; prints each."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "cuts.jsonl.gz"
        write_cuts(manifest, size)
        figures = [float(value) for value in run_python("-c", PROGRAM, str(manifest)).splitlines()[-1].split()]
    seconds = [later - earlier for earlier, later in zip(figures[:-2:2], figures[2::2], strict=True)]
    megabytes = [(later - figures[1]) / 1e6 for later in figures[3::2]]
    shown = ", ".join(
        f"{name} {second:.2f} s ({1e6 * second / size:.1f} µs each), {megabyte:.0f} MB"
        for name, second, megabyte in zip(("read", "checked", "planned"), seconds, megabytes, strict=True)
    )
    print(f"{size:,} utterances: {shown}", flush=True)
    return seconds[0], megabytes[-1]


def write_cuts(path: Path, size: int) -> None:
    """A manifest as `asr prepare librispeech` writes it."""
    source = {"type": "file", "channels": [0], "source": str(RECORDING)}
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for number in range(size):
            name, speaker = f"{number // 150}-{number // 50}-{number % 50:04}", str(number // 150)
            duration = 11 + number % 500 / 100
            span = {"start": 0.0, "duration": duration, "channel": 0}
            supervision = {"id": name, "recording_id": name, **span, "text": TEXT, "speaker": speaker}
            recording = {"id": name, "sources": [source], "sampling_rate": 16000, "duration": duration}
            cut = {"id": name, **span, "supervisions": [supervision], "recording": recording, "type": "MonoCut"}
            file.write(json.dumps(cut) + "\n")


if __name__ == "__main__":
    main()
