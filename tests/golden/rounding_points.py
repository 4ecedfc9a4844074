#!/usr/bin/env python3
"""What each rounding to bf16 costs the micro-model: the table of docs/numerics.md.

    rounding_points.py PATH/TO/gptoss_reference.py

Runs the forward pass in float64 with a rounding to bf16 at some of the points where Shoal has one, over the two prompts of 300
tokens of make_micro_model_logits.py: the long one, at which no router is in doubt, and the natural one. Where a router's
fourth and fifth expert are close, a rounding changes their order; what follows is then another computation, and its distance
from float64 says nothing about precision. So the natural prompt is compared with float64 under the same choice, too.
"""
import importlib.util
import math
import pathlib
import sys

import numpy as np

spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

CONFIG = reference.CFG
LAYERS, WINDOW, LIMIT = CONFIG["num_hidden_layers"], CONFIG["sliding_window"], CONFIG["swiglu_limit"]
HEADS, KV_HEADS, DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
CHOSEN = CONFIG["experts_per_token"]
# Where Shoal rounds to bf16.
POINTS = {"norms", "router input", "qkv", "rotated", "attended", "projected", "swiglu", "expert output"}


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def integers(x):
    """Blocks of 32 as 16-bit integers with the smallest power-of-two scale that keeps |q| <= 32,639."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scale = 2.0 ** np.where(largest > 0, np.ceil(np.log2(np.maximum(largest, 1e-300) / 32639)), 0)
    return (np.round(blocks / scale) * scale).reshape(x.shape)


WEIGHTS = reference.make()
EXPERTS = [tuple(reference.expert_matrices(WEIGHTS, f"model.layers.{layer}.")) for layer in range(LAYERS)]


def attend(q, k, v, sinks, visible):
    out = np.empty_like(q)
    for h in range(HEADS):
        kv = h // (HEADS // KV_HEADS)
        scores = np.where(visible, q[:, h] @ k[:, kv].T / math.sqrt(DIM), -np.inf)
        top = np.maximum(scores.max(-1, keepdims=True), sinks[h])
        e = np.exp(scores - top)
        out[:, h] = (e / (e.sum(-1, keepdims=True) + np.exp(sinks[h] - top))) @ v[:, kv]
    return out.reshape(len(q), -1)


def forward(tokens, points, choice=None):
    """Logits and experts [layer][position, slot], rounding at `points`; `choice` replaces the routers' own."""
    def rounded(point, x):
        return bf16(x) if point in points else x

    count = len(tokens)
    frequency, factor = reference.yarn(CONFIG)
    angle = (np.arange(count)[:, None] * frequency)[:, None]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor

    def rotate(x):
        a, b = x[..., :DIM // 2], x[..., DIM // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = WEIGHTS["model.embed_tokens.weight"][tokens]
    distance = np.arange(count)[:, None] - np.arange(count)[None]
    chosen = []
    for layer in range(LAYERS):
        def w(name):
            return WEIGHTS[f"model.layers.{layer}.{name}"]

        t = rounded("norms", reference.rms(x, w("input_layernorm.weight")))
        q, k, v = (rounded("qkv", t @ w(f"self_attn.{n}_proj.weight").T + w(f"self_attn.{n}_proj.bias"))
                   .reshape(count, -1, DIM) for n in "qkv")
        q, k = rounded("rotated", rotate(q)), rounded("rotated", rotate(k))
        visible = (distance >= 0) & ((distance < WINDOW) | (layer % 2 == 1))
        attended = rounded("attended", attend(q, k, v, w("self_attn.sinks"), visible))
        projected = attended @ w("self_attn.o_proj.weight").T + w("self_attn.o_proj.bias")
        x = rounded("residual", x + rounded("projected", projected))
        t = reference.rms(x, w("post_attention_layernorm.weight"))
        scores = rounded("router input", t) @ w("mlp.router.weight").T + w("mlp.router.bias")
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :CHOSEN] if choice is None else choice[layer]
        chosen.append(ids)
        shares = np.take_along_axis(scores, ids, 1)
        shares = np.exp(shares - shares.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        t = integers(bf16(t)) if "norms" in points else t
        gate_up, down = EXPERTS[layer]
        y = np.zeros_like(x)
        for row, experts in enumerate(ids):
            u = gate_up[experts] @ t[row] + w("mlp.experts.gate_up_proj_bias")[experts]
            a, b = np.minimum(u[:, 0::2], LIMIT), np.clip(u[:, 1::2], -LIMIT, LIMIT)
            h = a / (1 + np.exp(-reference.ALPHA * a)) * (b + 1)
            h = integers(bf16(h)) if "swiglu" in points else h
            out = np.einsum("eoi,ei->eo", down[experts], h) + w("mlp.experts.down_proj_bias")[experts]
            y[row] = shares[row] @ rounded("expert output", out)
        x = rounded("residual", x + y)
    final = rounded("norms", reference.rms(x, WEIGHTS["model.norm.weight"]))
    return final @ WEIGHTS["lm_head.weight"].T, chosen


def differing(choice, other):
    return sum((np.sort(mine, 1) != np.sort(theirs, 1)).any(1).sum() for mine, theirs in zip(choice, other))


here = pathlib.Path(__file__).parent
LONG = [int(words[2]) for words in map(str.split, open(here / "micro_model_logits.txt", encoding="utf-8")) if words[0] == "long"]
NATURAL = [(i * i * 7 + i * 3 + 5) % 128 for i in range(300)]
exact_long, long_choice = forward(LONG, set())
exact, exact_choice = forward(NATURAL, set())
print("| rounded to bf16 | long: max | natural: other experts | max | mean | positions above 0.026 | max, same experts |")
print("|---|---|---|---|---|---|---|")
for name, points in (("as Shoal does", POINTS), ("… and the residual stream", POINTS | {"residual"}),
                     ("… but not the router's input", POINTS - {"router input"}), ("nothing but K", {"rotated"})):
    logits, choice = forward(LONG, points)
    assert differing(choice, long_choice) == 0, name
    cells = [f"{np.abs(logits - exact_long).max():.4f}"]
    logits, choice = forward(NATURAL, points)
    error = np.abs(logits - exact)
    same = np.abs(logits - forward(NATURAL, set(), choice)[0])
    cells += [f"{differing(choice, exact_choice)} of {LAYERS * len(NATURAL)}", f"{error.max():.3f}", f"{error.mean():.4f}",
              f"{(error.max(1) > 0.026).sum()}", f"{same.max():.4f}"]
    print("|", name, "|", " | ".join(cells), "|")
