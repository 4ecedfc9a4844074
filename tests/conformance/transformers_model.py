#!/usr/bin/env python3
"""transformers' GptOssForCausalLM reads what `shoal synth` writes, and agrees with `shoal logits`.

fp32 arithmetic in transformers, so the difference is ours: within the bound of micro_model.py, also where the 300-token
prompt crosses the window. Exit status 77 (skipped) without torch or transformers.
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
    shoal = sys.argv[1]
    with tempfile.TemporaryDirectory() as work:
        for layout in ("bf16", "hf"):
            model = f"{work}/{layout}"
            subprocess.run([shoal, "synth", model, "--geometry", "tiny", "--layout", layout], check=True,
                           stdout=subprocess.DEVNULL)
            theirs = GptOssForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
            for name, tokens in (("short", micro_model.SHORT), ("long", micro_model.LONG)):
                with torch.no_grad():
                    expected = theirs(torch.tensor([tokens])).logits[0].float().numpy()
                ours = micro_model.logits(shoal, model, tokens, f"{work}/logits.npy", "--workers", "2")
                micro_model.compare(f"transformers {layout} {name}", ours, expected)


if __name__ == "__main__":
    main()
