"""Products of sketches by tables: what every four bits of codes add to q.k, looked up.

Four bits of a byte of codes stand for two dimensions, or for four of one bit; one instruction
(vpermb) looks up 64 of them at a time, each of a lane's four bytes in a table of its own, and
another adds the four. It needs AVX-512 VBMI; products (sketch_codes.py) do without. The layout of
keys is that of sketch.py.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    absolute,
    add_i32,
    fma,
    load_f32,
    load_scalar_f32,
    load_u8,
    maximum,
    mul,
    prefetch,
    reduce_max,
    round_to_i32,
    splat_f32,
    splat_i32,
    store_as_i8,
    store_f32,
    store_scalar_f32,
    to_f32,
)
from .simd_half import load_u4m4
from .simd_tables import (
    add_bytes,
    bit_signs_0,
    bit_signs_1,
    bit_signs_2,
    bit_signs_3,
    high_places,
    inner_codes,
    look_up,
    low_places,
    outer_codes,
)

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def write_query(y: Any, head_dim: Any, bits: Any, out: Any) -> None:
    """float32 value of a unit, then from byte 64 on tables int8 [2 bits D / 16][4 b][16] of a
    turned query y (float32 [D]).

    Entry n of table (t, b) is what a nibble n of codes adds: of two dimensions 8 t + b and + 4 by
    two bits each, or of four dimensions 16 t + b, + 4, + 8 and + 12 by one bit each.
    """
    top = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        top = maximum(absolute(load_f32(y + i)), top)
    # The dimensions of a table together add at most this.
    most = np.float32(4) if bits == 1 else np.float32(3)
    unit = most * reduce_max(top) / np.float32(127)
    inverse = np.float32(1) / unit if unit > 0 else np.float32(0)
    store_scalar_f32(out, unit)
    step = 8 // bits
    for table in range(head_dim * bits // 4):
        d = y + 4 * (2 * step * (table >> 2) + (table & 3))
        first = splat_f32(load_scalar_f32(d) * inverse)
        second = splat_f32(load_scalar_f32(d + 16) * inverse)
        if bits == 1:
            entries = fma(first, bit_signs_0(), mul(second, bit_signs_1()))
            entries = fma(splat_f32(load_scalar_f32(d + 32) * inverse), bit_signs_2(), entries)
            entries = fma(splat_f32(load_scalar_f32(d + 48) * inverse), bit_signs_3(), entries)
        else:
            entries = fma(first, inner_codes(), mul(second, outer_codes()))
        store_as_i8(out + 64 + 16 * table, round_to_i32(entries))


@njit(**JIT)
def _estimate(low: Any, high: Any, q: Any, scales: Any) -> Any:
    return mul(to_f32(add_i32(low, high)), mul(scales, splat_f32(load_scalar_f32(q))))


@njit(**JIT)
def estimate4(
    block: Any, i: Any, row: Any, bits: Any, q0: Any, q1: Any, q2: Any, q3: Any, out: Any
) -> None:
    """Estimated q.k of the i-th keys of a block's groups for four queries (from `write_query`).

    row: bytes of the codes of 16 keys. Writes float32 [16 groups] at out, 512 bytes further for
    every next query.
    """
    codes, zero = block + row * i, splat_i32(np.int32(0))
    # Two sums a query: one alone waits for itself.
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    for j in range(0, row, 64):
        v, o = load_u8(codes + j), 64 + 2 * j
        # The same keys of the next block: the scan is a stream.
        prefetch(codes + j + (8 * row + 128))
        low, high = low_places(v), high_places(v)
        a0, b0 = add_bytes(a0, look_up(q0 + o, low)), add_bytes(b0, look_up(q0 + o + 64, high))
        a1, b1 = add_bytes(a1, look_up(q1 + o, low)), add_bytes(b1, look_up(q1 + o + 64, high))
        a2, b2 = add_bytes(a2, look_up(q2 + o, low)), add_bytes(b2, look_up(q2 + o + 64, high))
        a3, b3 = add_bytes(a3, look_up(q3 + o, low)), add_bytes(b3, look_up(q3 + o + 64, high))
    scales = load_u4m4(block + 8 * row + 16 * i)
    store_f32(out, _estimate(a0, b0, q0, scales))
    store_f32(out + 512, _estimate(a1, b1, q1, scales))
    store_f32(out + 1024, _estimate(a2, b2, q2, scales))
    store_f32(out + 1536, _estimate(a3, b3, q3, scales))
