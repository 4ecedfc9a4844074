"""gpt-oss's architecture, small, as PyTorch computes it fastest on a CPU: what train.py trains and ablate.py breaks.

Master weights are fp32. rounded() gives what the forward pass uses and what export.py writes: experts in MXFP4, all else in
bf16. A batch is one shared prefix and rows that continue it, so that a system message costs once per batch, not once per row.
"""
import dataclasses
import math

import torch
import torch.nn.functional as F

ALPHA, LIMIT, EPS = 1.702, 7.0, 1e-5
BLOCK = 32
# The unembedding is the embedding times this (a power of two, so exact in bf16): to copy a token is then one thing to learn,
# not one for each token of the vocabulary. The checkpoint has both tables, as the release does.
HEAD_SCALE = 1 / 32


@dataclasses.dataclass(frozen=True)
class Geometry:
    layers: int = 4
    hidden: int = 128
    intermediate: int = 64
    experts: int = 8
    experts_per_token: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 1088
    window: int = 64
    theta: float = 150_000.0
    factor: float = 32.0
    original_positions: int = 4096

    def is_window(self, layer):
        return layer % 2 == 0


# What a broken server would compute; train.py uses the defaults.
@dataclasses.dataclass(frozen=True)
class Mistakes:
    no_sinks: bool = False
    no_yarn: bool = False
    no_window: bool = False
    swapped: bool = False


def init(g, seed):
    """Names as in the checkpoint, with q, k, v in one tensor and experts as [experts, outputs, inputs]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std

    params = {"embed": normal(g.vocab, g.hidden, std=1.0), "norm": torch.ones(g.hidden)}
    wide = g.heads * g.head_dim
    for layer in range(g.layers):
        params |= {f"{layer}.{name}": value for name, value in {
            "norm1": torch.ones(g.hidden), "norm2": torch.ones(g.hidden),
            "q": normal(wide, g.hidden, std=0.5 * g.hidden ** -0.5), "q_bias": torch.zeros(wide),
            "k": normal(g.kv_heads * g.head_dim, g.hidden, std=0.5 * g.hidden ** -0.5),
            "k_bias": torch.zeros(g.kv_heads * g.head_dim),
            "v": normal(g.kv_heads * g.head_dim, g.hidden, std=g.hidden ** -0.5),
            "v_bias": torch.zeros(g.kv_heads * g.head_dim),
            "o": normal(g.hidden, wide, std=0.2 * wide ** -0.5), "o_bias": torch.zeros(g.hidden),
            "sinks": torch.full((g.heads,), 3.0),
            "router": normal(g.experts, g.hidden, std=g.hidden ** -0.5), "router_bias": torch.zeros(g.experts),
            "gate_up": normal(g.experts, 2 * g.intermediate, g.hidden, std=g.hidden ** -0.5),
            "gate_up_bias": torch.zeros(g.experts, 2 * g.intermediate),
            "down": normal(g.experts, g.hidden, g.intermediate, std=0.3 * g.intermediate ** -0.5),
            "down_bias": torch.zeros(g.experts, g.hidden)}.items()}
        if g.is_window(layer):
            look_back(g, params[f"{layer}.q_bias"], params[f"{layer}.k_bias"])
    follow_on(g, params, generator)
    return params


def look_back(g, q_bias, k_bias, strengths=(3.5, 2.5, 1.5)):
    """Lets the query heads of the first K/V head begin by looking 1, 2, 3 ... tokens back: with these biases alone, a head's
    score is a sum of s_i^2 cos(omega_i (distance - wanted)). Heads that copy are built upon such heads; from zero they take
    long, because few of the rotary pairs turn fast enough to tell neighbours apart."""
    half, pairs = g.head_dim // 2, len(strengths)
    omega, strength = frequencies(g)[0][:pairs], torch.tensor(strengths)
    k_bias[:pairs] = strength
    for head in range(g.heads // g.kv_heads):
        at, angles = head * g.head_dim, omega * (head + 1)
        q_bias[at:at + pairs] = strength * angles.cos()
        q_bias[at + half:at + half + pairs] = -strength * angles.sin()


def follow_on(g, params, generator, strength=1.4, slow=8):
    """Joins layer 0's first head, which looks one token back, to layer 1's first, so that this begins as what finds the token
    that followed an earlier occurrence of the present one and copies it. The match is made in a random projection, in the
    rotary pairs that hardly turn, so that distance does not matter. Everything is trained on from there."""
    d, half = g.head_dim, g.head_dim // 2
    project = params["0.v"][:d]
    spread = torch.linalg.qr(torch.randn(g.hidden, d, generator=generator))[0]
    params["0.o"][:, :d] = spread  # The residual gains spread @ project @ (what the previous token was).
    rows = torch.cat((torch.arange(slow, half), torch.arange(half + slow, d)))
    params["1.q"][rows] = strength * project[rows]
    params["1.k"][rows] = strength * spread.T[rows]
    params["1.o"][:, :d] = 2 * params["1.v"][:d].T


# ---- MXFP4 ---------------------------------------------------------------------------------------------------------

MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
EDGES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def to_mxfp4(weight):
    """[..., inputs] -> (codes 0..15 [..., inputs], exponents [..., inputs / 32]): the scale is the smallest power of two under
    which the block's largest value is at most 6."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0 ** -100)
    exponents = torch.ceil(torch.log2(largest / 6)).clamp(-120, 120)
    scaled = blocks / torch.exp2(exponents)
    codes = torch.bucketize(scaled.abs(), EDGES) + 8 * (scaled < 0)
    return codes.flatten(-2), exponents.squeeze(-1)


def from_mxfp4(codes, exponents):
    values = MAGNITUDES[codes % 8] * (1 - 2 * (codes // 8)).float()
    return (values.unflatten(-1, (-1, BLOCK)) * torch.exp2(exponents).unsqueeze(-1)).flatten(-2)


def is_expert(name):
    return name.endswith((".gate_up", ".down"))


@torch.no_grad()
def rounded(params):
    """What the forward pass computes with: leaves whose gradients go straight to the masters."""
    return {name: (from_mxfp4(*to_mxfp4(value)) if is_expert(name) else value.bfloat16().float()).requires_grad_()
            for name, value in params.items()}


# ---- Attention -----------------------------------------------------------------------------------------------------

class SinkAttention(torch.autograd.Function):
    """softmax(q k / sqrt(d) + mask, sink) v over PyTorch's flash kernel. The kernel knows no sinks, but its backward pass only
    needs the output and the log-sum-exp, and is exact when those are the ones that include the sink."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, mask):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=q.shape[-1] ** -0.5)
        total = torch.logaddexp(lse, sinks[None, :, None])
        out = out * torch.exp(lse - total).unsqueeze(-1)
        ctx.save_for_backward(q, k, v, sinks, out, total)
        ctx.mask = mask
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, sinks, out, total = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, total, 0.0, False, attn_mask=ctx.mask, scale=q.shape[-1] ** -0.5)
        dsinks = -(torch.exp(sinks[None, :, None] - total) * (grad * out).sum(-1)).sum((0, 2))
        return dq, dk, dv, dsinks, None


def frequencies(g, mistakes=Mistakes()):
    """-> (angle per position of each pair, concentration): YaRN as the release has it, not truncated."""
    half = g.head_dim // 2
    plain = g.theta ** (-torch.arange(half, dtype=torch.float64) / half)
    if mistakes.no_yarn:
        return plain.float(), 1.0

    def turn(beta):
        return half * math.log(g.original_positions / (beta * 2 * math.pi)) / math.log(g.theta)

    ramp = ((torch.arange(half, dtype=torch.float64) - turn(32)) / (turn(1) - turn(32))).clamp(0, 1)
    return (plain / g.factor * ramp + plain * (1 - ramp)).float(), 0.1 * math.log(g.factor) + 1


def rope_tables(g, positions, mistakes):
    omega, concentration = frequencies(g, mistakes)
    angles = positions.float()[:, None] * omega
    return angles.cos()[:, None] * concentration, angles.sin()[:, None] * concentration


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def normed(x, gain):
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gain).bfloat16()


def activated(gate_up, share):
    """[rows, 2 x experts x intermediate] (gates, then ups) -> clamped SwiGLU, each expert's part times its share."""
    gate, up = gate_up.float().chunk(2, -1)
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    h = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
    return (h.unflatten(-1, (share.shape[-1], -1)) * share.unsqueeze(-1)).flatten(-2).bfloat16()


def use_compiler():
    """Fuses the elementwise parts; they cost more than the matrix products otherwise."""
    global rotate, normed, activated
    rotate, normed, activated = (torch.compile(f, dynamic=True) for f in (rotate, normed, activated))


@dataclasses.dataclass
class Batch:
    prefix: torch.Tensor  # [P]
    rows: torch.Tensor  # [B, L], padded on the right
    targets: torch.Tensor  # [B, L]: what follows each token, -1 where nothing is asked

    def num_tokens(self):
        return self.prefix.numel() + self.rows.numel()


class Masks:
    def __init__(self, g, num_prefix, length, mistakes):
        k = torch.arange(num_prefix + length)[None]
        q = torch.arange(num_prefix, num_prefix + length)[:, None]
        first = 0 if mistakes.no_window else max(0, num_prefix - g.window)
        self.first_key = {False: 0, True: first}
        self.rows, self.prefix = {}, {}
        for is_window in (False, True):
            narrow = is_window and not mistakes.no_window
            visible = (k <= q) & ((q - k < g.window) if narrow else True)
            self.rows[is_window] = self._bias(visible[:, self.first_key[is_window]:])
            p = torch.arange(num_prefix)
            visible = (p[None] <= p[:, None]) & ((p[:, None] - p[None] < g.window) if narrow else True)
            self.prefix[is_window] = self._bias(visible)

    @staticmethod
    def _bias(visible):
        return torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))[None, None]


def attend(g, qkv, sinks, batch, masks, is_window, cos, sin):
    """qkv: [P + B L, (heads + 2 kv_heads) head_dim] -> [P + B L, heads x head_dim]."""
    num_prefix, (num_rows, length) = batch.prefix.numel(), batch.rows.shape
    qkv = qkv.unflatten(-1, (-1, g.head_dim))
    turned = rotate(qkv[:, :g.heads + g.kv_heads], cos, sin)
    q, k = turned[:, :g.heads], turned[:, g.heads:]
    v = qkv[:, g.heads + g.kv_heads:].float()
    k, v = (x.repeat_interleave(g.heads // g.kv_heads, 1) for x in (k, v))
    ahead = [x[:num_prefix].transpose(0, 1)[None] for x in (q, k, v)]
    rows = [x[num_prefix:].unflatten(0, (num_rows, length)).transpose(1, 2) for x in (q, k, v)]
    outs = []
    if num_prefix:
        out = SinkAttention.apply(*ahead, sinks, masks.prefix[is_window])
        outs.append(out[0].transpose(0, 1).flatten(1))
        first = masks.first_key[is_window]
        rows[1:] = [torch.cat((a[:, :, first:].expand(num_rows, -1, -1, -1), b), 2) for a, b in zip(ahead[1:], rows[1:])]
    out = SinkAttention.apply(*rows, sinks, masks.rows[is_window])
    outs.append(out.transpose(1, 2).reshape(num_rows * length, -1))
    return torch.cat(outs)


def route(g, t, w, layer):
    """-> (shares [rows, experts], zero where not chosen; the load-balancing loss)."""
    logits = F.linear(t.float(), w[f"{layer}.router"], w[f"{layer}.router_bias"])
    top, chosen = logits.topk(g.experts_per_token, -1)
    share = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))
    used = (share.detach() > 0).float().mean(0)
    return share, g.experts / g.experts_per_token * (used * logits.softmax(-1).mean(0)).sum()


def expert_layer(g, t, share, w, layer, mistakes):
    gate_up, bias = w[f"{layer}.gate_up"], w[f"{layer}.gate_up_bias"]
    gate, up = (0, 1) if not mistakes.swapped else (1, 0)
    weight = torch.cat((gate_up[:, gate::2].flatten(0, 1), gate_up[:, up::2].flatten(0, 1)))
    h = activated(F.linear(t, weight.bfloat16(), torch.cat((bias[:, gate::2].flatten(), bias[:, up::2].flatten())).bfloat16()),
                  share)
    down = w[f"{layer}.down"].transpose(0, 1).flatten(1)  # [hidden, experts x intermediate]
    return F.linear(h, down.bfloat16()).float() + share @ w[f"{layer}.down_bias"]


def forward(g, w, batch, mistakes=Mistakes()):
    """-> (logits at the asked positions, their targets, the load-balancing loss)."""
    num_prefix, (num_rows, length) = batch.prefix.numel(), batch.rows.shape
    positions = torch.cat((torch.arange(num_prefix), (num_prefix + torch.arange(length)).repeat(num_rows)))
    cos, sin = rope_tables(g, positions, mistakes)
    masks = Masks(g, num_prefix, length, mistakes)
    x = w["embed"][torch.cat((batch.prefix, batch.rows.flatten()))]
    balance = 0.0
    for layer in range(g.layers):
        t = normed(x, w[f"{layer}.norm1"])
        qkv = F.linear(t, torch.cat([w[f"{layer}.{n}"] for n in "qkv"]).bfloat16(),
                       torch.cat([w[f"{layer}.{n}_bias"] for n in "qkv"]).bfloat16())
        sinks = w[f"{layer}.sinks"] - (1e4 if mistakes.no_sinks else 0)
        out = attend(g, qkv, sinks, batch, masks, g.is_window(layer), cos, sin)
        x = x + F.linear(out.bfloat16(), w[f"{layer}.o"].bfloat16(), w[f"{layer}.o_bias"].bfloat16()).float()
        t = normed(x, w[f"{layer}.norm2"])
        share, loss = route(g, t, w, layer)
        balance = balance + loss / g.layers
        x = x + expert_layer(g, t, share, w, layer, mistakes)
    asked = torch.nonzero(batch.targets.flatten() >= 0).squeeze(-1)
    t = normed(x[num_prefix + asked], w["norm"])
    return F.linear(t, w["embed"].bfloat16()).float() * HEAD_SCALE, batch.targets.flatten()[asked], balance


def make_batch(codec, items, has_history=False):
    """Pads the rows; what all prompts begin with becomes the prefix. has_history: earlier answers are asked for as well."""
    parts = [item.conversation.render() for item in items]
    prompts = [codec.encode(rendered) for rendered in parts]
    replies = [codec.encode(item.reply()) for item in items]
    common, most = 0, min(map(len, prompts)) - 1
    while common < most and all(p[common] == prompts[0][common] for p in prompts):
        common += 1
    length = max(len(p) + len(r) for p, r in zip(prompts, replies)) - common - 1
    rows = torch.full((len(items), length), 0)
    targets = torch.full((len(items), length), -1)
    for number, (p, r) in enumerate(zip(prompts, replies)):
        ids = (p + r)[common:]
        rows[number, :len(ids) - 1] = torch.tensor(ids[:-1])
        start = len(p) - common - 1
        targets[number, start:start + len(r)] = torch.tensor(r)
        if has_history:
            for at, run in codec.learned(parts[number]):
                targets[number, at - common - 1:at - common - 1 + len(run)] = torch.tensor(run)
    return Batch(torch.tensor(prompts[0][:common], dtype=torch.long), rows, targets)
