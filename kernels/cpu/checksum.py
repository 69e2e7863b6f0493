"""Checksum of a cell of keys and values: fast enough to verify every read.

64 lanes of uint32 take every 64th word each, by the round of xxHash32; the lanes are mixed together
the same way, 16 at a time, and then into the length and the seed. With one argument held, a round
is a bijection of the other, so that one changed word changes the sum. A word is spread over the
high bits before it is added: one flipped bit cannot undo another. Not cryptographic. In numpy:
kernels/reference/checksum.py.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import load_i32, load_scalar_i32, store_i32
from .simd_bits import count_lanes_from, mix_i32
from .system_calls import JIT, stack

SPREAD, FACTOR = np.uint32(0x85EBCA77), np.uint32(0x9E3779B1)
_SPREAD_I32, _FACTOR_I32 = SPREAD.astype(np.int32), FACTOR.astype(np.int32)

_lanes = stack(64)


@njit(**JIT)
def _mix(x: Any, y: Any) -> Any:
    x = np.uint32(np.uint32(x) + np.uint32(np.uint32(y) * SPREAD))
    rotated = np.uint32(x << np.uint32(13)) | np.uint32(x >> np.uint32(19))
    return np.uint32(rotated * FACTOR)


@njit(**JIT)
def _mix_lanes(x: Any, y: Any) -> Any:
    return mix_i32(x, y, _SPREAD_I32, _FACTOR_I32)


@njit(**JIT)
def cell_sum(address: Any, n_bytes: Any, seed: Any) -> Any:
    """uint32 sum of n_bytes (a multiple of 256) at address; seed: uint64, or its bits as int64."""
    # Four vectors: one waits ten cycles for its product.
    a, b = count_lanes_from(np.int32(0)), count_lanes_from(np.int32(16))
    c, d = count_lanes_from(np.int32(32)), count_lanes_from(np.int32(48))
    for i in range(0, n_bytes, 256):
        a = _mix_lanes(a, load_i32(address + i))
        b = _mix_lanes(b, load_i32(address + i + 64))
        c = _mix_lanes(c, load_i32(address + i + 128))
        d = _mix_lanes(d, load_i32(address + i + 192))
    lanes = _lanes()
    store_i32(lanes, _mix_lanes(_mix_lanes(_mix_lanes(a, b), c), d))
    total = _mix(_mix(np.uint32(n_bytes), seed), np.uint64(seed) >> np.uint64(32))
    for j in range(16):
        total = _mix(total, load_scalar_i32(lanes + 4 * j))
    total ^= total >> np.uint32(15)
    total = np.uint32(total * SPREAD)
    return total ^ (total >> np.uint32(13))
