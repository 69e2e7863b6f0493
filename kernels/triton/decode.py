"""One token through all layers: a sequence of kernels without a word from the host, so that it can
be recorded as a CUDA graph and replayed at any position."""

import torch

from . import experts
from .attention import attend
from .bank import Bank
from .heads import padded_width, prepare
from .model import Buffers, Layer, Model
from .products import add_normed, embed, matvec
from .routing import route


def decode(model: Model, bank: Bank, b: Buffers, n_groups: int) -> None:
    """Run the token that b.params names; its logits go to b.logits, its keys and values to bank.

    n_groups: above 0 layers without a window read the groups that b.params' limits allow, of no
    more than so many.
    """
    embed(model.embed, b.params[:1], model.embed_scale, b.residual)
    for i, layer in enumerate(model.layers):
        _attention(model, layer, i, bank, b, 0 if layer.window else n_groups)
        _mlp(model, layer, b)
    matvec(model.head, b.residual, b.logits, norm=model.final_norm, eps=model.eps)


def _attention(model: Model, x: Layer, i: int, bank: Bank, b: Buffers, n_groups: int) -> None:
    at = 0
    for m in x.qkv:
        bias = x.qkv_bias[at : at + m.rows] if x.qkv_bias is not None else None
        out = b.qkv[at : at + m.rows]
        matvec(m, b.residual, out, norm=x.attn_norm, eps=model.eps, bias=bias)
        at += m.rows
    cos, sin = b.angles[x.rope_index, 0], b.angles[x.rope_index, 1]
    q = b.q[: x.n_heads * x.head_dim].view(1, x.n_heads, x.head_dim)
    turned = b.turned[: x.n_heads * padded_width(x.head_dim)]
    sketches = bank.sketches[i]
    prepare(
        b.qkv, x.qk_norms, cos, sin, b.params, b.turns[x.head_dim], q,
        turned if n_groups else None, bank.keys[i], bank.values[i], sketches,
        x.true_dim, x.scale, model.eps, 1,
    )  # fmt: skip
    groups, counts = None, None
    if n_groups and sketches is not None:
        buffers = b.routes[x.n_heads, x.n_kv_heads]
        groups, counts = buffers.groups, b.counts[i]
        route(turned, sketches, b.params, buffers, counts, x.n_heads, n_groups)
    splits = b.splits[x.n_heads, x.n_kv_heads, x.head_dim]
    attend(
        q, bank.keys[i], bank.values[i], b.params, splits, b.mixed, x.true_dim,
        x.window, groups, counts,
    )  # fmt: skip
    if x.post_attn_norm is None:
        matvec(x.o, b.mixed, b.residual, bias=x.o_bias, add=True)
        return
    matvec(x.o, b.mixed, b.proj, bias=x.o_bias)
    add_normed(b.proj, x.post_attn_norm, b.residual, model.eps)


def _mlp(model: Model, x: Layer, b: Buffers) -> None:
    chosen, weights = b.first, b.one
    if x.router is not None:
        chosen, weights = b.chosen, b.weights
        matvec(x.router, b.residual, b.router_logits, norm=x.mlp_norm, eps=model.eps)
        experts.choose(b.router_logits, x.mlp, chosen, weights, 1)
    out = b.residual if x.post_mlp_norm is None else b.proj
    add = x.post_mlp_norm is None
    experts.run(x.mlp, chosen, weights, b.residual, x.mlp_norm, model.eps, b.act, out, add)
    if x.post_mlp_norm is not None:
        add_normed(b.proj, x.post_mlp_norm, b.residual, model.eps)


def record(model: Model, bank: Bank, b: Buffers, n_groups: int) -> torch.cuda.CUDAGraph:
    """The decode step as a graph. It has to have run once, so that every kernel is compiled."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(model, bank, b, n_groups)
    return graph
