"""Words that a recording is likely to hold: names and terms that the model would spell otherwise.

A word that was decoded, or two in a row, gives way to a hotword of like spelling where the utterance is then no less
probable, by CTC's own sum over all alignments, than before less the hotword's boost. Works behind any decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from asr.alignment import align_tokens
from asr.decoder import Decode, GreedyTokens
from asr.errors import AsrError
from asr.text import BLANK_ID, Vocabulary

__all__ = ["HotwordDecoder", "parse_hotword"]

DEFAULT_BOOST = 5.0
"""Nats: a hotword may make its utterance 150 times less probable."""

LEAST_SIMILARITY = 0.4
"""Share of letters that what gives way has in common with the hotword; less is not tried."""


class HotwordDecoder:
    """Decodes as another decoder does, then tries the hotwords."""

    def __init__(self, decode: Decode, vocabulary: Vocabulary, hotwords: Mapping[str, float]) -> None:
        """hotwords: normal words, and how many nats less probable each may make its utterance."""
        self._decode, self._vocabulary, self._hotwords = decode, vocabulary, hotwords

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[GreedyTokens]:
        """log_probs: (batch, steps, vocabulary); lengths: (batch,) steps."""
        decoded = self._decode(log_probs, lengths)
        rows = zip(log_probs, lengths.tolist(), decoded, strict=True)
        return [self._improve(row[:length], tokens) for row, length, tokens in rows]

    def _improve(self, log_probs: Tensor, tokens: GreedyTokens) -> GreedyTokens:
        before = words = self._vocabulary.decode(tokens.token_ids).split()
        while True:
            candidates = [(words, 0.0), *self._candidates(words)]
            if len(candidates) == 1:
                break
            scores = self._scores(log_probs, [candidate for candidate, _ in candidates])
            totals = [score + boost for score, (_, boost) in zip(scores, candidates, strict=True)]
            best = max(range(len(candidates)), key=totals.__getitem__)
            if best == 0:
                break
            words = candidates[best][0]
        if words == before:
            return tokens
        return align_tokens(log_probs, self._vocabulary.encode(" ".join(words)), len(log_probs))

    def _candidates(self, words: Sequence[str]) -> list[tuple[list[str], float]]:
        """The text with one hotword in place of one or two words of like spelling, and the hotword's boost."""
        from rapidfuzz.distance import Levenshtein

        candidates = []
        for hotword, boost in self._hotwords.items():
            for start in range(len(words)):
                for end in range(start + 1, min(start + 2, len(words)) + 1):
                    heard = words[start:end]
                    likeness = Levenshtein.normalized_similarity("".join(heard), hotword)
                    if hotword not in heard and not self._hotwords.keys() & set(heard) and likeness >= LEAST_SIMILARITY:
                        candidates.append(([*words[:start], hotword, *words[end:]], boost))
        return candidates

    def _scores(self, log_probs: Tensor, texts: Sequence[Sequence[str]]) -> list[float]:
        """The log-probability of each text, all alignments together; (steps, vocabulary) log_probs."""
        targets = [self._vocabulary.encode(" ".join(words)) for words in texts]
        copies = log_probs[:, None].expand(-1, len(targets), -1).contiguous()
        losses = ctc_loss(
            copies,
            torch.tensor([token_id for target in targets for token_id in target], device=log_probs.device),
            torch.full((len(targets),), len(log_probs)),
            torch.tensor([len(target) for target in targets]),
            blank=BLANK_ID,
            reduction="none",
        )
        return [-loss for loss in losses.tolist()]


def parse_hotword(text: str, vocabulary: Vocabulary) -> tuple[str, float]:
    """`WORD` or `WORD:BOOST` as a normal word and nats; raises AsrError for anything else."""
    written, _, given = text.partition(":")
    word = vocabulary.normalize(written)
    try:
        boost = float(given) if given else DEFAULT_BOOST
    except ValueError:
        boost = -1.0
    if not word or " " in word or not 0 <= boost < float("inf"):
        raise AsrError(f"--hotword {text} must be one word, or one word, a colon and a number of at least 0")
    return word, boost
