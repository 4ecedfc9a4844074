#!/usr/bin/env python3
"""Writes micro_model_long_same_experts.npy: exact logits of the micro-model's 300-token prompt under Shoal's choice of experts.

    shoal logits --model MICRO_MODEL --tokens ... --out ours.npy                  (LONG below)
    make_micro_model_same_experts.py PATH/TO/gptoss_reference.py ours.npy micro_model_long_same_experts.npy

Some of the prompt's 1,200 routers have a fourth and a fifth expert so close that bf16 between the operations changes their order;
what follows is then another computation, and its distance from float64 says nothing about precision. So the forward pass is
run twice here: with the roundings of docs/numerics.md, which gives the choice, and in float64 with that choice. Where two
scores are closer than even the order of a sum matters, the simulated choice may not be Shoal's: at the first position that
does not agree with ours.npy, the nearly equal pair (within 0.01) is taken that makes it agree. If none does, the script fails.
Prints which routers choose otherwise than in float64, and what other rounding points would give (docs/numerics.md).
"""
import importlib.util
import math
import sys

import numpy as np

spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

CONFIG = reference.CFG
LAYERS, WINDOW, LIMIT = CONFIG["num_hidden_layers"], CONFIG["sliding_window"], CONFIG["swiglu_limit"]
HEADS, KV_HEADS, DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
CHOSEN = CONFIG["experts_per_token"]
LONG = [(i * i * 7 + i * 3 + 5) % 128 for i in range(300)]
NEAR = 0.01
BOUND = 0.031
# Where Shoal rounds to bf16.
POINTS = {"residual", "norms", "router input", "qkv", "rotated", "attended", "projected", "swiglu", "expert output"}


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


def forward(points, choice=None):
    """Logits, experts [layer][position, slot] and scores, rounding at `points`; `choice` replaces the routers' own."""
    def rounded(point, x):
        return bf16(x) if point in points else x

    count = len(LONG)
    frequency, factor = reference.yarn(CONFIG)
    angle = (np.arange(count)[:, None] * frequency)[:, None]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor

    def rotate(x):
        a, b = x[..., :DIM // 2], x[..., DIM // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = WEIGHTS["model.embed_tokens.weight"][LONG]
    distance = np.arange(count)[:, None] - np.arange(count)[None]
    chosen, seen = [], []
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
        seen.append(scores)
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
    return final @ WEIGHTS["lm_head.weight"].T, chosen, seen


def describe(name, logits, exact):
    error = np.abs(logits - exact)
    print(f"{name:34s} max {error.max():.4f}, mean {error.mean():.5f}, above 0.026 at {(error.max(1) > 0.026).sum()} positions")


def differing(choice, other):
    return [(layer, int(position)) for layer in range(LAYERS)
            for position in np.flatnonzero((np.sort(choice[layer], 1) != np.sort(other[layer], 1)).any(1))]


def choice_of(ours, choice, scores):
    """The simulated choice, corrected until float64 agrees with `ours` at every position."""
    near = []  # (position, layer, in, out)
    for layer in range(LAYERS):
        order = np.argsort(-scores[layer], axis=1, kind="stable")
        for position, experts in enumerate(order):
            kept, dropped = experts[CHOSEN - 1], experts[CHOSEN]
            if scores[layer][position, kept] - scores[layer][position, dropped] < NEAR:
                near.append((position, layer, kept, dropped))
    while True:
        error = np.abs(forward(set(), choice)[0] - ours).max(1)
        bad = np.flatnonzero(error > BOUND)
        if not len(bad):
            return choice
        for position, layer, kept, dropped in sorted(near, reverse=True):
            if position > bad[0]:
                continue
            trial = [ids.copy() for ids in choice]
            row = trial[layer][position]
            row[row == kept] = dropped
            if np.abs(forward(set(), trial)[0][bad[0]] - ours[bad[0]]).max() <= BOUND:
                print(f"layer {layer}, position {position}: {dropped} instead of {kept}")
                choice = trial
                near.remove((position, layer, kept, dropped))
                break
        else:
            sys.exit(f"position {bad[0]} is off by {error[bad[0]]:.4f} under every nearly equal choice")


exact, exact_choice, exact_scores = forward(set())
for name, points in (("as built", POINTS), ("residual in fp32", POINTS - {"residual"}),
                     ("residual and router input in fp32", POINTS - {"residual", "router input"}),
                     ("K and V alone in bf16", {"rotated"})):
    logits, choice, _ = forward(points)
    print(f"{name}: {len(differing(choice, exact_choice))} of {LAYERS * len(LONG)} routers choose otherwise than in float64")
    describe("  against float64", logits, exact)
    describe("  against float64, same experts", logits, forward(set(), choice)[0])
ours = np.load(sys.argv[2])
_, choice, scores = forward(POINTS)
choice = choice_of(ours, choice, scores)
same_experts = forward(set(), choice)[0]
print(f"Shoal: {len(differing(choice, exact_choice))} routers choose otherwise than in float64:")
for layer, position in differing(choice, exact_choice):
    falling = -np.sort(-exact_scores[layer][position])
    print(f"  layer {layer}, position {position}, float64's margin {falling[CHOSEN - 1] - falling[CHOSEN]:.4f}")
describe("  against float64", ours, exact)
describe("  against float64, same experts", ours, same_experts)
np.save(sys.argv[3], same_experts.astype(np.float32))
