"""`asr transcribe`, for people in a clone: python scripts/transcribe.py --help."""

import sys

from asr.cli import main

sys.exit(main(["transcribe", *sys.argv[1:]]))
