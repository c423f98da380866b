"""Pronunciations of words that a dictionary lacks, by analogy with those that it has.

W. Daelemans, A. van den Bosch, "Language-independent data-oriented grapheme-to-phoneme conversion", in Progress in
Speech Synthesis, 1996: letters are aligned with phonemes, and each letter of a new word sounds as it does in the widest
context that the dictionary knows, found in a tree of contexts (IGTree).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

__all__ = ["Analogy"]

MOST_ENTRIES = 30_000
"""That it learns from, in 3 s; of English, all 74,000 would get 64 % of other words right in place of 57 %."""

MOST_IN_CHUNK = 2
"""Phonemes that one letter can stand for: X is k s."""

WINDOWS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)]
"""Letters seen before and behind the one in question, each window wider than the last; no two are of one width."""

EDGE = " " * 4
"""What stands at both ends of a word, as long as the widest window needs."""

NUM_ALIGNED, ROUNDS = 4000, 4
"""Entries from which it is learnt which phonemes a letter stands for, and how often they are gone through."""

UNSEEN = -12.0
"""Log-probability of phonemes that a letter has not had yet."""

Chunk = tuple[str, ...]
"""The phonemes of one letter."""
Counts = defaultdict[str, Counter[Chunk]]
"""How often a letter, or a letter in its context, has which phonemes."""
Scores = dict[str, dict[Chunk, float]]
"""Log-probabilities of a letter's phonemes."""
Entries = Sequence[tuple[str, Sequence[str]]]
"""Words and their phonemes."""


class Analogy:
    """How each letter sounds, by its context."""

    def __init__(self, entries: Mapping[str, Sequence[str]], most_entries: int = MOST_ENTRIES) -> None:
        """Learn from words and their phonemes; from `most_entries`, evenly taken, where there are more."""
        pairs = _evenly(sorted(entries.items()), most_entries)
        scores = _learn_scores(_evenly(pairs, NUM_ALIGNED))
        self._tree = _grow_tree(
            [
                (EDGE + word + EDGE, place, chunk)
                for word, phonemes in pairs
                for place, chunk in enumerate(_align(word, phonemes, scores))
            ]
        )
        self._alone = {
            letter: max(filter(None, chunks), key=chunks.__getitem__, default=()) for letter, chunks in scores.items()
        }

    def pronounce(self, word: str) -> list[str]:
        """The phonemes of a word; none for letters that the dictionary lacks."""
        chunks = [self._chunk(EDGE + word + EDGE, place) for place in range(len(word))]
        if not any(chunks):  # letters that are silent in other words are then said
            chunks = [self._alone.get(letter, ()) for letter in word]
        return [phoneme for chunk in chunks for phoneme in chunk]

    def _chunk(self, padded: str, place: int) -> Chunk:
        """The phonemes of the letter at `place` of a word between edges, in the widest context that is known."""
        found: Chunk = ()
        for window in WINDOWS:
            wider = self._tree.get(_context(padded, place, window))
            if wider is None:
                break
            found = wider
        return found


def _align(word: str, phonemes: Sequence[str], scores: Scores) -> list[Chunk]:
    """The phonemes of each letter, so that the sum of their scores is greatest; [] where there are too many for all."""
    phonemes = tuple(phonemes)
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    # Letter by letter, and by how many phonemes are said with it: the score, and how many of them are this letter's.
    for place, letter in enumerate(word):
        least = len(phonemes) - MOST_IN_CHUNK * (len(word) - place - 1)  # else the next letters could not say the rest
        known = scores.get(letter, {})
        ways: dict[int, tuple[float, int]] = {}
        for said, (score, _) in best[-1].items():
            for end in range(max(said, least), min(said + MOST_IN_CHUNK, len(phonemes)) + 1):
                total = score + known.get(phonemes[said:end], UNSEEN)
                if end not in ways or total > ways[end][0]:
                    ways[end] = (total, end - said)
        best.append(ways)
    chunks, end = [], len(phonemes)
    for ways in reversed(best[1:]):
        if end not in ways:
            return []
        begin = end - ways[end][1]
        chunks.append(phonemes[begin:end])
        end = begin
    return chunks[::-1]


def _learn_scores(pairs: Entries) -> Scores:
    """Which phonemes a letter stands for, by Viterbi training: align, count, align again.

    At first they are those that stand about as far in the word as the letter does.
    """
    counts: Counts = defaultdict(Counter)
    for word, phonemes in pairs:
        for place, letter in enumerate(word):
            near = place * len(phonemes) // len(word)
            counts[letter].update((phoneme,) for phoneme in phonemes[max(0, near - 1) : near + 2])
    scores = _log_shares(counts)
    for _ in range(ROUNDS):
        counts = defaultdict(Counter)
        for word, phonemes in pairs:
            for letter, chunk in zip(word, _align(word, phonemes, scores)):
                counts[letter][chunk] += 1
        scores = _log_shares(counts)
    return scores


def _log_shares(counts: Counts) -> Scores:
    """The logarithm of each count's share in its letter's."""
    totals = {letter: sum(chunks.values()) for letter, chunks in counts.items()}
    return {
        letter: {chunk: math.log(count / totals[letter]) for chunk, count in chunks.items()}
        for letter, chunks in counts.items()
    }


def _grow_tree(samples: list[tuple[str, int, Chunk]]) -> dict[str, Chunk]:
    """Each context's most frequent phonemes; a context that leaves no doubt of them has no wider ones.

    samples: a word between edges, a letter's place in it and its phonemes.
    """
    tree: dict[str, Chunk] = {}
    for window in WINDOWS:
        counts: Counts = defaultdict(Counter)
        for padded, place, chunk in samples:
            counts[_context(padded, place, window)][chunk] += 1
        tree.update((context, max(chunks, key=chunks.__getitem__)) for context, chunks in counts.items())
        samples = [sample for sample in samples if len(counts[_context(sample[0], sample[1], window)]) > 1]
    return tree


def _context(padded: str, place: int, window: tuple[int, int]) -> str:
    """The letters around the one at `place` of a word between edges."""
    before, behind = window
    return padded[len(EDGE) + place - before : len(EDGE) + place + behind + 1]


def _evenly(pairs: Entries, most: int) -> Entries:
    """So many of them, from the first to the last, or all."""
    return pairs if len(pairs) <= most else [pairs[number * len(pairs) // most] for number in range(most)]
