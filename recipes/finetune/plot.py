"""The curve of docs/custom-data.md, from results.tsv beside this file.

python recipes/finetune/plot.py docs/finetune.svg
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from asr.errors import errors_told

LABELS = {
    "accent": "speechocean762, two thirds of the valid set",
    "librispeech": "LibriSpeech, dev-clean half",
}
MARKS = {"mixed": ("x", "LibriSpeech mixed in"), "average": ("^", "mean with the start")}


def main() -> None:
    """Draw WER over minutes, and what mixing and averaging change as marks of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    with Path(__file__).with_name("results.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for column, label in LABELS.items():
        points = [(float(row["minutes"]), float(row[column])) for row in rows if row["model"] == "fine-tuned"]
        (line,) = axes.plot(*zip(*points), marker="o", label=label)
        for model, (mark, _) in MARKS.items():
            points = [(float(row["minutes"]), float(row[column])) for row in rows if row["model"] == model]
            axes.plot(*zip(*points), mark, color=line.get_color(), markersize=8)
    for mark, label in MARKS.values():
        axes.plot([], [], mark, color="black", markersize=8, label=label)
    axes.set(xlabel="minutes of new recordings", ylabel="WER, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize="small")
    figure.tight_layout()
    figure.savefig(options.picture, metadata={"Date": None})


if __name__ == "__main__":
    with errors_told():
        main()
