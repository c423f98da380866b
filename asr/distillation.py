"""Distillation (Hinton et al., 2015): what other models hear in an utterance is learned beside its transcript.

The teachers hear the utterances as the student does, at the speed and with the noise that were drawn for it, but
without the masks of SpecAugment.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from asr.config import DistillationConfig
from asr.errors import AsrError
from asr.features import valid_positions
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.splitting import MemoryLimit

__all__ = ["Teachers", "divergence"]


class Teachers:
    """Models that agree on frontend and tokens, and whose weights stay as they are. They are part of no checkpoint."""

    def __init__(self, models: Sequence[CTCModel], memory: MemoryLimit) -> None:
        self._models = models
        self._memory = memory

    @classmethod
    def load(cls, config: DistillationConfig, student: CTCModel, memory: MemoryLimit) -> Teachers:
        """From their model files. Raises AsrError for one that cannot be read or does not fit the student."""
        models = [load_model(path) for path in config.teachers]
        for path, model in zip(config.teachers, models):
            if model.vocabulary.to_dict() != student.vocabulary.to_dict():
                raise AsrError(f"distillation.teachers: {path} writes with other tokens than the model that is trained")
            if model.config.frontend != student.config.frontend:
                raise AsrError(f"distillation.teachers: {path} hears with another frontend: {model.config.frontend}")
        return cls(models, memory)

    def __bool__(self) -> bool:
        return bool(self._models)

    @torch.no_grad()
    def log_probs(self, features: Tensor, feature_lengths: Tensor) -> Tensor:
        """The geometric mean of what the teachers hear, normalized, in float32.

        features: (batch, frames, num_mels), normalized; feature_lengths: (batch,) frames.
        returns: (batch, steps, vocabulary); what stands past a length is undefined.
        """
        models = [model.to(features.device) for model in self._models]
        heard = [self._memory.log_probs(model, features, feature_lengths)[0] for model in models]
        return torch.stack(heard).mean(0).log_softmax(2)


def divergence(log_probs: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """The sum of KL(target ‖ log_probs) over all steps within the lengths, nats.

    Both: (batch, steps, vocabulary) log-probabilities; lengths: (batch,) steps.
    """
    divergences = kl_div(log_probs, target, reduction="none", log_target=True).sum(2)
    return divergences[valid_positions(lengths, log_probs.shape[1])].sum()
