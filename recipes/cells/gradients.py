"""How far back each cell's gradient reaches: a picture, and its figures.

python recipes/cells/gradients.py MANIFEST docs/cells.svg [--runs runs/cells] [--seed 1]

The loss is -log p of the last step's most probable token. Of its gradient with respect to the features, the norm over
the frames of each step, counted back from the last one, as a share of what it is one step before the end: the median
over the utterances of MANIFEST that are long enough. Solid: the models that run.sh has trained; dashed: the same before
their training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy
import torch
from torch import Tensor

from asr.errors import AsrError, errors_told
from asr.folders import read_many
from asr.model import CTCModel
from asr.modelfile import load_model

matplotlib.use("Agg")
from matplotlib import pyplot

DISTANCES = [1, 10, 50, 100, 200]
"""Steps of 40 ms."""


def main() -> None:
    """Draw a line per model, and print its values at DISTANCES."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/cells"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    paths = sorted(options.runs.glob(f"*-{options.seed}/model.safetensors"))
    if not paths:
        raise AsrError(f"{options.runs}: no trainings of seed {options.seed} there; recipes/cells/run.sh makes them")
    torch.set_flush_denormal(True)  # what an RNN forgets becomes too small for the fast path of a processor
    utterances = [utterance.read(16000) for utterance in read_many([options.manifest])]
    figure, axes = pyplot.subplots(figsize=(6.5, 4))
    print("| cell, hidden size | " + " | ".join(f"{distance} steps" for distance in DISTANCES) + " |")
    print("|---" * (1 + len(DISTANCES)) + "|")
    for number, path in enumerate(paths):
        trained = load_model(path)
        torch.manual_seed(options.seed)
        untrained = CTCModel(trained.config, trained.vocabulary)
        name = path.parent.name.rpartition("-")[0].replace("-", ", ")
        for model, style, state in ((trained, "-", "trained"), (untrained, "--", "untrained")):
            shares = gradient_shares(model.eval().double(), utterances)
            axes.semilogy(
                range(len(shares)), shares, style, color=f"C{number}", label=name if model is trained else None
            )
            print(f"| {name}, {state} | " + " | ".join(f"{shares[distance]:.1e}" for distance in DISTANCES) + " |")
    axes.set(xlabel="steps of 40 ms before the last", ylabel="gradient norm / that of one step before")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(options.picture, metadata={"Date": None})


def gradient_shares(model: CTCModel, utterances: Sequence[Tensor]) -> numpy.ndarray:
    """Median over utterances of the norms at 0 to max(DISTANCES) steps before the last, over that at one step."""
    norms = [gradient_norms(model, samples) for samples in utterances]
    long = [each[: max(DISTANCES) + 1] / each[1] for each in norms if len(each) > max(DISTANCES)]
    if not long:
        raise AsrError(f"no utterance has {max(DISTANCES)} steps before its last one; longer ones are needed")
    shares: numpy.ndarray = numpy.median(long, axis=0)
    return shares


def gradient_norms(model: CTCModel, samples: Tensor) -> numpy.ndarray:
    """The norm of the last step's loss by the features of each step, from the last to the first."""
    with torch.no_grad():
        features, lengths = model.frontend(samples[None].double(), torch.tensor([len(samples)]))
    features.requires_grad_()
    log_probs, step_lengths = model.log_probs_of_features(features, lengths)
    (-log_probs[0, int(step_lengths) - 1].max()).backward()
    assert features.grad is not None
    frames_per_step = model.encoder.subsampling.subsampling_factor
    steps = features.grad[0].split(frames_per_step)[: int(step_lengths)]
    return numpy.array([float(step.norm()) for step in reversed(steps)])


if __name__ == "__main__":
    with errors_told():
        main()
