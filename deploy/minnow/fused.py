"""fused.cpp behind PyTorch's autograd. use(model) replaces the three slow functions of model.py; nothing else changes."""
import ctypes
import pathlib
import subprocess
import tempfile

import torch

SOURCE = pathlib.Path(__file__).with_name("fused.cpp")


def build():
    library = pathlib.Path(tempfile.mkdtemp()) / "fused.so"
    subprocess.run(["g++", "-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-shared",
                    "-fPIC", "-o", library, SOURCE], check=True)
    return ctypes.CDLL(library)


def pointer(tensor):
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def use(model):
    lib = build()
    size = ctypes.c_int64

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, qkv, sinks, cos, sin, shape):
            tokens, heads = qkv.shape[0], shape[3]
            qkv = qkv.contiguous()
            out = torch.empty(tokens, heads * 32, dtype=torch.bfloat16)
            lse = torch.empty(tokens, heads)
            ctx.shape = torch.tensor(shape)
            lib.AttentionForward(pointer(ctx.shape), *map(pointer, (qkv, cos, sin, sinks, out, lse)))
            ctx.save_for_backward(qkv, sinks, cos, sin, out, lse)
            return out

        @staticmethod
        def backward(ctx, grad):
            saved = ctx.saved_tensors
            dqkv, dsinks = torch.empty_like(saved[0]), torch.zeros_like(saved[1])
            lib.AttentionBackward(pointer(ctx.shape), *map(pointer, (*saved[:1], *saved[2:4], saved[1], *saved[4:],
                                                                     grad.contiguous(), dqkv, dsinks)))
            return dqkv, dsinks, None, None, None

    class Activation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate_up, share):
            gate_up, share = gate_up.contiguous(), share.contiguous()
            rows, experts = share.shape
            width = gate_up.shape[1] // 2 // experts
            h = torch.empty(rows, experts * width, dtype=torch.bfloat16)
            lib.ActivationForward(size(rows), size(experts), size(width), *map(pointer, (gate_up, share, h)))
            ctx.save_for_backward(gate_up, share)
            return h

        @staticmethod
        def backward(ctx, grad):
            gate_up, share = ctx.saved_tensors
            rows, experts = share.shape
            dgate_up, dshare = torch.empty_like(gate_up), torch.empty_like(share)
            lib.ActivationBackward(size(rows), size(experts), size(gate_up.shape[1] // 2 // experts),
                                   *map(pointer, (gate_up, share, grad.contiguous(), dgate_up, dshare)))
            return dgate_up, dshare

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, gain):
            x = x.contiguous()
            out = torch.empty(x.shape, dtype=torch.bfloat16)
            lib.NormForward(size(x.shape[0]), size(x.shape[1]), *map(pointer, (x, gain, out)))
            ctx.save_for_backward(x, gain)
            return out

        @staticmethod
        def backward(ctx, grad):
            x, gain = ctx.saved_tensors
            dx, dgain = torch.empty_like(x), torch.zeros_like(gain)
            lib.NormBackward(size(x.shape[0]), size(x.shape[1]), *map(pointer, (x, gain, grad.contiguous(), dx, dgain)))
            return dx, dgain

    def attend(g, qkv, sinks, batch, masks, is_window, cos, sin):
        num_prefix, (num_rows, length) = batch.prefix.numel(), batch.rows.shape
        window = g.window if is_window and not masks.is_wide else 0
        # The tables of the prefix and the first row are those of all positions.
        cos, sin = (table[:num_prefix + length].flatten(1) for table in (cos, sin))
        shape = [num_prefix, num_rows, length, g.heads, g.kv_heads, window]
        return Attention.apply(qkv, sinks, cos.contiguous(), sin.contiguous(), shape)

    model.attend, model.activated, model.normed = attend, Activation.apply, Norm.apply
    model.Masks = lambda g, num_prefix, length, mistakes: type("Wide", (), {"is_wide": mistakes.no_window})
