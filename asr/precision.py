"""float32 that a GPU does not round: a setting of the whole process, lent and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.backends import cudnn

__all__ = ["full_float32"]

_LAYERS: tuple[Any, Any] = (cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
_lock = Lock()
_borrowers = 0
_before = [layer.fp32_precision for layer in _LAYERS]
"""What was set before the first of the present borrowers."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and recurrent layers without TF32, torch's default from Ampere on: ten bits of each factor, as few
    as half precision has, with which an utterance's log-probs depend on its batch. Half precision stays as it is.

    The setting is as before when the last of several such blocks ends.
    """
    global _borrowers, _before
    with _lock:
        if _borrowers == 0:
            _before = [layer.fp32_precision for layer in _LAYERS]
        _borrowers += 1
        for layer in _LAYERS:
            layer.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            _borrowers -= 1
            if _borrowers == 0:
                for layer, precision in zip(_LAYERS, _before, strict=True):
                    layer.fp32_precision = precision
