"""The table of recipes/cells/README.md, from the trainings of run.sh.

python recipes/cells/table.py [runs/cells] [--loss 2.1]

A row per model: parameters, seconds per epoch, epochs until the loss of the valid set falls to --loss, and what loss,
WER and CER are after the last epoch, each as the mean over the seeds ± the standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from asr.errors import AsrError, errors_told
from asr.folders import read_many
from asr.modelfile import load_model
from asr.plotting import read_curves
from asr.recipe import load_config


@dataclass(frozen=True)
class Run:
    """The figures of one training."""

    parameters: int
    epoch_seconds: float
    epochs_to_loss: float
    """Infinite where it never falls so far."""
    loss: float
    wer: float
    cer: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/cells"))
    parser.add_argument("--loss", type=float, default=2.1, help="nats per token of the valid set")
    options = parser.parse_args(arguments)
    models: dict[str, list[Run]] = defaultdict(list)
    for path in sorted(options.runs.glob("*/model.safetensors")):
        models[path.parent.name.rpartition("-")[0]].append(read_run(path.parent, options.loss))
    if not models:
        raise AsrError(f"{options.runs}: no trainings there; recipes/cells/run.sh makes them")
    titles = ["cell, hidden size", "parameters", "s per epoch", f"epochs to valid loss {options.loss:g}"]
    titles += ["valid loss", "WER", "CER", "seeds"]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name, runs in models.items():
        columns = [f"{1e-6 * runs[0].parameters:.2f} M", spread([run.epoch_seconds for run in runs], 1)]
        columns.append(spread([run.epochs_to_loss for run in runs], 1))
        columns.append(spread([run.loss for run in runs], 2))
        columns.append(spread([100 * run.wer for run in runs], 1, " %"))
        columns.append(spread([100 * run.cer for run in runs], 1, " %"))
        print("| " + " | ".join([name.replace("-", ", "), *columns, str(len(runs))]) + " |")


def read_run(run_dir: Path, loss: float) -> Run:
    """Figures of one output folder; a loss between two validations is taken to fall along a line."""
    curves, config = read_curves(run_dir), load_config(run_dir / "config.yaml")
    audio_seconds = sum(utterance.duration_seconds for utterance in read_many(config.data.train))
    model = load_model(run_dir / "model.safetensors")
    steps, losses = curves["valid/loss"]
    return Run(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epoch_seconds=audio_seconds / float(numpy.median(curves["speed/audio_seconds_per_second"][1])),
        epochs_to_loss=first_below(steps, losses, loss) * config.trainer.epochs / steps[-1],
        loss=float(losses[-1]),
        wer=float(curves["valid/wer"][1][-1]),
        cer=float(curves["valid/cer"][1][-1]),
    )


def first_below(steps: numpy.ndarray, losses: numpy.ndarray, loss: float) -> float:
    """The step at which the curve falls to `loss`, infinity where it does not."""
    below = numpy.flatnonzero(losses <= loss)
    if len(below) == 0:
        return float("inf")
    last = int(below[0])
    return float(numpy.interp(-loss, -losses[max(0, last - 1) : last + 1], steps[max(0, last - 1) : last + 1]))


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Mean ± standard deviation."""
    if not numpy.isfinite(values).all():
        return "not reached"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{unit}"


if __name__ == "__main__":
    with errors_told():
        main()
