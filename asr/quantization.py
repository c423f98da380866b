"""Weights ↔ whole numbers of eight bits: a byte for each, and a scale in half precision for each row of a matrix.

A row's largest weight is 127 of its scale, so no weight is off by more than half a scale, about 1 % of a usual one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]

LARGEST = 127

SCALE = ".scale"
"""Behind the name of a matrix: the name of its scales."""


def quantize(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What has two dimensions or more as int8 of its shape, with scales (rows,); the rest in half precision."""
    stored = {}
    for name, weight in weights.items():
        if weight.dim() < 2:
            stored[name] = weight.half()
            continue
        rows = weight.float().flatten(1)
        scales = (rows.abs().amax(1) / LARGEST).half()
        whole = (rows / scales.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        stored[name] = whole.clamp(-LARGEST, LARGEST).to(torch.int8).view(weight.shape)
        stored[name + SCALE] = scales
    return stored


def dequantize(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, in float32; what was not quantized is kept. Raises ValueError for missing or other scales."""
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        matrix = name.removesuffix(SCALE)
        (scales if matrix != name and matrix in stored else weights)[matrix] = tensor.float()
    for name in weights:
        if stored[name].dtype == torch.int8 and name not in scales:
            raise ValueError(f"{name} has no scales")
    for name, scale in scales.items():
        if scale.shape != weights[name].shape[:1]:
            raise ValueError(f"{name} has scales of shape {tuple(scale.shape)}")
        weights[name] *= scale.view(-1, *[1] * (weights[name].dim() - 1))
    return weights
