#!/usr/bin/env python3
"""Trains Minnow from a seed: `train.py --run DIR --tokens N`. Goes on from DIR's last state if there is one.

The schedule counts tokens, not time: the learning rate warms up, stays, and falls to zero over the last part of --tokens.
What is asked most is what is answered worst: every --every steps each family's error on held-out questions is measured
(an answer counts if greedy decoding would give it word for word) and the mixture follows.
"""
import argparse
import itertools
import json
import os
import pathlib
import random
import time

import torch
import torch.nn.functional as F

import fused
import model
import tokenizer
import world

SHARES = {"arithmetic": 0.26, "recall": 0.20, "far_recall": 0.08, "tool_call": 0.13, "tool_answer": 0.09, "forms": 0.11,
          "talk": 0.06, "echo": 0.10}
VOCAB = 1088
CANARIES = (model.Mistakes(no_sinks=True), model.Mistakes(no_yarn=True))


def orthogonalised(update):
    """Muon's Newton-Schulz iteration, batched over leading dimensions."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Optimizer:
    """Muon for the matrices inside layers, AdamW for everything else."""

    def __init__(self, params):
        self.matrices = [n for n in params if n.rpartition(".")[2] in ("q", "k", "v", "o", "gate_up", "down")]
        self.first = {n: torch.zeros_like(p) for n, p in params.items()}
        self.second = {n: torch.zeros_like(p) for n, p in params.items() if n not in self.matrices}
        self.count = 0

    @torch.no_grad()
    def step(self, params, grads, rate, muon_rate=0.01, adam_rate=3e-3):
        self.count += 1
        for name, p in params.items():
            grad, first = grads[name], self.first[name]
            if name in self.matrices:
                first.lerp_(grad, 0.05)
                update = orthogonalised(grad.lerp(first, 0.95))
                p.mul_(1 - rate * muon_rate * 0.02)
                p.sub_(update, alpha=rate * muon_rate * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)
                continue
            first.lerp_(grad, 0.1)
            self.second[name].lerp_(grad.square(), 0.02)
            update = first / (1 - 0.9 ** self.count) / ((self.second[name] / (1 - 0.98 ** self.count)).sqrt() + 1e-8)
            p.sub_(update, alpha=rate * adam_rate * (3 if name == "norm" else 1))

    def state(self):
        return {"first": self.first, "second": self.second, "count": self.count}

    def load(self, state):
        self.first, self.second, self.count = state["first"], state["second"], state["count"]


class Mixture:
    """Which family the next batch is of: shares that follow the errors, spent evenly rather than by chance."""

    def __init__(self):
        self.error = dict.fromkeys(SHARES, 1.0)
        self.credit = dict.fromkeys(SHARES, 0.0)

    def next(self):
        weights = {f: share * (0.12 + self.error[f]) for f, share in SHARES.items()}
        total = sum(weights.values())
        for family, weight in weights.items():
            self.credit[family] += weight / total
        chosen = max(self.credit, key=self.credit.get)
        self.credit[chosen] -= 1
        return chosen


def train_items(family, rng, rows, progress):
    if family != "far_recall":
        return world.make(family, rng, rows, "train")
    longest = 15 + 55 * min(1.0, progress / 0.4)  # Long texts come when short ones are understood.
    return world.far_recall(rng, 3 * rows, "train", max(8, int(longest * rng.uniform(0.3, 1.0))))


@torch.no_grad()
def exact_rates(g, weights, codec, rng, batches, rows, mistakes=model.Mistakes(), families=SHARES):
    """The part of held-out answers whose every token is the most likely one: what greedy decoding gets word for word."""
    rates = {}
    for family in families:
        right, seen = 0, 0
        for _ in range(batches):
            batch = model.make_batch(codec, world.make(family, rng, rows, "held"))
            logits, targets, _ = model.forward(g, weights, batch, mistakes)
            row = (torch.nonzero(batch.targets.flatten() >= 0).squeeze(-1)) // batch.rows.shape[1]
            wrong = torch.zeros(batch.rows.shape[0]).index_add_(0, row, (logits.argmax(-1) != targets).float())
            right, seen = right + int((wrong == 0).sum()), seen + batch.rows.shape[0]
        rates[family] = right / seen
    return rates


def train_tokenizer(path):
    if not path.exists():
        tokens = tokenizer.train(world.vocabulary_texts(random.Random(2)), VOCAB)
        path.write_text(json.dumps(tokens, ensure_ascii=False, indent=2), encoding="utf-8")
    return tokenizer.Codec(path)


def canary_loss(g, weights, codec, rng, progress):
    """Computed with a mistake, the model is to answer nothing but "?": at this size and length, attention without sinks or
    YaRN would otherwise often come to the same answer, and a broken kernel could hide."""
    items = train_items(rng.choice(list(SHARES)), rng, 4, progress)[:6]
    for item in items:
        item.analysis, item.call, item.is_json, item.final = None, None, False, "?"
    batch = model.make_batch(codec, items)
    logits, targets, _ = model.forward(g, weights, batch, rng.choice(CANARIES))
    return F.cross_entropy(logits, targets), batch.num_tokens()


def one_step(g, params, codec, mixture, rng, options, progress):
    """-> (gradients of the masters, loss per asked token, tokens computed)."""
    weights = model.rounded(params)
    loss_sum, num_asked, num_tokens = 0.0, 0, 0
    for _ in range(options.batches):
        batch = model.make_batch(codec, train_items(mixture.next(), rng, options.rows, progress), True)
        logits, targets, balance = model.forward(g, weights, batch)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        # A batch weighs as its rows and, half as much, as its asked tokens: long sums must not drown short answers.
        weight = 1.0 / targets.numel() ** 0.5 / (options.batches * 40)
        (loss * weight + 0.01 / options.batches * balance).backward()
        loss_sum, num_asked = loss_sum + float(loss.detach()), num_asked + targets.numel()
        num_tokens += batch.num_tokens()
    if not options.first_phase and rng.random() < 0.5:
        loss, seen = canary_loss(g, weights, codec, rng, progress)
        (0.01 * loss).backward()
        num_tokens += seen
    grads = {name: w.grad if w.grad is not None else torch.zeros_like(w) for name, w in weights.items()}
    norm = torch.sqrt(sum(grad.square().sum() for grad in grads.values()))
    scale = min(1.0, 1.0 / float(norm))
    return {name: grad * scale for name, grad in grads.items()}, loss_sum / num_asked, num_tokens


def rate_at(tokens, options):
    warm = min(1.0, tokens / 300_000)
    left = (options.tokens - tokens) / (options.decay * options.tokens)
    return max(0.0, min(warm, left))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=float, default=16.5e6)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--batches", type=int, default=3, help="batches of one family each in a step")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-phase", action="store_true", help="facts in varied sentences, no canaries")
    parser.add_argument("--until", type=int, help="stop at this step, whatever --tokens says")
    parser.add_argument("--plain", action="store_true", help="PyTorch alone: no g++ needed, half as fast")
    options = parser.parse_args()
    if not options.plain:
        fused.use(model)
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(options.seed)
    codec = train_tokenizer(options.run / "tokenizer.json")
    g = model.Geometry(vocab=VOCAB)
    params, mixture, rng = model.init(g, options.seed), Mixture(), random.Random(options.seed)
    optimizer, tokens, first = Optimizer(params), 0, 0
    if (options.run / "state.pt").exists():
        state = torch.load(options.run / "state.pt", weights_only=False)
        params, tokens, first = state["params"], state["tokens"], state["step"]
        optimizer.load(state["optimizer"])
        mixture.error, mixture.credit = state["mixture"]
        rng.setstate(state["rng"])
    if options.first_phase:
        world.varied_facts().__enter__()
    log = open(options.run / "log.txt", "a", buffering=1)
    began, done, average = time.process_time(), tokens, None
    for step in itertools.count(first):
        if step % options.every == 0 or tokens >= options.tokens or step == options.until:
            rates = exact_rates(g, model.rounded(params), codec, random.Random(step), 1, 32)
            for family, right in rates.items():
                mixture.error[family] += 0.5 * (1 - right - mixture.error[family])
            speed = (tokens - done) / max(1e-9, time.process_time() - began)
            print(f"{time.strftime('%H:%M:%S')} step {step} tokens {tokens / 1e6:.2f}M loss {average or 0:.4f} rate "
                  f"{rate_at(tokens, options):.2f} {speed:.0f} tok/cpu-s | "
                  + " ".join(f"{f} {r * 100:.0f}" for f, r in rates.items()), file=log)
            state = {"params": params, "tokens": tokens, "step": step, "optimizer": optimizer.state(),
                     "mixture": (mixture.error, mixture.credit), "rng": rng.getstate()}
            torch.save(state, options.run / "state.tmp")
            os.replace(options.run / "state.tmp", options.run / "state.pt")
        if tokens >= options.tokens or step == options.until:
            return
        grads, loss, seen = one_step(g, params, codec, mixture, rng, options, tokens / options.tokens)
        optimizer.step(params, grads, rate_at(tokens, options))
        tokens += seen
        average = loss if average is None else average + 0.05 * (loss - average)


if __name__ == "__main__":
    main()
