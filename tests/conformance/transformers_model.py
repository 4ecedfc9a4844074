#!/usr/bin/env python3
"""transformers' GptOssForCausalLM reads what `shoal synth` writes, and agrees with `shoal logits`.

transformers computes in fp32, so the difference is ours: the bounds of micro_model.py, on its prompts of 12 and 300 tokens. Then
in bf16: over the natural prompt we must be at least as close to fp32, on average, as transformers' own bf16 is. Exit status 77 (skipped) without torch or transformers.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import micro_model  # noqa: E402


def main():
    try:
        import torch
        from transformers import GptOssForCausalLM
    except ImportError as error:
        print(f"SKIPPED: {error}", file=sys.stderr)
        sys.exit(77)
    shoal, source = sys.argv[1], pathlib.Path(sys.argv[2])
    prompts = {name: micro_model.tokens_of(source, name) for name in micro_model.PROMPTS}

    def run(model, tokens, dtype):
        theirs = GptOssForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager")
        with torch.no_grad():
            return theirs(torch.tensor([tokens])).logits[0].float().numpy()

    with tempfile.TemporaryDirectory() as work:
        for layout in ("bf16", "hf"):
            model = f"{work}/{layout}"
            subprocess.run([shoal, "synth", model, "--geometry", "tiny", "--layout", layout], check=True,
                           stdout=subprocess.DEVNULL)
            out = f"{work}/logits.npy"
            for name, tokens in prompts.items():
                expected = run(model, tokens, torch.float32)
                ours = micro_model.logits(shoal, model, tokens, out, "--workers", "2")
                micro_model.compare(f"{layout} {name}", ours, expected, micro_model.BOUND[name], micro_model.MEAN_BOUND[name])
                rounded = np.abs(run(model, tokens, torch.bfloat16) - expected)
                print(f"{layout} {name}, transformers in bf16: max {rounded.max():.4f}, mean {rounded.mean():.5f}")
                assert np.abs(ours - expected).mean() <= rounded.mean()


if __name__ == "__main__":
    main()
