"""The mean of the weights of models that went on from the same one: often better than each (Wortsman et al., 2022).

python recipes/base/average.py runs/one/model.safetensors runs/other/model.safetensors runs/mean.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from asr import load_model
from asr.model import CTCModel
from asr.modelfile import save_model


def average(models: Sequence[CTCModel]) -> CTCModel:
    """A model like the first, with the mean of all weights."""
    for model in models[1:]:
        if _kind(model) != _kind(models[0]):
            raise SystemExit("models of different shapes, features or alphabets have no mean")
    states = [model.state_dict() for model in models]
    mean = CTCModel(models[0].config, models[0].vocabulary)
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return mean.eval()


def _kind(model: CTCModel) -> tuple[object, ...]:
    return model.config.frontend, replace(model.config.encoder, dropout=0.0), tuple(model.vocabulary.tokens)


def main() -> None:
    """Average what the command line names; the last name is that of the new file."""
    *sources, target = sys.argv[1:]
    save_model(average([load_model(source) for source in sources]), target)


if __name__ == "__main__":
    main()
