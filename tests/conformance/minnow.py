#!/usr/bin/env python3
"""Minnow, the small trained model of deploy/minnow, answers through 4 workers: some questions of each family, from text to text.

Also that its world is made from a seed alone, that its prompts are those that `shoal harmony` renders, and that transformers
agrees with the answers token by token. deploy/minnow/evaluate.py asks 500 of each; this is the quick look.
"""
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

QUESTIONS = 20
FEWEST_RIGHT = 17  # Of 20: a model that is right 97 times in 100 falls below this once in 5,000 runs.
WORLD = "a69ec81f1ebd389a1c336c201887fe861a27a845b3e041c75f51fbd43dbf9bf0"


def check_world(world):
    digest = hashlib.sha256()
    for family in world.FAMILIES:
        for split in ("train", "held"):
            for item in world.make(family, random.Random(5), 3, split):
                digest.update("".join(item.conversation.render() + item.reply()).encode())
    assert digest.hexdigest() == WORLD, f"the world's questions changed: {digest.hexdigest()}"


def check_prompts(shoal, model, world, codec):
    items = [item for family in world.FAMILIES for item in world.make(family, random.Random(6), 4, "held")]
    rows = [json.dumps({"api": "chat", "today": item.conversation.date, "request": item.conversation.request("minnow")})
            for item in items]
    done = subprocess.run([shoal, "harmony", "request", "--model", model, "--jsonl"], input="\n".join(rows) + "\n",
                          capture_output=True, text=True, check=True)
    for item, line in zip(items, done.stdout.splitlines(), strict=True):
        assert json.loads(line)["ids"] == codec.encode(item.conversation.render()), line
    print(f"{len(items)} prompts are those of shoal harmony")


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert process.poll() is None, "shoal serve ended early"
        assert time.monotonic() < deadline, "not ready after 60 s"
        time.sleep(0.05)
    return path.read_text().strip()


def main():
    shoal, source = sys.argv[1], pathlib.Path(sys.argv[2])
    model = source / "deploy/minnow"
    sys.path.insert(0, str(model))
    try:
        import grpc  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        print(f"SKIPPED: {error}", file=sys.stderr)
        sys.exit(77)
    import evaluate
    import tokenizer
    import world
    codec = tokenizer.Codec(model / "tokenizer.json")
    check_world(world)
    check_prompts(shoal, model, world, codec)
    with tempfile.TemporaryDirectory() as work:
        address = pathlib.Path(work, "address")
        log = open(pathlib.Path(work, "serve.log"), "w")
        server = subprocess.Popen([shoal, "serve", "--model", model, "--workers", "4", "--threads", "1", "--listen",
                                   "127.0.0.1:0", "--address-file", address], stderr=log)
        try:
            door = evaluate.Grpc(wait_for(address, server), codec)
            answers = evaluate.ask_all(door, world.FAMILIES, QUESTIONS)
        finally:
            server.terminate()
            server.wait(timeout=30)
    for family, right in evaluate.accuracies(answers).items():
        assert right * QUESTIONS >= FEWEST_RIGHT, f"{family}: only {right * QUESTIONS:.0f} of {QUESTIONS} are right"
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"not compared with transformers: {error}", file=sys.stderr)
        return
    some = {family: rows[:6] for family, rows in answers.items()}
    differing = evaluate.agreement(model, codec, some)
    assert len(differing) <= 2, differing


if __name__ == "__main__":
    main()
