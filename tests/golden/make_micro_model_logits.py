#!/usr/bin/env python3
"""Writes micro_model_logits.txt and micro_model_{short,long,natural}.npy: exact logits of the micro-model, from the float64
implementation in numpy.

    make_micro_model_logits.py PATH/TO/gptoss_reference.py FOLDER

The text has, per line: prompt (short or long), position, token, then the 128 logits; or, for most of the long prompt's
positions, the token only. Positions at the edges of blocks (32) have their logits. The arrays have all positions, in fp32.

The short prompt is that of the specification. The long one, of 300 tokens, is chosen token by token such that in no layer
the fourth and fifth expert are nearer than 0.06: with nearer ones any engine that rounds to bf16 now and then takes
another expert, and a comparison says nothing. The natural one, of 300 tokens too, is a formula and has such near ones.
"""
import importlib.util
import sys

import numpy as np

spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

LENGTH, GAP = 300, 0.06
POSITIONS = {0, 3, 4, 31, 32, 34, 35, 63, 64, 127, 128, 160, 199, 255, 256, 298, 299}


def smallest_gap(weights, tokens):
    """Between the fourth and fifth expert of the last token, over all layers."""
    trace = {}
    reference.forward(weights, tokens, trace)
    scores = [-np.sort(-trace[f"router{layer}"][-1]) for layer in range(4)]
    return min(score[3] - score[4] for score in scores)


def long_prompt(weights):
    tokens, state = [], 1
    while len(tokens) < LENGTH:
        state = (state * 1103515245 + 12345) % 2**31
        candidate = state >> 16 & 127
        if smallest_gap(weights, tokens + [candidate]) >= GAP:
            tokens.append(candidate)
    return tokens


def write(name, tokens, positions, text):
    logits = reference.forward(weights, tokens)
    np.save(f"{folder}/micro_model_{name}.npy", logits.astype(np.float32))
    for position, token in enumerate(tokens if positions else []):
        values = logits[position] if position in positions else []
        print(name, position, token, *(f"{value:.5f}" for value in values), file=text)


folder = sys.argv[2]
weights = reference.make()
# Candidates are many; a layer's expert matrices are made once.
matrices = {f"model.layers.{layer}.": tuple(reference.expert_matrices(weights, f"model.layers.{layer}."))
            for layer in range(4)}
reference.expert_matrices = lambda _, prefix: matrices[prefix]
with open(f"{folder}/micro_model_logits.txt", "w", encoding="utf-8") as out:
    write("short", reference.TOKENS, range(len(reference.TOKENS)), out)
    write("long", long_prompt(weights), POSITIONS, out)
    write("natural", [(i * i * 7 + i * 3 + 5) % 128 for i in range(LENGTH)], (), out)
