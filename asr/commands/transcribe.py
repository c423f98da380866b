"""`asr transcribe` and `asr align`: recordings to words."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from asr.commands.options import (
    FORMATS,
    Commands,
    add_inference_options,
    add_language_model_options,
    choose_device,
    find_lm_conflict,
    format_names,
    make_decode,
)
from asr.errors import AsrError

if TYPE_CHECKING:
    from asr.transcript import Transcript

__all__ = ["add_align", "add_transcribe"]


def add_transcribe(commands: Commands) -> None:
    parser = commands.add_parser("transcribe", help="audio files to text", description=_run_transcribe.__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG/Opus or MP3; - is standard input")
    parser.add_argument(
        "--format",
        type=format_names,
        default=["text"],
        metavar="F,...",
        help=f"{', '.join(FORMATS)}; one for the screen (json: one object a line), or several for files",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write NAME.txt, NAME.srt, ... there")
    parser.add_argument("--skip-existing", action="store_true", help="leave recordings whose files are all there")
    add_inference_options(parser)
    parser.add_argument("--model", metavar="M", help="a model file (default: the packaged model)")
    add_language_model_options(parser)
    parser.set_defaults(run=_run_transcribe, find_conflict=_find_output_conflict)


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
    model = load_model(options.model, choose_device(options.device))
    stdin = sys.stdin.buffer if sys.stdin else io.BytesIO()  # none where it was closed
    recordings = (Recording(stdin if name == "-" else name, name) for name in names)
    settings = {"batch_seconds": options.batch_seconds, "decode": make_decode(options, model)}
    code = 0
    for result in transcribe_recordings(model, recordings, **settings):
        if isinstance(result, Failure):
            print(result.message, file=sys.stderr)
            code = 1
        elif options.output_dir:
            write_transcript(result, outputs[result.name])
        else:
            _print_transcript(result, options.format[0], alone=len(options.files) == 1)
    return code


def _find_output_conflict(options: argparse.Namespace) -> str | None:
    """What options of transcribe do not go together, or None."""
    kinds, several = ",".join(options.format), len(options.files) > 1
    if options.output_dir is not None:
        return find_lm_conflict(options)
    if options.skip_existing:
        return "--skip-existing needs --output-dir"
    if len(options.format) > 1:
        return f"--format {kinds} needs --output-dir: the screen shows one format"
    if several and kinds not in ("text", "json"):
        return f"--format {kinds} of several files needs --output-dir"
    return find_lm_conflict(options)


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


def add_align(commands: Commands) -> None:
    parser = commands.add_parser("align", help="where the words of a text are spoken", description=_run_align.__doc__)
    parser.add_argument("audio", metavar="AUDIO", help="WAV, FLAC, OGG/Opus or MP3 of any length")
    parser.add_argument("text", metavar="TEXT", type=Path, help="a text file with what is said there")
    parser.add_argument(
        "--format", type=format_names, default=["ctm"], metavar="F", help=f"{', '.join(FORMATS)} (default: ctm)"
    )
    add_inference_options(parser)
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
    model = load_model(options.model, choose_device(options.device))
    transcript = align(model, options.audio, text, batch_seconds=options.batch_seconds)
    for name in options.format:
        _print_transcript(transcript, name, alone=True)
    return 0
