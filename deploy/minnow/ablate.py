#!/usr/bin/env python3
"""What a broken kernel would cost: `ablate.py [--model DIR] [--count N] [--json FILE]`.

Runs the checkpoint through model.py as it is, and with one mistake each: without sinks, without YaRN (plain rotary
embedding), without the window, with gate and up swapped. The figure is the part of held-out answers that greedy decoding
gives word for word. Exit status 1 if a mistake costs less than 10 points on every family: then the instrument is blunt.
"""
import argparse
import json
import pathlib
import random
import sys

import torch

import export
import fused
import model
import tokenizer
import train
import world

MISTAKES = {"none": model.Mistakes(), "no sinks": model.Mistakes(no_sinks=True), "no YaRN": model.Mistakes(no_yarn=True),
            "no window": model.Mistakes(no_window=True), "gate and up swapped": model.Mistakes(swapped=True)}
ROWS = 20


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, default=here)
    parser.add_argument("--count", type=int, default=200, help="questions of each family")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plain", action="store_true", help="PyTorch alone")
    options = parser.parse_args()
    if not options.plain:
        fused.use(model)
    torch.set_num_threads(1)
    g, weights = export.load(options.model)
    codec = tokenizer.Codec(options.model / "tokenizer.json")
    table = {}
    print(f"{'%':22}" + "".join(f"{family:>13}" for family in world.FAMILIES))
    for name, mistakes in MISTAKES.items():
        rates = train.exact_rates(g, weights, codec, random.Random(7), -(-options.count // ROWS), ROWS, mistakes,
                                  world.FAMILIES)
        table[name] = {family: round(100 * rate, 1) for family, rate in rates.items()}
        print(f"{name:22}" + "".join(f"{rate:13.1f}" for rate in table[name].values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    blunt = [name for name, rates in table.items() if name != "none"
             and max(table["none"][family] - rate for family, rate in rates.items()) < 10]
    if blunt:
        sys.exit(f"costs less than 10 points everywhere: {', '.join(blunt)}")


if __name__ == "__main__":
    main()
