"""The processes that share a training: how many there are, which of them speaks, how long they wait for each other."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import torch

from asr.config import TrainerConfig
from asr.errors import AsrError

__all__ = ["forget_other_ranks", "is_first_process", "is_started_again", "process_arguments"]

log = logging.getLogger(__name__)

NEW_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, it gives each restart a place of its own to exchange addresses (torch 2.11)."""

PATIENCE = timedelta(minutes=30)
"""A process ends that has waited so long for the others; torchrun then starts all of them again."""


def is_first_process() -> bool:
    """Whether this process speaks for the others: Lightning, torchrun and SLURM number all but the first."""
    name = "RANK" if _is_by_torchrun() else "SLURM_PROCID" if _is_by_slurm() else "LOCAL_RANK"
    return int(os.environ.get(name) or 0) == 0


def forget_other_ranks() -> None:
    """Take what other programs number their processes with out of the environment, where Lightning would find it.

    It must come before the first import of Lightning, which keeps the number from then on, and fails if it is none.
    """
    if not _is_by_torchrun():
        os.environ.pop("RANK", None)
    if not _is_by_slurm():
        os.environ.pop("SLURM_PROCID", None)


def _is_by_torchrun() -> bool:
    """As Lightning finds out."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_by_slurm() -> bool:
    """As Lightning finds out, without its warning where there is `srun`."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_started_again() -> bool:
    """Whether a launcher may repeat the command that it was given."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_JOB_ID" in os.environ


def process_arguments(settings: TrainerConfig) -> dict[str, Any]:
    """Lightning's `devices`, `num_nodes`, `strategy` and `plugins`.

    A launcher's word goes over trainer.devices=auto, and it alone knows how many machines take part.
    Raises AsrError for a number of devices that is not the launcher's, because each process would train by itself, and
    where SLURM was not told how many processes a machine has, or did not start them; and for more than there are GPUs.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    devices: str | int = settings.devices if settings.devices == "auto" else int(settings.devices)
    nodes, plugins = 1, []
    if _is_by_torchrun():
        _warn_of_stale_addresses()
        on_this_machine = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // on_this_machine
        devices = _agreed(devices, on_this_machine, "torchrun")
    elif _is_by_slurm():
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        devices = _agreed(devices, _slurm_tasks() // nodes, "SLURM")
        # Else Lightning saves in the middle of a step, to the working folder, where any later run takes it for its own.
        plugins = [SLURMEnvironment(auto_requeue=False)]
    gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 1
    if settings.accelerator != "cpu" and devices != "auto" and 0 < gpus < int(devices):
        here = f"{gpus} GPU{'s' if gpus > 1 else ''} here"
        if plugins:
            ask = "ask SLURM for --gpus-per-node in place of --gpus-per-task and --gpu-bind"
            raise AsrError(f"each of {devices} tasks must see the GPUs of all, but there is {here}; {ask}")
        raise AsrError(f"trainer.devices={devices}: {here}; set as many, or trainer.accelerator=cpu")
    is_alone = nodes == 1 and (gpus if devices == "auto" else int(devices)) <= 1
    strategy = "auto" if is_alone else DDPStrategy(timeout=PATIENCE)
    return {"devices": devices, "num_nodes": nodes, "strategy": strategy, "plugins": plugins}


def _agreed(devices: str | int, on_this_machine: int, launcher: str) -> int:
    if devices not in ("auto", on_this_machine):
        started = f"{launcher} started {on_this_machine} processes on this machine"
        raise AsrError(f"trainer.devices={devices}: {started}; set trainer.devices=auto, or start as many")
    return on_this_machine


def _slurm_tasks() -> int:
    """Processes on all machines."""
    tasks, nodes = int(os.environ.get("SLURM_NTASKS", 1)), int(os.environ.get("SLURM_NNODES", 1))
    if tasks < nodes:
        raise AsrError(f"SLURM was told --nodes={nodes} and --ntasks={tasks}; tell it --ntasks-per-node")
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise AsrError(f"this job of SLURM has {tasks} tasks, and one is running; start them with srun asr train ...")
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise AsrError(f"SLURM was told --ntasks={tasks}; tell it --nodes and --ntasks-per-node")
    return tasks


def _warn_of_stale_addresses() -> None:
    """torchrun keeps the addresses of the processes before a restart, and the new ones may wait for those."""
    may_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    if may_restart and os.environ.get(NEW_STORE) != "1" and is_first_process():
        log.warning(
            "a restart by torchrun may wait for processes that are gone; start it as %s=1 torchrun ...", NEW_STORE
        )
