"""Products of sketches by codes: a query as int8, multiplied with the two-bit codes of keys.

The portable way, beside sketch_tables.py; the layout of keys is that of sketch.py.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    absolute,
    add_i32,
    load_f32,
    load_scalar_f32,
    load_splat_i32,
    load_u8,
    maximum,
    mul,
    reduce_add_i32,
    reduce_max,
    round_to_i32,
    splat_f32,
    splat_i32,
    store_as_i8,
    store_f32,
    store_scalar_f32,
    sub,
    to_f32,
)
from .simd_bits import shift_right_2, shift_right_4, shift_right_6
from .simd_bytes import bit_pair_0, bit_pair_2, bit_pair_4, bit_pair_6, dot_u8i8
from .simd_half import load_u4m4

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def write_query(y: Any, head_dim: Any, out: Any) -> None:
    """int8 codes [D] of a turned query, then float32 scale and 1.5 times the sum of the codes."""
    top = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        top = maximum(absolute(load_f32(y + i)), top)
    scale = reduce_max(top) / np.float32(127)
    inverse = splat_f32(np.float32(1) / scale if scale > 0 else np.float32(0))
    total = 0
    for i in range(0, head_dim, 16):
        codes = round_to_i32(mul(load_f32(y + 4 * i), inverse))
        store_as_i8(out + i, codes)
        total += reduce_add_i32(codes)
    store_scalar_f32(out + head_dim, scale)
    store_scalar_f32(out + head_dim + 4, np.float32(1.5) * np.float32(total))


@njit(**JIT)
def _estimate(a: Any, b: Any, c: Any, d: Any, q: Any, head_dim: Any, scales: Any) -> Any:
    """Estimated q.k of 16 keys from the products of their codes, which stand at bits 0, 2, 4, 6."""
    dot = add_i32(add_i32(a, shift_right_2(b)), add_i32(shift_right_4(c), shift_right_6(d)))
    centred = sub(to_f32(dot), splat_f32(load_scalar_f32(q + head_dim + 4)))
    return mul(centred, mul(scales, splat_f32(load_scalar_f32(q + head_dim))))


@njit(**JIT)
def estimate4(
    block: Any, i: Any, head_dim: Any, q0: Any, q1: Any, q2: Any, q3: Any, out: Any
) -> None:
    """Estimated q.k of the i-th keys of a block's groups for four queries (from `write_query`).

    Writes float32 [16 groups] at out, 512 bytes further for every next query.
    """
    codes, zero = block + 4 * head_dim * i, splat_i32(np.int32(0))
    # The codes are multiplied where they stand in their bytes; a sum for each place.
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
    for j in range(head_dim // 16):
        v, o = load_u8(codes + 64 * j), 16 * j
        u = bit_pair_0(v)
        a0 = dot_u8i8(a0, u, load_splat_i32(q0 + o))
        b0 = dot_u8i8(b0, u, load_splat_i32(q1 + o))
        c0 = dot_u8i8(c0, u, load_splat_i32(q2 + o))
        d0 = dot_u8i8(d0, u, load_splat_i32(q3 + o))
        u = bit_pair_2(v)
        a1 = dot_u8i8(a1, u, load_splat_i32(q0 + o + 4))
        b1 = dot_u8i8(b1, u, load_splat_i32(q1 + o + 4))
        c1 = dot_u8i8(c1, u, load_splat_i32(q2 + o + 4))
        d1 = dot_u8i8(d1, u, load_splat_i32(q3 + o + 4))
        u = bit_pair_4(v)
        a2 = dot_u8i8(a2, u, load_splat_i32(q0 + o + 8))
        b2 = dot_u8i8(b2, u, load_splat_i32(q1 + o + 8))
        c2 = dot_u8i8(c2, u, load_splat_i32(q2 + o + 8))
        d2 = dot_u8i8(d2, u, load_splat_i32(q3 + o + 8))
        u = bit_pair_6(v)
        a3 = dot_u8i8(a3, u, load_splat_i32(q0 + o + 12))
        b3 = dot_u8i8(b3, u, load_splat_i32(q1 + o + 12))
        c3 = dot_u8i8(c3, u, load_splat_i32(q2 + o + 12))
        d3 = dot_u8i8(d3, u, load_splat_i32(q3 + o + 12))
    scales = load_u4m4(block + 32 * head_dim + 16 * i)
    store_f32(out, _estimate(a0, a1, a2, a3, q0, head_dim, scales))
    store_f32(out + 512, _estimate(b0, b1, b2, b3, q1, head_dim, scales))
    store_f32(out + 1024, _estimate(c0, c1, c2, c3, q2, head_dim, scales))
    store_f32(out + 1536, _estimate(d0, d1, d2, d3, q3, head_dim, scales))
