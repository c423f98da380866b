"""A recording drawn: its spectrogram, over it what the model hears when, and below it the words with their times."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import librosa
import matplotlib
import numpy
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ft2font import FT2Font
from torch import Tensor

from asr.model import CTCModel
from asr.transcript import Word
from asr.vocabulary import BLANK_ID

__all__ = ["draw"]

LEAST_PROBABILITY = 0.3
"""A character is written where it is at least as probable."""

INCHES_PER_SECOND, LEAST_INCHES, MOST_INCHES = 1.1, 6.0, 30.0


def draw(samples: Tensor, log_probs: Tensor, words: tuple[Word, ...], model: CTCModel, path: Path) -> None:
    """Write a PNG.

    samples: (samples,) at the model's rate; log_probs: (steps, vocabulary); words: with their times.
    """
    letters = "".join([*(word.text for word in words), *model.vocabulary.tokens[BLANK_ID + 1 :]])
    fonts = ["DejaVu Sans", *find_fonts("".join(sorted(set(letters))))]
    with matplotlib.rc_context({"font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # that no font here has; a box stands for it
        warnings.filterwarnings("ignore", "n_fft")  # of a recording that is shorter than a window
        _draw(samples, log_probs, words, model, path)


@cache
def find_fonts(letters: str) -> list[str]:
    """The installed font with most of the letters that matplotlib's own lacks, as it does Chinese and Hindi."""
    lacking = set(map(ord, letters)) - FT2Font(findfont("DejaVu Sans")).get_charmap().keys()
    shares = {}
    for font in fontManager.ttflist if lacking else ():
        if not font.name.startswith("Last Resort"):  # it has a box for everything
            shares[font.name] = len(lacking & FT2Font(font.fname).get_charmap().keys())
    best = max(shares, key=lambda name: shares[name], default="")
    return [best] if best and shares[best] else []


def _draw(samples: Tensor, log_probs: Tensor, words: tuple[Word, ...], model: CTCModel, path: Path) -> None:
    seconds = len(samples) / model.sample_rate
    width = min(MOST_INCHES, max(LEAST_INCHES, INCHES_PER_SECOND * seconds))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    spectrum, probabilities = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _draw_spectrogram(spectrum, samples.numpy(), model)
    _draw_probabilities(probabilities, log_probs.exp().numpy(), model)
    for word in words:
        for axes in (spectrum, probabilities):
            axes.axvspan(word.start_seconds, word.end_seconds, color="tab:orange", alpha=0.12)
        middle = (word.start_seconds + word.end_seconds) / 2
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 7, "parse_math": False}
        spectrum.annotate(word.text, (middle, 1.01), **above)
    probabilities.set(xlim=(0, seconds), ylim=(0, 1.15), ylabel="probability", xlabel="seconds")
    figure.savefig(path, dpi=80)


def _draw_spectrogram(axes: matplotlib.axes.Axes, samples: numpy.ndarray, model: CTCModel) -> None:
    hop, fft = model.frontend.hop_samples, model.frontend.fft_samples
    mel = librosa.feature.melspectrogram(y=samples, sr=model.sample_rate, n_fft=fft, hop_length=hop, n_mels=80)
    decibels = librosa.power_to_db(mel, ref=numpy.max)
    librosa.display.specshow(
        decibels, sr=model.sample_rate, hop_length=hop, x_axis="s", y_axis="mel", ax=axes, cmap="magma"
    )
    axes.set(xlabel="", ylabel="Hz")
    axes.tick_params(labelbottom=False)


def _draw_probabilities(axes: matplotlib.axes.Axes, probabilities: numpy.ndarray, model: CTCModel) -> None:
    """A line for each character that is ever probable, its letter above each peak; the blank's line is grey."""
    seconds = numpy.arange(len(probabilities)) * model.step_samples / model.sample_rate
    axes.plot(seconds, probabilities[:, BLANK_ID], color="0.75", linewidth=0.8)
    for token_id, token in enumerate(model.vocabulary.tokens):
        column = probabilities[:, token_id]
        if token_id == BLANK_ID or column.max() < LEAST_PROBABILITY:
            continue
        axes.plot(seconds, column, linewidth=0.9)
        padded = numpy.concatenate([[0], column, [0]])
        is_peak = (column >= LEAST_PROBABILITY) & (column >= padded[:-2]) & (column > padded[2:])
        for step in numpy.flatnonzero(is_peak):
            shown = "␣" if token == " " else token
            axes.annotate(shown, (seconds[step], column[step]), fontsize=6, ha="center", parse_math=False)
