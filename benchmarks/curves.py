"""Held-out bits per byte over tokens seen, of one run or several, as a picture.

    python benchmarks/curves.py runs/tiny runs/tiny-ar --out docs/models/tiny.png

Bounds (masked, block) and exact values (ar) are drawn alike; the legend says which is which.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KIND = {"ar": "exact", "masked": "upper bound", "block": "upper bound", "mixture": "mean of bounds"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="a PNG or SVG file")
    args = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in args.runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        held = [r for r in rows if "held_out_bits_per_byte" in r]
        objective = yaml.safe_load((run / "recipe.yaml").read_text())["objective"]["name"]
        label = f"{run.name} ({KIND.get(objective, objective)}), {held[-1]['held_out_bits_per_byte']:.3f} at the end"
        tokens, bits = zip(*((r["tokens"] / 1e6, r["held_out_bits_per_byte"]) for r in held), strict=True)
        axes.plot(tokens, bits, marker=".", label=label)
    axes.set(xlabel="million tokens seen", ylabel="held-out bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
