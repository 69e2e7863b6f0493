"""Products of sketches by codes: a query as int8, multiplied with the codes of keys.

The portable way, beside sketch_tables.py; the layout of keys is that of sketch.py.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    absolute,
    add,
    add_i32,
    load_f32,
    load_scalar_f32,
    load_splat_i32,
    load_u8,
    maximum,
    mul,
    reduce_add,
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
from .simd_bytes import (
    bit_0,
    bit_1,
    bit_2,
    bit_3,
    bit_4,
    bit_5,
    bit_6,
    bit_7,
    bit_pair_0,
    bit_pair_2,
    bit_pair_4,
    bit_pair_6,
    dot_u8i8,
)
from .simd_half import load_u4m4

JIT = {"nogil": True, "error_model": "numpy"}

# The unit of a query of zeros, so that -1e30 units stay far below every estimate.
LEAST_UNIT = np.float32(1e-20)


@njit(**JIT)
def write_query(y: Any, head_dim: Any, bits: Any, out: Any) -> None:
    """float32 unit, reach and centre (what the codes' smallest values add) of a turned query y
    (float32 [D]), then from byte 64 on its int8 codes [D]. No estimate is larger than the reach
    times the scale of a key."""
    top = total_abs = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        size = absolute(load_f32(y + i))
        top, total_abs = maximum(size, top), add(total_abs, size)
    scale = max(reduce_max(top) / np.float32(127), LEAST_UNIT)
    inverse = splat_f32(np.float32(1) / scale)
    total = 0
    for i in range(0, head_dim, 16):
        codes = round_to_i32(mul(load_f32(y + 4 * i), inverse))
        store_as_i8(out + 64 + i, codes)
        total += reduce_add_i32(codes)
    # One bit says -1 or 1, a step of 2; two bits -1.5 to 1.5 in steps of 1.
    step, centre = (
        (np.float32(2), np.float32(0.5)) if bits == 1 else (np.float32(1), np.float32(1.5))
    )
    store_scalar_f32(out, scale * step)
    # A code is at most half a unit beside its value.
    reach = reduce_add(total_abs) + scale * np.float32(head_dim // 2)
    store_scalar_f32(out + 4, reach * step * centre)
    store_scalar_f32(out + 8, centre * np.float32(total))


@njit(**JIT)
def _store(dot: Any, q: Any, scales: Any, out: Any) -> None:
    store_f32(out, mul(sub(to_f32(dot), splat_f32(load_scalar_f32(q + 8))), scales))


@njit(**JIT)
def _two_bits(codes: Any, row: Any, q: Any) -> Any:
    """Products of 16 keys' codes of two bits with a query."""
    # The codes are multiplied where they stand in their bytes; a sum for each place.
    a = b = c = d = splat_i32(np.int32(0))
    for j in range(row // 64):
        v, o = load_u8(codes + 64 * j), q + 64 + 16 * j
        a = dot_u8i8(a, bit_pair_0(v), load_splat_i32(o))
        b = dot_u8i8(b, bit_pair_2(v), load_splat_i32(o + 4))
        c = dot_u8i8(c, bit_pair_4(v), load_splat_i32(o + 8))
        d = dot_u8i8(d, bit_pair_6(v), load_splat_i32(o + 12))
    return add_i32(add_i32(a, shift_right_2(b)), add_i32(shift_right_4(c), shift_right_6(d)))


@njit(**JIT)
def _one_bit(codes: Any, row: Any, q: Any) -> Any:
    """Products of 16 keys' codes of one bit with a query."""
    a = b = splat_i32(np.int32(0))
    for j in range(row // 64):
        v, o = load_u8(codes + 64 * j), q + 64 + 32 * j
        a = dot_u8i8(a, bit_0(v), load_splat_i32(o))
        b = dot_u8i8(b, bit_1(v), load_splat_i32(o + 4))
        a = dot_u8i8(a, bit_2(v), load_splat_i32(o + 8))
        b = dot_u8i8(b, bit_3(v), load_splat_i32(o + 12))
        a = dot_u8i8(a, bit_4(v), load_splat_i32(o + 16))
        b = dot_u8i8(b, bit_5(v), load_splat_i32(o + 20))
        a = dot_u8i8(a, bit_6(v), load_splat_i32(o + 24))
        b = dot_u8i8(b, bit_7(v), load_splat_i32(o + 28))
    return add_i32(a, b)


@njit(**JIT)
def estimate4(block: Any, i: Any, row: Any, bits: Any, queries: Any, out: Any) -> None:
    """Estimated q.k of the i-th keys of a block's groups for four queries (from `write_query`), in
    units of each query.

    row: bytes of the codes of 16 keys; queries: four addresses. Writes float32 [16 groups] at out,
    512 bytes further for every next query.
    """
    q0, q1, q2, q3 = queries
    codes, scales = block + row * i, load_u4m4(block + 8 * row + 16 * i)
    if bits == 1:
        _store(_one_bit(codes, row, q0), q0, scales, out)
        _store(_one_bit(codes, row, q1), q1, scales, out + 512)
        _store(_one_bit(codes, row, q2), q2, scales, out + 1024)
        _store(_one_bit(codes, row, q3), q3, scales, out + 1536)
    else:
        _store(_two_bits(codes, row, q0), q0, scales, out)
        _store(_two_bits(codes, row, q1), q1, scales, out + 512)
        _store(_two_bits(codes, row, q2), q2, scales, out + 1024)
        _store(_two_bits(codes, row, q3), q3, scales, out + 1536)


@njit(**JIT)
def estimate8(block: Any, i: Any, row: Any, bits: Any, queries: Any, out: Any) -> None:
    """As `estimate4`, for eight queries."""
    q0, q1, q2, q3, q4, q5, q6, q7 = queries
    estimate4(block, i, row, bits, (q0, q1, q2, q3), out)
    estimate4(block, i, row, bits, (q4, q5, q6, q7), out + 2048)
