"""A model file into the package, with what it writes of the samples for `asr verify` to compare with.

python recipes/base/publish.py runs/base-pieces/model.safetensors
"""

from __future__ import annotations

import argparse
import json
import shutil

from asr import BeamDecoder, load_model
from asr.errors import errors_told
from asr.evaluation import evaluate
from asr.manifest import read_manifest
from asr.modelfile import PACKAGED_MODEL
from asr.verification import BY_LANGUAGE_MODEL, GREEDY, PUBLISHED_TEXTS, SAMPLES, sample_texts


def main() -> None:
    """Publish what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    path = parser.parse_args().model
    model, samples = load_model(path), read_manifest(SAMPLES)
    decoders = {GREEDY: None, BY_LANGUAGE_MODEL: BeamDecoder.for_model(model)}
    texts = {name: sample_texts(evaluate(model, samples, decode=decode)) for name, decode in decoders.items()}
    if not PACKAGED_MODEL.exists() or not PACKAGED_MODEL.samefile(path):
        shutil.copyfile(path, PACKAGED_MODEL)
    PUBLISHED_TEXTS.write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with errors_told():
        main()
