#!/usr/bin/env python3
"""Writes a training state as a checkpoint in gpt-oss's release format: `export.py RUN_DIR OUT_DIR`.

Experts leave as the very MXFP4 codes that training computed with; everything else is the bf16 that it was rounded to.
"""
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

import harmony
import model
import tokenizer


def dense_names(g):
    """Name in the checkpoint -> name in model.py, of everything but the experts' matrices and the unembedding."""
    names = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm"}
    for layer in range(g.layers):
        at, to = f"{layer}.", f"model.layers.{layer}."
        names |= {f"{to}{theirs}": f"{at}{ours}" for ours, theirs in (
            ("norm1", "input_layernorm.weight"), ("norm2", "post_attention_layernorm.weight"), ("sinks", "self_attn.sinks"),
            ("router", "mlp.router.weight"), ("router_bias", "mlp.router.bias"),
            ("gate_up_bias", "mlp.experts.gate_up_proj_bias"), ("down_bias", "mlp.experts.down_proj_bias"))}
        for name in "qkvo":
            names[f"{to}self_attn.{name}_proj.weight"] = f"{at}{name}"
            names[f"{to}self_attn.{name}_proj.bias"] = f"{at}{name}_bias"
    return names


def tensors(g, params):
    out = {theirs: params[ours].bfloat16().contiguous() for theirs, ours in dense_names(g).items()}
    out["lm_head.weight"] = params["embed"].bfloat16() * model.HEAD_SCALE
    for layer in range(g.layers):
        for name in ("gate_up", "down"):
            codes, exponents = model.to_mxfp4(params[f"{layer}.{name}"])
            codes = codes.to(torch.uint8).unflatten(-1, (-1, model.BLOCK // 2, 2))
            to = f"model.layers.{layer}.mlp.experts.{name}_proj"
            out[f"{to}_blocks"] = (codes[..., 0] | (codes[..., 1] << 4)).contiguous()
            out[f"{to}_scales"] = (exponents + 127).to(torch.uint8).contiguous()
    return out


def load(folder):
    """-> (Geometry, weights as model.rounded() gives them) of a checkpoint that this program wrote."""
    about = json.loads((folder / "config.json").read_text())
    g = model.Geometry(layers=about["num_hidden_layers"], hidden=about["hidden_size"], intermediate=about["intermediate_size"],
                       experts=about["num_local_experts"], heads=about["num_attention_heads"],
                       kv_heads=about["num_key_value_heads"], head_dim=about["head_dim"], vocab=about["vocab_size"],
                       window=about["sliding_window"])
    stored = load_file(folder / "model.safetensors")
    weights = {ours: stored[theirs].float() for theirs, ours in dense_names(g).items()}
    for layer in range(g.layers):
        for name in ("gate_up", "down"):
            at = f"model.layers.{layer}.mlp.experts.{name}_proj"
            pairs, scales = stored[f"{at}_blocks"].long(), stored[f"{at}_scales"]
            codes = torch.stack((pairs % 16, pairs // 16), -1).flatten(-3)
            weights[f"{layer}.{name}"] = model.from_mxfp4(codes, scales.float() - 127)
    return g, weights


def config(g, ids):
    return {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": ids["<|return|>"], "experts_per_token": g.experts_per_token, "head_dim": g.head_dim,
        "hidden_act": "silu", "hidden_size": g.hidden, "initial_context_length": g.original_positions,
        "initializer_range": 0.02, "intermediate_size": g.intermediate,
        "layer_types": ["sliding_attention" if g.is_window(layer) else "full_attention" for layer in range(g.layers)],
        "max_position_embeddings": int(g.original_positions * g.factor), "model_type": "gpt_oss",
        "num_attention_heads": g.heads, "num_experts_per_tok": g.experts_per_token, "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads, "num_local_experts": g.experts, "output_router_logits": False,
        "pad_token_id": ids["<|endoftext|>"],
        "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                           "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
        "rms_norm_eps": model.EPS,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": g.factor,
                         "original_max_position_embeddings": g.original_positions, "rope_type": "yarn", "truncate": False},
        "rope_theta": int(g.theta), "router_aux_loss_coef": 0.9, "sliding_window": g.window, "swiglu_limit": model.LIMIT,
        "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": g.vocab}


def main():
    run, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    state = torch.load(run / "state.pt", weights_only=False)
    ids = tokenizer.Codec(run / "tokenizer.json").markers
    g = model.Geometry(vocab=state["params"]["embed"].shape[0])
    save_file(tensors(g, state["params"]), out / "model.safetensors")
    for name, value in (("config", config(g, ids)), ("generation_config", {
            "bos_token_id": ids["<|startoftext|>"], "do_sample": True,
            "eos_token_id": [ids[harmony.RETURN], ids["<|endoftext|>"], ids[harmony.CALL]],
            "pad_token_id": ids["<|endoftext|>"], "transformers_version": "4.55.0.dev0"})):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    shutil.copyfile(run / "tokenizer.json", out / "tokenizer.json")
    print(f"step {state['step']}, {state['tokens']:.0f} tokens, {sum(p.numel() for p in state['params'].values())} parameters:")
    for path in sorted(out.iterdir()):
        print(f"  {path.name} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
