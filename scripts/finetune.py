"""`asr finetune`, for people in a clone: python scripts/finetune.py --help."""

import sys

from asr.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
