"""Where the words of a known text were spoken.

By their phonemes where the model hears them, else by its tokens. A short recording is aligned at once. A long one is
first recognised: where a long enough stretch of what was recognised stands in the text too, both are cut, and the
pieces between two such anchors are aligned one by one.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice, pairwise
from math import inf

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from asr.audio import open_audio
from asr.decoder import DecodedTokens, collapse_paths, decode_greedy
from asr.errors import AsrError
from asr.longform import BATCH_SECONDS, stream_log_probs
from asr.model import CTCModel, steps_needed
from asr.pronunciation import Pronunciations
from asr.sources import AudioSource
from asr.text import count_lost, without_quotes
from asr.transcript import Transcript, Word, end_by, word_at
from asr.words import join_words, split_words

__all__ = ["align", "align_log_probs", "align_tokens", "find_cuts"]

log = logging.getLogger(__name__)

PIECE_SECONDS = 60.0
"""Shortest piece that a longer recording is cut into."""

ANCHOR_LETTERS = 12
"""So many letters and spaces, or phonemes, in a row that were recognised as they stand in the text are not there by
chance.
"""

MOST_CELLS = 400_000_000
"""Steps times tokens of a piece without an anchor, a byte each; larger ones are not searched but spread evenly."""

CutPoint = tuple[int, int]
"""A step, and the index of the token that begins there."""


@dataclass(frozen=True)
class _Encoded:
    """Words in what they are aligned by: tokens, or phonemes."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """Of each word: the first and the behind-last index of its ids."""
    spellings: Sequence[str]
    """Of all ids: the letters that a token writes, or a sign for each phoneme."""


@torch.inference_mode()
def align(model: CTCModel, source: AudioSource, text: str, *, batch_seconds: float = BATCH_SECONDS) -> Transcript:
    """The words of `text`, as they are written there, with the times at which they are heard, and their parts:
    phonemes where the model hears them, else what its tokens write.

    A word's confidence tells how well it fits: near 0 where something else was said. What has no letter (digits,
    dashes) is left out.
    source: a path, or a binary file object, of any length. batch_seconds: audio that is computed at once.
    Raises AsrError for audio that cannot be read, a text without a letter and a model in training mode.
    """
    with open_audio(source, model.sample_rate) as audio:
        hears = model.pronunciations is not None
        parts = stream_log_probs(model, audio.blocks(), batch_seconds=batch_seconds, with_phonemes=hears)
        # Of an hour, thousands of tokens a step would take most of a gigabyte.
        log_probs = torch.cat([model.split(part)[1].clone() if hears else part for part in parts])
        words = _align(model, log_probs, text)
        seconds = audio.duration_seconds
        return Transcript(audio.name, tuple(end_by(word, seconds) for word in words), seconds)


def align_log_probs(model: CTCModel, log_probs: Tensor, text: str) -> tuple[Word, ...]:
    """As `align`, from what the model computed of a recording; raises AsrError as it does.

    log_probs: of `model.all_log_probs`, (steps, vocabulary + phonemes).
    """
    if log_probs.shape[1] != (width := len(model.vocabulary) + len(model.phonemes)):
        raise AsrError(f"of each step the model computes {width} numbers, not {log_probs.shape[1]}: all_log_probs does")
    tokens, phonemes = model.split(log_probs)
    return _align(model, tokens if model.pronunciations is None else phonemes, text)


def _align(model: CTCModel, log_probs: Tensor, text: str) -> tuple[Word, ...]:
    """log_probs: of what texts are encoded in, (steps, vocabulary) or (steps, phonemes)."""
    dropped: Counter[str] = Counter()
    plain = without_quotes(text, model.vocabulary.alphabet)  # a word alone does not tell them from apostrophes
    written = split_words(unicodedata.normalize("NFC", text))
    both = zip(written, split_words(plain), strict=True)
    words = [(word, normal) for word, bare in both if (normal := model.vocabulary.normalize(bare, dropped))]
    if lost := count_lost(dropped):
        told = ", ".join(f"{character!r} × {count}" for character, count in lost.most_common(8))
        log.warning("left out of the text, for the model cannot write them: %s", told)
    if not words:
        raise AsrError("the text to align holds no letter of the model's alphabet")
    if model.pronunciations is not None:
        words = _drop_unpronounceable(words, model.pronunciations)
    encoded = _encode([normal for _, normal in words], model)
    piece_steps = round(PIECE_SECONDS * model.sample_rate / model.step_samples)
    cuts = find_cuts(log_probs, encoded.ids, encoded.spellings, piece_steps)
    tokens = align_tokens(log_probs, encoded.ids, cuts)
    return tuple(_words(tokens, [word for word, _ in words], encoded.spans, model))


def _drop_unpronounceable(words: list[tuple[str, str]], pronunciations: Pronunciations) -> list[tuple[str, str]]:
    """As they are written, and in their normal form; the others are told."""
    said = [word for word in words if pronunciations.encode(word[1])]
    if unknown := sorted({normal for _, normal in words} - {normal for _, normal in said}):
        log.warning("left out of the text, for the model cannot pronounce them: %s", ", ".join(unknown[:8]))
    if not said:
        raise AsrError("the text to align holds no word that the model can pronounce")
    return said


def _encode(words: Sequence[str], model: CTCModel) -> _Encoded:
    """Normal forms, one of which may be several words, such as MOTHER IN LAW."""
    if model.pronunciations is not None:
        said = [model.pronunciations.encode(word) for word in words]
        spans = [*pairwise(accumulate(map(len, said), initial=0))]
        return _Encoded([*chain.from_iterable(said)], spans, [*map(chr, range(len(model.phonemes)))])
    token_ids = model.vocabulary.encode(join_words(words))
    single = iter(model.vocabulary.word_spans(token_ids))
    own = [[next(single) for _ in split_words(word)] for word in words]
    return _Encoded(token_ids, [(spans[0][0], spans[-1][1]) for spans in own], model.vocabulary.tokens)


def align_tokens(log_probs: Tensor, token_ids: list[int], cuts: Iterable[CutPoint] = ()) -> DecodedTokens:
    """The most probable steps of the given tokens, in their order.

    log_probs: (steps, vocabulary); cuts: what is between two of them is aligned by itself.
    """
    places = [(0, 0), *cuts, (len(log_probs), len(token_ids))]
    tokens = DecodedTokens([], [], [], [])
    for (step, token), (end_step, end_token) in pairwise(places):
        piece = _align_piece(log_probs[step:end_step], token_ids[token:end_token])
        tokens.token_ids.extend(piece.token_ids)
        tokens.steps.extend(step + begin for begin in piece.steps)
        tokens.end_steps.extend(step + end for end in piece.end_steps)
        tokens.log_probs.extend(piece.log_probs)
    return tokens


def find_cuts(
    log_probs: Tensor, token_ids: list[int], spellings: Sequence[str], piece_steps: int
) -> Iterator[CutPoint]:
    """Points just behind the middle of anchors, at least `piece_steps` apart.

    An anchor is a run of letters that were recognised as they stand in the text. Letters are compared, not tokens, for
    what is heard may be split into other tokens; at a point, a token begins in both.
    log_probs: (steps, vocabulary); spellings: the letters that each token writes.
    """
    from rapidfuzz.distance import Levenshtein

    if len(log_probs) <= 2 * piece_steps:
        return
    (heard,) = decode_greedy(log_probs[None], torch.tensor([len(log_probs)], device=log_probs.device))
    heard_letters, heard_tokens = _spell(heard.token_ids, spellings)
    letters, tokens = _spell(token_ids, spellings)
    last = 0
    for same in Levenshtein.opcodes(heard_letters, letters):
        if same.tag != "equal" or same.src_end - same.src_start < ANCHOR_LETTERS:
            continue
        both = zip(range(same.src_start, same.src_end), range(same.dest_start, same.dest_end))
        behind_middle = islice(both, (same.src_end - same.src_start) // 2, None)
        for place, place_in_text in behind_middle:
            if place in heard_tokens and place_in_text in tokens:
                step = heard.steps[heard_tokens[place]]
                if step - last >= piece_steps and len(log_probs) - step >= piece_steps:
                    yield step, tokens[place_in_text]
                    last = step
                break


def _spell(token_ids: Sequence[int], spellings: Sequence[str]) -> tuple[str, dict[int, int]]:
    """The tokens written one after another, and the number of each by where its first letter stands there."""
    spelled = [spellings[token_id] for token_id in token_ids]
    begins = accumulate(map(len, spelled), initial=0)
    return "".join(spelled), dict(zip(begins, range(len(spelled))))


def _align_piece(log_probs: Tensor, token_ids: list[int]) -> DecodedTokens:
    steps = len(log_probs)
    if not token_ids:
        return DecodedTokens([], [], [], [])
    too_large = steps * (2 * len(token_ids) + 1) > MOST_CELLS
    if too_large or steps < steps_needed(token_ids):
        reason = "too long a stretch without a word that was heard" if too_large else "text and audio differ there"
        log.warning("%d tokens cannot be placed in %d steps: %s", len(token_ids), steps, reason)
        edges = [steps * index // len(token_ids) for index in range(len(token_ids) + 1)]
        return DecodedTokens(token_ids, edges[:-1], edges[1:], [-inf] * len(token_ids))
    targets = torch.tensor([token_ids], device=log_probs.device)
    path, path_log_probs = forced_align(log_probs[None].contiguous(), targets)
    (tokens,) = collapse_paths(path, path_log_probs, torch.tensor([steps], device=log_probs.device))
    return tokens


def _words(
    tokens: DecodedTokens, words: Sequence[str], spans: Sequence[tuple[int, int]], model: CTCModel
) -> Iterator[Word]:
    """Each written word with the tokens, or phonemes, of its span."""
    for word, (start, end) in zip(words, spans, strict=True):
        texts = [(index, _name(tokens.token_ids[index], model)) for index in range(start, end)]
        parts = [word_at(tokens, index, index + 1, text, model) for index, text in texts if text]
        yield replace(word_at(tokens, start, end, word, model), parts=tuple(parts))


def _name(token_id: int, model: CTCModel) -> str:
    """What a token writes, or a phoneme is called; nothing for a space."""
    if model.pronunciations is None:
        return model.vocabulary.decode([token_id])
    return model.pronunciations.decode([token_id])[0]
