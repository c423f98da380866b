"""So many minutes of a manifest, drawn at random; more minutes hold the same utterances and others.

python recipes/finetune/take_minutes.py MANIFEST MINUTES PART.jsonl
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr.commands.options import check_output, positive
from asr.errors import errors_told
from asr.folders import read_data
from asr.manifest import Utterance, write_manifest


def take(utterances: Sequence[Utterance], minutes: float) -> Iterator[Utterance]:
    """Utterances in an order of their own, until there are so many minutes."""
    seconds = 0.0
    for utterance in random.Random(0).sample(utterances, len(utterances)):
        if seconds >= 60 * minutes:
            return
        seconds += utterance.duration_seconds
        yield utterance


def main() -> None:
    """Take what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("minutes", type=positive)
    parser.add_argument("part", type=Path)
    options = parser.parse_args()
    utterances = read_data(options.manifest)
    check_output(options.part, "part", utterances)
    write_manifest(take(utterances, options.minutes), options.part)


if __name__ == "__main__":
    with errors_told():
        main()
