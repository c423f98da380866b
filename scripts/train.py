"""`asr train`, for people in a clone: python scripts/train.py --help."""

import sys

from asr.cli import main

if __name__ == "__main__":  # which a process that reads audio ahead is not, where it imports this
    sys.exit(main(["train", *sys.argv[1:]]))
