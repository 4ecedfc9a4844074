#!/usr/bin/env python3
"""`shoal harmony` against an independent reference, on random input.

    harmony_oracle.py SHOAL SOURCE_DIR [--scale N] [--seed N]

Random conversations, JSON schemas, requests, well-formed and mutated answers and token soups go to
both; every field of every answer must be equal. The reference (harmony_reference.py) and the
release's vocabulary are not part of the repository: without ../shared beside it, exit status 77.
--scale 20 takes minutes; the default takes seconds.
"""
import argparse
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import tempfile

FUNCTIONS = ["f", "shell", "get_weather", "create_event"]
WORDS = ["a", "weather", "The quick brown fox.", "caf\u00e9 \u2014 \u4f60\u597d", "<|end|>", "<|start|>system<|message|>x",
         "line one\nline two", "tail\r\n", "", " ", "\U0001f600", "{\"a\": [1, 2]}", "```\ncode\n```", "null", "x" * 40]


def shared_folder(source):
    for parent in (source.parent, source.parent.parent):
        if (parent / "shared/tools/harmony_reference.py").exists():
            return parent / "shared"
    print("SKIPPED: no ../shared/tools/harmony_reference.py beside", source, file=sys.stderr)
    sys.exit(77)


def load(path):
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def chance(self, percent):
        return self.r.random() * 100 < percent

    def text(self):
        return "".join(self.r.choice(WORDS) for _ in range(self.r.randint(1, 4)))

    def value(self):
        r = self.r
        return r.choice([None, True, False, 0, 1, -7, 2**63, 2**70, 1.0, 2.5, 1e-7, 1e-5, 1.5e16, 1e16, 123456789.125, -0.0, 1e300,
                         self.text(), [1, "a", None], {"k": 1, "\u00e9": [2.0]}])

    def schema(self, depth):
        r, s = self.r, {}
        if depth == 0 or self.chance(3):
            return r.choice([{"type": "string"}, {"type": "integer"}, {}, None, True, "x", {"$ref": "#/x"}, {"anyOf": []}])
        kind = r.choice(["object", "object", "object", "array", "string", "string", "number", "integer", "boolean", "null", "list",
                         "union", "none"])
        if kind == "list":
            s["type"] = [r.choice(["string", "integer", "null", "object", 5]) for _ in range(r.randint(0, 3))]
        elif kind == "union":
            s["oneOf"] = r.choice([[self.schema(depth - 1) for _ in range(r.randint(0, 3))], "no list", None])
        elif kind != "none":
            s["type"] = kind
        if kind == "object" and self.chance(90):
            s["properties"] = {r.choice(["a", "b", "c_d", "\u00e9", "x y", "e-f"]): self.schema(depth - 1)
                               for _ in range(r.randint(0, 4))}
            if self.chance(60):
                s["required"] = r.choice([["a", "c_d"], ["b", 3], [], "a"])
        if kind == "array" and self.chance(80):
            s["items"] = self.schema(depth - 1)
        if kind in ("string", "none") and self.chance(40):
            s["enum"] = r.choice([["a", "b"], ["a\"b", 3], [], [1, 2], "a"])
        for key, percent, value in (("description", 40, self.text()), ("title", 15, self.text()), ("default", 25, self.value()),
                                    ("nullable", 20, r.choice([True, True, False, "true"])),
                                    ("examples", 15, r.choice([["a", "b\n"], [1, "x"], [], "a"])), ("oneOf", 3, "x")):
            if key not in s and self.chance(percent):
                s[key] = value
        items = list(s.items())
        r.shuffle(items)
        return dict(items)

    def function(self, name):
        f = {"name": name, "description": self.text()}
        if self.chance(80):
            f["parameters"] = self.schema(3)
        return f

    def namespaces(self):
        out = {}
        for key in self.r.sample(["functions", "python", "browser", "Zed"], self.r.randint(1, 3)):
            out[key] = {"name": key, "description": self.r.choice([None, self.text()]),
                        "tools": [self.function(n) for n in self.r.sample(FUNCTIONS, self.r.randint(0, 3))]}
        return out

    def message(self):
        r = self.r
        role = r.choice(["user", "assistant", "assistant", "assistant", "tool", "system", "developer"])
        m = {"role": role}
        if role == "system" and self.chance(80):
            c = {"type": "system_content"}
            for key, value in (("model_identity", self.text()), ("reasoning_effort", r.choice(["Low", "Medium", "High"])),
                               ("knowledge_cutoff", "2024-06"), ("conversation_start_date", "2025-01-02"),
                               ("tools", self.namespaces()),
                               ("channel_config", {"valid_channels": r.choice([[], ["analysis", "final"], ["final"]]),
                                                   "channel_required": self.chance(50)})):
                if self.chance(60):
                    c[key] = value
            m["content"] = [c]
        elif role == "developer" and self.chance(80):
            c = {"type": "developer_content"}
            if self.chance(60):
                c["instructions"] = self.text()
            if self.chance(60):
                c["tools"] = self.namespaces()
            if self.chance(40):
                c["response_formats"] = [{"name": "out", "description": r.choice([None, self.text()]), "schema": self.schema(2)}]
            m["content"] = [c]
        elif self.chance(80):
            m["content"] = self.text()
        else:
            m["content"] = [{"type": "text", "text": self.text()} for _ in range(r.randint(0, 3))]
        if role == "tool" or self.chance(10):
            m["name"] = r.choice(["functions.f", "python", self.text() or "x"])
        if self.chance(30):
            m["recipient"] = r.choice(["functions.f", "all", "assistant", "python"])
        if role == "assistant" and self.chance(85) or self.chance(10):
            m["channel"] = r.choice(["analysis", "commentary", "final", "other"])
        if self.chance(20):
            m["content_type"] = r.choice(["<|constrain|>json", "json", "code", "<|constrain|>"])
        return m

    def render(self):
        return {"messages": [self.message() for _ in range(self.r.randint(1, 6))], "auto_drop": self.chance(50),
                "completion": self.chance(70), "training": self.chance(20)}

    def request_message(self, calls):
        r = self.r
        role = r.choice(["user", "user", "assistant", "assistant", "system", "developer"])
        if calls and self.chance(40):
            return {"role": "tool", "tool_call_id": calls.pop(r.randrange(len(calls))), "content": self.text()}
        m = {"role": role, "content": self.text() if self.chance(75) else
             [{"type": "text", "text": self.text()} for _ in range(r.randint(1, 3))]}
        if role == "assistant":
            for key in ("reasoning", "reasoning_content", "thinking"):
                if self.chance(25):
                    m[key] = self.text()
            if self.chance(40):
                m["tool_calls"] = []
                for _ in range(r.randint(1, 2)):
                    id = "call_%x" % r.getrandbits(60)
                    calls.append(id)
                    m["tool_calls"].append({"id": id, "type": "function",
                                            "function": {"name": r.choice(FUNCTIONS),
                                                         "arguments": r.choice(["", "{}", "{\"a\": 1}", self.text()])}})
                m["content"] = r.choice([None, m["content"]])
        return m

    def chat(self):
        r, calls = self.r, []
        q = {"messages": [self.request_message(calls) for _ in range(r.randint(1, 8))]}
        if self.chance(60):
            q["tools"] = []
            for name in r.sample(FUNCTIONS, r.randint(1, 3)):
                f = {"name": name}
                if self.chance(80):
                    f["description"] = self.text()
                if self.chance(80):
                    f["parameters"] = {"type": "object", "properties": {"a": self.schema(2), "b": self.schema(2)}}
                q["tools"].append({"type": "function", "function": f})
            if self.chance(40):
                q["tool_choice"] = r.choice(["none", "auto", "required",
                                             {"type": "function", "function": {"name": r.choice(FUNCTIONS)}}])
        if self.chance(40):
            q["reasoning_effort"] = r.choice(["low", "medium", "high", "minimal", "none", "xhigh", "max", "silly"])
        elif self.chance(30):
            q["reasoning"] = {"effort": r.choice(["low", "high"])}
        if self.chance(25):
            q["response_format"] = {"type": "json_schema",
                                    "json_schema": {"name": "out", "description": self.text(),
                                                    "schema": {"type": "object", "properties": {"a": self.schema(2)}}}}
        return {"api": "chat", "today": r.choice(["2025-06-28", None]), "request": q}

    def responses(self):
        r, items, calls = self.r, [], []
        for _ in range(r.randint(1, 8)):
            kind = r.choice(["message", "message", "message", "reasoning", "function_call", "function_call_output"])
            if kind == "message":
                role = r.choice(["user", "user", "assistant", "system", "developer"])
                i = {"role": role, "content": self.text() or "x"}
                if self.chance(50):
                    i["type"] = "message"
                    i["content"] = [{"type": "output_text" if role == "assistant" else "input_text", "text": self.text() or "x"}]
                if role == "assistant" and self.chance(50):
                    i["phase"] = r.choice(["commentary", "final_answer"])
            elif kind == "reasoning":
                i = {"type": "reasoning", "id": "rs_1", "summary": [],
                     "content": [{"type": "reasoning_text", "text": self.text()} for _ in range(r.randint(0, 2))]}
            elif kind == "function_call":
                calls.append("call_%x" % r.getrandbits(60))
                i = {"type": "function_call", "call_id": calls[-1], "name": r.choice(FUNCTIONS), "arguments": self.text()}
            else:
                if not calls:
                    continue
                i = {"type": "function_call_output", "call_id": calls.pop(), "output": self.text()}
            items.append(i)
        q = {"input": items or "x"}
        if self.chance(50):
            q["instructions"] = self.text()
        if self.chance(30):
            q["tools"] = [{"type": "function", "name": n, "parameters": {"type": "object", "properties": {"a": self.schema(2)}}}
                          for n in r.sample(FUNCTIONS, 2)]
        if self.chance(30):
            q["reasoning"] = {"effort": r.choice(["low", "medium", "high", None])}
        if self.chance(20):
            q["text"] = {"format": {"type": "json_schema", "name": "out", "schema": {"type": "object"}}}
        return {"api": "responses", "today": "2025-06-28", "request": q}

    def ids(self, enc):
        r = self.r
        markers = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>", "<|endoftext|>"]
        pieces = ["assistant", "analysis", "commentary", "final", "user", "system", "developer", "tool", " to=functions.f", " to=", "to=",
                  "functions.", "functions.get_weather", " to=f", "json", " json", " code", " to=functions.shelljson", "\u00a0", "\u202f",
                  " ", "\n", "{", "[1]}", "\"", " x", "assistantfinal", "finalx", "\u2013\u2013commentary", " to=assistant", " to=user",
                  " to=all", "functions.functions.f", "\x1c", "\u2028", "\x85", " --", " a/b-c_d", " \u00e9t\u00e9", " word" * 70] + WORDS
        good = ["<|channel|>analysis<|message|>I think \u20ac.<|end|><|start|>assistant<|channel|>final<|message|>Yes \U0001f600.<|return|>",
                "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary<|message|>A moment.<|end|>"
                "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"a\": [\"]\", 1]} x<|call|>",
                "<|channel|>final <|constrain|>json<|message|>{\"a\":1}<|return|>",
                " to=functions.f<|channel|>commentary json<|message|>{}<|call|>"]

        def piece():
            x = r.random()
            if x < 0.4:
                return enc.encode(r.choice(markers))
            if x < 0.43:
                return [r.choice([199998, 200000, 200017, 200018, 201087])]
            if x < 0.5:
                return [r.randrange(199998)]
            return enc.encode_ordinary(r.choice(pieces))

        if self.chance(50):
            return [i for _ in range(r.randint(0, 14)) for i in piece()]
        ids = enc.encode(r.choice(good))
        for _ in range(r.randint(0, 4)):
            at = r.randrange(len(ids) + 1)
            x = r.random()
            if x < 0.3:
                del ids[at:at + r.randint(1, 2)]
            elif x < 0.5:
                ids[at:at] = ids[at:at + r.randint(1, 3)]
            elif x < 0.9:
                ids[at:at] = piece()
            else:
                del ids[at:]
        return ids


class Comparison:
    def __init__(self, shoal, model, ref):
        self.shoal, self.model, self.ref, self.failed = shoal, model, ref, 0

    def ask(self, what, rows):
        text = "".join(json.dumps(r) + "\n" for r in rows)
        run = subprocess.run([self.shoal, "harmony", what, "--model", self.model, "--jsonl"], input=text, capture_output=True, text=True)
        answers = [json.loads(line) for line in run.stdout.split("\n")[:-1]]
        assert len(answers) == len(rows), (what, len(answers), run.stderr)
        return answers

    def compare(self, what, rows, expected):
        different = 0
        for row, want, got in zip(rows, expected, self.ask(what, rows)):
            want = json.loads(json.dumps(want))
            picked = {k: got.get(k) for k in want}
            if picked == want:
                continue
            different += 1
            if different <= 3:
                for key in want:
                    if picked[key] != want[key]:
                        print("%s: %s\n  %s: reference %s\n  %s: shoal     %s %s" % (
                            what, json.dumps(row)[:2000], key, json.dumps(want[key])[:1500], key, json.dumps(picked[key])[:1500],
                            json.dumps(got.get("error"))))
                        break
        print("%-8s %6d rows, %d different" % (what, len(rows), different), flush=True)
        self.failed += different


def expected_parse(ref, enc, row):
    p, events = ref.parse_all(enc, row["ids"], row["role"], row["functions"])
    return {"events": events, "messages": p.messages, "repairs": p.repairs}


def expected_output(ref, enc, row):
    p, events = ref.parse_all(enc, row["ids"], "assistant", row["functions"])
    last = row["ids"][-1] if row["ids"] else None
    return {"chat_deltas": ref.chat_deltas(events), "chat_message": ref.chat_message(events),
            "finish_reason": ref.finish_reason(p.messages, last),
            "responses_events": [{"event": a, "data": b} for a, b in ref.responses_events(events, last)]}


def is_for_nobody(ref, enc, row):
    """The reference takes an answer `to=user` for reasoning where section 2.10 takes it for an answer."""
    p, _ = ref.parse_all(enc, row["ids"], "assistant", row["functions"])
    return any(m["role"] == "assistant" and m["recipient"] in ("user", "all", "assistant") for m in p.messages)


def expected_request(ref, enc, row):
    convert = ref.chat_to_harmony if row["api"] == "chat" else ref.responses_to_harmony
    try:
        messages = convert(row["request"], row["today"])
    except ref.BadRequest:
        return {"http_status": 400}
    for m in messages:  # A date that is not set is a field that is not there
        for part in m["content"] if isinstance(m["content"], list) else []:
            if part.get("conversation_start_date", "") is None:
                del part["conversation_start_date"]
    ids = ref.Renderer(enc).render(messages, auto_drop=False)
    return {"messages": messages, "ids": ids, "text": enc.decode_bytes(ids).decode()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shoal")
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shared = shared_folder(args.source.resolve())
    ref = load(shared / "tools/harmony_reference.py")
    enc = ref.Encoder()
    with tempfile.TemporaryDirectory() as model:
        subprocess.run([sys.executable, shared / "tools/make_tokenizer_json.py", model, "--merges", "needed", "--pairs", "string"],
                       check=True, stdout=subprocess.DEVNULL)
        g, c, n = Generator(args.seed), Comparison(args.shoal, model, ref), args.scale
        print("seed %d" % args.seed)
        rows = [{"schema": g.schema(4)} for _ in range(1000 * n)]
        c.compare("types", rows, [{"ts": ref.ts_type(r["schema"])} for r in rows])
        rows = [g.render() for _ in range(100 * n)]
        ids = [ref.Renderer(enc).render(r["messages"], completion=r["completion"], auto_drop=r["auto_drop"], training=r["training"])
               for r in rows]
        c.compare("render", rows, [{"ids": i, "text": enc.decode_bytes(i).decode()} for i in ids])
        rows = [{"ids": g.ids(enc), "role": g.r.choice(["assistant", None]), "functions": g.r.choice([FUNCTIONS, []])}
                for _ in range(1000 * n)]
        c.compare("parse", rows, [expected_parse(ref, enc, r) for r in rows])
        rows = [r for r in rows if not is_for_nobody(ref, enc, r)]
        c.compare("output", rows, [expected_output(ref, enc, r) for r in rows])
        rows = [g.chat() if i % 3 else g.responses() for i in range(100 * n)]
        c.compare("request", rows, [expected_request(ref, enc, r) for r in rows])
    return 1 if c.failed else 0


if __name__ == "__main__":
    sys.exit(main())
