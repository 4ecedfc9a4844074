#!/usr/bin/env python3
"""`shoal logits` on the micro-model, from all three layouts, against float64 and against itself.

The expected logits are those of an independent float64 implementation, saved as tests/golden/micro_model_{short,long}.npy:
the 12 tokens and the 300 tokens below. Bound: 0.026, the error of OpenAI's own bf16 reference; argmax equal wherever the
two best differ by at least 0.05. 1 worker and 4 workers over TCP must give the same bits.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SHORT = [101, 16, 47, 28, 18, 71, 18, 49, 87, 101, 71, 77]
LONG = [(i * i * 7 + i * 3 + 5) % 128 for i in range(300)]
BOUND, MARGIN = 0.026, 0.05
LAYOUTS = ["hf", "original", "bf16"]


def logits(shoal, model, tokens, out, *options):
    subprocess.run([shoal, "logits", "--model", model, "--tokens", ",".join(map(str, tokens)), "--out", out, *options],
                   check=True)
    return np.load(out)


def compare(name, ours, exact, bound=BOUND):
    assert ours.shape == exact.shape and ours.dtype == np.float32, (name, ours.shape, exact.shape, ours.dtype)
    error = np.abs(ours - exact)
    best = np.sort(exact, axis=1)
    is_clear = best[:, -1] - best[:, -2] >= MARGIN
    changed = (ours.argmax(axis=1) != exact.argmax(axis=1)) & is_clear
    print(f"{name}: max error {error.max():.4f}, mean {error.mean():.5f}, argmax changes {changed.sum()} of "
          f"{is_clear.sum()} clear positions")
    assert error.max() <= bound, f"{name}: {error.max()} is above {bound}"
    assert not changed.any(), f"{name}: argmax differs at positions {np.flatnonzero(changed)}"


def main():
    shoal, source = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as work:
        out = f"{work}/logits.npy"
        results = {}
        for layout in LAYOUTS:
            model = f"{work}/{layout}"
            subprocess.run([shoal, "synth", model, "--geometry", "tiny", "--layout", layout], check=True,
                           stdout=subprocess.DEVNULL)
            for name, tokens in (("short", SHORT), ("long", LONG)):
                exact = np.load(source / f"tests/golden/micro_model_{name}.npy")
                one = logits(shoal, model, tokens, out)
                four = logits(shoal, model, tokens, out, "--workers", "4", "--exchange", "tcp", "--chunk", "7")
                assert (one.view(np.uint32) == four.view(np.uint32)).all(), f"{layout} {name}: 4 workers differ from 1"
                compare(f"{layout} {name}", one, exact)
                results[layout, name] = one
        for name in ("short", "long"):
            assert (results["hf", name] == results["original", name]).all(), "the MXFP4 layouts differ"


if __name__ == "__main__":
    main()
