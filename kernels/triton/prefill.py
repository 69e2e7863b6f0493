"""A block of prompt tokens through all layers, or through one: products by cuBLAS on widened
weights, experts by sorted tokens, attention exact. Activations are bfloat16, the residual stream
float32."""

from dataclasses import dataclass
from typing import Protocol

import torch

from . import experts
from .attention import attend_prompt
from .heads import prepare
from .model import Buffers, Layer, Model, wide_type
from .places import Rows
from .products import embed, matmul


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens int32 [T] at positions position…, with their cosines and sines float32 [n_ropes, 2, T,
    half], and int32 params, whose second is the position."""

    tokens: torch.Tensor
    angles: torch.Tensor
    params: torch.Tensor
    position: int

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + len(self.tokens)


class PromptBank(Protocol):
    """What a prompt asks of its sequence's keys and values: Bank, or Pages (runtime/cuda_pages)."""

    sketches: list[tuple[torch.Tensor, torch.Tensor] | None]

    def stage(self, layer: int, position: int) -> Rows:
        """A layer on the card, with what lies before the position."""

    def unstage(self, layer: int, staged: Rows, position: int, end: int) -> None:
        """Take over what was added to what `stage` gave."""


def prefill(
    model: Model, bank: PromptBank, b: Buffers, block: Block, n_logits: int
) -> torch.Tensor:
    """Append a block of tokens; logits float32 [n_logits, V] of the last."""
    x = embedded(model, block.tokens)
    for i in range(len(model.layers)):
        pass_layer(model, i, bank, b, block, x)
    return logits_of(model, b, x[len(x) - n_logits :])


def embedded(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """float32 [T, hidden] of tokens int32 [T]."""
    x = torch.empty((len(tokens), model.hidden), dtype=torch.float32, device=tokens.device)
    embed(model.embed, tokens, model.embed_scale, x)
    return x


def pass_layer(
    model: Model, i: int, bank: PromptBank, b: Buffers, block: Block, x: torch.Tensor
) -> None:
    """Take the residual stream x float32 [T, hidden] of a block through a layer, in place."""
    layer = model.layers[i]
    y = _attention(model, layer, i, bank, b, block, _normed(x, layer.attn_norm, model.eps))
    x += y if layer.post_attn_norm is None else _rms(y, layer.post_attn_norm, model.eps)
    y = _mlp(layer, b, _normed(x, layer.mlp_norm, model.eps))
    x += y if layer.post_mlp_norm is None else _rms(y, layer.post_mlp_norm, model.eps)


def logits_of(model: Model, b: Buffers, x: torch.Tensor) -> torch.Tensor:
    """Logits float32 [T, V] of a residual stream that is through all layers."""
    if len(x) == 0:
        return x
    return matmul(model.head, _normed(x, model.final_norm, model.eps), b.scratch)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _rms(x, weight, eps).to(wide_type(x.device.type))


def _attention(
    model: Model,
    x: Layer,
    i: int,
    bank: PromptBank,
    b: Buffers,
    block: Block,
    y: torch.Tensor,
) -> torch.Tensor:
    n, device, angles = len(y), y.device, block.angles
    parts = [matmul(m, y, b.scratch) for m in x.qkv]
    qkv = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    if x.qkv_bias is not None:
        qkv += x.qkv_bias
    q = torch.empty((n, x.n_heads, x.head_dim), dtype=torch.float16, device=device)
    staged = bank.stage(i, block.position)
    cos, sin = angles[x.rope_index, 0], angles[x.rope_index, 1]
    prepare(
        qkv, x.qk_norms, cos, sin, block.params, b.turns[x.head_dim], q, None, staged,
        bank.sketches[i], x.true_dim, x.scale, model.eps, n,
    )  # fmt: skip
    bank.unstage(i, staged, block.position, block.end)
    mixed = torch.empty((n, x.n_heads, x.true_dim), dtype=y.dtype, device=device)
    attend_prompt(q, staged.keys, staged.values, mixed, block.position, x.window)
    out = matmul(x.o, mixed.view(n, -1), b.scratch)
    return out if x.o_bias is None else out + x.o_bias


def _mlp(x: Layer, b: Buffers, y: torch.Tensor) -> torch.Tensor:
    n, mlp = len(y), x.mlp
    chosen = torch.zeros((n, mlp.n_used), dtype=torch.int32, device=y.device)
    weights = torch.ones((n, mlp.n_used), dtype=torch.float32, device=y.device)
    if x.router is not None:
        experts.choose(matmul(x.router, y, b.scratch), mlp, chosen, weights, n)
    return experts.run_tokens(mlp, chosen, weights, y, b.scratch)
