"""MP3 copies of a manifest's recordings, to train on beside the originals.

A small MP3 lacks the highs and has spectral holes; a model that never met such audio got three more characters in a
hundred wrong.

    python recipes/base/mp3_copies.py MANIFEST FOLDER

writes FOLDER/audio/*.mp3 and FOLDER/manifest.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import soundfile

from asr.commands.options import check_output
from asr.errors import errors_told
from asr.folders import read_data
from asr.manifest import Utterance, write_manifest

SAMPLE_RATE = 16000
QUALITY = {"compression_level": 0.9, "bitrate_mode": "CONSTANT"}
"""24 kbit/s at 16 kHz."""


def main() -> None:
    """Copy what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    utterances, folder = read_data(arguments.manifest), arguments.folder
    check_output(folder / "manifest.jsonl", "folder", utterances)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    write_manifest(copies(utterances, folder / "audio"), folder / "manifest.jsonl")


def copies(utterances: Iterable[Utterance], folder: Path) -> Iterator[Utterance]:
    """Each as a recording of its own, which is written."""
    for number, utterance in enumerate(utterances):
        copy = folder / f"{number:06d}.mp3"  # not by its id, which others may have too
        soundfile.write(copy, utterance.read(SAMPLE_RATE).numpy(), SAMPLE_RATE, format="MP3", **QUALITY)
        yield replace(utterance, audio_path=str(copy), start_seconds=0.0)


if __name__ == "__main__":
    with errors_told():
        main()
