"""Checksum of a cell of keys and values: fast enough to verify every read.

64 lanes of uint32 take every 64th word each, by `mix`; the lanes are mixed together, 16 at a time,
and then into the length and the seed. For one argument held, `mix` is a bijection of the other, so
that one changed word changes the sum; the rotation spreads the high bits, which a product alone
would leave where they are. Not cryptographic. In numpy: kernels/reference/checksum.py.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import load_i32, load_scalar_i32, store_i32
from .simd_bits import count_lanes_from, mix_i32
from .system_calls import JIT, stack

FACTOR = np.uint32(0x9E3779B1)
LAST_FACTOR = np.uint32(0x85EBCA77)
_FACTOR_I32 = FACTOR.astype(np.int32)

_lanes = stack(64)


@njit(**JIT)
def _mix(x: Any, y: Any) -> Any:
    x = np.uint32(x) ^ np.uint32(y)
    rotated = np.uint32(x << np.uint32(13)) | np.uint32(x >> np.uint32(19))
    return np.uint32(rotated * FACTOR)


@njit(**JIT)
def cell_sum(address: Any, n_bytes: Any, seed: Any) -> Any:
    """uint32 sum of n_bytes (a multiple of 256) at address; seed: uint64, or its bits as int64."""
    # Four vectors: one waits ten cycles for its product.
    a, b = count_lanes_from(np.int32(0)), count_lanes_from(np.int32(16))
    c, d = count_lanes_from(np.int32(32)), count_lanes_from(np.int32(48))
    for i in range(0, n_bytes, 256):
        a = mix_i32(a, load_i32(address + i), _FACTOR_I32)
        b = mix_i32(b, load_i32(address + i + 64), _FACTOR_I32)
        c = mix_i32(c, load_i32(address + i + 128), _FACTOR_I32)
        d = mix_i32(d, load_i32(address + i + 192), _FACTOR_I32)
    lanes = _lanes()
    a = mix_i32(mix_i32(mix_i32(a, b, _FACTOR_I32), c, _FACTOR_I32), d, _FACTOR_I32)
    store_i32(lanes, a)
    total = _mix(_mix(np.uint32(n_bytes), seed), np.uint64(seed) >> np.uint64(32))
    for j in range(16):
        total = _mix(total, load_scalar_i32(lanes + 4 * j))
    total ^= total >> np.uint32(15)
    total = np.uint32(total * LAST_FACTOR)
    return total ^ (total >> np.uint32(13))
