"""A block of prompt tokens through all layers: products by cuBLAS on widened weights, experts by
sorted tokens, attention exact. Activations are bfloat16, the residual stream float32."""

import torch

from . import experts
from .attention import attend_prompt
from .bank import Bank
from .heads import prepare
from .model import Buffers, Layer, Model, wide_type
from .products import embed, matmul


def prefill(
    model: Model,
    bank: Bank,
    b: Buffers,
    tokens: torch.Tensor,
    angles: torch.Tensor,
    position: int,
    n_logits: int,
) -> torch.Tensor:
    """Append tokens int32 [T] at positions position…; logits float32 [n_logits, V] of the last.

    angles: cosines and sines float32 [n_ropes, 2, T, half]. b.params' position is `position`.
    """
    n = len(tokens)
    x = torch.empty((n, model.hidden), dtype=torch.float32, device=tokens.device)
    embed(model.embed, tokens, model.embed_scale, x)
    for i, layer in enumerate(model.layers):
        y = _attention(model, layer, i, bank, b, _normed(x, layer.attn_norm, model.eps), angles)
        x += y if layer.post_attn_norm is None else _rms(y, layer.post_attn_norm, model.eps)
        y = _mlp(layer, b, _normed(x, layer.mlp_norm, model.eps))
        x += y if layer.post_mlp_norm is None else _rms(y, layer.post_mlp_norm, model.eps)
    if n_logits == 0:
        return x[:0]
    return matmul(model.head, _normed(x[n - n_logits :], model.final_norm, model.eps), b.scratch)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _rms(x, weight, eps).to(wide_type(x.device.type))


def _attention(
    model: Model,
    x: Layer,
    i: int,
    bank: Bank,
    b: Buffers,
    y: torch.Tensor,
    angles: torch.Tensor,
) -> torch.Tensor:
    n, device = len(y), y.device
    position = int(b.host_params[1])
    parts = [matmul(m, y, b.scratch) for m in x.qkv]
    qkv = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if x.qkv_bias is not None:
        qkv += x.qkv_bias
    q = torch.empty((n, x.n_heads, x.head_dim), dtype=torch.float16, device=device)
    staged = bank.stage(i, position)
    cos, sin = angles[x.rope_index, 0], angles[x.rope_index, 1]
    prepare(
        qkv, x.qk_norms, cos, sin, b.params, b.turns[x.head_dim], q, None, *staged,
        bank.sketches[i], x.true_dim, x.scale, model.eps, n,
    )  # fmt: skip
    bank.unstage(i, staged, position, position + n)
    mixed = torch.empty((n, x.n_heads, x.true_dim), dtype=y.dtype, device=device)
    attend_prompt(q, *staged, mixed, position, x.window)
    out = matmul(x.o, mixed.view(n, -1), b.scratch)
    return out if x.o_bias is None else out + x.o_bias


def _mlp(x: Layer, b: Buffers, y: torch.Tensor) -> torch.Tensor:
    n, mlp = len(y), x.mlp
    chosen = torch.zeros((n, mlp.n_used), dtype=torch.int32, device=y.device)
    weights = torch.ones((n, mlp.n_used), dtype=torch.float32, device=y.device)
    if x.router is not None:
        experts.choose(matmul(x.router, y, b.scratch), mlp, chosen, weights, n)
    return experts.run_tokens(mlp, chosen, weights, y, b.scratch)
