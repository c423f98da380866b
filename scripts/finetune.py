"""`asr finetune`, for people in a clone: python scripts/finetune.py --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone, which need not be installed

from asr.cli import main

if __name__ == "__main__":  # which a process that reads audio ahead is not, where it imports this
    sys.exit(main(["finetune", *sys.argv[1:]]))
