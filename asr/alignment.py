"""Where the words of a known text were spoken.

A short recording is aligned at once. A long one is first recognised: where a long enough stretch of what was recognised
stands in the text too, both are cut, and the pieces between two such anchors are aligned one by one.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from math import inf

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from asr.audio import open_audio
from asr.decoder import DecodedTokens, collapse_paths, decode_greedy
from asr.errors import AsrError
from asr.longform import BATCH_SECONDS, stream_log_probs
from asr.model import CTCModel, steps_needed
from asr.sources import AudioSource
from asr.text import count_lost, without_quotes
from asr.transcript import Transcript, Word, end_by, word_at
from asr.vocabulary import Vocabulary
from asr.words import join_words, split_words

__all__ = ["align", "align_log_probs", "align_tokens", "find_cuts"]

log = logging.getLogger(__name__)

PIECE_SECONDS = 60.0
"""Shortest piece that a longer recording is cut into."""

ANCHOR_LETTERS = 12
"""So many letters and spaces in a row that were recognised as they stand in the text are not there by chance."""

MOST_CELLS = 400_000_000
"""Steps times tokens of a piece without an anchor, a byte each; larger ones are not searched but spread evenly."""

CutPoint = tuple[int, int]
"""A step, and the index of the token that begins there."""


@torch.inference_mode()
def align(model: CTCModel, source: AudioSource, text: str, *, batch_seconds: float = BATCH_SECONDS) -> Transcript:
    """The words of `text`, as they are written there, with the times at which they are heard, and their parts.

    A word's confidence tells how well it fits: near 0 where something else was said. What has no letter (digits,
    dashes) is left out.
    source: a path, or a binary file object, of any length. batch_seconds: audio that is computed at once.
    Raises AsrError for audio that cannot be read, a text without a letter and a model in training mode.
    """
    with open_audio(source, model.sample_rate) as audio:
        log_probs = torch.cat(list(stream_log_probs(model, audio.blocks(), batch_seconds=batch_seconds)))
        words = align_log_probs(model, log_probs, text)
        seconds = audio.duration_seconds
        return Transcript(audio.name, tuple(end_by(word, seconds) for word in words), seconds)


def align_log_probs(model: CTCModel, log_probs: Tensor, text: str) -> tuple[Word, ...]:
    """As `align`, from what the model computed of a recording: (steps, vocabulary); raises AsrError as it does."""
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
    token_ids = model.vocabulary.encode(join_words(normal for _, normal in words))
    piece_steps = round(PIECE_SECONDS * model.sample_rate / model.step_samples)
    cuts = find_cuts(log_probs, token_ids, model.vocabulary, piece_steps)
    return tuple(_words(align_tokens(log_probs, token_ids, cuts), words, model))


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


def find_cuts(log_probs: Tensor, token_ids: list[int], vocabulary: Vocabulary, piece_steps: int) -> Iterator[CutPoint]:
    """Points just behind the middle of anchors, at least `piece_steps` apart.

    An anchor is a run of letters that were recognised as they stand in the text. Letters are compared, not tokens, for
    what is heard may be split into other tokens; at a point, a token begins in both.
    log_probs: (steps, vocabulary).
    """
    from rapidfuzz.distance import Levenshtein

    if len(log_probs) <= 2 * piece_steps:
        return
    (heard,) = decode_greedy(log_probs[None], torch.tensor([len(log_probs)], device=log_probs.device))
    heard_letters, heard_tokens = _spell(heard.token_ids, vocabulary)
    letters, tokens = _spell(token_ids, vocabulary)
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


def _spell(token_ids: Sequence[int], vocabulary: Vocabulary) -> tuple[str, dict[int, int]]:
    """The tokens written one after another, and the number of each by where its first letter stands there."""
    spelled = [vocabulary.tokens[token_id] for token_id in token_ids]
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


def _words(tokens: DecodedTokens, words: Sequence[tuple[str, str]], model: CTCModel) -> Iterator[Word]:
    """Each written word with its tokens; one that is several in its normal form, such as MOTHER-IN-LAW, takes all."""
    vocabulary = model.vocabulary
    spans = iter(vocabulary.word_spans(tokens.token_ids))
    for written, normal in words:
        own = [next(spans) for _ in split_words(normal)]
        start, end = own[0][0], own[-1][1]
        texts = [(index, vocabulary.decode(tokens.token_ids[index : index + 1])) for index in range(start, end)]
        parts = [word_at(tokens, index, index + 1, text, model) for index, text in texts if text]
        yield replace(word_at(tokens, start, end, written, model), parts=tuple(parts))
