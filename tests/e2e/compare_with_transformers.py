#!/usr/bin/env python3
"""Compares the logits of `shoal logits` with those of transformers' GptOssForCausalLM in fp32.

    shoal synth DIR
    shoal logits --model DIR --tokens 1,2,3 --out FILE.npy
    compare_with_transformers.py DIR --tokens 1,2,3 --logits FILE.npy

Needs numpy, torch and transformers from PyPI, so tests/run.sh does not run it. That transformers
reads the folder at all shows that others can read what we write. Exit status 1: a logit differs by
more than --tolerance (0.026 is the error of OpenAI's own bf16 code on the micro-model), or an argmax
differs where the two best logits are at least 0.05 apart.
"""
import argparse
import json
import pathlib
import sys

import numpy
import torch
from transformers import GptOssForCausalLM, Mxfp4Config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--tokens", required=True, help="comma separated ids")
    parser.add_argument("--logits", type=pathlib.Path, required=True, help="fp32 [tokens, vocabulary], .npy")
    parser.add_argument("--tolerance", type=float, default=0.026)
    args = parser.parse_args()

    tokens = [int(token) for token in args.tokens.split(",")]
    is_mxfp4 = "quantization_config" in json.loads((args.dir / "config.json").read_text())
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if is_mxfp4 else {}
    model, loading = GptOssForCausalLM.from_pretrained(
        args.dir, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[fault], f"{fault}: {loading[fault]}"
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].double().numpy()

    ours = numpy.load(args.logits).astype(numpy.float64)
    assert ours.shape == theirs.shape, f"shoal {ours.shape}, transformers {theirs.shape}"
    worst = numpy.abs(ours - theirs).max()
    best_two = -numpy.sort(-theirs, axis=1)[:, :2]
    is_clear = best_two[:, 0] - best_two[:, 1] >= 0.05
    wrong = int(((ours.argmax(1) != theirs.argmax(1)) & is_clear).sum())
    print(f"{len(tokens)} tokens: largest difference {worst:.6f}, {wrong} wrong argmax of {int(is_clear.sum())} clear ones")
    return 0 if worst <= args.tolerance and wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
