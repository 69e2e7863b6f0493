"""A block of T tokens through a range of layers in one compiled call, shared by all threads.

T = 1 is a decode step. Threads split rows of products and rows of tokens and meet at a barrier
where one reads what another wrote. Every token's arithmetic is the same for any T and any number
of threads; only a routed single token reads less (c.rule).
"""

from typing import Any

from numba import carray, cfunc, njit, types

from . import elementwise as ew
from .layer_attention import (
    attend_block,
    attend_token,
    rotate_and_append,
    row_bytes,
)
from .layer_experts import expert_mlp
from .layer_mlp import dense_mlp, matmul
from .params import CALL, LAYER
from .simd import load_scalar_i64
from .sync import as_pointer, atomic_store, barrier, share
from .tiles import product

JIT = {"nogil": True, "error_model": "numpy"}

KERNEL = types.void(types.int64, types.int64, types.int64)


@njit(**JIT)
def _add_bias(bias: Any, m: Any, n_tokens: Any, out: Any, thread: Any, n: Any) -> None:
    """Add a bias to the rows that this thread computed."""
    if bias != 0:
        g0, g1 = share((m.rows + 15) >> 4, thread, n)
        count = min(16 * g1, m.rows) - 16 * g0
        for t in range(n_tokens):
            ew.add_into(out + row_bytes(m) * t + 64 * g0, bias + 64 * g0, count)


@njit(**JIT)
def _norm_rows(c: Any, weight: Any, t0: Any, t1: Any) -> None:
    """c.normed = norm of the residual rows, with their quantisation."""
    k, x = c.hidden, c.normed
    for t in range(t0, t1):
        ew.rms_norm(c.residual + 4 * k * t, weight, k, c.eps, x.values + 4 * k * t)
        _quantize_row(x, k, t)


@njit(**JIT)
def _quantize_row(x: Any, k: Any, t: Any) -> None:
    b = (k >> 5) * t
    ew.quantize(x.values + 4 * k * t, k, x.codes + k * t, x.scales + 4 * b, x.sums + 8 * b)


@njit(**JIT)
def _add_branch(c: Any, norm: Any, t0: Any, t1: Any) -> None:
    """residual += proj, normed first where the layer has a post norm."""
    for t in range(t0, t1):
        at = 4 * c.hidden * t
        if norm != 0:
            ew.rms_norm(c.proj + at, norm, c.hidden, c.eps, c.proj + at)
        ew.add_into(c.residual + at, c.proj + at, c.hidden)


@cfunc(KERNEL, cache=True)
def forward(thread: Any, n: Any, params: Any) -> None:
    """Run c.n_tokens tokens through layers first_layer..last_layer (kernels/cpu/params.py CALL).

    Appends their keys and values to the cells of every layer, leaves the residual stream in
    c.residual and, where n_logits > 0, writes c.logits [n_logits, V rounded up to 16].
    """
    c = carray(as_pointer(params), 1, CALL)[0]
    layers = carray(as_pointer(c.layers), c.last_layer, LAYER)
    private = c.private + thread * c.private_bytes
    phase, t = 1, c.n_tokens
    t0, t1 = share(t, thread, n)
    if c.embed_first != 0:
        e = c.embed
        for i in range(t0, t1):
            token = load_scalar_i64(c.tokens + 8 * i)
            ew.embedding_row(
                e.code,
                e.tiles,
                e.step,
                e.cols,
                token,
                c.embed_scale,
                c.residual + 4 * c.hidden * i,
            )
    for i in range(c.first_layer, c.last_layer):
        layer = layers[i]
        _norm_rows(c, layer.attn_norm, t0, t1)
        if thread == 0:
            atomic_store(c.next_item, 0)
        phase = barrier(c.barrier, n, phase)
        q, k, v = c.q, c.k, c.v
        if layer.true_dim != layer.head_dim:
            q, k, v = c.raw_q, c.raw_k, c.raw_v
        matmul(layer.q, c.normed, t, q, thread, n)
        matmul(layer.k, c.normed, t, k, thread, n)
        matmul(layer.v, c.normed, t, v, thread, n)
        _add_bias(layer.q_bias, layer.q, t, q, thread, n)
        _add_bias(layer.k_bias, layer.k, t, k, thread, n)
        _add_bias(layer.v_bias, layer.v, t, v, thread, n)
        phase = barrier(c.barrier, n, phase)
        rotate_and_append(c, layer, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        if t == 1:
            phase = attend_token(c, layer, thread, n, phase, private)
        else:
            phase = attend_block(c, layer, thread, n, phase, private)
        for j in range(t0, t1):
            _quantize_row(c.mixed, layer.o.cols, j)
        phase = barrier(c.barrier, n, phase)
        matmul(layer.o, c.mixed, t, c.proj, thread, n)
        _add_bias(layer.o_bias, layer.o, t, c.proj, thread, n)
        phase = barrier(c.barrier, n, phase)
        _add_branch(c, layer.post_attn_norm, t0, t1)
        _norm_rows(c, layer.mlp_norm, t0, t1)
        phase = barrier(c.barrier, n, phase)
        if layer.n_experts > 0:
            following = layers[min(i + 1, c.last_layer - 1)]
            phase = expert_mlp(c, layer, following, thread, n, phase, private)
        else:
            phase = dense_mlp(c, layer, thread, n, phase)
        _add_branch(c, layer.post_mlp_norm, t0, t1)
    if c.n_logits > 0:
        first = t - c.n_logits
        i0, i1 = share(c.n_logits, thread, n)
        # Residual rows were written by their owners under another split.
        phase = barrier(c.barrier, n, phase)
        _norm_rows(c, c.final_norm, first + i0, first + i1)
        phase = barrier(c.barrier, n, phase)
        h, x, k, b = c.head, c.normed, c.hidden, (c.hidden >> 5) * first
        n_groups = (h.rows + 15) >> 4
        g0, g1 = share(n_groups, thread, n)
        product(
            h.code,
            h.tiles,
            h.step,
            k,
            x.values + 4 * k * first,
            x.codes + k * first,
            x.scales + 4 * b,
            x.sums + 8 * b,
            c.n_logits,
            g0,
            g1,
            c.logits,
            64 * n_groups,
        )
