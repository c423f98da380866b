"""Every benchmark runs and reports; what was measured is kept in benchmarks/README.md."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from command_line import ROOT, SAMPLES

SHARED = {"measure"}
"""Imported by the others."""

QUICKLY = ["--quick", "--threads", "1"]
ARGUMENTS = {
    "hotwords": [SAMPLES / "manifest.jsonl", ROOT / "README.md", *QUICKLY],
    "long_recording": [SAMPLES / "manifest.jsonl", *QUICKLY],
    "prepare_scale": ["--utterances", "100"],
}
"""Of those that take others."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - SHARED))
def test_a_benchmark_runs_and_reports(name: str) -> None:
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *ARGUMENTS.get(name, QUICKLY)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r": -?[\d.]+.*(aim|peak) ", done.stdout)
