"""Where the pieces of words lie that a model wrote which reads phonemes: each from where it is written, mostly at its
first phoneme, to its last one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asr.decoder import DecodedTokens
from asr.pronunciation import START
from asr.vocabulary import BLANK_ID

__all__ = ["extend_to_phonemes"]

LONGEST_GAP = 10
"""Steps, 0.4 s, without a phoneme; what is heard behind them is no part of the token before."""


def extend_to_phonemes(tokens: DecodedTokens, phonemes: Tensor, names: Sequence[str]) -> DecodedTokens:
    """The tokens with each one's end behind the last phoneme that is heard before the next token.

    A phoneme that begins a word belongs to the token behind it, even where that is written later.
    phonemes: (steps, phonemes) log-probabilities; names: theirs, the blank first.
    """
    goes_on = torch.tensor([name != names[BLANK_ID] and not name.startswith(START) for name in names])
    heard = goes_on[phonemes.argmax(dim=1).cpu()].nonzero()[:, 0].tolist()
    end_steps = []
    for end, behind in zip(tokens.end_steps, [*tokens.steps[1:], len(phonemes)]):
        for step in heard[bisect_left(heard, end) : bisect_left(heard, behind)]:
            if step - end > LONGEST_GAP:
                break
            end = step + 1
        end_steps.append(end)
    return replace(tokens, end_steps=end_steps)
