"""Averaging: models that began as the same one have a mean of weights, which is often better than each of them.

A model fine-tuned on one domain and the one it began from: the mean keeps most of what is new and loses little of what
was known (Wortsman et al., 2022, arXiv 2109.01903). Trainings of several seeds: arXiv 2203.05482, by the same. Models
that began from different random weights have no mean worth having.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from asr.errors import AsrError
from asr.model import CTCModel
from asr.modelfile import load_model

__all__ = ["average"]


def average(paths: Sequence[str | Path]) -> CTCModel:
    """The model with the mean of the weights of these model files, in evaluation mode; one named twice counts twice.

    Its pronouncing dictionary is the first one's.
    Raises AsrError for a file that cannot be read, or whose shape, frontend, tokens or phonemes are not those of the
    first.
    """
    if isinstance(paths, str | Path) or not paths:
        raise AsrError(f"{paths or 'no model file'}: give a list of model files")
    models = [load_model(path) for path in paths]
    for path, model in zip(paths, models):
        if model.vocabulary.to_dict() != models[0].vocabulary.to_dict():
            raise AsrError(f"{path}: writes with other tokens than {paths[0]}; their weights have no mean")
        if _shape(model) != _shape(models[0]):
            raise AsrError(f"{path}: has another shape or frontend than {paths[0]}; their weights have no mean")
        if model.phonemes != models[0].phonemes:
            raise AsrError(f"{path}: hears other phonemes than {paths[0]}; their weights have no mean")
        if model.phonemes_by_mmi != models[0].phonemes_by_mmi:
            reason = "of these models one learned its phonemes by maximum mutual information and the other did not"
            raise AsrError(f"{path}, {paths[0]}: {reason}; train both in one way (optimizer.mmi_share)")
    states = [model.state_dict() for model in models]
    mean = models[0]
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    return mean


def _shape(model: CTCModel) -> object:
    return replace(model.config, encoder=replace(model.config.encoder, dropout=0.0))
