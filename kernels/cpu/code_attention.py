"""Scores and weighted values of single tokens over int8 records: the same sums in the same order as
over float16 (attention.py), every code times its scale first."""

from typing import Any

import numpy as np
from numba import njit

from .records import VALUE_SCALES, key_scales, load_code
from .scratch import SCORE_ROW
from .simd import add, fma, load_f32, load_splat_f32, prefetch, splat_f32, store_f32
from .simd_half import load_scalar_f16
from .simd_lanes import high_halves, low_halves

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def code_scores4(k0: Any, k1: Any, s0: Any, s1: Any, head_dim: Any, q: Any, out: Any) -> None:
    """q.k of two groups of 8 keys for four expanded queries into 16 columns of out.

    s0, s1: addresses of the groups' scales. The values, which follow the keys, are fetched
    meanwhile.
    """
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat_f32(np.float32(0))
    row, x0, x1 = 32 * head_dim, key_scales(s0), key_scales(s1)
    for i in range(0, 8 * head_dim, 16):
        u, v, p = load_code(k0 + i, x0), load_code(k1 + i, x1), q + 4 * i
        x = load_f32(p)
        a0, b0 = fma(u, x, a0), fma(v, x, b0)
        x = load_f32(p + row)
        a1, b1 = fma(u, x, a1), fma(v, x, b1)
        x = load_f32(p + 2 * row)
        a2, b2 = fma(u, x, a2), fma(v, x, b2)
        x = load_f32(p + 3 * row)
        a3, b3 = fma(u, x, a3), fma(v, x, b3)
        prefetch(k0 + 8 * head_dim + i)
        prefetch(k1 + 8 * head_dim + i)
    store_f32(out, add(low_halves(a0, b0), high_halves(a0, b0)))
    store_f32(out + SCORE_ROW, add(low_halves(a1, b1), high_halves(a1, b1)))
    store_f32(out + 2 * SCORE_ROW, add(low_halves(a2, b2), high_halves(a2, b2)))
    store_f32(out + 3 * SCORE_ROW, add(low_halves(a3, b3), high_halves(a3, b3)))


@njit(**JIT)
def code_values4(
    record0: Any,
    record1: Any,
    s0: Any,
    s1: Any,
    t0: Any,
    t1: Any,
    head_dim: Any,
    p: Any,
    out: Any,
    out_row: Any,
    next0: Any,
    next1: Any,
) -> None:
    """out[row] += sum over tokens t0..t1 of p[row][t] * value[t], four rows.

    Token t is the t-th of the two groups of record0 and record1, whose scales are at s0 and s1. The
    keys of two records to come, next0 and next1, are fetched meanwhile.
    """
    v0, v1 = record0 + 8 * head_dim, record1
    s0, s1, next1 = s0 + VALUE_SCALES, s1, next1 - 256
    for b in range(0, head_dim, 32):
        o = out + 4 * b
        a0, b0 = load_f32(o), load_f32(o + 64)
        a1, b1 = load_f32(o + out_row), load_f32(o + out_row + 64)
        a2, b2 = load_f32(o + 2 * out_row), load_f32(o + 2 * out_row + 64)
        a3, b3 = load_f32(o + 3 * out_row), load_f32(o + 3 * out_row + 64)
        for t in range(t0, t1):
            w, s = (v0 if t < 8 else v1) + head_dim * t + b, p + 4 * t
            # The second group's scales of values begin 16 bytes on, where its t is 8.
            scale = splat_f32(load_scalar_f16((s0 if t < 8 else s1) + 2 * t))
            low, high = load_code(w, scale), load_code(w + 16, scale)
            x = load_splat_f32(s)
            a0, b0 = fma(low, x, a0), fma(high, x, b0)
            x = load_splat_f32(s + SCORE_ROW)
            a1, b1 = fma(low, x, a1), fma(high, x, b1)
            x = load_splat_f32(s + 2 * SCORE_ROW)
            a2, b2 = fma(low, x, a2), fma(high, x, b2)
            x = load_splat_f32(s + 3 * SCORE_ROW)
            a3, b3 = fma(low, x, a3), fma(high, x, b3)
            prefetch((next0 if t < 8 else next1) + 8 * b + 32 * t)
        store_f32(o, a0)
        store_f32(o + 64, b0)
        store_f32(o + out_row, a1)
        store_f32(o + out_row + 64, b1)
        store_f32(o + 2 * out_row, a2)
        store_f32(o + 2 * out_row + 64, b2)
        store_f32(o + 3 * out_row, a3)
        store_f32(o + 3 * out_row + 64, b3)
