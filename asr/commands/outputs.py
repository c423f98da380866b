"""Which recordings `asr transcribe` was given, and the files that each of them becomes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.errors import AsrError, reason_of

__all__ = ["Named", "find_recordings", "is_list", "leave_written", "make_output_dir", "plan_outputs"]


@dataclass(frozen=True)
class Named:
    """A recording as the command line names it."""

    name: str
    """Its path, or - for standard input."""

    place: Path
    """Where its output belongs below the output folder, without an extension."""


def find_recordings(arguments: Sequence[str]) -> list[Named]:
    """Every recording, in the order of the arguments.

    A folder stands for the audio files in it and below, in the order of their names, and @FILE for those that the lines
    of a text file name, folders among them. Raises AsrError for a list without one.
    """
    found: list[Named] = []
    for argument in arguments:
        for name in _read_list(argument) if is_list(argument) else [argument]:
            if name == "-":
                found.append(Named(name, Path("stdin")))
            elif os.path.isdir(name):  # where a Path raises for names that the disk refuses
                found += _find_in_folder(name)
            else:
                found.append(Named(name, Path(Path(name).stem)))
    return found


def is_list(argument: str) -> bool:
    """Whether it is @LIST; where that is not there, it may be a recording of such a name."""
    return argument.startswith("@") and (os.path.exists(argument[1:]) or not os.path.exists(argument))


def _read_list(argument: str) -> list[str]:
    try:
        lines = Path(argument[1:]).read_text(encoding="utf-8-sig").split("\n")  # reading makes it of any line break
    except (OSError, UnicodeDecodeError) as error:
        raise AsrError(f"{argument}: the list cannot be read: {reason_of(error)}") from error
    names = [line for line in lines if line.strip()]
    if not names:
        raise AsrError(f"{argument}: the list names no file")
    return names


def _find_in_folder(folder: str) -> list[Named]:
    """A folder that is empty or cannot be entered is named itself: it is told as a file that cannot be opened."""
    from asr.folders import find_audio

    inside = [path for path in find_audio(Path(folder)) if path != Path(folder)]
    return [Named(str(path), path.relative_to(folder).with_suffix("")) for path in inside] or [
        Named(folder, Path(folder))
    ]


def plan_outputs(recordings: Iterable[Named], output_dir: Path, formats: Sequence[str]) -> dict[str, list[Path]]:
    """The files to write for each recording, by its name; one that is named for two places is written to both.

    Raises AsrError where two recordings would be written to the same files.
    """
    extensions = ["txt" if name == "text" else name for name in formats]
    taken: dict[Path, str] = {}
    for recording in recordings:
        first = taken.setdefault(recording.place, recording.name)
        if first != recording.name:
            output = output_dir / recording.place
            raise AsrError(f"{first} and {recording.name} would both be written to {output}.*; rename one")
    outputs: dict[str, list[Path]] = {}
    for place, name in taken.items():
        outputs.setdefault(name, []).extend(output_dir / f"{place}.{extension}" for extension in extensions)
    return outputs


def leave_written(outputs: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Of what `plan_outputs` returned, the files that are not there, each of which is whole."""
    missing = {name: [path for path in paths if not os.path.exists(path)] for name, paths in outputs.items()}
    return {name: paths for name, paths in missing.items() if paths}


def make_output_dir(folder: Path, outputs: dict[str, list[Path]]) -> None:
    """Make the folder of what `plan_outputs` returned.

    Raises AsrError where nothing can be written to it, and where a file would replace one that stands beside its
    recording: texts, subtitles and TextGrids of one's own are kept there.
    """
    for name, paths in outputs.items():
        own = next((path for path in paths if name != "-" and path.exists() and _is_beside(path, name)), None)
        if own:
            keep = "choose another --output-dir, or keep it with --resume"
            raise AsrError(f"{own}: stands beside its recording and would be replaced; {keep}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AsrError(f"--output-dir {folder}: cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise AsrError(f"--output-dir {folder}: cannot be written to; choose another folder")


def _is_beside(path: Path, recording: str) -> bool:
    """Whether a file that is there is in the folder of a recording, which may be in none that is there."""
    folder = os.path.dirname(os.path.abspath(recording))
    return os.path.isdir(folder) and os.path.samefile(path.parent, folder)
