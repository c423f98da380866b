"""`asr lm` and `tune-lm`: a language model from text, and its weights."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from asr.commands.options import Commands, given_text
from asr.errors import AsrError

if TYPE_CHECKING:
    from asr.text import Normalize
    from asr.tuning import Point
    from asr.vocabulary import Vocabulary

__all__ = ["add_lm", "add_text_options", "add_tune_lm", "read_text"]

MANIFESTS = (".csv", ".jsonl", ".tsv")
"""Endings of what is read as a manifest where a text is asked for."""

HIGHEST_ORDER = 6
"""Of the models that KenLM reads as flashlight-text builds it."""


def add_lm(commands: Commands) -> None:
    parser = commands.add_parser("lm", help="text to a language model", description="Make a language model of text.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_lm_build(actions)
    _add_lm_train(actions)


def _add_lm_build(actions: Commands) -> None:
    build = actions.add_parser("build", help="count n-grams of words", description=_run_lm_build.__doc__)
    add_text_options(build)
    _add_alphabet_option(build)
    build.add_argument("--order", type=int, default=3, metavar="N", help="words of the longest n-gram (default: 3)")
    build.add_argument(
        "--prune", type=int, nargs="+", default=[], metavar="C", help="per length, drop n-grams seen up to C times"
    )
    build.add_argument(
        "--min-count", type=int, default=1, metavar="C", help="take rarer words for unknown (default: 1)"
    )
    build.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help="gets the ARPA file; .arpa.gz is compressed"
    )
    build.set_defaults(run=_run_lm_build, find_conflict=_find_lm_build_conflict)


def _add_lm_train(actions: Commands) -> None:
    train = actions.add_parser("train", help="a GRU that reads sentences", description=_run_lm_train.__doc__)
    add_text_options(train)
    _add_alphabet_option(train)
    for name, default, help_text in (
        ("epochs", 2, "passes over the text"),
        ("hidden-size", 640, "of the GRU"),
        ("pieces", 2048, "tokens: pieces of words, learned from the text"),
        ("batch-tokens", 4096, "in a step of each process, at most"),
        ("seed", 1, "of the first weights and the order"),
    ):
        train.add_argument(f"--{name}", type=int, metavar="N", help=f"{help_text} (default: {default})")
    train.add_argument("--learning-rate", type=float, metavar="RATE", help="at its highest (default: 0.004)")
    train.add_argument(
        "--initial-model",
        type=given_text,
        metavar="FILE",
        help="a model of `asr lm train`, or `packaged`, to begin with",
    )
    train.add_argument("--resume", action="store_true", help="go on with a training that was stopped")
    train.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="gets the .safetensors file")
    train.set_defaults(run=_run_lm_train, find_conflict=_find_lm_train_conflict)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT", help="a sentence a line; plain, .gz or .xz; or a manifest, for its texts"
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="DATA",
        help="valid sets: leave out sentences that share eight words in a row with their transcripts",
    )


def _add_alphabet_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=given_text,
        metavar="M",
        help="whose alphabet to write it in (default: LibriSpeech's, or the initial model's)",
    )


def _find_lm_build_conflict(options: argparse.Namespace) -> str | None:
    output: Path = options.output
    if output.suffix in (".bz2", ".xz", ".zip"):
        return f"--output {output}: the decoder reads .arpa and .arpa.gz"
    if output.suffix == ".safetensors":
        return f"--output {output}: an ARPA file is written; call it {output.stem}.arpa or {output.stem}.arpa.gz"
    if output.resolve() in (Path(data).resolve() for data in (*options.texts, *options.held_out)):
        return f"--output {output}: would replace the text; choose another file"
    return None


def _find_lm_train_conflict(options: argparse.Namespace) -> str | None:
    output: Path = options.output
    if output.suffix != ".safetensors":
        return f"--output {output}: must end in .safetensors"
    if options.initial_model and (options.hidden_size is not None or options.pieces is not None):
        return "--hidden-size and --pieces are those of --initial-model"
    return None


def _run_lm_build(options: argparse.Namespace) -> int:
    """Build a word n-gram model with modified Kneser-Ney smoothing from text, and write it as ARPA."""
    from asr.newfiles import check_new_file
    from asr.ngrams import build_ngrams, write_arpa

    if not 2 <= options.order <= HIGHEST_ORDER:
        raise AsrError(f"--order {options.order} must be 2 to {HIGHEST_ORDER}: the beam search reads no other models")
    check_new_file(options.output)
    sentences, _, _ = read_text(options)
    model = build_ngrams(sentences, options.order, prune=options.prune, min_count=options.min_count)
    write_arpa(model, options.output)
    counts = ", ".join(f"{len(rows):,} of {length}" for length, rows in enumerate(model.ngrams, start=1))
    print(f"{options.output}\t{options.output.stat().st_size / 1e6:.1f} MB\tn-grams by length: {counts}")
    return 0


def _run_lm_train(options: argparse.Namespace) -> int:
    """Train a GRU language model on text, for --rescore; the held-out sets' perplexity is told after each epoch."""
    from asr.ranks import forget_other_ranks, is_first_process

    forget_other_ranks()
    from asr.lm_training import LanguageModelSettings, train_language_model

    if not is_first_process():
        logging.getLogger("asr").setLevel(logging.ERROR)
    names = "epochs", "hidden_size", "pieces", "batch_tokens", "learning_rate", "seed"
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    text, held_out, alphabet = read_text(options, options.initial_model)
    settings = {"held_out": held_out, "alphabet": alphabet, "initial_model": options.initial_model}
    train_language_model(text, options.output, LanguageModelSettings(**given), resume=options.resume, **settings)
    if is_first_process():
        print(f"{options.output}\t{options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def read_text(options: argparse.Namespace, initial_model: str | None = None) -> tuple[Iterable[str], list[str], str]:
    """The normal transcripts of the texts, those of the held-out sets, and the alphabet that both are written in.

    initial_model: of `asr lm train`, whose alphabet it is where no model of speech is named.
    """
    from asr.folders import read_many
    from asr.ngrams import drop_shared, read_sentences
    from asr.text import ALPHABET, normalize_transcript

    normalize: Normalize = normalize_transcript
    alphabet = ALPHABET
    if vocabulary := _find_vocabulary(options.model, initial_model):
        normalize, alphabet = vocabulary.normalize, vocabulary.alphabet
    manifests = [text for text in options.texts if Path(text.lower().removesuffix(".gz")).suffix in MANIFESTS]
    plain = [text for text in options.texts if text not in manifests]
    texts = (utterance.text for utterance in (read_many(manifests) if manifests else []))
    sentences: Iterable[str] = read_sentences(plain, normalize, texts)
    held_out: list[str] = []
    if options.held_out:
        held_out = list(read_sentences([], normalize, (utterance.text for utterance in read_many(options.held_out))))
        sentences = drop_shared(sentences, held_out)
    return sentences, held_out, alphabet


def _find_vocabulary(model: str | None, initial_model: str | None) -> Vocabulary | None:
    """Of the model of speech that the text is for, else of the language model that is trained on."""
    if model:
        from asr.modelfile import load_model

        return load_model(model).vocabulary
    if initial_model:
        from asr.sentences import load_language_model

        return load_language_model(initial_model).vocabulary
    return None


def add_tune_lm(commands: Commands) -> None:
    parser = commands.add_parser(
        "tune-lm", help="a language model's weights by a valid set", description=_run_tune_lm.__doc__
    )
    parser.add_argument("model", metavar="MODEL", help="a model file, or `packaged`")
    parser.add_argument(
        "manifest", metavar="MANIFEST", help="the valid set: a manifest, or a folder of recordings and texts"
    )
    parser.add_argument(
        "--lm", required=True, type=given_text, metavar="FILE", help="`packaged`, or an ARPA file of `asr lm build`"
    )
    parser.add_argument("--rescore", type=given_text, metavar="FILE", help="as of `asr transcribe`")
    parser.add_argument("--beam-size", type=int, default=100, metavar="N", help="hypotheses kept (default: 100)")
    parser.set_defaults(run=_run_tune_lm)


def _run_tune_lm(options: argparse.Namespace) -> int:
    """Try weights of the language model and of its letters, and scores of a word; print each one's WER and the best."""
    import torch

    from asr.folders import read_data
    from asr.modelfile import load_model
    from asr.tuning import find_best, tune

    model = load_model(options.model)
    points = []
    utterances = read_data(options.manifest)
    settings = {"processes": torch.get_num_threads(), "beam_size": options.beam_size, "rescore": options.rescore}
    for point in tune(model, utterances, options.lm, **settings):
        points.append(point)
        print(_told(point), flush=True)
    print(f"best: {_told(find_best(points))}")
    return 0


def _told(point: Point) -> str:
    weights = f"--lm-weight {point.lm_weight:g} --word-score {point.word_score:g} --prior-weight {point.prior_weight:g}"
    return f"{weights}\tWER {point.words.rate:.2%}"
