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
    add,
    fma,
    load_f32,
    load_scalar_f32,
    load_u8,
    maximum,
    mul,
    prefetch,
    reduce_add,
    reduce_max,
    round_to_i32,
    splat_f32,
    splat_i32,
    store_as_i8,
    store_f32,
    store_scalar_f32,
)
from .simd_bits import as_f32
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

# The unit of a query of zeros, so that -1e30 units stay far below every estimate.
LEAST_UNIT = np.float32(1e-20)
# Sums of bytes start at the bits of 1.5 * 2^23: they then are floats, with no conversion.
_BASE_BITS = np.int32(0x4B400000)
_BASE = np.float32(1.5 * 2**23)


@njit(**JIT)
def write_query(y: Any, head_dim: Any, bits: Any, out: Any) -> None:
    """float32 unit and reach, then from byte 64 on tables int8 [2 bits D / 16][4 b][16] of a turned
    query y (float32 [D]). No estimate is larger than the reach times the scale of a key.

    Entry n of table (t, b) is what a nibble n of codes adds: of two dimensions 8 t + b and + 4 by
    two bits each, or of four dimensions 16 t + b, + 4, + 8 and + 12 by one bit each.
    """
    top = total = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        size = absolute(load_f32(y + i))
        top, total = maximum(size, top), add(total, size)
    # The dimensions of a table together add at most this.
    most = np.float32(4) if bits == 1 else np.float32(3)
    unit = max(most * reduce_max(top) / np.float32(127), LEAST_UNIT)
    inverse = np.float32(1) / unit
    store_scalar_f32(out, unit)
    step, n_tables = 8 // bits, head_dim * bits // 4
    largest = np.float32(1) if bits == 1 else np.float32(1.5)
    # An entry is at most half a unit beside its value.
    store_scalar_f32(out + 4, largest * reduce_add(total) + unit * np.float32(n_tables // 2))
    for table in range(n_tables):
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
def _add4(a: Any, queries: Any, offset: Any, places: Any) -> Any:
    """Four sums, each with what its query's table at an offset has at the places."""
    q0, q1, q2, q3 = queries
    a0, a1, a2, a3 = a
    return (
        add_bytes(a0, look_up(q0 + offset, places)),
        add_bytes(a1, look_up(q1 + offset, places)),
        add_bytes(a2, look_up(q2 + offset, places)),
        add_bytes(a3, look_up(q3 + offset, places)),
    )


@njit(**JIT)
def _store4(a: Any, scales: Any, out: Any) -> None:
    """Write (sum - base) * scales of four sums, exactly: scales have five significant bits."""
    base = mul(scales, splat_f32(-_BASE))
    a0, a1, a2, a3 = a
    store_f32(out, fma(as_f32(a0), scales, base))
    store_f32(out + 512, fma(as_f32(a1), scales, base))
    store_f32(out + 1024, fma(as_f32(a2), scales, base))
    store_f32(out + 1536, fma(as_f32(a3), scales, base))


@njit(**JIT)
def estimate4(block: Any, i: Any, row: Any, bits: Any, queries: Any, out: Any) -> None:
    """Estimated q.k of the i-th keys of a block's groups for four queries (from `write_query`), in
    units of each query.

    row: bytes of the codes of 16 keys; queries: four addresses. Writes float32 [16 groups] at out,
    512 bytes further for every next query.
    """
    zero = splat_i32(_BASE_BITS)
    codes, a = block + row * i, (zero, zero, zero, zero)
    for j in range(0, row, 64):
        v, o = load_u8(codes + j), 64 + 2 * j
        # The same keys of the next block: the scan is a stream.
        prefetch(codes + j + (8 * row + 128))
        a = _add4(a, queries, o, low_places(v))
        a = _add4(a, queries, o + 64, high_places(v))
    _store4(a, load_u4m4(block + 8 * row + 16 * i), out)


@njit(**JIT)
def estimate8(block: Any, i: Any, row: Any, bits: Any, queries: Any, out: Any) -> None:
    """As `estimate4`, for eight queries: codes are loaded and taken apart once for all."""
    q0, q1, q2, q3, q4, q5, q6, q7 = queries
    first, second, zero = (q0, q1, q2, q3), (q4, q5, q6, q7), splat_i32(_BASE_BITS)
    codes = block + row * i
    a = b = (zero, zero, zero, zero)
    for j in range(0, row, 64):
        v, o = load_u8(codes + j), 64 + 2 * j
        prefetch(codes + j + (8 * row + 128))
        low, high = low_places(v), high_places(v)
        a, b = _add4(a, first, o, low), _add4(b, second, o, low)
        a, b = _add4(a, first, o + 64, high), _add4(b, second, o + 64, high)
    scales = load_u4m4(block + 8 * row + 16 * i)
    _store4(a, scales, out)
    _store4(b, scales, out + 2048)
