"""`asr evaluate`, for people in a clone: python scripts/evaluate.py --help."""

import sys

from asr.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
