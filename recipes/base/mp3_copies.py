"""MP3 copies of a manifest's recordings, to train on beside the originals.

A small MP3 lacks the highs and has spectral holes; a model that never met such audio got three more characters in a
hundred wrong.

    python recipes/base/mp3_copies.py MANIFEST FOLDER

writes FOLDER/audio/*.mp3 and FOLDER/manifest.jsonl.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import soundfile

from asr.manifest import read_manifest

SAMPLE_RATE = 16000
QUALITY = {"compression_level": 0.9, "bitrate_mode": "CONSTANT"}
"""24 kbit/s at 16 kHz."""


def main() -> None:
    """Copy what the command line names."""
    manifest, folder = sys.argv[1], Path(sys.argv[2])
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as file:
        for number, utterance in enumerate(read_manifest(manifest)):
            samples = utterance.read(SAMPLE_RATE)
            copy = f"audio/{number:06d}.mp3"  # not by its id, which others may have too
            soundfile.write(folder / copy, samples.numpy(), SAMPLE_RATE, format="MP3", **QUALITY)
            entry = {"audio": copy, "text": utterance.text, "speaker": utterance.speaker}
            entry["duration"] = utterance.duration_seconds
            print(json.dumps(entry), file=file)


if __name__ == "__main__":
    main()
