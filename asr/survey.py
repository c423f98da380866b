"""A page about recordings and their texts, before anyone trains on them: what they are like, and what is odd."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from asr.audio import frame_powers, open_audio
from asr.check import find_problem, stretch_of
from asr.config import AugmentConfig, DataConfig
from asr.errors import AsrError, printable
from asr.manifest import Utterance, write_manifest
from asr.model import CTCModel
from asr.text import ALPHABET, WORDS_FOR, is_letter
from asr.vocabulary import Vocabulary
from asr.words import is_unspaced

__all__ = ["Survey", "find_marks", "letters_per_second", "survey", "write_fixed"]

FULL_SCALE, MOST_CLIPPED = 0.999, 0.001
"""A sample from here on is taken for clipped; of more than this share of an utterance it is told."""

FRAME_SECONDS, SILENCE_DB, MOST_SILENCE = 0.025, -40.0, 0.6
"""A frame this far below the utterance's loudest ones is silent; of more than this share it is told."""

SLOWEST, FASTEST = 4.0, 25.0
"""Letters per second between which people speak; outside them audio and text may not belong together."""

MARK = re.compile(r"<[^<>\w]*\w[^<>]*>|\[[^\[\]\w]*\w[^\[\]]*\]|\{[^{}\w]*\w[^{}]*\}")
"""What transcribers write beside words, such as [NOISE] and <UNK>."""

REPEATED = "recordings that come again"
"""A kind of finding."""

MOST_LISTED = 8
BARS, MOST_LINES = 30, 20


@dataclass(frozen=True)
class Facts:
    """What the samples of one utterance tell."""

    sample_rate: int
    channels: int
    clipped_share: float
    silent_share: float


Findings = dict[str, list[tuple[Utterance, str]]]
"""Kind of finding to utterances and a detail of each."""


@dataclass
class Survey:
    """All that is known of a set."""

    vocabulary: Vocabulary
    """Whose alphabet the texts shall be written in."""
    utterances: list[Utterance]
    facts: list[Facts]
    """Of those whose audio can be read."""
    keeping_out: Findings = field(default_factory=dict)
    """What keeps an utterance out of training."""
    odd: Findings = field(default_factory=dict)
    """What is worth a look."""
    dropped_characters: Counter[str] = field(default_factory=Counter)

    def usable(self) -> list[Utterance]:
        """Those that nothing keeps out of training."""
        kept_out = {id(utterance) for places in self.keeping_out.values() for utterance, _ in places}
        return [utterance for utterance in self.utterances if id(utterance) not in kept_out]

    def page(self) -> str:
        """What the set is like, then each kind of finding with its first places."""
        durations = [utterance.duration_seconds for utterance in self.utterances]
        speakers = {utterance.speaker for utterance in self.utterances} - {""}
        total = f"{sum(durations) / 3600:.2f}"
        lines = [f"utterances {len(durations):,}  hours {total}  speakers {len(speakers) or 'unknown'}"]
        lines.append(f"sample rates: {_counted(f'{facts.sample_rate} Hz' for facts in self.facts)}")
        lines.append(f"channels: {_counted(str(facts.channels) for facts in self.facts)}")
        if self.facts:
            lines.append(f"silence: {median(facts.silent_share for facts in self.facts):.0%} of an utterance (median)")
        rates = [letters_per_second(utterance, self.vocabulary) for utterance in self.utterances]
        lines.append(f"letters per second: {median(rates):.1f} (median)")
        lines += [f"seconds: {median(durations):.1f} (median)", *_histogram(durations)]
        lines += _unwritten(self.dropped_characters)
        for kind, places in (self.keeping_out | self.odd).items():
            lines += [f"{kind}: {len(places)}"] if places else []
            lines += [f"  {_line(utterance, detail)}" for utterance, detail in places[:MOST_LISTED]]
            lines += [f"  ... and {len(places) - MOST_LISTED} more"] if len(places) > MOST_LISTED else []
        return "\n".join(lines)


def survey(utterances: Sequence[Utterance], model: CTCModel) -> Survey:
    """Look at every utterance, its samples included. What is wrong becomes a finding; nothing is raised for it."""
    with ThreadPoolExecutor() as executor:
        heard = list(executor.map(lambda utterance: _listen(utterance, model.sample_rate), utterances))
    pairs = list(zip(utterances, heard, strict=True))
    known = [(utterance, facts) for utterance, facts in pairs if isinstance(facts, Facts)]
    found = Survey(model.vocabulary, list(utterances), [facts for _, facts in known])
    unreadable = [(utterance, reason) for utterance, reason in pairs if isinstance(reason, str)]
    readable = [utterance for utterance, _ in known]
    problems = _training_problems(readable, model, found.dropped_characters)
    found.keeping_out = {"audio that cannot be read": unreadable, **problems}
    found.keeping_out[REPEATED] = _repeats(found.usable())
    rates = [(utterance, letters_per_second(utterance, model.vocabulary)) for utterance in readable]
    found.odd = {
        "clipped": [
            (item, f"{facts.clipped_share:.1%}") for item, facts in known if facts.clipped_share > MOST_CLIPPED
        ],
        "mostly silent": [
            (item, f"{facts.silent_share:.0%}") for item, facts in known if facts.silent_share > MOST_SILENCE
        ],
        f"fewer than {SLOWEST:g} or more than {FASTEST:g} letters per second": [
            (utterance, f"{rate:.1f}") for utterance, rate in rates if not SLOWEST <= rate <= FASTEST
        ],
        "marks whose letters become words": [
            (utterance, " ".join(marks))
            for utterance in readable
            if (marks := find_marks(utterance.text, model.vocabulary))
        ],
    }
    return found


def write_fixed(found: Survey, path: str | Path) -> list[str]:
    """Write the usable utterances with normal texts as JSON lines; returns a line for each change.

    In LibriSpeech's alphabet characters with an English word of their own (& and the like) become that word; what keeps
    an utterance out leaves it out, and so do digits that the alphabet lacks and marks such as [NOISE].
    Raises AsrError where nothing is left, and where the file cannot be written.
    """
    is_english = set(found.vocabulary.alphabet) == set(ALPHABET)
    spoken = {ord(character): f" {word} " for character, word in WORDS_FOR.items()} if is_english else {}
    kept_out = {
        id(utterance): f"{kind.removeprefix('left out, ')}: {detail}"
        for kind, places in found.keeping_out.items()
        for utterance, detail in places
        if kind != REPEATED
    }
    normal = [_normalize(utterance.text.translate(spoken), found.vocabulary) for utterance in found.utterances]
    reasons = [kept_out.get(id(utterance)) or reason for utterance, (_, reason) in zip(found.utterances, normal)]
    # Of two copies the first that can be used is kept, which need not be the first.
    rest = [utterance for utterance, reason in zip(found.utterances, reasons) if not reason]
    copies = {id(utterance): f"{REPEATED}: {detail}" for utterance, detail in _repeats(rest)}
    kept, changes = [], []
    for utterance, (text, _), reason in zip(found.utterances, normal, reasons):
        reason = reason or copies.get(id(utterance), "")
        if reason:
            changes.append(_line(utterance, f"left out: {reason}"))
            continue
        kept.append(replace(utterance, text=text))
        if text != utterance.text:
            changes.append(_line(utterance, f"{utterance.text!r} is now {text!r}"))
    if not kept:
        is_other = any("letters that are not" in kind and places for kind, places in found.keeping_out.items())
        other = "; of another language, give its letters by --new-vocabulary" if is_other else ""
        raise AsrError(f"{path}: nothing is left to write{other}\n" + "\n".join(changes))
    write_manifest(kept, path)
    return changes


def _normalize(text: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Its normal form, and why that is not what was said; empty where it is."""
    dropped: Counter[str] = Counter()
    normal = vocabulary.normalize(text, dropped)
    if numbers := "".join(filter(str.isnumeric, dropped)):
        return normal, f"{numbers!r} in the text; write it in words"
    if marks := " ".join(find_marks(text, vocabulary)):
        return normal, f"{marks} in the text; take it out"
    return normal, ""


def _line(utterance: Utterance, said: str) -> str:
    """Of a list of utterances."""
    return printable(f"{utterance.place}: {utterance.id}: {said}")


def _listen(utterance: Utterance, sample_rate: int) -> Facts | str:
    """What the samples tell, or why they cannot be read."""
    num_samples, num_clipped, powers = 0, 0, []
    try:
        with open_audio(utterance.audio_path, sample_rate) as audio:
            # Not at once: of the hours of lectures as many as there are threads would not fit into the memory.
            for samples in audio.blocks(utterance.start_seconds, utterance.duration_seconds):
                num_samples += len(samples)
                num_clipped += int((samples.abs() >= FULL_SCALE).sum())
                powers.append(frame_powers(samples, int(FRAME_SECONDS * sample_rate)))
            rate, channels = audio.file.samplerate, audio.file.channels
    except AsrError as error:
        return str(error)
    return Facts(rate, channels, num_clipped / num_samples, _silent_share(torch.cat(powers)))


def _silent_share(powers: Tensor) -> float:
    """Of frames, (frames,) of their powers; 0 of none."""
    if len(powers) == 0:
        return 0.0
    loud = powers.quantile(0.95)
    return float((powers <= loud * 10 ** (SILENCE_DB / 10)).float().mean())


def _training_problems(utterances: Iterable[Utterance], model: CTCModel, dropped: Counter[str]) -> Findings:
    """What training would leave out; characters that normalization drops are counted in `dropped`."""
    kinds: Findings = defaultdict(list)
    for utterance in utterances:
        own: Counter[str] = Counter()
        reference = model.vocabulary.normalize(utterance.text, own)
        dropped.update(own)
        problem = find_problem(utterance, reference, own, model, max(AugmentConfig().speeds), DataConfig())
        if problem is not None:
            kinds[problem[0]].append((utterance, problem[1]))
    return kinds


def _repeats(utterances: Iterable[Utterance]) -> list[tuple[Utterance, str]]:
    """Utterances of the same stretch of the same file as one before them."""
    first: dict[tuple[str, float, float], Utterance] = {}
    repeats = []
    for utterance in utterances:
        earlier = first.setdefault(stretch_of(utterance), utterance)
        if earlier is not utterance:
            repeats.append((utterance, f"the same recording as {earlier.place}"))
    return repeats


def letters_per_second(utterance: Utterance, vocabulary: Vocabulary) -> float:
    """Of the normal transcript, spaces included; a Chinese or Japanese character, a syllable, stands for two."""
    text = vocabulary.normalize(utterance.text)
    return (len(text) + sum(map(is_unspaced, text))) / max(utterance.duration_seconds, 1e-3)


def find_marks(text: str, vocabulary: Vocabulary) -> list[str]:
    """The marks in a text, such as [NOISE], that a model would write as words."""
    return [mark for mark in MARK.findall(text) if vocabulary.normalize(mark)[:1] not in ("", mark[0])]


def _unwritten(dropped: Counter[str]) -> list[str]:
    """Lines about characters outside the alphabet, the most frequent first: one for each sign, one for all letters."""
    letters = [character for character, _ in dropped.most_common() if _is_lost_letter(character)]
    signs = [character for character, _ in dropped.most_common() if not _is_lost_letter(character)]
    lines = ["characters outside the alphabet, and what to write:"] if dropped else []
    lines += [f"  {sign!r} × {dropped[sign]}: {_proposal(sign)}" for sign in signs[:MOST_LISTED]]
    lines += [f"  ... and {len(signs) - MOST_LISTED} more kinds"] if len(signs) > MOST_LISTED else []
    if letters:
        shown = ", ".join(f"{letter!r} × {dropped[letter]}" for letter in letters[:MOST_LISTED])
        more = f" and {len(letters) - MOST_LISTED} more letters" if len(letters) > MOST_LISTED else ""
        other = "of another language, give its letters by --new-vocabulary"
        lines.append(f"  {shown}{more}: letters of the alphabet, else their utterances are left out; {other}")
    return lines


def _is_lost_letter(character: str) -> bool:
    """Without which a word would be learned wrong."""
    return is_letter(character) and character not in WORDS_FOR


def _proposal(sign: str) -> str:
    if sign in WORDS_FOR:
        return WORDS_FOR[sign]
    return "the number in words" if sign.isnumeric() else "nothing, it is dropped"


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{value} × {count:,}" for value, count in Counter(values).most_common())


def _histogram(durations: Sequence[float]) -> list[str]:
    """A line for each stretch of durations: its bounds, a bar, a count; the last one holds all that are longer."""
    width = next((step for step in (0.5, 1, 2, 5, 10, 30, 60, 300) if max(durations) / step <= 12), 600)
    counts = Counter(min(MOST_LINES, int(duration // width)) for duration in durations)
    longest = max(counts.values())
    lines = []
    for place in range(max(counts) + 1):
        bar = "█" * -(-BARS * counts[place] // longest)
        end = f"to {(place + 1) * width:<6g}" if place < MOST_LINES else "or more  "
        lines.append(f"  {place * width:>6g} {end} {bar:<{BARS}} {counts[place]:,}")
    return lines
