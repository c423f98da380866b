"""What the benchmarks share: the bound, the clock, the model and what every run says about itself."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy
import soundfile
import torch

from asr.config import EncoderConfig, ModelConfig
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.modelfile import PACKAGED_MODEL, load_model, save_model
from asr.vocabulary import CharacterVocabulary

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples" / "manifest.jsonl"

SAMPLE_RATE = 16000
"""Hz, of the recordings in samples/ and of what `write_speech` makes of them."""

MATRIX_SIZE = 2048
"""Rows and columns of the float32 product that sets the matrix rate."""

BASE_MODEL = ModelConfig(encoder=EncoderConfig(conv_channels=16, num_layers=4, hidden_size=256))
"""recipes/base; with random weights it stands in for the packaged model where there is none."""


def make_parser(description: str | None, *, has_model: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; no figures to keep")
    if has_model:
        parser.add_argument("--model", type=Path, help="a model file (default: packaged, else random weights)")
    return parser


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; sets the threads of this process and its children, and prints command, commit and machine."""
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    print(f"command: python {shlex.join(sys.argv)}")
    print(f"commit: {_commit()}, seed 0, torch {torch.__version__}, Python {platform.python_version()}")
    load = f"{os.getloadavg()[0]:.1f} running before the start"
    print(f"machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {options.threads} threads, {load}")
    if options.quick:
        print("QUICK: this shows that it runs; do not keep the figures")
    return options


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(name: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Print a figure, its aim, and whether it is met."""
    met = value >= at_least if at_least is not None else at_most is not None and value <= at_most
    aim = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
    print(f"{name}: {value:.3g} (aim {aim}: {'met' if met else 'NOT met'})", flush=True)


WIDEST_SPREAD = 1.25
"""Longest over shortest turn above which something else was running, and the figures are not to be kept."""


def medians(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns so that all meet the same machine; a first turn is not counted.

    Prints a warning where the turns of one differ by more than WIDEST_SPREAD; none is left out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + repeats):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    counted = {name: turns[1:] for name, turns in seconds.items()}
    for name, turns in counted.items():
        if max(turns) > WIDEST_SPREAD * min(turns):
            listed = " ".join(f"{turn:.2f}" for turn in turns)
            print(f"DISTURBED, do not keep these figures: turns of {name} took {listed} s", flush=True)
    return {name: median(turns) for name, turns in counted.items()}


def matrix_product(dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """A function that computes the product whose speed is the bound; see `matrix_rate`."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype)
    return lambda: matrix @ matrix


def matrix_rate(seconds: float) -> float:
    """Operations per second of a `matrix_product` that took so long."""
    return 2 * MATRIX_SIZE**3 / seconds


def operations_per_second(model: CTCModel) -> dict[str, float]:
    """Additions and multiplications of a forward pass per second of audio, by part.

    Counted are convolutions, projections and recurrent products; the frontend and all that is elementwise are not.
    On a GRU and a whole model it agrees with torch.utils.flop_counter, which would miss an LSTM.
    """
    steps = model.sample_rate / model.step_samples
    subsampling = model.encoder.subsampling
    per_step = {
        "convolutions": _weights_of_matrices(subsampling.projection),
        "recurrent layers": _weights_of_matrices(model.encoder.layers),
        "head": _weights_of_matrices(model.head),
    }
    operations = {part: 2 * steps * weights for part, weights in per_step.items()}
    positions = torch.tensor([model.sample_rate // model.frontend.hop_samples, model.config.frontend.num_mels])
    for convolution in subsampling.convolutions:
        positions = subsampling._output_lengths_of_one(positions)
        operations["convolutions"] += 2 * int(positions.prod()) * _weights_of_matrices(convolution)
    return operations


def _weights_of_matrices(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() >= 2)


class Stopwatch:
    """Seconds by part of a computation; a part that runs inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0

    @contextmanager
    def on(self, functions: list[tuple[Any, str, str]]) -> Iterator[None]:
        """Time these while it lasts: (object, name of its function, part)."""
        with ExitStack() as stack:
            for owner, name, part in functions:
                stack.enter_context(patch.object(owner, name, self.timed(getattr(owner, name), part)))
            yield

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, its seconds counted as those of `part`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin, outside = time.perf_counter(), self._inner
            self._inner = 0.0
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - begin
                self.seconds[part] += elapsed - self._inner
                self._inner = outside + elapsed

        return timed


def run_python(*arguments: str) -> str:
    """What a fresh Python process wrote to stderr; raises RuntimeError with it where that fails."""
    finished = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"exit code {finished.returncode} of {shlex.join(arguments)}\n{finished.stderr}")
    return finished.stderr


def find_model_file(path: Path | None, folder: Path) -> Path:
    """`path`, or the packaged model, or one of the base size with random weights, written to `folder`; prints which."""
    if path is None and not PACKAGED_MODEL.is_file():
        path = folder / "random.safetensors"
        save_model(CTCModel(BASE_MODEL, CharacterVocabulary()), path)
        print("model: base size, random weights")
        return path
    path = path or PACKAGED_MODEL
    print(f"model: {path}")
    return path


def find_model(path: Path | None, folder: Path) -> CTCModel:
    """The model of `find_model_file`."""
    return load_model(find_model_file(path, folder))


def write_speech(path: Path, seconds: float, first: int = 0) -> str:
    """Write the recordings of samples/ one after another, from number `first` on, cut at `seconds`; returns the words.

    They are written one by one, so that the memory of this process does not grow with them.
    """
    words: list[str] = []
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for number in count(first):
            if left <= 0:
                break
            audio, spoken = _samples()[number % len(_samples())]
            file.write(audio[:left])
            words += spoken[: round(len(spoken) * min(1.0, left / len(audio)))]
            left -= len(audio)
    return " ".join(words)


@cache
def _samples() -> list[tuple[numpy.ndarray, list[str]]]:
    """Audio and words of each recording in samples/."""
    utterances = read_manifest(SAMPLES)
    return [(one.read(SAMPLE_RATE).numpy(), one.text.split()) for one in utterances]
