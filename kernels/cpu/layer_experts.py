"""The experts of a layer: the router, and a gated MLP for every expert that it chose.

Tokens are sorted by expert, so that each expert's weights are read once per call. Threads split
the rows of every product; a token's experts are added in ascending order whatever the call's size
and whichever expert was in memory first.
"""

from typing import Any

import numpy as np
from numba import njit

from . import elementwise as ew
from .expert_cache import (
    clock_ns,
    guess_next,
    landing,
    note_failures,
    open_cache,
    plan_wave,
)
from .io_queue import wait_ticket
from .io_worker import PENDING
from .layer_mlp import activate, matmul
from .simd import (
    load_i32,
    load_scalar_f32,
    load_scalar_i32,
    load_scalar_i64,
    store_i32,
    store_scalar_f32,
    store_scalar_i32,
    store_scalar_i64,
)
from .sync import atomic_load, barrier, share
from .tiles import FP8, product

JIT = {"nogil": True, "error_model": "numpy"}

# Tokens of an expert that are gathered at a time.
GATHER_TOKENS = 64


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
def _tokens_of(c: Any, expert: Any) -> Any:
    """Start and end of an expert's pairs in c.order."""
    at = c.starts + 4 * expert
    return np.int64(load_scalar_i32(at)), np.int64(load_scalar_i32(at + 4))


@njit(**JIT)
def _run_expert(c: Any, layer: Any, expert: Any, thread: Any, n: Any, private: Any) -> None:
    """act(gate x) * up x of all tokens of an expert, into its rows of c.hidden_act."""
    start, end = _tokens_of(c, expert)
    k, entry = layer.gate.cols, layer.experts + 24 * expert
    scales = private + GATHER_TOKENS * k
    for first in range(start, end, GATHER_TOKENS):
        count = min(GATHER_TOKENS, end - first)
        _gather(c, layer, first, count, private)
        activate(
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


@njit(**JIT)
def _run_as_they_land(
    c: Any, layer: Any, r: Any, e0: Any, e1: Any, thread: Any, n: Any, private: Any
) -> None:
    """`_run_expert` of experts e0..e1, those in memory first."""
    waiting, n_waiting = private + c.list_private, 0
    for e in range(e0, e1):
        start, end = _tokens_of(c, e)
        if end > start:
            store_scalar_i32(waiting + 4 * n_waiting, np.int32(e))
            n_waiting += 1
    while n_waiting > 0:
        left = 0
        for i in range(n_waiting):
            e = load_scalar_i32(waiting + 4 * i)
            if atomic_load(landing(r, np.int64(e))) == PENDING:
                store_scalar_i32(waiting + 4 * left, e)
                left += 1
            else:
                _run_expert(c, layer, np.int64(e), thread, n, private)
        if left == n_waiting:
            ticket = landing(r, np.int64(load_scalar_i32(waiting)))
            if thread == 0:
                start = clock_ns(c.io_queue)
                wait_ticket(c.io_queue, ticket)
                r.stall_ns += clock_ns(c.io_queue) - start
            else:
                wait_ticket(c.io_queue, ticket)
        n_waiting = left


@njit(**JIT)
def _add_experts(c: Any, layer: Any, e0: Any, e1: Any, thread: Any, n: Any, private: Any) -> None:
    """Add the down-projections of experts e0..e1 to this thread's rows of c.proj, in order."""
    d, a, width = layer.down, c.hidden_act, layer.gate.rows
    g0, g1 = share((d.rows + 15) >> 4, thread, n)
    for e in range(e0, e1):
        start, end = _tokens_of(c, e)
        if start == end:
            continue
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


@njit(**JIT)
def _clear(c: Any, layer: Any, thread: Any, n: Any) -> None:
    """Zero this thread's rows of c.proj."""
    rows = layer.down.rows
    g0, g1 = share((rows + 15) >> 4, thread, n)
    for t in range(c.n_tokens):
        for i in range(16 * g0, min(16 * g1, rows)):
            store_scalar_f32(c.proj + 4 * (rows * t + i), np.float32(0))


@njit(**JIT)
def _choose(c: Any, layer: Any, thread: Any, n: Any, phase: Any) -> Any:
    """Experts and weights of this thread's tokens, into c.chosen and c.weights."""
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
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def expert_mlp(
    c: Any, layer: Any, following: Any, thread: Any, n: Any, phase: Any, private: Any
) -> Any:
    """c.normed -> c.proj through the chosen experts; returns the phase after its barriers.

    following: the next layer, or this one where it is the last of the call.
    """
    # No literals as arguments: Numba compiles a function once more for each.
    n_experts, first, turn = layer.n_experts, np.int64(0), 0
    phase = _choose(c, layer, thread, n, phase)
    if thread == 0:
        _sort_by_expert(c, layer)
    if layer.cache == 0:
        phase = barrier(c.barrier, n, phase)
        for e in range(n_experts):
            _run_expert(c, layer, np.int64(e), thread, n, private)
        phase = barrier(c.barrier, n, phase)
        _clear(c, layer, thread, n)
        _add_experts(c, layer, first, n_experts, thread, n, private)
        return barrier(c.barrier, n, phase)
    r, queue = open_cache(layer), c.io_queue
    if thread == 0:
        store_scalar_i64(r.ends, plan_wave(c, layer, r, queue, first))
        ahead = following.cache != 0 and following.layer_number > layer.layer_number
        if r.hints > 0 and c.n_tokens == 1 and ahead:
            guess_next(c, layer, following, r, queue)
    phase = barrier(c.barrier, n, phase)
    _clear(c, layer, thread, n)
    while first < n_experts:
        end = load_scalar_i64(r.ends + 8 * turn)
        turn = 1 - turn
        # The next wave is read while this one is computed; one slot alone cannot do both.
        if thread == 0 and end < n_experts and r.n_slots > 1:
            store_scalar_i64(r.ends + 8 * turn, plan_wave(c, layer, r, queue, end))
        _run_as_they_land(c, layer, r, first, end, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        if thread == 0:
            note_failures(c, r, first, end)
        _add_experts(c, layer, first, end, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        if r.n_slots == 1 and end < n_experts:
            if thread == 0:
                store_scalar_i64(r.ends + 8 * turn, plan_wave(c, layer, r, queue, end))
            phase = barrier(c.barrier, n, phase)
        first = end
    return phase
