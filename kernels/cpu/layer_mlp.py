"""The dense MLP of a layer, and what experts (kernels/cpu/layer_experts.py) share with it. Threads
split the rows of every product."""

from typing import Any

import numpy as np
from numba import njit

from . import elementwise as ew
from .sync import barrier, share
from .tiles import product

JIT = {"nogil": True, "error_model": "numpy"}


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
def activate(
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
def dense_mlp(c: Any, layer: Any, thread: Any, n: Any, phase: Any) -> Any:
    """c.normed -> c.proj; returns the phase after its barriers."""
    x = c.normed
    activate(
        c,
        layer,
        layer.gate.tiles,
        layer.up.tiles,
        x.values,
        x.codes,
        x.scales,
        x.sums,
        # No literal: Numba would compile `activate` once more for it.
        np.int64(0),
        c.n_tokens,
        thread,
        n,
    )
    phase = barrier(c.barrier, n, phase)
    matmul(layer.down, c.hidden_act, c.n_tokens, c.proj, thread, n)
    return barrier(c.barrier, n, phase)
