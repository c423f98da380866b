"""`asr train`, `plot`, `finetune` and `average`: making models."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from asr.commands.options import Commands, add_language_model_options, find_lm_conflict, given_text, make_decode

__all__ = ["add_average", "add_finetune", "add_plot", "add_train"]


def add_train(commands: Commands) -> None:
    parser = commands.add_parser("train", help="a recipe to a model file", description=_run_train.__doc__)
    parser.add_argument("recipe", help="a YAML file such as recipes/librispeech/mini.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings over the recipe's"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir where it stopped")
    parser.add_argument(
        "--overfit", type=int, metavar="N", help="learn the first N utterances by heart, to see that all fits together"
    )
    parser.add_argument(
        "--find-batch", action="store_true", help="try sizes of batches on this machine, longest utterances first"
    )
    parser.set_defaults(run=_run_train, find_conflict=_find_train_conflict)


def _find_train_conflict(options: argparse.Namespace) -> str | None:
    modes = {"--overfit": options.overfit is not None, "--find-batch": options.find_batch, "--resume": options.resume}
    if sum(modes.values()) > 1:
        return " and ".join(name for name, given in modes.items() if given) + " do not go together"
    return "--overfit must be at least 1" if options.overfit is not None and options.overfit < 1 else None


def _run_train(options: argparse.Namespace) -> int:
    """Check the data, train by a recipe, and print the path of the best model file. Ctrl-C keeps the place."""
    from asr.ranks import forget_other_ranks, is_first_process
    from asr.recipe import load_config

    forget_other_ranks()
    config = load_config(options.recipe, options.overrides)
    if options.overfit is not None:
        from asr.overfitting import LEARNED_WER, overfit

        evaluation = overfit(config, options.overfit)
        print(evaluation.summary())
        if evaluation.words.rate <= LEARNED_WER:
            return 0
        likely = "a transcript belongs to other audio, or the learning rate or the model's size does not fit"
        print(f"not learned: more than {LEARNED_WER:.0%} of the words are wrong; {likely}", file=sys.stderr)
        return 1
    if options.find_batch:
        from asr.batchsize import find_batch

        print(find_batch(config).summary())
        return 0
    from asr.training import train

    if not is_first_process():
        logging.getLogger("asr").setLevel(logging.ERROR)
    path = train(config, resume=options.resume)
    if is_first_process():
        print(path)
    return 0


def add_plot(commands: Commands) -> None:
    parser = commands.add_parser("plot", help="a picture of trainings", description=_run_plot.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="the output_dir of a training")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: curves.png in the first RUN_DIR")
    parser.set_defaults(run=_run_plot)


def _run_plot(options: argparse.Namespace) -> int:
    """Draw loss, error rates, learning rate and the wait for data of one or several trainings to a PNG."""
    from asr.plotting import plot_runs

    print(plot_runs(options.runs, options.output or options.runs[0] / "curves.png"))
    return 0


def add_finetune(commands: Commands) -> None:
    parser = commands.add_parser(
        "finetune", help="a model and your recordings to a model", description=_run_finetune.__doc__
    )
    parser.add_argument("model", metavar="MODEL", help="a model file, or `packaged`")
    manifest: dict[str, Any] = {"action": "append", "metavar": "MANIFEST"}
    parser.add_argument("--train", **manifest, required=True, help="what to learn from; may be given again")
    parser.add_argument("--valid", **manifest, required=True, help="what chooses the best model; may be given again")
    parser.add_argument("--also-valid", **manifest, default=[], help="what shall not suffer: compared only")
    parser.add_argument("--mix", **manifest, default=[], help="learned before: as many hours are drawn from it again")
    parser.add_argument(
        "--new-vocabulary",
        type=given_text,
        metavar="CHARACTERS",
        help="what to write with, a space included",
    )
    parser.add_argument("--freeze-encoder-layers", type=int, metavar="N", help="lowest layers keep weights")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings over the defaults"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir where it stopped")
    add_language_model_options(parser)
    parser.set_defaults(run=_run_finetune, find_conflict=find_lm_conflict)


def _run_finetune(options: argparse.Namespace) -> int:
    """Train a model on with more recordings, and print the WER of each valid set before and after, with --lm by it."""
    from asr.ranks import forget_other_ranks, is_first_process

    forget_other_ranks()
    from asr.finetuning import finetune, finetune_config

    config = finetune_config(
        options.model,
        options.train,
        options.valid,
        options.overrides,
        frozen_layers=options.freeze_encoder_layers,
        characters=options.new_vocabulary or "",
    )
    finetuned = finetune(
        config,
        also_valid=options.also_valid,
        mixed=options.mix,
        resume=options.resume,
        make_decode=partial(make_decode, options),
    )
    if is_first_process():
        print(finetuned.summary())
        print(finetuned.path)
    return 0


def add_average(commands: Commands) -> None:
    parser = commands.add_parser(
        "average", help="models that began as the same one to their mean", description=_run_average.__doc__
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a model file, or `packaged`; named twice it weighs twice"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="gets the mean's model file")
    parser.add_argument("--int8", action="store_true", help="eight bits a weight in place of sixteen; of one model too")
    parser.set_defaults(run=_run_average, find_conflict=_find_average_conflict)


def _find_average_conflict(options: argparse.Namespace) -> str | None:
    if len(options.models) < 2 and not options.int8:
        return "a mean takes two models or more; one is written in eight bits a weight with --int8"
    if options.output.suffix != ".safetensors":
        return f"--output {options.output}: must end in .safetensors, as model files do"
    if options.output.resolve() in (Path(model).resolve() for model in options.models):
        return f"--output {options.output}: would replace a model that goes into the mean; choose another file"
    return None


def _run_average(options: argparse.Namespace) -> int:
    """Write the mean of the weights of models that began as the same one, such as a fine-tuned one and its start."""
    import torch

    from asr.averaging import average
    from asr.modelfile import save_model

    save_model(average(options.models), options.output, dtype=torch.int8 if options.int8 else torch.float16)
    print(options.output)
    return 0
