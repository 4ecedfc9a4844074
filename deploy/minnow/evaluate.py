#!/usr/bin/env python3
"""Asks a running Shoal the held-out questions of Minnow's world and counts.

    evaluate.py --server HOST:PORT [--count 500] [--agree] [--answers FILE]     over gRPC: prompts as token ids
    evaluate.py --http URL [--count 500]                                        over the OpenAI API

Greedy decoding. --agree then runs every prompt with its answer through transformers' GptOssForCausalLM in fp32: an answer
agrees if each of its tokens is the likeliest there, which is what greedy decoding by transformers would have written.
"""
import argparse
import collections
import concurrent.futures
import json
import pathlib
import random
import sys
import tempfile
import time
import urllib.error
import urllib.request

import harmony
import tokenizer
import world

HERE = pathlib.Path(__file__).resolve().parent
GROUP = 10  # Questions that share system and developer message
MAX_TOKENS = 192


def questions(family, count, seed=11):
    rng = random.Random(f"{family} {seed}")
    items = []
    while len(items) < count:
        items += world.make(family, rng, GROUP, "held")
    return items[:count]


class Grpc:
    """Generate with token ids: what the model writes, token by token."""

    def __init__(self, address, codec):
        sys.path.insert(0, str(HERE.parents[1] / "tests/e2e"))
        import grpc
        import python_client
        self.codec = codec
        with tempfile.TemporaryDirectory() as folder:
            self.pb, rpc, _, _ = python_client.load_stubs(folder)
        channel = grpc.insecure_channel(address)
        grpc.channel_ready_future(channel).result(timeout=30)
        self.service = rpc.InferenceStub(channel)

    def ask(self, item):
        """-> (harmony.take_apart of the answer, its token ids)"""
        request = self.pb.GenerateRequest(sampling=self.pb.SamplingParams(temperature=0.0),
                                          limits=self.pb.Limits(max_tokens=MAX_TOKENS))
        request.tokens.ids.extend(self.codec.encode(item.conversation.render()))
        ids = []
        for event in self.service.Generate(request, timeout=300):
            ids += event.chunk.token_ids
        return harmony.take_apart(self.codec.decode(ids)), ids


class Http:
    """POST /v1/chat/completions: the server renders, parses and, for forms, constrains."""

    def __init__(self, url):
        self.url = url.rstrip("/")
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=30) as reply:
            self.model = json.load(reply)["data"][0]["id"]

    def ask(self, item):
        body = {**item.conversation.request(self.model), "max_tokens": MAX_TOKENS}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                answer = json.load(reply)["choices"][0]["message"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.code}: {error.read().decode()}") from error
        calls = [call["function"] for call in answer.get("tool_calls") or []]
        call = (calls[0]["name"], calls[0]["arguments"]) if len(calls) == 1 else None
        return {"analysis": answer.get("reasoning") or answer.get("reasoning_content"), "final": answer.get("content"),
                "call": call}, []


def is_valid_call(item, found):
    """A declared function, and an object of exactly its parameters, all strings."""
    try:
        name, arguments = found["call"]
        tool = next(tool for tool in item.conversation.tools if tool["name"] == name)
        value = json.loads(arguments)
        return set(value) == set(tool["parameters"]["required"]) and all(isinstance(v, str) for v in value.values())
    except (TypeError, ValueError, StopIteration):
        return False


def ask_all(door, families, count, at_once=16):
    """-> {family: [(item, found, ids)]}, and prints the accuracies."""
    answers = {}
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for family in families:
            items, began = questions(family, count), time.monotonic()
            answers[family] = [(item, *answer) for item, answer in zip(items, pool.map(door.ask, items))]
            right = sum(item.is_right(found) for item, found, _ in answers[family])
            line = f"{family:12} {right:4} of {count} right: {100 * right / count:5.1f} %"
            if family == "tool_call":
                valid = sum(is_valid_call(item, found) for item, found, _ in answers[family])
                line += f", valid calls {100 * valid / count:5.1f} %"
            print(f"{line}   ({time.monotonic() - began:.0f} s)", flush=True)
    return answers


def accuracies(answers):
    return {family: sum(item.is_right(found) for item, found, _ in rows) / len(rows) for family, rows in answers.items()}


def agreement(model_dir, codec, answers):
    """Prints, per family, on how many answers transformers agrees token for token; -> the disagreements."""
    import torch
    from transformers import GptOssForCausalLM
    theirs = GptOssForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    differing, total = [], collections.Counter()
    for family, rows in answers.items():
        agreed, at_once = 0, 2 if family == "far_recall" else 16
        for start in range(0, len(rows), at_once):
            some = [(codec.encode(item.conversation.render()), ids) for item, _, ids in rows[start:start + at_once]]
            length = max(len(prompt) + len(ids) for prompt, ids in some)
            tokens = torch.zeros(len(some), length, dtype=torch.long)  # What follows an answer cannot be seen from it.
            for number, (prompt, ids) in enumerate(some):
                tokens[number, :len(prompt) + len(ids)] = torch.tensor(prompt + list(ids))
            with torch.no_grad():
                logits = theirs(tokens, use_cache=False).logits
            for number, (prompt, ids) in enumerate(some):
                ours = torch.tensor(list(ids))
                at = logits[number, len(prompt) - 1:len(prompt) + len(ids) - 1]
                if torch.equal(at.argmax(-1), ours):
                    agreed += 1
                    continue
                first = int(torch.nonzero(at.argmax(-1) != ours)[0])
                best, other = int(at[first].argmax()), int(ours[first])
                differing.append((family, start + number, first, codec.decode([best]), codec.decode([other]),
                                  float(at[first, best] - at[first, other])))
        total.update(agreed=agreed, asked=len(rows))
        print(f"{family:12} transformers agrees on {agreed:4} of {len(rows)} answers", flush=True)
    print(f"agreement: {total['agreed']} of {total['asked']}, {100 * total['agreed'] / total['asked']:.2f} %")
    for family, number, at, best, other, gap in differing[:20]:
        print(f"  {family} {number}: token {at} is {best!r} for transformers and {other!r} for us, "
              f"{gap:.4f} apart in transformers' logits")
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=HERE)
    parser.add_argument("--server")
    parser.add_argument("--http")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--families", default=",".join(world.FAMILIES))
    parser.add_argument("--agree", action="store_true")
    parser.add_argument("--answers", type=pathlib.Path, help="write every question and answer there")
    options = parser.parse_args()
    codec = tokenizer.Codec(options.model / "tokenizer.json")
    door = Http(options.http) if options.http else Grpc(options.server, codec)
    answers = ask_all(door, options.families.split(","), options.count)
    if options.answers:
        with open(options.answers, "w") as out:
            for family, rows in answers.items():
                for item, found, ids in rows:
                    out.write(json.dumps({"family": family, "right": item.is_right(found), "found": found, "final": item.final,
                                          "call": item.call, "prompt": "".join(item.conversation.render())}) + "\n")
    if options.agree:
        agreement(options.model, codec, answers)


if __name__ == "__main__":
    main()
