"""Exact attention over paged keys and values: append, scores, values, merge.

Record = 16 tokens of one KV head, keys and values adjacent, float16 (docs/format.md):
    keys    [D][16 tokens], so that 16 keys fill a vector and a record is one stream
    values  [16 tokens][D]
A page is one chunk of 64 tokens of a layer: [KV head][4 records]. Attention runs over spans of 16
records; a span gives a partial softmax (maximum, sum, weighted values), spans merge in order. A
row (one query head of one token) is computed alike whatever rows or threads stand beside it, so
that prefill, decode and any thread count agree to the bit.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    add,
    exp,
    fma,
    load_f32,
    load_scalar_f32,
    load_scalar_i32,
    load_scalar_i64,
    load_splat_f32,
    mask_lanes,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat_f32,
    store_f32,
    store_scalar_f32,
    sub,
)
from .simd_half import load_f16, store_f16, store_scalar_f16

JIT = {"nogil": True, "error_model": "numpy"}

GROUP_TOKENS = 16
CHUNK_TOKENS = 64
SPAN_GROUPS = 16
SPAN_TOKENS = SPAN_GROUPS * GROUP_TOKENS
# Floats of a partial besides its D values: maximum and sum, padded to a vector.
PARTIAL_HEAD = 16
NEGATIVE = np.float32(-1e30)


@njit(**JIT)
def record(pages: Any, group: Any, head: Any, head_dim: Any) -> Any:
    """Address of the record of a group (counted from position 0) and KV head.

    pages: address of int64 page addresses by chunk.
    """
    page = load_scalar_i64(pages + 8 * (group >> 2))
    return page + ((head << 2) + (group & 3)) * (64 * head_dim)


@njit(**JIT)
def append(pages: Any, position: Any, head: Any, head_dim: Any, k: Any, v: Any) -> None:
    """Store the rotated key and the value (float32 [D]) of a position."""
    base = record(pages, position >> 4, head, head_dim)
    t = position & 15
    for d in range(head_dim):
        store_scalar_f16(base + 32 * d + 2 * t, load_scalar_f32(k + 4 * d))
    row = base + 32 * head_dim + 2 * head_dim * t
    for d in range(0, head_dim, 16):
        store_f16(row + 2 * d, load_f32(v + 4 * d))


@njit(**JIT)
def _scores4(
    k: Any, head_dim: Any, q0: Any, q1: Any, q2: Any, q3: Any, out: Any, out_row: Any
) -> None:
    """q.k of 16 keys for four queries (float32 [D], already scaled) into rows of out."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat_f32(np.float32(0))
    for d in range(0, head_dim, 2):
        even, odd, o = load_f16(k + 32 * d), load_f16(k + 32 * d + 32), 4 * d
        a0, b0 = fma(even, load_splat_f32(q0 + o), a0), fma(odd, load_splat_f32(q0 + o + 4), b0)
        a1, b1 = fma(even, load_splat_f32(q1 + o), a1), fma(odd, load_splat_f32(q1 + o + 4), b1)
        a2, b2 = fma(even, load_splat_f32(q2 + o), a2), fma(odd, load_splat_f32(q2 + o + 4), b2)
        a3, b3 = fma(even, load_splat_f32(q3 + o), a3), fma(odd, load_splat_f32(q3 + o + 4), b3)
    store_f32(out, add(a0, b0))
    store_f32(out + out_row, add(a1, b1))
    store_f32(out + 2 * out_row, add(a2, b2))
    store_f32(out + 3 * out_row, add(a3, b3))


@njit(**JIT)
def _values4(
    v: Any, head_dim: Any, t0: Any, t1: Any, p: Any, p_row: Any, out: Any, out_row: Any
) -> None:
    """out[row] += sum over tokens t0..t1 of p[row][t] * value[t], four rows."""
    token_bytes = 2 * head_dim
    for b in range(0, token_bytes, 64):
        o = out + 2 * b
        a0, b0 = load_f32(o), load_f32(o + 64)
        a1, b1 = load_f32(o + out_row), load_f32(o + out_row + 64)
        a2, b2 = load_f32(o + 2 * out_row), load_f32(o + 2 * out_row + 64)
        a3, b3 = load_f32(o + 3 * out_row), load_f32(o + 3 * out_row + 64)
        for t in range(t0, t1):
            w, s = v + token_bytes * t + b, p + 4 * t
            low, high = load_f16(w), load_f16(w + 32)
            x = load_splat_f32(s)
            a0, b0 = fma(low, x, a0), fma(high, x, b0)
            x = load_splat_f32(s + p_row)
            a1, b1 = fma(low, x, a1), fma(high, x, b1)
            x = load_splat_f32(s + 2 * p_row)
            a2, b2 = fma(low, x, a2), fma(high, x, b2)
            x = load_splat_f32(s + 3 * p_row)
            a3, b3 = fma(low, x, a3), fma(high, x, b3)
        store_f32(o, a0)
        store_f32(o + 64, b0)
        store_f32(o + out_row, a1)
        store_f32(o + out_row + 64, b1)
        store_f32(o + 2 * out_row, a2)
        store_f32(o + 2 * out_row + 64, b2)
        store_f32(o + 3 * out_row, a3)
        store_f32(o + 3 * out_row + 64, b3)


@njit(**JIT)
def _softmax_row(s: Any, n_groups: Any, partial: Any) -> None:
    """Turn the masked scores of a span into weights; the maximum and the sum go to partial."""
    top = splat_f32(NEGATIVE)
    for i in range(n_groups):
        top = maximum(load_f32(s + 64 * i), top)
    m = reduce_max(top)
    total, top = splat_f32(np.float32(0)), splat_f32(m)
    for i in range(n_groups):
        e = exp(sub(load_f32(s + 64 * i), top))
        total = add(total, e)
        store_f32(s + 64 * i, e)
    store_scalar_f32(partial, m)
    store_scalar_f32(partial + 4, reduce_add(total))


@njit(**JIT)
def _mask_row(s: Any, i: Any, start: Any, low: Any, high: Any, other: Any) -> None:
    """Put `other` where the group starting at position `start` lies outside low..high."""
    if start < low or start + GROUP_TOKENS > high:
        p = s + 64 * i
        store_f32(p, mask_lanes(load_f32(p), other, np.int32(low - start), np.int32(high - start)))


@njit(**JIT)
def attend_span(
    pages: Any,
    groups: Any,
    first: Any,
    n_groups: Any,
    head: Any,
    head_dim: Any,
    q0: Any,
    q1: Any,
    q2: Any,
    q3: Any,
    low0: Any,
    low1: Any,
    low2: Any,
    low3: Any,
    high0: Any,
    high1: Any,
    high2: Any,
    high3: Any,
    scores: Any,
    partial: Any,
    partial_row: Any,
) -> None:
    """Partial attention of four rows over n_groups (at most 16) groups.

    groups: address of int32 group numbers, or 0 for first, first + 1, … Row i sees positions
    low_i..high_i. scores: scratch float32 [4][256]. partial: float32 rows of 16 + D.
    """
    s_row = 4 * SPAN_TOKENS
    low, high = min(min(low0, low1), min(low2, low3)), max(max(high0, high1), max(high2, high3))
    for i in range(n_groups):
        g = np.int64(load_scalar_i32(groups + 4 * (first + i))) if groups != 0 else first + i
        k = record(pages, g, head, head_dim)
        _scores4(k, head_dim, q0, q1, q2, q3, scores + 64 * i, s_row)
        start = g * GROUP_TOKENS
        _mask_row(scores, i, start, low0, high0, NEGATIVE)
        _mask_row(scores + s_row, i, start, low1, high1, NEGATIVE)
        _mask_row(scores + 2 * s_row, i, start, low2, high2, NEGATIVE)
        _mask_row(scores + 3 * s_row, i, start, low3, high3, NEGATIVE)
    for r in range(4):
        _softmax_row(scores + r * s_row, n_groups, partial + r * partial_row)
        for d in range(0, 4 * head_dim, 64):
            store_f32(partial + r * partial_row + 4 * PARTIAL_HEAD + d, splat_f32(np.float32(0)))
    for i in range(n_groups):
        g = np.int64(load_scalar_i32(groups + 4 * (first + i))) if groups != 0 else first + i
        start = g * GROUP_TOKENS
        # A weight outside the range must be exactly 0 (exp does not reach it).
        _mask_row(scores, i, start, low0, high0, np.float32(0))
        _mask_row(scores + s_row, i, start, low1, high1, np.float32(0))
        _mask_row(scores + 2 * s_row, i, start, low2, high2, np.float32(0))
        _mask_row(scores + 3 * s_row, i, start, low3, high3, np.float32(0))
        t0, t1 = max(0, low - start), min(GROUP_TOKENS, high - start)
        if t0 < t1:
            v = record(pages, g, head, head_dim) + 32 * head_dim
            out = partial + 4 * PARTIAL_HEAD
            _values4(v, head_dim, t0, t1, scores + 64 * i, s_row, out, partial_row)


@njit(**JIT)
def clear_partial(total: Any, head_dim: Any) -> None:
    """The neutral element of `merge`."""
    store_scalar_f32(total, NEGATIVE)
    store_scalar_f32(total + 4, np.float32(0))
    for d in range(0, 4 * head_dim, 64):
        store_f32(total + 4 * PARTIAL_HEAD + d, splat_f32(np.float32(0)))


@njit(**JIT)
def merge(total: Any, partial: Any, head_dim: Any) -> None:
    """Fold a partial softmax into a running one (both float32 [16 + D])."""
    m0, m1 = load_scalar_f32(total), load_scalar_f32(partial)
    if m1 == NEGATIVE:
        return
    m = max(m0, m1)
    f0, f1 = exp(splat_f32(m0 - m)), exp(splat_f32(m1 - m))
    l0, l1 = load_splat_f32(total + 4), load_splat_f32(partial + 4)
    sum_both = reduce_max(fma(l1, f1, mul(l0, f0)))
    store_scalar_f32(total, m)
    store_scalar_f32(total + 4, sum_both)
    for d in range(64, 64 + 4 * head_dim, 64):
        store_f32(total + d, fma(load_f32(partial + d), f1, mul(load_f32(total + d), f0)))


@njit(**JIT)
def finish(total: Any, head_dim: Any, out: Any) -> None:
    """Weighted values over the sum, into float32 [D]."""
    r = splat_f32(np.float32(1) / load_scalar_f32(total + 4))
    for d in range(0, 4 * head_dim, 64):
        store_f32(out + d, mul(load_f32(total + 64 + d), r))
