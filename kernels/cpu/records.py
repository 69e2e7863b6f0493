"""Records of keys and values: where they lie, and storing a token.

Group = 8 tokens of one KV head, a record: keys and values adjacent, float16 or int8, as
docs/format.md has it:
    keys    [D][8 tokens], so that two dimensions of 8 keys fill a vector
    values  [8 tokens][D]
A cell is two groups of a KV head, one after the other; a table holds the addresses of a KV head's
cells. Beside int8 lie the KV head's scales, float16 [groups][16]: of a group's 8 keys, then of its
8 values; their address is 0 where records are float16.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    absolute,
    load_f32,
    load_i8_as_i32,
    load_scalar_f32,
    load_scalar_i64,
    load_scalar_u8,
    maximum,
    mul,
    reduce_max,
    round_to_i32,
    splat_f32,
    store_as_i8,
    store_scalar_u8,
    sub,
    to_f32,
)
from .simd_half import load_f16, load_scalar_f16, store_f16, store_scalar_f16
from .simd_lanes import low_halves

JIT = {"nogil": True, "error_model": "numpy"}

GROUP_TOKENS = 8
CHUNK_TOKENS = 64
# Bytes of a group's scales, and where those of its values begin.
SCALE_BYTES = 32
VALUE_SCALES = 16
# The least scale: the smallest normal float16. Half the step beneath it is less than 1 / 127.
_LEAST = np.float32(2.0**-14)


@njit(**JIT)
def record_bytes(scales: Any, head_dim: Any) -> Any:
    """Bytes of a record."""
    return 32 * head_dim if scales == 0 else 16 * head_dim


@njit(**JIT)
def record(cells: Any, scales: Any, group: Any, head_dim: Any) -> Any:
    """Address of the record of a group (counted from position 0).

    cells: address of a KV head's table: int64 addresses of its cells, two groups each.
    """
    inside = (group & 1) * record_bytes(scales, head_dim)
    return load_scalar_i64(cells + 8 * (group >> 1)) + inside


@njit(**JIT)
def group_scales(scales: Any, group: Any) -> Any:
    """Address of the scales of a group; 0 where records are float16."""
    return scales + SCALE_BYTES * group if scales != 0 else np.int64(0)


@njit(**JIT)
def key_scales(scale: Any) -> Any:
    """The scales of a group's 8 keys, twice."""
    x = load_f16(scale)
    return low_halves(x, x)


@njit(**JIT)
def load_code(p: Any, scale: Any) -> Any:
    """16 int8 times their scales."""
    return mul(to_f32(load_i8_as_i32(p)), scale)


@njit(**JIT)
def _store_codes(x: Any, head_dim: Any, scale: Any, out: Any) -> None:
    """int8 codes of a float32 [D], and its scale: max|x| / 127 as float16."""
    top = splat_f32(np.float32(0))
    for d in range(0, 4 * head_dim, 64):
        top = maximum(top, absolute(load_f32(x + d)))
    most = max(reduce_max(top) / np.float32(127), _LEAST)
    store_scalar_f16(scale, most)
    inverse = splat_f32(np.float32(1) / load_scalar_f16(scale))
    zero, least = splat_f32(np.float32(0)), splat_f32(np.float32(-127))
    for d in range(0, head_dim, 16):
        # Past 127 lies only what the largest scale cannot reach.
        held = maximum(mul(load_f32(x + 4 * d), inverse), least)
        held = sub(zero, maximum(sub(zero, held), least))
        store_as_i8(out + d, round_to_i32(held))


@njit(**JIT)
def append(cells: Any, scales: Any, position: Any, head_dim: Any, k: Any, v: Any) -> None:
    """Store the rotated key and the value (float32 [D]) of a position."""
    base = record(cells, scales, position >> 3, head_dim)
    t = position & 7
    if scales != 0:
        scale, row = group_scales(scales, position >> 3) + 2 * t, base + head_dim * (8 + t)
        # The key's codes lie where the value's come to lie, on their way to every eighth byte.
        _store_codes(k, head_dim, scale, row)
        for d in range(head_dim):
            store_scalar_u8(base + 8 * d + t, load_scalar_u8(row + d))
        _store_codes(v, head_dim, scale + VALUE_SCALES, row)
        return
    for d in range(head_dim):
        store_scalar_f16(base + 16 * d + 2 * t, load_scalar_f32(k + 4 * d))
    row = base + 16 * head_dim + 2 * head_dim * t
    for d in range(0, head_dim, 16):
        store_f16(row + 2 * d, load_f32(v + 4 * d))
