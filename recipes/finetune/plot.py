"""The curve of docs/custom-data.md, from results.tsv beside this file.

python recipes/finetune/plot.py docs/finetune.svg
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LABELS = {
    "accent": "speechocean762, two thirds of the valid set",
    "librispeech": "LibriSpeech, dev-clean half",
}


def main() -> None:
    """Draw WER over minutes, and what mixing changes as crosses."""
    with Path(__file__).with_name("results.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for column, label in LABELS.items():
        plain, mixed = ([row for row in rows if row["mixed"] == mixed] for mixed in ("no", "yes"))
        points = [(float(row["minutes"]), float(row[column])) for row in plain]
        (line,) = axes.plot(*zip(*points), marker="o", label=label)
        for row in mixed:
            axes.plot(float(row["minutes"]), float(row[column]), "x", color=line.get_color(), markersize=9)
    axes.set(xlabel="minutes of new recordings (crosses: as many of LibriSpeech mixed in)", ylabel="WER, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
