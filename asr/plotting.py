"""The curves of one or several trainings, from what they wrote for TensorBoard, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy

from asr.errors import AsrError, reason_of

__all__ = ["EVENT_FILES", "LOG_NAME", "plot_runs", "read_curves"]

PANELS = {
    "loss per token": ("train/loss", "valid/loss", "train/phoneme_loss"),
    "valid error rate": ("valid/wer", "valid/cer", "valid/per"),
    "learning rate": ("lr",),
    "share of time waiting for data": ("speed/data_wait_share",),
}
"""Title of each panel, and the curves in it."""

SMOOTHED, SMOOTHED_STEPS = ("train/loss", "train/phoneme_loss"), 50
"""The training losses are shown as a mean over so many logged values at most, a tenth of them where there are fewer."""

LOG_NAME, EVENT_FILES = "tensorboard", "events.out.tfevents.*"
"""Where a training writes its curves, in its output folder."""

MOST_NAMED = 5
"""Of the trainings in a folder."""

Curve = tuple[numpy.ndarray, numpy.ndarray]
"""Steps and values."""


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """The curves in a training's output folder; where a resumed run did steps again, the later values count.

    Raises AsrError for a folder without any, and for one that holds the output folders of trainings.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted(run_dir.rglob(EVENT_FILES), key=lambda path: path.stat().st_mtime)
    if others := sorted({_run_of(path) for path in files} - {run_dir}):
        named = ", ".join(map(str, others[:MOST_NAMED])) + (", ..." if len(others) > MOST_NAMED else "")
        raise AsrError(f"{run_dir}: holds the curves of other trainings; name those to be drawn ({named})")
    values: dict[str, dict[int, float]] = {}
    for path in files:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            values.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    if not values:
        raise AsrError(f"{run_dir}: no training has written its curves there; name the output_dir of one")
    return {
        tag: (numpy.array(sorted(points)), numpy.array([points[step] for step in sorted(points)]))
        for tag, points in values.items()
    }


def _run_of(path: Path) -> Path:
    """The output folder of the training that wrote an event file."""
    return next((folder.parent for folder in path.parents if folder.name == LOG_NAME), path.parent)


def plot_runs(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write a picture with the curves of some output folders; returns its path, with .png where that had no ending.

    Raises AsrError where it cannot be written.
    """
    from matplotlib.figure import Figure

    if path.is_dir():
        raise AsrError(f"{path}: is a folder; name a file in it")
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for number, run_dir in enumerate(run_dirs):
        name = os.path.basename(os.path.abspath(run_dir)).replace("$", r"\$")  # two of them would begin a formula
        curves = read_curves(run_dir)
        for axes, (title, tags) in zip(panels, PANELS.items(), strict=True):
            axes.set(title=title, xlabel="step")
            for tag, style in zip(tags, ("-", "--", ":")):
                if tag in curves:
                    steps, values = _smooth(*curves[tag]) if tag in SMOOTHED else curves[tag]
                    axes.plot(steps, values, f".{style}", color=f"C{number}", ms=3, label=f"{tag} {name}")
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:  # a ValueError is a kind of file that matplotlib does not know
        raise AsrError(f"{path}: the picture cannot be written: {reason_of(error)}") from error
    return path


def _smooth(steps: numpy.ndarray, values: numpy.ndarray) -> Curve:
    width = max(1, min(SMOOTHED_STEPS, len(values) // 10))
    kernel = numpy.ones(width) / width
    return steps[width - 1 :], numpy.convolve(values, kernel, mode="valid")
