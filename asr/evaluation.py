"""A model's error rates and speed on a manifest."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr.decoder import Decode
from asr.errors import AsrError
from asr.longform import BATCH_SECONDS
from asr.manifest import Utterance
from asr.metrics import ErrorCounts, bootstrap_interval, character_errors, pool, word_errors
from asr.model import CTCModel
from asr.newfiles import new_text_file
from asr.survey import find_marks
from asr.text import count_lost
from asr.transcript import Transcript
from asr.transcription import Failure, Recording, transcribe_recordings

__all__ = ["Evaluation", "Scored", "evaluate"]


@dataclass(frozen=True)
class Scored:
    """One utterance, recognised."""

    utterance: Utterance
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    transcript: Transcript | None = None
    """The hypothesis with its times; None where the audio failed."""


@dataclass(frozen=True)
class Evaluation:
    """All of a manifest."""

    scored: list[Scored]
    failures: list[Failure]
    """Utterances without a hypothesis; every word of theirs counts as deleted."""
    audio_seconds: float
    """Of what has a hypothesis."""
    processing_seconds: float
    dropped_characters: Counter[str] = field(default_factory=Counter)
    """Letters and digits of the references that the model cannot write."""
    marks: Counter[str] = field(default_factory=Counter)
    """What transcribers wrote beside words, such as [NOISE]; its letters count as a word, as training takes them."""

    @property
    def words(self) -> ErrorCounts:
        """Of all utterances together."""
        return pool([item.words for item in self.scored])

    @property
    def rates(self) -> dict[str, tuple[ErrorCounts, tuple[float, float]]]:
        """WER and CER: the counts of all utterances together, and the 95 % interval of their rate."""
        kinds = {"WER": [item.words for item in self.scored], "CER": [item.characters for item in self.scored]}
        return {name: (pool(counts), bootstrap_interval(counts)) for name, counts in kinds.items()}

    def summary(self) -> str:
        """Rates with their 95 % intervals, errors by kind, and speed."""
        lines = [f"utterances {len(self.scored):,}  hours {self.audio_seconds / 3600:.2f}"]
        for name, (total, (low, high)) in self.rates.items():
            if total.reference_length == 0:
                lines.append(f"{name} none: no reference holds a letter that the model writes")
                continue
            lines.append(
                f"{name} {total.rate:.2%}  [{low:.2%}, {high:.2%}]  substitutions {total.substitutions:,}  "
                f"deletions {total.deletions:,}  insertions {total.insertions:,}  of {total.reference_length:,}"
            )
        if self.failures:
            lines.append(f"could not be read: {len(self.failures):,} utterances; their words count as deleted")
        lines += [f"{kind}: {counted}" for kind, counted in self.oddities()]
        if self.audio_seconds > 0:
            rtf = self.processing_seconds / self.audio_seconds
            lines.append(f"RTF {rtf:.4f}  ({1 / rtf:.0f} times real time)")
        return "\n".join(lines)

    def oddities(self) -> list[tuple[str, str]]:
        """Kinds of what makes the references other than what was said, and the commonest of each with their numbers."""
        kinds = {
            "dropped from the references, for the model cannot write them": self.dropped_characters,
            "marks in the references, scored as words; take them out": self.marks,
        }
        return [
            (kind, ", ".join(f"{item!r} × {count}" for item, count in counts.most_common(8)))
            for kind, counts in kinds.items()
            if counts
        ]

    def write_hypotheses(self, path: str | Path) -> None:
        """One line of JSON per utterance: id, audio, reference, hypothesis and its word errors.

        Raises AsrError where the file cannot be written.
        """
        with new_text_file(Path(path)) as file:
            for item in self.scored:
                fields = {
                    "id": item.utterance.id,
                    "audio": item.utterance.audio_path,
                    "reference": item.reference,
                    "hypothesis": item.hypothesis,
                    **dataclasses.asdict(item.words),
                }
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def evaluate(
    model: CTCModel,
    utterances: Sequence[Utterance],
    *,
    batch_seconds: float = BATCH_SECONDS,
    decode: Decode | None = None,
) -> Evaluation:
    """Transcribe utterances and compare with their normal transcripts; audio that fails is listed, not raised.

    batch_seconds, decode: as for `transcribe_recordings`.
    Raises AsrError where there are none.
    """
    if not utterances:
        raise AsrError("there is no utterance to evaluate on")
    recordings = [
        Recording(utterance.audio_path, utterance.place, utterance.start_seconds, utterance.duration_seconds)
        for utterance in utterances
    ]
    begin = time.perf_counter()
    results = list(transcribe_recordings(model, recordings, batch_seconds=batch_seconds, decode=decode))
    elapsed = time.perf_counter() - begin
    scored, dropped, marks = [], Counter[str](), Counter[str]()
    for utterance, result in zip(utterances, results, strict=True):
        reference = model.vocabulary.normalize(utterance.text, dropped)
        marks.update(find_marks(utterance.text, model.vocabulary))
        hypothesis = "" if isinstance(result, Failure) else result.text
        words, characters = word_errors(reference, hypothesis), character_errors(reference, hypothesis)
        transcript = None if isinstance(result, Failure) else result
        scored.append(Scored(utterance, reference, hypothesis, words, characters, transcript))
    return Evaluation(
        scored,
        [result for result in results if isinstance(result, Failure)],
        sum(item.utterance.duration_seconds for item in scored if item.transcript is not None),
        elapsed,
        count_lost(dropped),
        marks,
    )
