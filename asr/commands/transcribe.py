"""`asr transcribe` and `asr align`: recordings to words."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from asr.commands.options import (
    FORMATS,
    Commands,
    add_inference_options,
    add_language_model_options,
    choose_device,
    find_lm_conflict,
    format_names,
    given_path,
    given_text,
    make_decode,
)
from asr.commands.outputs import Named, find_recordings, is_list, leave_written, make_output_dir, plan_outputs
from asr.commands.progress import audio_bar
from asr.errors import AsrError, printable, reason_of

if TYPE_CHECKING:
    from torch import Tensor

    from asr.decoder import Decode
    from asr.model import CTCModel
    from asr.transcript import Transcript
    from asr.transcription import Failure

__all__ = ["add_align", "add_transcribe"]

NO_ROOM = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Why a disk takes no other file either."""


def add_transcribe(commands: Commands) -> None:
    parser = commands.add_parser("transcribe", help="audio files to text", description=_run_transcribe.__doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="WAV, FLAC, OGG/Opus, MP3; a folder of files with these endings; @LIST; - is standard input",
    )
    parser.add_argument(
        "--format",
        type=format_names,
        default=["text"],
        metavar="F,...",
        help=f"{', '.join(FORMATS)}; one for the screen (json: one object a line), or several for files",
    )
    parser.add_argument("--output-dir", type=given_path, metavar="DIR", help="write NAME.txt, NAME.srt, ... there")
    parser.add_argument(
        "--pcm", type=int, metavar="RATE", help="standard input is 16-bit mono samples of this rate, without a header"
    )
    parser.add_argument(
        "--skip-existing", "--resume", action="store_true", help="write only the files that are not there yet"
    )
    add_inference_options(parser)
    parser.add_argument("--model", type=given_text, metavar="M", help="a model file (default: the packaged model)")
    add_language_model_options(parser)
    parser.set_defaults(run=_run_transcribe, find_conflict=_find_output_conflict)


def _run_transcribe(options: argparse.Namespace) -> int:
    """Print the words of recordings of any length (one's text alone, several as path, tab, text), or write files.

    What comes through a pipe as 16-bit WAV or PCM is printed as it goes, a line an utterance.
    """
    from asr.live import open_stream
    from asr.modelfile import load_model
    from asr.transcription import Recording, transcribe_recordings

    recordings = find_recordings(options.files)
    outputs = _plan(recordings, options) if options.output_dir else None
    model = load_model(options.model, choose_device(options.device))
    stdin: BinaryIO = sys.stdin.buffer if sys.stdin else io.BytesIO()  # none where it was closed
    decode = make_decode(options, model)
    if options.files == ["-"] and options.format == ["text"] and outputs is None:
        opened = open_stream(stdin, options.pcm)
        if isinstance(opened, tuple):
            return _print_live(*opened, model, decode)
        stdin = opened
    names = [recording.name for recording in recordings] if outputs is None else list(outputs)
    inputs = (Recording(stdin if name == "-" else name, name) for name in names)
    settings = {"batch_seconds": options.batch_seconds, "decode": decode}
    shown = sys.stderr.isatty() and (outputs is not None or not sys.stdout.isatty())
    with audio_bar(names, shown=shown) as progress:
        results = transcribe_recordings(model, inputs, **settings, progress=progress)
        if outputs is not None:
            done_before = {recording.name for recording in recordings} - outputs.keys()
            return _write_all(results, outputs, done_before=len(done_before))
        return _print_all(results, options.format[0], alone=names == options.files[:1])


def _plan(recordings: Iterable[Named], options: argparse.Namespace) -> dict[str, list[Path]]:
    """The files to write for each recording; those that are there already are left out where that is asked."""
    outputs = plan_outputs(recordings, options.output_dir, options.format)
    if options.skip_existing:
        outputs = leave_written(outputs)
    make_output_dir(options.output_dir, outputs)
    return outputs


def _print_all(results: Iterable[Transcript | Failure], kind: str, *, alone: bool) -> int:
    """Print every transcript, and on standard error why there is none."""
    from asr.transcription import Failure

    failed = False
    for result in results:
        if isinstance(result, Failure):
            print(result.message, file=sys.stderr)
            failed = True
        else:
            _print_transcript(result, kind, alone=alone)
    return 1 if failed else 0


def _print_live(blocks: Iterable[Tensor], sample_rate: int, model: CTCModel, decode: Decode | None) -> int:
    """Print each utterance as soon as the pause behind it is long enough."""
    from asr.live import until_interrupted
    from asr.transcription import transcribe_live

    heard = until_interrupted(blocks)
    for transcript in transcribe_live(heard, sample_rate=sample_rate, model=model, decode=decode):
        print(transcript.text, flush=True)
    return 0


def _write_all(results: Iterable[Transcript | Failure], outputs: dict[str, list[Path]], *, done_before: int) -> int:
    """Write every transcript, and tell at the end what was done."""
    from asr.formats import write_transcript
    from asr.transcription import Failure

    begin, seconds, failed = time.perf_counter(), 0.0, []
    for result in results:
        if isinstance(result, Failure):
            print(result.message, file=sys.stderr)
            failed.append(result.name)
        else:
            try:
                write_transcript(result, outputs[result.name])
            except AsrError as error:
                if getattr(error.__cause__, "errno", None) in NO_ROOM:
                    raise
                print(error, file=sys.stderr)
                failed.append(result.name)
                continue
            seconds += result.duration_seconds
    elapsed = time.perf_counter() - begin
    speed = f"{seconds / 3600:.2f} hours in {elapsed:.1f} s, {seconds / elapsed:.0f} times real time"
    before = f"; done before: {done_before}" if done_before else ""
    print(f"{len(outputs) - len(failed)} of {len(outputs)} files, {speed}{before}", file=sys.stderr)
    for name in failed:
        print(f"failed: {printable(name)}", file=sys.stderr)
    return 1 if failed else 0


def _find_output_conflict(options: argparse.Namespace) -> str | None:
    """What options of transcribe do not go together, or None."""
    first = options.files[0]
    kinds, several = ",".join(options.format), len(options.files) > 1 or is_list(first) or os.path.isdir(first)
    if "" in options.files:
        return "FILE must not be empty"
    if options.pcm is not None and (options.files != ["-"] or kinds != "text" or options.output_dir is not None):
        return "--pcm is of standard input alone, printed as text"
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
        print(transcript.text if alone else f"{printable(transcript.name)}\t{transcript.text}", flush=True)
    else:
        print(format_transcript(transcript, kind), end="", flush=True)


def add_align(commands: Commands) -> None:
    parser = commands.add_parser("align", help="where the words of a text are spoken", description=_run_align.__doc__)
    parser.add_argument("audio", metavar="AUDIO", help="WAV, FLAC, OGG/Opus or MP3 of any length")
    parser.add_argument("text", metavar="TEXT", type=Path, help="a text file with what is said there")
    parser.add_argument(
        "--format", type=format_names, default=["ctm"], metavar="F", help=f"{', '.join(FORMATS)} (default: ctm)"
    )
    add_inference_options(parser)
    parser.add_argument("--model", type=given_text, metavar="M", help="a model file (default: the packaged model)")
    parser.set_defaults(run=_run_align, find_conflict=_find_align_conflict)


def _find_align_conflict(options: argparse.Namespace) -> str | None:
    several = len(options.format) > 1
    return f"--format {','.join(options.format)}: the screen shows one format" if several else None


def _run_align(options: argparse.Namespace) -> int:
    """Print each word of a known text with its time, and how well it fits what is heard there."""
    from asr.alignment import align
    from asr.modelfile import load_model

    try:
        text = options.text.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrError(f"{options.text}: the text cannot be read: {reason_of(error)}") from error
    model = load_model(options.model, choose_device(options.device))
    transcript = align(model, options.audio, text, batch_seconds=options.batch_seconds)
    _print_transcript(transcript, options.format[0], alone=True)
    return 0
