"""How much more memory an hour takes than two minutes, and how fast an hour is transcribed.

    python benchmarks/memory.py [--model FILE] [--minutes 60]

Both recordings are samples/ over and over, and each is transcribed by `asr transcribe` in a fresh process.
Aim: at most 200 MB more.
"""

import tempfile
import time
from pathlib import Path

from measure import find_model_file, make_parser, report, run_python, start, write_speech

SHORT_MINUTES = 2.0

# The peak is read inside the process: what the parent is told of a child may be the parent's own peak.
PROGRAM = """
import re, sys
from asr.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1), file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the long recording")
    options = start(parser)
    minutes = 6.0 if options.quick else options.minutes
    with tempfile.TemporaryDirectory() as folder:
        model = find_model_file(options.model, Path(folder))
        peaks = [transcribe(Path(folder) / "recording.wav", length, model) for length in (SHORT_MINUTES, minutes)]
    report(f"peak of {minutes:g} min less that of {SHORT_MINUTES:g} min, MB", peaks[1] - peaks[0], at_most=200)


def transcribe(path: Path, minutes: float, model: Path) -> float:
    """Peak memory of transcribing a recording of `minutes`, written to `path`, in MB; prints it and the speed."""
    write_speech(path, 60 * minutes)
    begin = time.perf_counter()
    stderr = run_python("-c", PROGRAM, "transcribe", str(path), "--model", str(model))
    seconds = time.perf_counter() - begin
    peak = int(stderr.splitlines()[-1]) * 1024 / 1e6
    speed = 60 * minutes / seconds
    print(
        f"{minutes:g} min: peak {peak:.0f} MB; {seconds:.1f} s, start included: {speed:.0f} times real time", flush=True
    )
    return peak


if __name__ == "__main__":
    main()
