"""How soon `asr transcribe` answers: a 5 s clip in a fresh process against the import of torch and torchaudio alone.

    python benchmarks/cold_start.py [--model FILE] [--repeats 7]

Aim: at most 1.5 times as long, and none of the training's libraries imported.
"""

import tempfile
from pathlib import Path

from measure import ROOT, find_model_file, make_parser, medians, report, run_python, start

CLIP = ROOT / "samples" / "2086-149220-0007.flac"
NOT_FOR_TRANSCRIPTION = {"pytorch_lightning", "lightning", "lhotse", "librosa"}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = start(parser)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["transcribe", str(CLIP), "--model", str(find_model_file(options.model, Path(folder)))]
        imports = {
            "import": lambda: run_python("-c", "import torch, torchaudio"),
            "transcribe": lambda: run_python("-m", "asr", *arguments),
        }
        seconds = medians(imports, 1 if options.quick else options.repeats)
        dearest = cumulative_imports(run_python("-X", "importtime", "-m", "asr", *arguments))
    print(f"import torch, torchaudio: {seconds['import']:.2f} s; asr transcribe: {seconds['transcribe']:.2f} s")
    report("asr transcribe / import torch, torchaudio", seconds["transcribe"] / seconds["import"], at_most=1.5)
    unwanted = NOT_FOR_TRANSCRIPTION & dearest.keys()
    report("training libraries imported", len(unwanted), at_most=0)
    print(f"  of {', '.join(sorted(NOT_FOR_TRANSCRIPTION))}: {', '.join(sorted(unwanted)) or 'none'}")
    top_level = sorted((name for name in dearest if "." not in name), key=dearest.__getitem__, reverse=True)
    print("dearest imports: " + ", ".join(f"{name} {dearest[name]:.2f} s" for name in top_level[:6]))


def cumulative_imports(importtime: str) -> dict[str, float]:
    """Module names to seconds, all that they import included, from what `python -X importtime` prints:

    import time:       412 |      12345 |   torch.nn
    """
    lines = [line.removeprefix("import time:").split("|") for line in importtime.splitlines() if "import time:" in line]
    return {name.strip(): int(cumulative) / 1e6 for _, cumulative, name in lines if cumulative.strip().isdecimal()}


if __name__ == "__main__":
    main()
