"""Text to an n-gram language model: modified Kneser-Ney smoothing in NumPy, written as ARPA.

S. F. Chen, J. Goodman, "An empirical study of smoothing techniques for language modeling", TR-10-98, Harvard, 1998, in
the interpolated form of KenLM's `lmplz` (K. Heafield et al., ACL 2013).
"""

from __future__ import annotations

import gzip
import logging
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TextIO

import numpy
from numpy.typing import NDArray

from asr.errors import AsrError, reason_of
from asr.newfiles import is_compressed, new_text_file
from asr.text import Normalize, count_lost, normalize_transcript
from asr.words import split_words

__all__ = ["NgramModel", "build_ngrams", "drop_shared", "read_arpa_unigrams", "read_sentences", "write_arpa"]

UNKNOWN, START, END = 0, 1, 2
SPECIAL = ["<unk>", "<s>", "</s>"]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Of counts 1, 2 and more where a text is too small to estimate them, as in `lmplz --discount_fallback`."""

MOST_LISTED = 8

SHARED_WORDS = 8
"""As many in a row are no coincidence."""

log = logging.getLogger(__name__)

Ids = NDArray[numpy.int64]
Floats = NDArray[numpy.float64]


@dataclass
class _Order:
    """All n-grams of one length, in the order of (prefix, last word)."""

    prefix: Ids
    """Index of the first n-1 words among the shorter n-grams."""
    last: Ids
    """Id of the last word."""
    suffix: Ids
    """Index of the last n-1 words among the shorter n-grams."""
    count: Ids
    """Occurrences."""


@dataclass(frozen=True)
class NgramModel:
    """Words, and for each length the n-grams that were kept."""

    words: list[str]
    """The first three are <unk>, <s> and </s>."""
    ngrams: list[Ids]
    """For each length n, (ngrams, n) word ids."""
    log10_probabilities: list[Floats]
    log10_backoffs: list[Floats]
    """Of each n-gram as a context: what the probability of a shorter context is multiplied by."""


def read_sentences(
    paths: Iterable[str | Path], normalize: Normalize = normalize_transcript, texts: Iterable[str] = ()
) -> Iterator[str]:
    """The lines of text files (plain, .gz, .xz), then `texts`, as normal transcripts; empty ones are dropped.

    Letters, digits and signs such as % that cannot be written are counted in the log.
    Raises AsrError for a file that cannot be read.
    """
    dropped: Counter[str] = Counter()
    yield from filter(None, (normalize(line, dropped) for line in chain(_read_lines(paths), texts)))
    if lost := count_lost(dropped):
        shown = ", ".join(f"{character!r} × {count:,}" for character, count in lost.most_common(MOST_LISTED))
        log.warning("dropped from the text, for the model cannot write them: %s", shown)


def _read_lines(paths: Iterable[str | Path]) -> Iterator[str]:
    for path in paths:
        try:
            with _open_text(Path(path)) as file:
                yield from file
        except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
            raise AsrError(f"{path}: the text cannot be read: {reason_of(error)}") from error


def _open_text(path: Path) -> TextIO:
    if is_compressed(path):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def drop_shared(sentences: Iterable[str], held_out: Iterable[str]) -> Iterator[str]:
    """The sentences without those that share eight words in a row with a held-out text, whose number is logged.

    sentences, held_out: normal transcripts. A language model that knows a valid set's sentences makes it look easy.
    """
    shared = {run for text in held_out for run in _runs(text)}
    dropped = 0
    for sentence in sentences:
        if shared.isdisjoint(_runs(sentence)):
            yield sentence
        else:
            dropped += 1
    if dropped:
        log.warning(
            "%d sentences share %d words in a row with the held-out texts and were left out", dropped, SHARED_WORDS
        )


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = split_words(text)
    return zip(*(words[start:] for start in range(SHARED_WORDS)))


def build_ngrams(sentences: Iterable[str], order: int, *, prune: Sequence[int] = (), min_count: int = 1) -> NgramModel:
    """A model of n-grams up to `order` words.

    prune: for each length the count up to which n-grams are dropped, the last one standing for all further lengths;
    their probability goes to the shorter context. Single words are never dropped that way.
    min_count: rarer words are taken for unknown ones.
    Raises AsrError for settings out of range, for a text without a word, and for one with marks such as <s>.
    """
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if order < 1:
        raise AsrError(f"order={order} must be at least 1")
    if min_count < 1:
        raise AsrError(f"min_count={min_count} must be at least 1")
    if len(prune) > order:
        raise AsrError(f"prune={list(prune)} must have at most {order} counts, one for each length")
    if thresholds[0] != 0 or thresholds != sorted(thresholds):
        raise AsrError(f"prune={list(prune)} must begin with 0 and not fall")
    words, tokens, positions = _tokenize(sentences, min_count)
    orders = _count(tokens, positions, len(words), order)
    return _estimate(words, orders, thresholds)


def _tokenize(sentences: Iterable[str], min_count: int) -> tuple[list[str], Ids, Ids]:
    """Words, the text as word ids with <s> and </s> around each sentence, and each token's place in its sentence."""
    first_ids: dict[str, int] = {}
    pieces: list[NDArray[numpy.int32]] = []
    for sentence in sentences:
        ids = [first_ids.setdefault(word, len(first_ids) + len(SPECIAL)) for word in split_words(sentence)]
        pieces.append(numpy.array([START, *ids, END], dtype=numpy.int32))
    if not first_ids:
        raise AsrError("the text holds no word")
    if marks := sorted(first_ids.keys() & SPECIAL):
        raise AsrError(f"the text holds {', '.join(marks)}, which the model adds by itself; leave them out")
    tokens = numpy.concatenate(pieces).astype(numpy.int64)
    lengths = numpy.array([len(piece) for piece in pieces])
    positions = numpy.arange(len(tokens)) - numpy.repeat(numpy.cumsum(lengths) - lengths, lengths)
    counts = numpy.bincount(tokens, minlength=len(first_ids) + len(SPECIAL))
    kept = sorted(word for word, word_id in first_ids.items() if counts[word_id] >= min_count)
    if not kept:
        raise AsrError(f"min_count={min_count} must be lower: no word of the text occurs so often")
    new_ids = numpy.full(len(counts), UNKNOWN)
    new_ids[[START, END]] = START, END
    new_ids[[first_ids[word] for word in kept]] = numpy.arange(len(kept)) + len(SPECIAL)
    return [*SPECIAL, *kept], new_ids[tokens], positions


def _count(tokens: Ids, positions: Ids, num_words: int, order: int) -> list[_Order]:
    """The n-grams of each length. An n-gram's number is its prefix's times the number of words, plus its last word."""
    none = numpy.zeros(num_words, dtype=numpy.int64)
    orders = [_Order(none, numpy.arange(num_words), none, numpy.bincount(tokens, minlength=num_words))]
    shorter = tokens  # at each token, the index of the n-gram that ends there
    for length in range(2, order + 1):
        places = numpy.flatnonzero(positions >= length - 1)
        keys, first, inverse, count = numpy.unique(
            shorter[places - 1] * num_words + tokens[places], return_index=True, return_inverse=True, return_counts=True
        )
        orders.append(_Order(keys // num_words, keys % num_words, shorter[places[first]], count))
        longer = numpy.full(len(tokens), -1)
        longer[places] = inverse.ravel()
        shorter = longer
    return orders


def _adjusted_counts(orders: list[_Order]) -> list[Ids]:
    """Of the longest n-grams their counts; of shorter ones before how many words they occur behind a different one.

    Those that begin with <s> have nothing before them, and keep their counts.
    """
    adjusted = []
    for order, longer in pairwise(orders):
        different = numpy.bincount(longer.suffix, minlength=len(order.count))
        adjusted.append(numpy.where(different > 0, different, order.count))
    return [*adjusted, orders[-1].count]


def _discounts(counts: Ids) -> Floats:
    """What is taken off counts of 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (int((counts == number).sum()) for number in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return numpy.array([0.0, *FALLBACK_DISCOUNTS])
    share = n1 / (n1 + 2 * n2)
    estimated = [1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3]
    valid = all(0 <= discount <= count for count, discount in enumerate(estimated, start=1))
    return numpy.array([0.0, *(estimated if valid else FALLBACK_DISCOUNTS)])


def _estimate(words: list[str], orders: list[_Order], thresholds: Sequence[int]) -> NgramModel:
    counts = _adjusted_counts(orders)
    counts[0][START] = 0  # it is never predicted
    discounted = [count - _discounts(count)[numpy.minimum(count, 3)] for count in counts]
    total = counts[0].sum()
    uniform = 1.0 / (len(words) - 1)
    probabilities = [discounted[0] / total + (1 - discounted[0].sum() / total) * uniform]
    backoffs = []
    kept = [numpy.ones(len(words), dtype=bool)]
    for order, count, reduced, threshold in zip(orders[1:], counts[1:], discounted[1:], thresholds[1:]):
        contexts = len(probabilities[-1])
        keep = order.count > threshold
        sums = numpy.bincount(order.prefix, weights=count, minlength=contexts)
        share = reduced / sums[order.prefix]
        given = numpy.bincount(order.prefix[keep], weights=share[keep], minlength=contexts)
        backoff = numpy.where(sums > 0, 1 - given, 1.0)
        backoffs.append(backoff)
        probabilities.append(share + backoff[order.prefix] * probabilities[-1][order.suffix])
        kept.append(keep)
    backoffs.append(numpy.ones(len(probabilities[-1])))
    return NgramModel(
        words,
        [ngrams[keep] for ngrams, keep in zip(_spell(orders), kept)],
        [numpy.log10(probability[keep]) for probability, keep in zip(probabilities, kept)],
        [numpy.log10(numpy.maximum(backoff[keep], 1e-99)) for backoff, keep in zip(backoffs, kept)],
    )


def _spell(orders: list[_Order]) -> Iterator[Ids]:
    """(ngrams, n) word ids of each length."""
    ngrams = orders[0].last[:, None]
    yield ngrams
    for order in orders[1:]:
        ngrams = numpy.concatenate([ngrams[order.prefix], order.last[:, None]], axis=1)
        yield ngrams


def write_arpa(model: NgramModel, path: str | Path) -> None:
    """Write the ARPA file, compressed where its name ends in .gz."""
    with new_text_file(Path(path)) as file:
        _write_tables(model, file)


def _write_tables(model: NgramModel, file: TextIO) -> None:
    words = numpy.array(model.words, dtype=object)
    file.write("\\data\\\n")
    file.writelines(f"ngram {length}={len(rows)}\n" for length, rows in enumerate(model.ngrams, start=1))
    tables = zip(model.ngrams, model.log10_probabilities, model.log10_backoffs)
    for length, (rows, probabilities, backoffs) in enumerate(tables, start=1):
        file.write(f"\n\\{length}-grams:\n")
        longest = length == len(model.ngrams)
        for row, probability, backoff in zip(rows, probabilities.tolist(), backoffs.tolist()):
            text = " ".join(words[row])
            shown = -99.0 if length == 1 and row[0] == START else probability
            file.write(f"{shown:.5f}\t{text}\n" if longest else f"{shown:.5f}\t{text}\t{backoff:.5f}\n")
    file.write("\n\\end\\\n")


def read_arpa_unigrams(path: str | Path) -> Iterator[tuple[str, float]]:
    """The words of an ARPA file, without <s>, </s>, <unk> and others in such brackets, and their log10-probabilities.

    Words that hold white space, of other kinds than what parts the file's columns, are left out: no text has them.
    Raises AsrError for any other file.
    """
    begun = False
    try:
        with gzip.open(path, "rt", encoding="utf-8") if is_compressed(path) else open(path, encoding="utf-8") as file:
            for line in file:
                if begun and line.startswith("\\"):
                    return
                fields = line.split() if line.isascii() else re.split("[ \t]+", line.strip(" \t\r\n"))
                if begun and len(fields) >= 2 and not fields[1].startswith("<") and len(fields[1].split()) == 1:
                    yield fields[1], min(0.0, float(fields[0]))  # KenLM tells of one above 0
                if not begun and line.startswith("ngram ") and "-" in line:
                    raise ValueError(f"{line.strip()!r} is no count")  # it would end the process in KenLM
                begun = begun or line.strip() == "\\1-grams:"
    except UnicodeDecodeError as error:  # also of what `asr lm train` writes, and of KenLM's binaries
        form = f"ARPA form, which is text in UTF-8 ({error})"
        raise AsrError(f"{path}: not a language model in {form}; `asr lm build` makes one") from error
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise AsrError(f"{path}: the language model cannot be read: {reason_of(error)}") from error
    raise AsrError(f"{path}: not a language model in ARPA form; `asr lm build` makes one")
