"""One token through all layers: a sequence of kernels that can be recorded as CUDA graphs and
replayed at any position.

It needs no word from the host where keys and values lie in memory: one graph. Where they lie on
disk it is cut before the attention of the layers in `cuts`: there the host brings what the route
asks for, and a graph goes on from there to the next cut.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from . import experts
from .attention import attend
from .heads import padded_width, prepare
from .model import Buffers, Layer, Model
from .places import Place
from .products import add_normed, embed, matvec
from .routing import route


class TokenBank(Protocol):
    """What a token asks of its sequence's keys and values: Bank, or Pages (runtime/cuda_pages)."""

    @property
    def cuts(self) -> tuple[int, ...]:
        """Layers before whose attention the host has work to do, ascending."""

    @property
    def sketches(self) -> Sequence[tuple[torch.Tensor, torch.Tensor] | None]:
        """Of every layer, None where it is not routed."""

    def written(self, layer: int) -> Place:
        """Where a token's keys and values go."""

    def read(self, layer: int, n_groups: int) -> Place:
        """Where a token reads them."""

    def find(
        self, layer: int, groups: torch.Tensor, counts: torch.Tensor, params: torch.Tensor
    ) -> None:
        """Note what the host has to bring of the groups chosen in one of the cuts."""


def decode(model: Model, bank: TokenBank, b: Buffers, n_groups: int, part: int = 0) -> None:
    """Run the token that b.params names, or its part between two cuts; its logits go to b.logits,
    its keys and values to bank.

    n_groups: above 0 layers without a window read the groups that b.params' limits allow, of no
    more than so many. part: 0 is before the first cut.
    """
    cuts, last = bank.cuts, part == len(bank.cuts)
    first, end = 0, len(model.layers) if last else cuts[part]
    if part == 0:
        embed(model.embed, b.params[:1], model.embed_scale, b.residual)
    else:
        first = cuts[part - 1] + 1
        _attend(model, cuts[part - 1], bank, b, n_groups)
    for i in range(first, end):
        _route(model, i, bank, b, n_groups)
        _attend(model, i, bank, b, n_groups)
    if last:
        matvec(model.head, b.residual, b.logits, norm=model.final_norm, eps=model.eps)
        return
    _route(model, end, bank, b, n_groups)
    if n_groups:
        x = model.layers[end]
        groups = b.routes[x.n_heads, x.n_kv_heads].groups
        bank.find(end, groups, b.counts[end], b.params)


def _route(model: Model, i: int, bank: TokenBank, b: Buffers, n_groups: int) -> None:
    """Heads of a layer; its key and value go to the bank, and groups to read are chosen."""
    at, x = 0, model.layers[i]
    for m in x.qkv:
        bias = x.qkv_bias[at : at + m.rows] if x.qkv_bias is not None else None
        out = b.qkv[at : at + m.rows]
        matvec(m, b.residual, out, norm=x.attn_norm, eps=model.eps, bias=bias)
        at += m.rows
    cos, sin = b.angles[x.rope_index, 0], b.angles[x.rope_index, 1]
    turned = b.turned[: x.n_heads * padded_width(x.head_dim)]
    sketches, routed = bank.sketches[i], n_groups > 0 and x.window == 0
    prepare(
        b.qkv, x.qk_norms, cos, sin, b.params, b.turns[x.head_dim], _queries(x, b),
        turned if routed else None, bank.written(i), sketches,
        x.true_dim, x.scale, model.eps, 1,
    )  # fmt: skip
    if routed and sketches is not None:
        buffers = b.routes[x.n_heads, x.n_kv_heads]
        route(turned, sketches, b.params, buffers, b.counts[i], x.n_heads, n_groups)


def _queries(x: Layer, b: Buffers) -> torch.Tensor:
    return b.q[: x.n_heads * x.head_dim].view(1, x.n_heads, x.head_dim)


def _attend(model: Model, i: int, bank: TokenBank, b: Buffers, n_groups: int) -> None:
    """The rest of a layer."""
    x = model.layers[i]
    groups, counts = None, None
    if n_groups and x.window == 0:
        groups, counts = b.routes[x.n_heads, x.n_kv_heads].groups, b.counts[i]
    splits = b.splits[x.n_heads, x.n_kv_heads, x.head_dim]
    attend(
        _queries(x, b), bank.read(i, n_groups), b.params, splits, b.mixed, x.true_dim,
        x.window, groups, counts,
    )  # fmt: skip
    if x.post_attn_norm is None:
        matvec(x.o, b.mixed, b.residual, bias=x.o_bias, add=True)
    else:
        matvec(x.o, b.mixed, b.proj, bias=x.o_bias)
        add_normed(b.proj, x.post_attn_norm, b.residual, model.eps)
    _mlp(model, x, b)


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


def record(
    model: Model, bank: TokenBank, b: Buffers, n_groups: int, part: int = 0
) -> torch.cuda.CUDAGraph:
    """The decode step, or a part of it, as a graph. It has to have run once, so that every kernel
    is compiled."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(model, bank, b, n_groups, part)
    return graph
