"""`asr check`, `evaluate` and `verify`: what is in recordings, how good a model is, and whether it is so here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from asr.commands.options import (
    DEVICES,
    Commands,
    add_inference_options,
    add_language_model_options,
    check_output,
    choose_device,
    find_lm_conflict,
    given_path,
    given_text,
    make_decode,
)
from asr.errors import AsrError

if TYPE_CHECKING:
    from asr.manifest import Utterance

__all__ = ["add_check", "add_evaluate", "add_verify"]


def add_check(commands: Commands) -> None:
    parser = commands.add_parser("check", help="a page about your recordings", description=_run_check.__doc__)
    parser.add_argument("data", metavar="DATA", help="a manifest, or a folder of recordings and texts")
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write a clean manifest, and list each change")
    parser.add_argument("--valid", type=given_text, metavar="DATA", help="a valid set: what of it is in DATA too?")
    parser.add_argument(
        "--model", type=given_text, metavar="M", help="the model to train on from (default: the packaged model)"
    )
    parser.add_argument(
        "--new-vocabulary",
        type=given_text,
        metavar="CHARACTERS",
        help="what it shall write with, as of `asr finetune`",
    )
    _add_report_option(parser)
    parser.set_defaults(run=_run_check, find_conflict=_find_check_conflict)


def _find_check_conflict(options: argparse.Namespace) -> str | None:
    if options.fix is None:
        return None
    if Path(options.fix.name.lower().removesuffix(".gz")).suffix in (".csv", ".tsv"):
        return f"--fix {options.fix}: JSON lines are written; call the file {options.fix.stem}.jsonl"
    if options.fix.is_dir():
        return f"--fix {options.fix}: is a folder; name a file in it"
    if options.fix.resolve() in (Path(data).resolve() for data in (options.data, options.valid) if data):
        return f"--fix {options.fix}: would replace the data themselves; choose another file"
    return None


def _run_check(options: argparse.Namespace) -> int:
    """Print a page about recordings and their texts: what they are like, what cannot be learned from, what is odd."""
    from asr.check import check_corpus, find_shared
    from asr.config import VocabularyConfig
    from asr.folders import read_data
    from asr.modelfile import load_model
    from asr.newfiles import check_new_file
    from asr.surgery import with_vocabulary
    from asr.survey import survey, write_fixed
    from asr.vocabulary import CharacterVocabulary

    faults: list[str] = []
    if options.fix:
        check_new_file(options.fix)
    model = load_model(options.model)
    if options.new_vocabulary:
        given = VocabularyConfig(characters=options.new_vocabulary)  # with the rules of a training
        model = with_vocabulary(model, CharacterVocabulary(given.characters))
    utterances = read_data(options.data, faults)
    _check_report(options, utterances)
    if options.fix:
        check_output(options.fix, "--fix", utterances)
    valid = read_data(options.valid) if options.valid else []
    found = survey(utterances, model)
    print(found.page())
    if faults:
        print(f"not read: {len(faults)}", *AsrError.of_many(faults, "faults").args[0].splitlines(), sep="\n  ")
    if options.report:
        from asr.report.recordings import report_recordings

        print(report_recordings(found, model, options.report, name=options.data, pictures=options.pictures))
    if options.fix:
        for change in [*(f"{fault}: left out" for fault in faults), *write_fixed(found, options.fix)]:
            print(change)
    if options.valid:
        corpora = [check_corpus(each, model) for each in (found.usable(), valid)]
        print("\n".join(find_shared(*corpora)) or "nothing of the valid set is in it")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return int(text)


def _add_report_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=given_path, metavar="DIR", help="write a page with audio and pictures there")
    parser.add_argument(
        "--pictures",
        type=_count,
        default=50,
        metavar="N",
        help="spectrograms in the report, the worst first (default: 50)",
    )


def _check_report(options: argparse.Namespace, utterances: list[Utterance]) -> None:
    from asr.report.page import check_report

    if options.report:
        check_report(options.report, utterances)


def add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="a model's WER on a manifest", description=_run_evaluate.__doc__)
    parser.add_argument("model", metavar="MODEL", help="a model file, or `packaged`")
    parser.add_argument("manifest", metavar="MANIFEST", help="a manifest, or a folder of recordings and texts")
    parser.add_argument("--hypotheses", type=Path, metavar="FILE", help="write id, reference, hypothesis as JSON lines")
    _add_report_option(parser)
    parser.add_argument("--compare", action="append", default=[], metavar="MODEL", help="another model, in the report")
    add_inference_options(parser)
    add_language_model_options(parser)
    parser.set_defaults(run=_run_evaluate, find_conflict=_find_evaluate_conflict)


def _find_evaluate_conflict(options: argparse.Namespace) -> str | None:
    return "--compare needs --report" if options.compare and not options.report else find_lm_conflict(options)


def _short_names(paths: list[str]) -> list[str]:
    """The models' names without their folders, or with one where they would be the same."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(Path(path).with_suffix("")) for path in paths]


def _run_evaluate(options: argparse.Namespace) -> int:
    """Print WER and CER with 95 % intervals, errors by kind, and the real-time factor."""
    from asr.evaluation import evaluate
    from asr.folders import read_data
    from asr.modelfile import load_model
    from asr.newfiles import check_new_file

    if options.hypotheses:
        if not options.hypotheses.parent.is_dir():
            raise AsrError(f"--hypotheses {options.hypotheses}: its folder does not exist")
        check_new_file(options.hypotheses)
    utterances = read_data(options.manifest)
    _check_report(options, utterances)
    if options.hypotheses:
        read = [options.model, *options.compare, options.lm, options.rescore, options.lexicon]
        check_output(options.hypotheses, "--hypotheses", utterances, read=read)
    device = choose_device(options.device)
    models = [load_model(path, device) for path in (options.model, *options.compare)]
    decodes = [make_decode(options, model) for model in models]  # what is wrong with one is told before the first hears
    evaluations = (
        evaluate(model, utterances, batch_seconds=options.batch_seconds, decode=decode)
        for model, decode in zip(models, decodes, strict=True)
    )
    evaluation = next(evaluations)
    for failure in evaluation.failures:
        print(f"{failure.name}: {failure.message}", file=sys.stderr)  # manifest:line, then the audio
    print(evaluation.summary(), flush=True)
    if options.hypotheses:
        evaluation.write_hypotheses(options.hypotheses)
    if options.report:
        from asr.report.model_errors import report_errors

        name, *names = _short_names([options.model, *options.compare])
        pairs = list(zip(names, evaluations, strict=True))
        page = report_errors(evaluation, models[0], options.report, name=name, others=pairs, pictures=options.pictures)
        print(page)
    return 1 if evaluation.failures else 0


def add_verify(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="check this installation", description=_run_verify.__doc__)
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.add_argument("--lm", choices=["packaged"], help="with the packaged language model")
    parser.set_defaults(run=_run_verify)


def _run_verify(options: argparse.Namespace) -> int:
    """Tell whether the packaged model writes here, to the letter, what it wrote when it was published."""
    from asr.verification import verify

    verification = verify(choose_device(options.device), with_language_model=options.lm is not None)
    print(verification.summary())
    return 1 if verification.differing else 0
