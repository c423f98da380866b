"""One utterance that is a whole recording, as lhotse writes it in a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["make_cut"]


def make_cut(
    name: str,
    audio: Path | None,
    sample_rate: int,
    frames: int,
    text: str,
    speaker: str,
    language: str | None = None,
) -> dict[str, Any]:
    """The dictionary form of a lhotse cut of one channel; audio: None for what lies in a shard beside it."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment  # imported late: takes a second or two

    duration = frames / sample_rate
    source = AudioSource("shar", [0], "") if audio is None else AudioSource("file", [0], str(audio))
    recording = Recording(name, [source], sample_rate, frames, duration)
    supervision = SupervisionSegment(name, name, 0.0, duration, text=text, language=language, speaker=speaker or None)
    cut = MonoCut(name, 0.0, duration, channel=0, supervisions=[supervision], recording=recording)
    dictionary: dict[str, Any] = cut.to_dict()
    return dictionary
