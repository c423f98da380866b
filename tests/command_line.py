"""The `asr` command in tests: as a call, and as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
COMMAND = [sys.executable, "-m", "asr"]


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int | str | None
    output: str
    errors: str


class Run(Protocol):
    """The `asr` command in this process."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The `asr` command as a process of its own, which hears Ctrl-C even where the tests run in the background."""
    command = [*COMMAND, *map(str, arguments)]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, preexec_fn=listen, **options)
