"""The `asr` command: it parses, calls one function and prints.

Results go to standard output and everything else to standard error. Exit code 0: all done; 1: some input failed;
2: wrong usage.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from asr.errors import AsrError

__all__ = ["console_script", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's); returns the exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # anywhere, also while modules are imported
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    if sys.stderr is None:  # it was closed; libraries write to its number, which another file could get
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
    options = parse(arguments)
    if sys.stdout is None:
        advice = f"standard output is closed; send it to a file, or to {os.devnull}"
        print(f"asr {options.command}: {advice}", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.errors == "strict" or not sys.stdout.encoding.lower().startswith("utf"):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
        if sys.platform == "win32" and not sys.stdout.isatty() and "PYTHONIOENCODING" not in os.environ:
            sys.stdout.reconfigure(encoding="utf-8")  # subtitles must be, and files that --output-dir writes are
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
    from asr.commands.evaluate import add_check, add_evaluate, add_verify
    from asr.commands.language_model import add_lm, add_tune_lm
    from asr.commands.learn_text import add_learn_text
    from asr.commands.prepare import add_download, add_prepare, add_shard
    from asr.commands.train import add_average, add_finetune, add_plot, add_train
    from asr.commands.transcribe import add_align, add_transcribe

    parser = argparse.ArgumentParser(prog="asr", description="Speech recognition with a bidirectional GRU and CTC.")
    parser.add_argument("--version", action="version", version=f"bigru-asr {__version__}")
    parser.set_defaults(find_conflict=lambda _: None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_transcribe,
        add_align,
        add_check,
        add_train,
        add_plot,
        add_finetune,
        add_learn_text,
        add_average,
        add_evaluate,
        add_verify,
        add_lm,
        add_tune_lm,
        add_download,
        add_prepare,
        add_shard,
    ):
        add(commands)
    return parser
