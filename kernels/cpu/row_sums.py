"""Scores and weighted values of four query heads of a single token over two records, which may lie
anywhere: of float16 (`half_…`) and of int8 (`code_…`), the same sums in the same order.

A code is multiplied by its scale first; s0 and s1 are the addresses of the groups' scales, which
float16 does without.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from .records import VALUE_SCALES, key_scales, load_code
from .scratch import SCORE_ROW
from .simd import add, fma, load_f32, load_splat_f32, prefetch, splat_f32, store_f32
from .simd_half import load_f16, load_scalar_f16
from .simd_lanes import high_halves, low_halves

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def _load_half(p: Any, scale: Any) -> Any:
    return load_f16(p)


@njit(**JIT)
def _no_scale(address: Any) -> Any:
    return splat_f32(np.float32(1))


@njit(**JIT)
def _value_scale(address: Any) -> Any:
    return splat_f32(load_scalar_f16(address))


def _scores(load: Callable[..., Any], scales_at: Callable[..., Any], size: int) -> Any:
    """q.k of two groups of 8 keys for four expanded queries into 16 columns of out.

    load: 16 values of `size` bytes each, times their scales. The values of the groups, which follow
    the keys, are fetched meanwhile.
    """

    @njit(**JIT)
    def scores(k0: Any, k1: Any, s0: Any, s1: Any, head_dim: Any, q: Any, out: Any) -> None:
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat_f32(np.float32(0))
        row, x0, x1 = 32 * head_dim, scales_at(s0), scales_at(s1)
        v0, v1 = k0 + 8 * size * head_dim, k1 + 8 * size * head_dim
        for i in range(0, 8 * size * head_dim, 16 * size):
            u, v, p = load(k0 + i, x0), load(k1 + i, x1), q + (4 // size) * i
            x = load_f32(p)
            a0, b0 = fma(u, x, a0), fma(v, x, b0)
            x = load_f32(p + row)
            a1, b1 = fma(u, x, a1), fma(v, x, b1)
            x = load_f32(p + 2 * row)
            a2, b2 = fma(u, x, a2), fma(v, x, b2)
            x = load_f32(p + 3 * row)
            a3, b3 = fma(u, x, a3), fma(v, x, b3)
            prefetch(v0 + i)
            prefetch(v1 + i)
        store_f32(out, add(low_halves(a0, b0), high_halves(a0, b0)))
        store_f32(out + SCORE_ROW, add(low_halves(a1, b1), high_halves(a1, b1)))
        store_f32(out + 2 * SCORE_ROW, add(low_halves(a2, b2), high_halves(a2, b2)))
        store_f32(out + 3 * SCORE_ROW, add(low_halves(a3, b3), high_halves(a3, b3)))

    return scores


def _values(load: Callable[..., Any], scale_at: Callable[..., Any], size: int) -> Any:
    """out[row] += sum over tokens t0..t1 of p[row][t] * value[t], four rows.

    Token t is the t-th of the two groups of record0 and record1. The keys of two records to come,
    next0 and next1, are fetched meanwhile. load, size: as for `_scores`.
    """

    @njit(**JIT)
    def values(
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
        token_bytes = size * head_dim
        v0, v1 = record0 + 8 * token_bytes, record1
        # The second group's scales of values begin 16 bytes on, where its t is 8.
        s0, next1 = s0 + VALUE_SCALES, next1 - 256 * size
        for b in range(0, token_bytes, 32 * size):
            o = out + (4 // size) * b
            a0, b0 = load_f32(o), load_f32(o + 64)
            a1, b1 = load_f32(o + out_row), load_f32(o + out_row + 64)
            a2, b2 = load_f32(o + 2 * out_row), load_f32(o + 2 * out_row + 64)
            a3, b3 = load_f32(o + 3 * out_row), load_f32(o + 3 * out_row + 64)
            for t in range(t0, t1):
                w, s = (v0 if t < 8 else v1) + token_bytes * t + b, p + 4 * t
                scale = scale_at((s0 if t < 8 else s1) + 2 * t)
                low, high = load(w, scale), load(w + 16 * size, scale)
                x = load_splat_f32(s)
                a0, b0 = fma(low, x, a0), fma(high, x, b0)
                x = load_splat_f32(s + SCORE_ROW)
                a1, b1 = fma(low, x, a1), fma(high, x, b1)
                x = load_splat_f32(s + 2 * SCORE_ROW)
                a2, b2 = fma(low, x, a2), fma(high, x, b2)
                x = load_splat_f32(s + 3 * SCORE_ROW)
                a3, b3 = fma(low, x, a3), fma(high, x, b3)
                prefetch((next0 if t < 8 else next1) + 8 * b + 32 * size * t)
            store_f32(o, a0)
            store_f32(o + 64, b0)
            store_f32(o + out_row, a1)
            store_f32(o + out_row + 64, b1)
            store_f32(o + 2 * out_row, a2)
            store_f32(o + 2 * out_row + 64, b2)
            store_f32(o + 3 * out_row, a3)
            store_f32(o + 3 * out_row + 64, b3)

    return values


half_scores, code_scores = _scores(_load_half, _no_scale, 2), _scores(load_code, key_scales, 1)
half_values, code_values = _values(_load_half, _no_scale, 2), _values(load_code, _value_scale, 1)
