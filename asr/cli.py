"""The `asr` command: it parses, calls one function and prints.

Results go to standard output and everything else to standard error. Exit code 0: all done; 1: some input failed;
2: wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from asr.errors import AsrError

if TYPE_CHECKING:
    from asr.transcript import Transcript

__all__ = ["console_script", "main"]

FORMATS = ("text", "json", "srt", "vtt", "tsv", "ctm", "TextGrid")

DEVICES = "cpu, cuda or auto (a GPU where there is one)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's); returns the exit code."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        code: int = options.run(options)
        print(end="", flush=True)
        return code
    except AsrError as error:
        print(f"asr {options.command}: {error}", file=sys.stderr)
    except BrokenPipeError:
        _discard_output()  # the reader of our output has left, as `head` does
    except OSError as error:
        _discard_output()
        print(f"asr {options.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _discard_output() -> None:
    """Where standard output cannot be written, keep Python from trying once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; `section.key=value` may stand behind options too, where argparse loses it."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in item and item[0] != "-" for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    conflict = options.find_conflict(options)
    if conflict:
        parser.error(conflict)
    return options


def console_script() -> None:
    """What pip installs as `asr`."""
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    from asr import __version__

    parser = argparse.ArgumentParser(prog="asr", description="Speech recognition with a bidirectional GRU and CTC.")
    parser.add_argument("--version", action="version", version=f"bigru-asr {__version__}")
    parser.set_defaults(find_conflict=lambda _: None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_transcribe, _add_align, _add_train, _add_evaluate, _add_verify, _add_download, _add_prepare):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_transcribe(commands: Commands) -> None:
    parser = commands.add_parser("transcribe", help="audio files to text", description=_run_transcribe.__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG/Opus or MP3; - is standard input")
    parser.add_argument(
        "--format",
        type=_formats,
        default=["text"],
        metavar="F,...",
        help=f"{', '.join(FORMATS)}; one for the screen (json: one object a line), or several for files",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write NAME.txt, NAME.srt, ... there")
    parser.add_argument("--skip-existing", action="store_true", help="leave recordings whose files are all there")
    _add_inference_options(parser)
    parser.add_argument("--model", metavar="M", help="a model file (default: the packaged model)")
    parser.set_defaults(run=_run_transcribe, find_conflict=_conflict)


def _add_inference_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.add_argument(
        "--batch-seconds", type=_positive, default=160.0, metavar="N", help="audio computed at once (default: 160)"
    )


def _run_transcribe(options: argparse.Namespace) -> int:
    """Print the words of recordings of any length (one's text alone, several as path, tab, text), or write files."""
    from asr.formats import output_paths, write_transcript
    from asr.modelfile import load_model
    from asr.transcription import Failure, Recording, transcribe_recordings

    names, outputs = options.files, {}
    if options.output_dir:
        extensions = ["txt" if name == "text" else name for name in options.format]
        outputs = output_paths(names, extensions, options.output_dir)
        options.output_dir.mkdir(parents=True, exist_ok=True)
        if options.skip_existing:
            names = [name for name in names if not all(path.exists() for path in outputs[name])]
    model = load_model(options.model, _device(options.device))
    stdin = sys.stdin.buffer if sys.stdin else io.BytesIO()  # none where it was closed
    recordings = (Recording(stdin if name == "-" else name, name) for name in names)
    code = 0
    for result in transcribe_recordings(model, recordings, batch_seconds=options.batch_seconds):
        if isinstance(result, Failure):
            print(result.message, file=sys.stderr)
            code = 1
        elif options.output_dir:
            write_transcript(result, outputs[result.name])
        else:
            _print_transcript(result, options.format[0], alone=len(options.files) == 1)
    return code


def _conflict(options: argparse.Namespace) -> str | None:
    """What options of transcribe do not go together, or None."""
    kinds, several = ",".join(options.format), len(options.files) > 1
    if options.output_dir is not None:
        return None
    if options.skip_existing:
        return "--skip-existing needs --output-dir"
    if len(options.format) > 1:
        return f"--format {kinds} needs --output-dir: the screen shows one format"
    if several and kinds not in ("text", "json"):
        return f"--format {kinds} of several files needs --output-dir"
    return None


def _print_transcript(transcript: Transcript, kind: str, *, alone: bool) -> None:
    from asr.formats import as_dict, format_transcript

    if kind == "json":
        print(json.dumps(as_dict(transcript)), flush=True)
    elif kind == "text":
        print(transcript.text if alone else f"{_one_field(transcript.name)}\t{transcript.text}", flush=True)
    else:
        print(format_transcript(transcript, kind), end="", flush=True)


def _one_field(name: str) -> str:
    """A path without tabs and line breaks, which part fields and lines; they are written as in Python."""
    return name.translate({ord(character): repr(character)[1:-1] for character in "\t\n\r"})


def _add_align(commands: Commands) -> None:
    parser = commands.add_parser("align", help="where the words of a text are spoken", description=_run_align.__doc__)
    parser.add_argument("audio", metavar="AUDIO", help="WAV, FLAC, OGG/Opus or MP3 of any length")
    parser.add_argument("text", metavar="TEXT", type=Path, help="a text file with what is said there")
    parser.add_argument(
        "--format", type=_formats, default=["ctm"], metavar="F", help=f"{', '.join(FORMATS)} (default: ctm)"
    )
    _add_inference_options(parser)
    parser.add_argument("--model", metavar="M", help="a model file (default: the packaged model)")
    parser.set_defaults(run=_run_align)


def _run_align(options: argparse.Namespace) -> int:
    """Print each word of a known text with its time, and how well it fits what is heard there."""
    from asr.alignment import align
    from asr.modelfile import load_model

    try:
        text = options.text.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrError(
            f"{options.text}: the text cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    model = load_model(options.model, _device(options.device))
    transcript = align(model, options.audio, text, batch_seconds=options.batch_seconds)
    for name in options.format:
        _print_transcript(transcript, name, alone=True)
    return 0


def _add_train(commands: Commands) -> None:
    parser = commands.add_parser("train", help="a recipe to a model file", description=_run_train.__doc__)
    parser.add_argument("recipe", help="a YAML file such as recipes/librispeech/mini.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the recipe's")
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir where it stopped")
    parser.set_defaults(run=_run_train)


def _run_train(options: argparse.Namespace) -> int:
    """Check the data, train by a recipe, and print the path of the best model file. Ctrl-C keeps the place."""
    from asr.config import load_config

    config = load_config(options.recipe, options.overrides)
    from asr.training import train

    print(train(config, resume=options.resume))
    return 0


def _add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="a model's WER on a manifest", description=_run_evaluate.__doc__)
    parser.add_argument("model", metavar="MODEL", help="a model file, or `packaged`")
    parser.add_argument("manifest", metavar="MANIFEST", help="lhotse cuts, JSON lines, CSV or TSV")
    parser.add_argument("--hypotheses", metavar="FILE", help="write id, reference, hypothesis as JSON lines")
    _add_inference_options(parser)
    parser.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    """Print WER and CER with 95 % intervals, errors by kind, and the real-time factor."""
    from asr.evaluation import evaluate
    from asr.manifest import read_manifest
    from asr.modelfile import load_model

    if options.hypotheses and not Path(options.hypotheses).parent.is_dir():
        raise AsrError(f"--hypotheses {options.hypotheses}: its folder does not exist")
    model = load_model(None if options.model == "packaged" else options.model, _device(options.device))
    evaluation = evaluate(model, read_manifest(options.manifest), batch_seconds=options.batch_seconds)
    for failure in evaluation.failures:
        print(f"{failure.name}: {failure.message}", file=sys.stderr)  # manifest:line, then the audio
    print(evaluation.summary(), flush=True)
    if options.hypotheses:
        evaluation.write_hypotheses(options.hypotheses)
    return 1 if evaluation.failures else 0


def _add_verify(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="check this installation", description=_run_verify.__doc__)
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.set_defaults(run=_run_verify)


def _run_verify(options: argparse.Namespace) -> int:
    """Tell whether the packaged model writes here, to the letter, what it wrote when it was published."""
    from asr.verification import verify

    verification = verify(_device(options.device))
    print(verification.summary())
    return 1 if verification.differing else 0


def _add_download(commands: Commands) -> None:
    parser = commands.add_parser("download", help="fetch a corpus", description=_run_download.__doc__)
    parser.add_argument("corpus", choices=("librispeech",))
    parser.add_argument(
        "--subsets", nargs="+", required=True, metavar="SUBSET", help="such as train-clean-5 dev-clean-2"
    )
    parser.add_argument("--dir", required=True, type=Path, metavar="DIR", help="gets LibriSpeech/SUBSET")
    parser.add_argument("--mirror", metavar="URL", help="in place of https://www.openslr.org/resources")
    parser.set_defaults(run=_run_download)


def _run_download(options: argparse.Namespace) -> int:
    """Download, verify and unpack subsets; what is complete is not fetched again, what broke off is resumed."""
    from asr.corpora.librispeech import download_librispeech

    for folder in download_librispeech(options.subsets, options.dir, mirror=options.mirror):
        print(folder)
    return 0


def _add_prepare(commands: Commands) -> None:
    parser = commands.add_parser("prepare", help="a corpus to manifests", description=_run_prepare.__doc__)
    parser.add_argument("corpus", choices=("librispeech",))
    parser.add_argument("dir", type=Path, metavar="DIR", help="where LibriSpeech/SUBSET lies")
    parser.add_argument("--output-dir", required=True, type=Path, metavar="DIR", help="gets SUBSET.jsonl.gz")
    parser.set_defaults(run=_run_prepare)


def _run_prepare(options: argparse.Namespace) -> int:
    """Write one manifest of lhotse cuts per subset, after a check of every transcript and audio header."""
    from asr.corpora.librispeech import prepare_all

    for subset in prepare_all(options.dir, options.output_dir):
        hours = subset.duration_seconds / 3600
        print(f"{subset.path}\t{subset.num_utterances:,} utterances\t{hours:.2f} hours")
    return 0


def _formats(text: str) -> list[str]:
    names = list(dict.fromkeys("text" if name == "txt" else name for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} must be one of {', '.join(FORMATS)}")
    return names


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def _device(name: str) -> str:
    """A device that is there; `auto` takes the GPU where there is one."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if name.split(":")[0] == "cuda" and not has_gpu:
        raise AsrError(f"--device {name}: no GPU is available here; use --device cpu")
    if name != "cpu" and name.split(":")[0] != "cuda":
        raise AsrError(f"--device {name} must be {DEVICES}")
    return name
