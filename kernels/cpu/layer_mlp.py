"""The MLP half of a layer: a dense gated MLP, or the router and its experts.

Tokens are sorted by expert, so that each expert's weights are read once per call. Threads split
the rows of every product; a token's experts are added in ascending order whatever the call's size.
"""

from typing import Any

import numpy as np
from numba import njit

from . import elementwise as ew
from .simd import (
    load_i32,
    load_scalar_f32,
    load_scalar_i32,
    load_scalar_i64,
    store_i32,
    store_scalar_f32,
    store_scalar_i32,
)
from .sync import barrier, share
from .tiles import FP8, product

JIT = {"nogil": True, "error_model": "numpy"}

# Tokens of an expert that are gathered at a time.
GATHER_TOKENS = 64


@njit(**JIT)
def matmul(m: Any, x: Any, n_tokens: Any, out: Any, thread: Any, n: Any) -> None:
    """This thread's rows of a product: out float32 [T, rows rounded up to 16]."""
    n_groups = (m.rows + 15) >> 4
    g0, g1 = share(n_groups, thread, n)
    product(
        m.code,
        m.tiles,
        m.step,
        m.cols,
        x.values,
        x.codes,
        x.scales,
        x.sums,
        n_tokens,
        g0,
        g1,
        out,
        64 * n_groups,
    )


@njit(**JIT)
def _activate(
    c: Any,
    layer: Any,
    gate: Any,
    up: Any,
    xf: Any,
    xq: Any,
    xs: Any,
    xm: Any,
    first: Any,
    n_tokens: Any,
    thread: Any,
    n: Any,
) -> None:
    """act(gate x) * up x of n_tokens rows into rows first… of c.hidden_act, quantised."""
    width, a = layer.gate.rows, c.hidden_act
    # Units of 32 rows: a thread quantises whole blocks of what it computed.
    u0, u1 = share(width >> 5, thread, n)
    if u0 == u1:
        return
    g, u = layer.gate, layer.up
    out, other = a.values + 4 * width * first, c.up + 4 * width * first
    product(g.code, gate, g.step, g.cols, xf, xq, xs, xm, n_tokens, 2 * u0, 2 * u1, out, 4 * width)
    product(u.code, up, u.step, u.cols, xf, xq, xs, xm, n_tokens, 2 * u0, 2 * u1, other, 4 * width)
    for t in range(n_tokens):
        at, b = 4 * width * t + 128 * u0, (width >> 5) * (first + t) + u0
        ew.gated(out + at, other + at, layer.activation, 32 * (u1 - u0), out + at)
        ew.quantize(out + at, 32 * (u1 - u0), a.codes + 32 * b, a.scales + 4 * b, a.sums + 8 * b)


@njit(**JIT)
def _sort_by_expert(c: Any, layer: Any) -> None:
    """c.starts [E + 1] and c.order [T * used]: (token, slot) pairs in ascending expert order."""
    n_pairs, n_experts = c.n_tokens * layer.n_used, layer.n_experts
    for e in range(n_experts + 1):
        store_scalar_i32(c.starts + 4 * e, np.int32(0))
    for i in range(n_pairs):
        at = c.starts + 4 * (load_scalar_i32(c.chosen + 4 * i) + 1)
        store_scalar_i32(at, np.int32(load_scalar_i32(at) + 1))
    for e in range(n_experts):
        at = c.starts + 4 * (e + 1)
        store_scalar_i32(at, np.int32(load_scalar_i32(at) + load_scalar_i32(c.starts + 4 * e)))
    # Fill from the back: starts[e + 1] walks down to the first place of expert e.
    for i in range(n_pairs - 1, -1, -1):
        at = c.starts + 4 * (load_scalar_i32(c.chosen + 4 * i) + 1)
        place = load_scalar_i32(at) - 1
        store_scalar_i32(at, np.int32(place))
        store_scalar_i32(c.order + 4 * place, np.int32(i))
    for e in range(n_experts):
        store_scalar_i32(c.starts + 4 * e, load_scalar_i32(c.starts + 4 * (e + 1)))
    store_scalar_i32(c.starts + 4 * n_experts, np.int32(n_pairs))


@njit(**JIT)
def _copy(source: Any, target: Any, n_bytes: Any) -> None:
    """Copy a multiple of 4 bytes."""
    i = 0
    while i + 64 <= n_bytes:
        store_i32(target + i, load_i32(source + i))
        i += 64
    while i < n_bytes:
        store_scalar_i32(target + i, load_scalar_i32(source + i))
        i += 4


@njit(**JIT)
def _gather(c: Any, layer: Any, first: Any, count: Any, private: Any) -> None:
    """Copy the activation rows of `count` pairs into private scratch, codes or values."""
    k, x = layer.gate.cols, c.normed
    values, codes = private, private
    scales = codes + GATHER_TOKENS * k
    sums = scales + GATHER_TOKENS * (k >> 3)
    for i in range(count):
        t = np.int64(load_scalar_i32(c.order + 4 * (first + i)) // layer.n_used)
        if layer.gate.code <= FP8:
            _copy(x.values + 4 * k * t, values + 4 * k * i, 4 * k)
        else:
            _copy(x.codes + k * t, codes + k * i, k)
            _copy(x.scales + (k >> 3) * t, scales + (k >> 3) * i, k >> 3)
            _copy(x.sums + (k >> 2) * t, sums + (k >> 2) * i, k >> 2)


@njit(**JIT)
def _scatter(c: Any, layer: Any, first: Any, count: Any, temporary: Any, g0: Any, g1: Any) -> None:
    """proj[token] += weight * row, for the rows of this thread's groups."""
    hidden, n_used = layer.down.rows, layer.n_used
    for i in range(count):
        pair = np.int64(load_scalar_i32(c.order + 4 * (first + i)))
        weight = load_scalar_f32(c.weights + 4 * pair)
        source = temporary + 4 * hidden * i + 64 * g0
        target = c.proj + 4 * hidden * (pair // n_used) + 64 * g0
        ew.add_scaled(target, source, weight, min(16 * g1, hidden) - 16 * g0)


@njit(**JIT)
def dense_mlp(c: Any, layer: Any, thread: Any, n: Any, phase: Any) -> Any:
    """c.normed -> c.proj; returns the phase after its barriers."""
    x = c.normed
    _activate(
        c,
        layer,
        layer.gate.tiles,
        layer.up.tiles,
        x.values,
        x.codes,
        x.scales,
        x.sums,
        0,
        c.n_tokens,
        thread,
        n,
    )
    phase = barrier(c.barrier, n, phase)
    matmul(layer.down, c.hidden_act, c.n_tokens, c.proj, thread, n)
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def expert_mlp(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """c.normed -> c.proj through the chosen experts; returns the phase after its barriers."""
    n_experts, n_used = layer.n_experts, layer.n_used
    matmul(layer.router, c.normed, c.n_tokens, c.router_logits, thread, n)
    phase = barrier(c.barrier, n, phase)
    t0, t1 = share(c.n_tokens, thread, n)
    for t in range(t0, t1):
        ew.top_experts(
            c.router_logits + 4 * ((n_experts + 15) & ~15) * t,
            n_experts,
            n_used,
            layer.norm_topk,
            c.chosen + 4 * n_used * t,
            c.weights + 4 * n_used * t,
        )
    phase = barrier(c.barrier, n, phase)
    if thread == 0:
        _sort_by_expert(c, layer)
    phase = barrier(c.barrier, n, phase)
    k = layer.gate.cols
    for e in range(n_experts):
        start, end = (
            np.int64(load_scalar_i32(c.starts + 4 * e)),
            np.int64(load_scalar_i32(c.starts + 4 * e + 4)),
        )
        entry = layer.experts + 24 * e
        for first in range(start, end, GATHER_TOKENS):
            count = min(GATHER_TOKENS, end - first)
            _gather(c, layer, first, count, private)
            scales = private + GATHER_TOKENS * k
            _activate(
                c,
                layer,
                load_scalar_i64(entry),
                load_scalar_i64(entry + 8),
                private,
                private,
                scales,
                scales + GATHER_TOKENS * (k >> 3),
                first,
                count,
                thread,
                n,
            )
    phase = barrier(c.barrier, n, phase)
    d, a, width = layer.down, c.hidden_act, layer.gate.rows
    g0, g1 = share((d.rows + 15) >> 4, thread, n)
    for t in range(c.n_tokens):
        for i in range(16 * g0, min(16 * g1, d.rows)):
            store_scalar_f32(c.proj + 4 * (d.rows * t + i), np.float32(0))
    for e in range(n_experts):
        start, end = (
            np.int64(load_scalar_i32(c.starts + 4 * e)),
            np.int64(load_scalar_i32(c.starts + 4 * e + 4)),
        )
        tiles = load_scalar_i64(layer.experts + 24 * e + 16)
        for first in range(start, end, GATHER_TOKENS):
            count = min(GATHER_TOKENS, end - first)
            b = (width >> 5) * first
            product(
                d.code,
                tiles,
                d.step,
                d.cols,
                a.values + 4 * width * first,
                a.codes + width * first,
                a.scales + 4 * b,
                a.sums + 8 * b,
                count,
                g0,
                g1,
                private,
                4 * d.rows,
            )
            _scatter(c, layer, first, count, private, g0, g1)
    return barrier(c.barrier, n, phase)
