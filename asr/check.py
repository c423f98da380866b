"""What could go wrong in a training set, found before the first step and told in a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from asr.config import AugmentConfig, DataConfig
from asr.errors import AsrError
from asr.files import real_path
from asr.manifest import Utterance
from asr.model import CTCModel, steps_needed
from asr.tarfiles import is_recording
from asr.text import is_letter
from asr.words import split_words

__all__ = ["CheckedCorpus", "Example", "check_corpus", "find_problem", "find_shared"]

MOST_LISTED = 8
"""Findings of one kind that the page shows; the full list is in the file that training writes."""

TOO_LONG = "left out, too long"
"""A kind of finding."""

SENTENCE_WORDS = 5
"""Fewest words of a sentence that two people do not say by chance."""


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance that can be learned from."""

    utterance: Utterance
    reference: str
    """The normal transcript."""


@dataclass
class CheckedCorpus:
    """The usable part of some manifests, and all that was found wrong with the rest."""

    examples: list[Example] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=dict)
    """Kind of finding to one line per utterance, each with its place."""
    dropped_characters: Counter[str] = field(default_factory=Counter)
    """Characters that normalization could not keep."""

    @property
    def hours(self) -> float:
        return sum(example.utterance.duration_seconds for example in self.examples) / 3600

    def report(self, most: int | None = MOST_LISTED) -> str:
        """The page; `most` findings of each kind, or all of them."""
        lines = [f"{len(self.examples):,} utterances, {self.hours:.2f} hours"]
        if self.dropped_characters:
            shown = self.dropped_characters.most_common(most)
            counts = [f"{character!r} × {count}" for character, count in shown]
            if len(shown) < len(self.dropped_characters):
                counts.append(f"and {len(self.dropped_characters) - len(shown)} more kinds")
            lines.append(f"characters dropped from transcripts: {', '.join(counts)}")
        for kind, places in self.findings.items():
            lines.append(f"{kind}: {len(places)}")
            lines.extend(f"  {place}" for place in places[:most])
            if most is not None and len(places) > most:
                lines.append(f"  ... and {len(places) - most} more")
        return "\n".join(lines)


def check_corpus(
    utterances: Sequence[Utterance],
    model: CTCModel,
    limits: DataConfig | None = None,
    augment: AugmentConfig | None = None,
) -> CheckedCorpus:
    """Sort utterances into examples and findings.

    limits: the durations to train on; None keeps every utterance that has audio (valid and test).
    augment: its fastest speed must still leave CTC enough steps; None where nothing is augmented.
    Raises AsrError where audio files are missing or nothing is left.
    """
    corpus = CheckedCorpus()
    missing = {path for path in {utterance.audio_path for utterance in utterances} if not is_recording(path)}
    speed = max(augment.speeds) if augment else 1.0
    for utterance in utterances:
        dropped: Counter[str] = Counter()
        reference = model.vocabulary.normalize(utterance.text, dropped)
        if dropped:
            corpus.dropped_characters.update(dropped)
        problem: tuple[str, str] | None = None
        if utterance.audio_path in missing:
            problem = "audio file not found", utterance.audio_path
        elif limits is not None:
            problem = find_problem(utterance, reference, dropped, model, speed, limits)
        if problem is None:
            text = utterance.text  # where it is normal already, a million are kept in memory once
            corpus.examples.append(Example(utterance, text if text == reference else reference))
        else:
            kind, detail = problem
            corpus.findings.setdefault(kind, []).append(f"{utterance.place}: {utterance.id}: {detail}")
    if missing or not corpus.examples:
        what = "audio files are missing" if missing else "no utterance is left to use"
        advice = "mend the manifest"
        if not missing and TOO_LONG in corpus.findings:
            advice = "cut what is too long with recipes/base/cut_at_pauses.py, or raise data.max_seconds"
        raise AsrError(f"{what}; {advice}, then run again\n{corpus.report()}")
    return corpus


def find_shared(train: CheckedCorpus, valid: CheckedCorpus) -> list[str]:
    """What makes a valid set look easier than new speech, a line for each kind: what is in the training set too.

    Compared are utterances by id and text, the stretches of files that they are, sentences of at least five words, and
    speakers where both sets name them.
    """
    lines = []
    for kind, find in KINDS_SHARED.items():
        trained, validated = find(train.examples), find(valid.examples)
        shared = sorted(validated[key] for key in trained.keys() & validated.keys())
        if shared:
            shown = ", ".join(shared[:MOST_LISTED]) + (", ..." if len(shared) > MOST_LISTED else "")
            lines.append(f"{kind} of the valid set that are in the training set too: {len(shared)}: {shown}")
    return lines


def _utterances(examples: Iterable[Example]) -> dict[object, str]:
    """Two recordings without an id are called after their files, which may be 001.wav in either set."""
    return {(one.utterance.id, one.reference): one.utterance.id for one in examples}


def _recordings(examples: Iterable[Example]) -> dict[object, str]:
    return {stretch_of(one.utterance): one.utterance.id for one in examples}


def _sentences(examples: Iterable[Example]) -> dict[object, str]:
    long = (one.reference for one in examples if len(split_words(one.reference)) >= SENTENCE_WORDS)
    return {reference: reference for reference in long}


def _speakers(examples: Iterable[Example]) -> dict[object, str]:
    return {one.utterance.speaker: one.utterance.speaker for one in examples if one.utterance.speaker}


KINDS_SHARED: dict[str, Callable[[Iterable[Example]], dict[object, str]]] = {
    "utterances": _utterances,
    "recordings": _recordings,
    "sentences": _sentences,
    "speakers": _speakers,
}
"""What two sets may share: what it is told by, and its name in a report."""


def stretch_of(utterance: Utterance) -> tuple[str, float, float]:
    """What no two utterances should have in common: the file, by any path, and where they are in it."""
    return real_path(utterance.audio_path), utterance.start_seconds, utterance.duration_seconds


def find_problem(
    utterance: Utterance, reference: str, dropped: Iterable[str], model: CTCModel, speed: float, limits: DataConfig
) -> tuple[str, str] | None:
    """Kind and detail of the first thing that keeps an utterance out of training, or None.

    reference: its normal transcript; dropped: the characters that are not in it; speed: the fastest it is heard at.
    """
    seconds = utterance.duration_seconds
    if not limits.min_seconds <= seconds <= limits.max_seconds:
        kind = "left out, too short" if seconds < limits.min_seconds else TOO_LONG
        return kind, f"{seconds:.2f} s (allowed: {limits.min_seconds:g} to {limits.max_seconds:g} s)"
    lost = "".join(sorted(filter(is_letter, dropped)))
    if lost:  # without its letters a word would be learned wrong
        return "left out, letters that are not in the vocabulary", f"{lost} of {utterance.text!r}"
    token_ids = model.vocabulary.encode(reference)
    if not token_ids:
        return "left out, nothing left of the transcript", repr(utterance.text)
    steps = model.output_lengths(int(seconds / speed * model.sample_rate))
    kinds = {"tokens": token_ids}
    if model.pronunciations is not None:
        kinds["phonemes"] = model.pronunciations.encode(reference)
    for kind, ids in kinds.items():
        if steps < steps_needed(ids):
            return "left out, too few steps for CTC", f"{seconds:.2f} s at speed {speed:g} for {len(ids)} {kind}"
    return None
