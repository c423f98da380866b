"""What lies beside a page: each utterance as FLAC, and pictures of some."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import soundfile
import torch

from asr.audio import open_audio, read_audio
from asr.errors import AsrError, reason_of
from asr.manifest import Utterance
from asr.model import CTCModel
from asr.report.analysis import signal_to_noise
from asr.transcript import Transcript
from asr.transcription import LONG_SECONDS

__all__ = ["Heard", "copy_audio", "draw_pictures"]


@dataclass(frozen=True)
class Heard:
    """An utterance's audio."""

    path: str = ""
    """Of its copy, from the page; empty where it cannot be read."""
    snr: float | None = None
    """dB, estimated."""
    problems: list[str] = field(default_factory=list)


def copy_audio(utterances: Sequence[Utterance], folder: Path, sample_rate: int) -> list[Heard]:
    """Write audio/1.flac, audio/2.flac, ... below `folder`, at the model's rate.

    Raises AsrError where they cannot be written.
    """
    for name in ("audio", "pictures"):  # what a report before this one left may not be in this one
        shutil.rmtree(folder / name, ignore_errors=True)
    try:
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            return list(executor.map(partial(_copy, folder, sample_rate), count(1), utterances))
    except (OSError, soundfile.LibsndfileError) as error:
        raise AsrError(f"{folder}: the report cannot be written: {reason_of(error)}") from error


def _copy(folder: Path, sample_rate: int, number: int, utterance: Utterance) -> Heard:
    try:
        with open_audio(utterance.audio_path, sample_rate) as audio:  # an hour takes ten times the memory at once
            samples = torch.cat(list(audio.blocks(utterance.start_seconds, utterance.duration_seconds)))
    except AsrError as error:
        return Heard(problems=[str(error)])
    path = f"audio/{number}.flac"
    soundfile.write(folder / path, samples.clamp(-1, 1).numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return Heard(path, signal_to_noise(samples, sample_rate))


@torch.inference_mode()
def draw_pictures(
    chosen: Mapping[int, tuple[Heard, Transcript | None]], model: CTCModel, folder: Path
) -> dict[int, str]:
    """Draw pictures/1.png, ... of the utterances of these indices; returns their paths from the page.

    Recordings of more than LONG_SECONDS have none: a picture of an hour shows nothing.
    """
    from asr.report.picture import draw

    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    paths = {}
    for index, (heard, transcript) in chosen.items():
        if heard.path:
            samples = read_audio(folder / heard.path, model.sample_rate)
            if len(samples) > LONG_SECONDS * model.sample_rate:
                continue
            log_probs, _ = model(samples[None].to(model.device), torch.tensor([len(samples)], device=model.device))
            paths[index] = f"pictures/{index + 1}.png"
            words = transcript.words if transcript else ()
            draw(samples, log_probs[0].cpu(), words, model, folder / paths[index])
    return paths
