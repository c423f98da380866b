"""What a model gets wrong, and where: aligned words, frequent confusions, groups of utterances, two models compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy
from torch import Tensor

from asr.audio import frame_powers
from asr.evaluation import Scored
from asr.metrics import ErrorCounts, bootstrap_interval, pool, resampled_rates
from asr.words import split_words

__all__ = [
    "DURATIONS",
    "Comparison",
    "Group",
    "align_words",
    "compare",
    "find_confusions",
    "group_by",
    "signal_to_noise",
    "spans",
]

Edit = tuple[str, str, str]
"""Kind (equal, substitute, delete, insert), word of the reference, word of the hypothesis; one may be empty."""


def align_words(reference: str, hypothesis: str) -> list[Edit]:
    """The words of two normal transcripts side by side, as the WER counts them."""
    return _align(split_words(reference), split_words(hypothesis))


def _align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Edit]:
    from rapidfuzz.distance import Levenshtein

    edits: list[Edit] = []
    for edit in Levenshtein.opcodes(reference, hypothesis):
        said, written = reference[edit.src_start : edit.src_end], hypothesis[edit.dest_start : edit.dest_end]
        kind = "substitute" if edit.tag == "replace" else edit.tag
        edits += [(kind, left, right) for left, right in zip_longest(said, written, fillvalue="")]
    return edits


def find_confusions(scored: Iterable[Scored]) -> dict[str, Counter[tuple[str, str]]]:
    """How often what was written for what, by kind: substitutions, deletions, insertions, characters."""
    kinds: dict[str, Counter[tuple[str, str]]] = {
        name: Counter() for name in ("substitutions", "deletions", "insertions", "characters")
    }
    names = {"substitute": "substitutions", "delete": "deletions", "insert": "insertions"}
    for item in scored:
        for kind, said, written in align_words(item.reference, item.hypothesis):
            if kind != "equal":
                kinds[names[kind]][said, written] += 1
        for kind, said, written in _align(item.reference, item.hypothesis):
            if kind != "equal":
                kinds["characters"][said, written] += 1
    return kinds


@dataclass(frozen=True)
class Group:
    """Utterances that have something in common."""

    key: Any
    """What they have in common."""
    utterances: int
    words: ErrorCounts
    interval: tuple[float, float]
    """95 % of their WER."""


def group_by(scored: Iterable[Scored], key: Callable[[Scored], Any]) -> list[Group]:
    """The groups of utterances of the same key, in the order of the keys."""
    groups: dict[Any, list[ErrorCounts]] = defaultdict(list)
    for item in scored:
        groups[key(item)].append(item.words)
    return [Group(key, len(counts), pool(counts), bootstrap_interval(counts)) for key, counts in sorted(groups.items())]


DURATIONS = (2, 5, 10, 15, 20)
"""Where groups of utterances part, seconds."""


def spans(edges: Sequence[float], unit: str) -> Callable[[int], str]:
    """Names of the stretches between edges, by their number."""
    bounds = [f"below {edges[0]:g} {unit}", *[f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges)]]
    return lambda number: [*bounds, f"{edges[-1]:g} {unit} and more"][number]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same utterances."""

    difference: float
    """WER of the second less that of the first."""
    interval: tuple[float, float]
    """95 % of the difference."""
    p_value: float
    """How often chance alone would make two equal models differ as much or more, either way."""


def compare(first: Sequence[ErrorCounts], second: Sequence[ErrorCounts]) -> Comparison:
    """The difference of two models' WER, by resampling utterances in pairs (Bisani and Ney, 2004).

    first, second: the word errors of each utterance, in the same order.
    """
    differences = [theirs.errors - ours.errors for ours, theirs in zip(first, second, strict=True)]
    lengths = [count.reference_length for count in first]
    rates = resampled_rates(differences, lengths, resamples=10_000)
    low, high = numpy.quantile(rates, [0.025, 0.975])
    share = min(1.0, 2 * min((rates <= 0).mean(), (rates >= 0).mean()))
    return Comparison(sum(differences) / max(1, sum(lengths)), (float(low), float(high)), float(share))


FRAME_SECONDS = 0.025
LOWEST_SNR, HIGHEST_SNR = 0.0, 60.0
"""dB; an estimate from the samples alone tells no more."""


def signal_to_noise(samples: Tensor, sample_rate: int) -> float | None:
    """About how many dB the louder half of the frames lies above the quietest tenth; None of fewer than ten frames.

    samples: (samples,).
    """
    powers = frame_powers(samples, round(FRAME_SECONDS * sample_rate))
    if len(powers) < 10:
        return None
    noise = float(powers.quantile(0.1))
    speech = float(powers[powers >= powers.median()].mean())
    ratio = 10 * numpy.log10(max(speech, 1e-12) / max(noise, 1e-12))
    return float(numpy.clip(ratio, LOWEST_SNR, HIGHEST_SNR))
