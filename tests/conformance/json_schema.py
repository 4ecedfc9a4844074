#!/usr/bin/env python3
"""The grammar against an independent validator (the `jsonschema` package), on random schemas.

For each schema: what random walks through the masks write is valid; documents made by following the schema in its order are
accepted; documents that the validator refuses are refused. Argument: the program json_walk.
"""
import json
import os
import random
import subprocess
import sys

try:
    import jsonschema
except ImportError:
    print("SKIP: the Python package jsonschema is not there")
    sys.exit(77)

NAMES = ["a", "b", "id", "ids", "name", "na\"me", "x y", "é", "value", "valued", ""]
WORDS = ["", "a", "ab", "hello", "é€", "😀", "\n\t\"\\", "x" * 9, "\u0001", "true"]
NUM_SCHEMAS = int(os.environ.get("SHOAL_JSON_SCHEMAS", "400"))


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Maker:
    """Random schemas of what is supported, and documents that follow them."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def scalar(self):
        return self.r.choice([None, True, False, 0, 1, -17, 12.5, -0.25, *self.r.sample(WORDS, 2)])

    def schema(self, depth):
        kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "any", "types"]
        if depth > 0:
            kinds += ["object", "array", "tuple", "anyOf", "object", "array", "ref", "map"]
        return getattr(self, "make_" + self.r.choice(kinds))(depth)

    def make_string(self, _):
        low, high = self.r.choice([(0, None), (0, 5), (2, 4), (1, None), (0, 0)])
        out = {"type": "string"}
        if low:
            out["minLength"] = low
        if high is not None:
            out["maxLength"] = high
        return out

    def make_integer(self, _):
        out = {"type": "integer"}
        if self.r.random() < 0.5:
            low = self.r.choice([0, 1, -5, -1000, 7, 10**9])
            out[self.r.choice(["minimum", "exclusiveMinimum"])] = low
            if self.r.random() < 0.7:
                out[self.r.choice(["maximum", "exclusiveMaximum"])] = low + self.r.choice([2, 10, 99, 12345])
        return out

    def make_number(self, _):
        out = {"type": "number"}
        if self.r.random() < 0.5:
            low = self.r.choice([0, -1.5, 0.25, 100, -0.001])
            out[self.r.choice(["minimum", "exclusiveMinimum"])] = low
            if self.r.random() < 0.7:
                out[self.r.choice(["maximum", "exclusiveMaximum"])] = low + self.r.choice([0.5, 1, 99.75])
        return out

    def make_boolean(self, _):
        return {"type": "boolean"}

    def make_null(self, _):
        return {"type": "null", "description": "nothing"}

    def make_enum(self, _):
        return {"enum": [self.scalar() for _ in range(self.r.randint(1, 5))] + [["a", 1]]}

    def make_const(self, _):
        return {"const": self.scalar()}

    def make_any(self, _):
        return self.r.choice([True, {}, {"title": "anything"}])

    def make_types(self, _):
        return {"type": self.r.sample(["string", "integer", "null", "boolean", "array", "object"], 2)}

    def make_object(self, depth):
        names = self.r.sample(NAMES, self.r.randint(0, 5))
        out = {"type": "object", "properties": {n: self.schema(depth - 1) for n in names}}
        out["required"] = [n for n in names if self.r.random() < 0.5]
        choice = self.r.random()
        if choice < 0.4:
            out["additionalProperties"] = False
        elif choice < 0.6:
            out["additionalProperties"] = self.schema(0)
        return out

    def make_map(self, depth):
        return {"type": "object", "additionalProperties": self.schema(depth - 1)}

    def make_array(self, depth):
        low = self.r.choice([0, 0, 1, 2])
        out = {"type": "array", "items": self.schema(depth - 1), "minItems": low}
        if self.r.random() < 0.5:
            out["maxItems"] = low + self.r.randint(0, 2)
        return out

    def make_tuple(self, depth):
        prefix = [self.schema(depth - 1) for _ in range(self.r.randint(1, 3))]
        return {"type": "array", "prefixItems": prefix, "items": self.r.choice([False, {"type": "null"}]),
                "minItems": self.r.randint(0, len(prefix))}

    def make_anyOf(self, depth):
        return {self.r.choice(["anyOf", "anyOf", "oneOf"]): [
            {"type": "object", "properties": {"kind": {"const": str(i)}, "v": self.schema(depth - 1)}, "required": ["kind"],
             "additionalProperties": False} for i in range(self.r.randint(1, 3))] + [{"type": "null"}]}

    def make_ref(self, _):
        return {"$ref": self.r.choice(["#/$defs/tree", "#/$defs/point", "#/$defs/list"])}

    def root(self):
        root = dict(self.make_object(3)) if self.r.random() < 0.7 else self.schema(3)
        root = {"anyOf": [root]} if isinstance(root, bool) else root
        root["$defs"] = {
            "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False, "minItems": 2},
            "tree": {"type": "object", "properties": {"v": {"$ref": "#/$defs/point"}, "kids": {"type": "array",
                     "items": {"$ref": "#/$defs/tree"}}}, "required": ["v"], "additionalProperties": False},
            "list": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"next": {"$ref": "#/$defs/list"}},
                     "required": ["next"], "additionalProperties": False}]}}
        return root

    def document(self, s, root, depth=0):
        """A document of schema `s`, its keys in the schema's order; None where none is found easily."""
        if s is True or s == {} or (isinstance(s, dict) and not set(s) - {"title", "description", "$defs"}):
            return self.r.choice([1, "x", None, [1, []], {"k": {"l": False}}])
        if "$ref" in s:
            return self.document(root["$defs"][s["$ref"].split("/")[-1]], root, depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in s:
                null = [a for a in s[key] if a == {"type": "null"}]
                return self.document(self.r.choice(null if null and depth > 5 else s[key]), root, depth + 1)
        if "enum" in s:
            return self.r.choice(s["enum"])
        if "const" in s:
            return s["const"]
        kind = s["type"] if isinstance(s["type"], str) else self.r.choice(s["type"])
        return getattr(self, "document_" + kind)(s, root, depth)

    def document_null(self, *_):
        return None

    def document_boolean(self, *_):
        return self.r.random() < 0.5

    def document_string(self, s, *_):
        low, high = s.get("minLength", 0), s.get("maxLength", 12)
        text = "".join(self.r.choice("ab é€😀\"\\\n/") for _ in range(self.r.randint(low, high)))
        return text

    def bounds(self, s, step):
        low = s.get("minimum", s.get("exclusiveMinimum", -50))
        low += step if "exclusiveMinimum" in s else 0
        high = s.get("maximum", s.get("exclusiveMaximum", low + 1000))
        high -= step if "exclusiveMaximum" in s else 0
        return low, max(low, high)

    def document_integer(self, s, *_):
        return self.r.randint(*self.bounds(s, 1))

    def document_number(self, s, *_):
        low, high = self.bounds(s, 0.001)
        value = round(self.r.uniform(low, high), 3)
        return min(max(value, low), high)

    def document_array(self, s, root, depth):
        prefix, items = s.get("prefixItems", []), s.get("items", True)
        low = s.get("minItems", 0)
        high = s.get("maxItems", max(low, len(prefix) if items is False else len(prefix) + 2 - min(depth, 2)))
        out = []
        for i in range(self.r.randint(low, max(low, high))):
            out.append(self.document(prefix[i] if i < len(prefix) else items, root, depth + 1))
        return out

    def document_object(self, s, root, depth):
        out = {}
        for name, value in s.get("properties", {}).items():
            if name in s.get("required", []) or (depth < 5 and self.r.random() < 0.6):
                out[name] = self.document(value, root, depth + 1)
        others = s.get("additionalProperties", not s.get("properties"))
        if others is not False and self.r.random() < 0.5:
            out["other"] = self.document(others, root, depth + 1)
        return out


def damaged(text, r):
    """The text with one mistake, which may or may not make it invalid."""
    at = r.randrange(len(text) + 1)
    return r.choice([text[:at] + text[at + 1:], text[:at] + r.choice("{}[],:\"0x- ") + text[at:], text[:at], text + r.choice("}] 1,")])


def is_valid(validator, text):
    try:
        return validator.is_valid(json.loads(text))
    except (ValueError, RecursionError):
        return False


def main():
    seed = int(os.environ.get("SHOAL_SEED", "1"))
    walker = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    num = dict(schemas=0, walks=0, unfinished=0, followed=0, refused=0)
    for i in range(NUM_SCHEMAS):
        maker = Maker(seed * 1_000_003 + i)
        schema = maker.root()
        validator = jsonschema.Draft202012Validator(schema)
        good = [compact(maker.document(schema, schema)) for _ in range(6)]
        assert all(is_valid(validator, d) for d in good), (schema, good)
        bad = [damaged(d, maker.r) for d in good]
        ask = {"schema": json.dumps(schema), "walks": 8, "seed": i * 100 + seed, "documents": good + bad}
        walker.stdin.write(json.dumps(ask) + "\n")
        walker.stdin.flush()
        answer = json.loads(walker.stdout.readline())
        where = f"schema {i} of SHOAL_SEED={seed}: {json.dumps(schema)}"
        assert "error" not in answer, (where, answer)
        num["schemas"] += 1
        num["unfinished"] += answer["unfinished"]
        for text in answer["walks"]:
            num["walks"] += 1
            assert is_valid(validator, text), (where, "a walk wrote", text)
        for text, accepted in zip(good, answer["accepted"]):
            num["followed"] += 1
            assert accepted, (where, "was refused:", text)
        for text, accepted in zip(bad, answer["accepted"][len(good):]):
            if not is_valid(validator, text):
                num["refused"] += 1
                assert not accepted, (where, "was accepted:", text)
    walker.stdin.close()
    assert walker.wait() == 0
    print(", ".join(f"{count} {name}" for name, count in num.items() if count))
    assert num["walks"] > 5 * num["schemas"] and num["refused"] > num["schemas"], num


if __name__ == "__main__":
    main()
