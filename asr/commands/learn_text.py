"""`asr learn-text`: text to a model that writes better."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path

from asr.commands.language_model import add_text_options, read_text
from asr.commands.options import Commands, given_text

__all__ = ["add_learn_text"]


def add_learn_text(commands: Commands) -> None:
    parser = commands.add_parser(
        "learn-text", help="teach a model how words are written, by text alone", description=_run_learn_text.__doc__
    )
    parser.add_argument("model", type=given_text, metavar="MODEL", help="one that hears phonemes, or `packaged`")
    add_text_options(parser)
    parser.add_argument(
        "--recordings", nargs="+", required=True, metavar="DATA", help="of which the sentences are put together"
    )
    parser.add_argument(
        "--valid", nargs="+", default=[], metavar="DATA", help="valid sets, told of after each epoch, and held out"
    )
    for name, default, help_text in (
        ("layers", 0, "that read the phonemes, new ones; 0: those that the model has"),
        ("size", 256, "of new layers"),
        ("pieces", 2048, "of words that new layers write, learned from the text"),
        ("epochs", 8, "each is validated and written"),
        ("steps", 1000, "of an epoch at most, in each process"),
        ("batch-steps", 6000, "of 40 ms in a step of each process, about"),
        ("seed", 1, "of the first weights, the order and whose voice says what"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{help_text} (default: {default})")
    parser.add_argument("--recordings-share", type=float, metavar="S", help="heard as they are (default: 0.2)")
    parser.add_argument("--dropout", type=float, metavar="S", help="of the layers that read (default: 0.1)")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="at its highest (default: 0.002)")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was stopped")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="gets the .safetensors file")
    parser.set_defaults(run=_run_learn_text, find_conflict=_find_conflict)


def _find_conflict(options: argparse.Namespace) -> str | None:
    output: Path = options.output
    if output.suffix != ".safetensors":
        return f"--output {output}: must end in .safetensors, as model files do"
    if output.resolve() == Path(options.model).resolve():
        return f"--output {output}: would replace the model; choose another file"
    return None


def _run_learn_text(options: argparse.Namespace) -> int:
    """Train the layers that read phonemes with sentences of a text, put together from what was heard of recordings."""
    from asr.ranks import forget_other_ranks, is_first_process

    forget_other_ranks()
    from asr.check import check_corpus
    from asr.config import DataConfig
    from asr.folders import read_many
    from asr.modelfile import load_model
    from asr.reading import WIDE, ReadingSettings, train_reader

    if not is_first_process():
        logging.getLogger("asr").setLevel(logging.ERROR)
    model = load_model(options.model)
    names = (field.name for field in fields(ReadingSettings))
    settings = ReadingSettings(**{name: value for name in names if (value := getattr(options, name)) is not None})
    recordings = check_corpus(read_many(options.recordings), model, DataConfig(), WIDE).examples
    valid = check_corpus(read_many(options.valid), model).examples if options.valid else []
    options.held_out += options.valid
    sentences, _, _ = read_text(options)
    train_reader(model, list(sentences), recordings, options.output, settings, valid=valid, resume=options.resume)
    if is_first_process():
        print(options.output)
    return 0
