"""`asr train`, for people in a clone: python scripts/train.py --help."""

import sys

from asr.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
