#!/usr/bin/env python3
"""Minnow measures: leaving out sinks, YaRN or the window, or swapping gate and up, each costs 10 points of some family."""
import pathlib
import subprocess
import sys


def main():
    try:
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        print(f"SKIPPED: {error}", file=sys.stderr)
        sys.exit(77)
    program = pathlib.Path(sys.argv[2]) / "deploy/minnow/ablate.py"
    sys.exit(subprocess.run([sys.executable, program, "--count", "20"]).returncode)


if __name__ == "__main__":
    main()
