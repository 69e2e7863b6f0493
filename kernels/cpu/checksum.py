"""Checksum of a cell of keys and values: fast enough to verify every read.

64 lanes of uint32, each a polynomial in an odd factor over every 64th word; the lanes are folded by
a second polynomial with the seed and the length in front. Every step is a bijection of the words it
takes, so that one changed word changes the sum. Not cryptographic.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from .sync import as_pointer

JIT = {"nogil": True, "error_model": "numpy"}

LANES = 64
_FACTOR = np.uint32(0x9E3779B1)
_FOLD = np.uint32(0x85EBCA77)


@njit(**JIT)
def cell_sum(address: Any, n_bytes: Any, seed: Any) -> Any:
    """uint32 sum of n_bytes (a multiple of 256) at address; seed: uint64."""
    words = carray(as_pointer(address), n_bytes >> 2, np.uint32)
    lanes = np.empty(LANES, np.uint32)
    for j in range(LANES):
        lanes[j] = np.uint32(j)
    for i in range(0, n_bytes >> 2, LANES):
        for j in range(LANES):
            lanes[j] = np.uint32(lanes[j] * _FACTOR + words[i + j])
    total = np.uint32(seed) * _FOLD + np.uint32(np.uint64(seed) >> np.uint64(32))
    total = np.uint32(total * _FOLD + np.uint32(n_bytes))
    for j in range(LANES):
        x = lanes[j]
        x ^= x >> np.uint32(15)
        total = np.uint32(total * _FOLD + x)
    total ^= total >> np.uint32(16)
    return total
