"""`asr download`, `prepare` and `shard`: speech to learn from."""

from __future__ import annotations

import argparse
from pathlib import Path

from asr.commands.options import Commands, given_path

__all__ = ["add_download", "add_prepare", "add_shard"]


def add_download(commands: Commands) -> None:
    parser = commands.add_parser("download", help="fetch a corpus", description=_run_download.__doc__)
    parser.add_argument("corpus", choices=("librispeech",))
    parser.add_argument(
        "--subsets", nargs="+", required=True, metavar="SUBSET", help="such as train-clean-5 dev-clean-2"
    )
    parser.add_argument("--dir", required=True, type=given_path, metavar="DIR", help="gets LibriSpeech/SUBSET")
    parser.add_argument("--mirror", metavar="URL", help="in place of https://www.openslr.org/resources")
    parser.set_defaults(run=_run_download)


def _run_download(options: argparse.Namespace) -> int:
    """Download, verify and unpack subsets; what is complete is not fetched again, what broke off is resumed."""
    from asr.corpora.librispeech import download_librispeech

    for folder in download_librispeech(options.subsets, options.dir, mirror=options.mirror):
        print(folder)
    return 0


def add_prepare(commands: Commands) -> None:
    parser = commands.add_parser("prepare", help="a corpus to manifests", description=_run_prepare.__doc__)
    parser.add_argument("corpus", choices=("librispeech",))
    parser.add_argument("dir", type=Path, metavar="DIR", help="where LibriSpeech/SUBSET lies")
    parser.add_argument("--output-dir", required=True, type=given_path, metavar="DIR", help="gets SUBSET.jsonl.gz")
    parser.set_defaults(run=_run_prepare)


def _run_prepare(options: argparse.Namespace) -> int:
    """Write one manifest of lhotse cuts per subset, after a check of every transcript and audio header."""
    from asr.corpora.librispeech import prepare_all

    for subset in prepare_all(options.dir, options.output_dir):
        hours = subset.duration_seconds / 3600
        print(f"{subset.path}\t{subset.num_utterances:,} utterances\t{hours:.2f} hours")
    return 0


def add_shard(commands: Commands) -> None:
    parser = commands.add_parser("shard", help="many small files to few large ones", description=_run_shard.__doc__)
    parser.add_argument("data", nargs="+", metavar="DATA", help="manifests or folders")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--shard-size", type=int, metavar="N", help="recordings in one shard (default: 1000)")
    parser.set_defaults(run=_run_shard, find_conflict=_find_shard_conflict)


def _find_shard_conflict(options: argparse.Namespace) -> str | None:
    return "--shard-size must be at least 1" if options.shard_size is not None and options.shard_size < 1 else None


def _run_shard(options: argparse.Namespace) -> int:
    """Pack recordings and transcripts into tar files, in lhotse's Shar layout.

    The folder, or its address on an HTTP server, can be named wherever a manifest can.
    """
    from asr.folders import read_many
    from asr.shards import SHARD_SIZE, write_shards

    utterances = read_many(options.data)
    shards = write_shards(utterances, options.output, options.shard_size or SHARD_SIZE)
    hours = sum(utterance.duration_seconds for utterance in utterances) / 3600
    print(f"{options.output}\t{shards:,} shards\t{len(utterances):,} utterances\t{hours:.2f} hours")
    return 0
