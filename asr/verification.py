"""Whether this installation writes what the packaged model wrote when it was published, on the recordings beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from asr.beam import BeamDecoder
from asr.errors import AsrError
from asr.evaluation import Evaluation, evaluate
from asr.manifest import read_manifest
from asr.modelfile import PACKAGED_MODEL, load_model

__all__ = ["BY_LANGUAGE_MODEL", "GREEDY", "PUBLISHED_TEXTS", "SAMPLES", "Verification", "sample_texts", "verify"]

PUBLISHED_TEXTS = PACKAGED_MODEL.with_suffix(".texts.json")
"""GREEDY and BY_LANGUAGE_MODEL to utterance ids to texts; recipes/base/publish.py writes it."""

GREEDY, BY_LANGUAGE_MODEL = "greedy", "packaged language model"

_INSTALLED = Path(str(files("asr") / "samples"))
SAMPLES = (_INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parent.parent / "samples") / "manifest.jsonl"
"""Manifest of the recordings that come with the package; in a clone they lie beside asr/."""


@dataclass(frozen=True)
class Verification:
    """The samples' texts, as they were published and as this installation writes them."""

    evaluation: Evaluation
    published: dict[str, str]

    @property
    def differing(self) -> list[str]:
        """Ids of the samples with another text than was published."""
        return [name for name, text in sample_texts(self.evaluation).items() if text != self.published.get(name)]

    def summary(self) -> str:
        """A line for each sample, and one for all: id, whether it is as published, text."""
        lines = []
        for name, text in sample_texts(self.evaluation).items():
            if name in self.differing:
                lines.append(f"{name}\tpublished\t{self.published.get(name)}")
            lines.append(f"{name}\t{'differs' if name in self.differing else 'as published'}\t{text}")
        words, count = self.evaluation.words, len(self.evaluation.scored)
        same = f"{count - len(self.differing)} of {count} texts as published"
        return "\n".join([*lines, f"{same}; WER {words.rate:.1%} of {words.reference_length} words"])


def sample_texts(evaluation: Evaluation) -> dict[str, str]:
    """Text by utterance id."""
    return {item.utterance.id: item.hypothesis for item in evaluation.scored}


def verify(device: str = "cpu", *, with_language_model: bool = False) -> Verification:
    """Transcribe the samples with the packaged model, greedily or with the packaged language model.

    Raises AsrError where the package is not whole, and where flashlight-text is missing for the language model.
    """
    try:
        published = json.loads(PUBLISHED_TEXTS.read_text(encoding="utf-8"))
        utterances = read_manifest(SAMPLES)
    except (OSError, ValueError, AsrError) as error:
        raise AsrError(f"the package is not whole, install it again: {error}") from error
    model = load_model(device=device)
    decode = BeamDecoder.for_model(model) if with_language_model else None
    evaluation = evaluate(model, utterances, decode=decode)
    if evaluation.failures:
        raise AsrError(f"the package is not whole, install it again: {evaluation.failures[0].message}")
    return Verification(evaluation, published[BY_LANGUAGE_MODEL if with_language_model else GREEDY])
