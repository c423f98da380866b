"""The device that computes, in which precision, and float32 that a GPU does not round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch.backends import cudnn

from asr.config import TrainerConfig
from asr.errors import AsrError

__all__ = ["choose_accelerator", "choose_precision", "full_float32"]

_LAYERS: tuple[Any, Any] = (cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
_lock = Lock()
_borrowers = 0
_before = [layer.fp32_precision for layer in _LAYERS]
"""What was set before the first of the present borrowers."""


def choose_accelerator(settings: TrainerConfig) -> str:
    """Lightning's name of the kind of device. `auto` would take a Mac's GPU, which knows neither CTC nor float64."""
    has_gpu = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not has_gpu:
        raise AsrError("trainer.accelerator=gpu: no CUDA GPU is available here; use trainer.accelerator=cpu")
    return "cpu" if settings.accelerator == "cpu" or not has_gpu else "cuda"


def choose_precision(settings: TrainerConfig) -> Any:
    """Lightning's name of the precision; `auto` takes half precision only where the device computes in it."""
    on_gpu = choose_accelerator(settings) == "cuda"
    if settings.precision == "bf16-mixed" and on_gpu:
        # torch 2.11 gives cuDNN's recurrent layers fp16 under any autocast; without a scaler small gradients become 0.
        raise AsrError("trainer.precision=bf16-mixed: GRUs compute in fp16 on a GPU; use trainer.precision=16-mixed")
    if settings.precision == "16-mixed" and not on_gpu:
        raise AsrError("trainer.precision=16-mixed: a CPU has no fp16; use trainer.precision=bf16-mixed, or auto")
    if settings.precision != "auto":
        return settings.precision
    if on_gpu:
        return "16-mixed"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and recurrent layers without TF32, torch's default from Ampere on: ten bits of each factor, as few
    as half precision has, with which an utterance's log-probs depend on its batch. Half precision stays as it is.

    It is a setting of the whole process, as before when the last of several such blocks ends.
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
