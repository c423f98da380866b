"""How weights change from step to step: AdamW or Muon, and the schedule of their rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from asr.config import OptimizerConfig
from asr.model import CTCModel
from asr.muon import Muon

__all__ = ["follow_schedule", "make_optimizer", "take_rates", "with_schedule"]

GATES = {"gru": 3, "lstm": 4, "rnn": 1}
"""Of a recurrent cell: the matrices that PyTorch keeps as one."""


def make_optimizer(
    model: CTCModel, config: OptimizerConfig, total_steps: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """AdamW, or Muon for the recurrent layers and AdamW for the rest, and the schedule, as Lightning wants them.

    Each group of weights says by `decays` whether the recipe's weight decay is for it; vectors have none.
    dtype: of the products inside Muon.
    """
    cells: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (vectors if parameter.dim() <= 1 else cells if "_cell." in name else matrices).append(parameter)
    betas, rate, decay = (0.9, config.beta2), config.learning_rate, config.weight_decay
    has_muon = config.name == "muon" and len(cells) > 0  # none where every layer is frozen
    groups: list[dict[str, Any]] = [
        {"params": matrices if has_muon else matrices + cells, "decays": True},
        {"params": vectors, "decays": False, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if has_muon:
        gates = GATES[model.config.encoder.cell]
        groups = [{"params": cells, "decays": True, "blocks": gates}, *groups]
        optimizer = Muon(groups, lr=rate, betas=betas, weight_decay=decay, dtype=dtype)
    else:
        on_cpu = model.device.type == "cpu"
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=decay, fused=on_cpu or None)
        # A fused one says that it takes a loss scaler's gradients, which Lightning would not clip; a CPU has no scaler.
        optimizer._step_supports_amp_scaling = False
    return with_schedule(optimizer, config.warmup_share, total_steps)


def with_schedule(optimizer: torch.optim.Optimizer, warmup_share: float, total_steps: int) -> dict[str, Any]:
    """As Lightning wants it: the rate rises evenly for that share of the steps, then falls to 0 along a cosine."""
    warmup_steps = max(1, round(warmup_share * total_steps))

    def share_of_peak(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def follow_schedule(scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Give the next step the rate of this schedule, where a checkpoint brought that of a shorter or longer one."""
    for group, peak, share in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
        group["lr"] = peak * share(scheduler.last_epoch)


def take_rates(checkpoint: dict[str, Any], config: OptimizerConfig) -> None:
    """Have the rates of a recipe stand in a checkpoint, for `make_optimizer`'s, in place of those that the run had."""
    for state in checkpoint.get("optimizer_states", []):
        groups = state["param_groups"]
        for group in groups:
            group.setdefault("decays", group is not groups[-1])  # older checkpoints have no key, and the vectors last
            group["lr"] *= config.learning_rate / group["initial_lr"]
            group["initial_lr"] = config.learning_rate
            group["betas"] = (group["betas"][0], config.beta2)
            if group["decays"]:
                group["weight_decay"] = config.weight_decay
    for state in checkpoint.get("lr_schedulers", []):
        state["base_lrs"] = [config.learning_rate] * len(state["base_lrs"])
