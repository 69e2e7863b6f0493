"""Checksum of a cell of keys and values (kernels/cpu/checksum.py)."""

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]

LANES = 64
_MASK = (1 << 32) - 1
_SPREAD, _FACTOR = np.uint32(0x85EBCA77), np.uint32(0x9E3779B1)


def _mix(x: U32, y: U32) -> U32:
    x = x + y * _SPREAD
    return ((x << np.uint32(13)) | (x >> np.uint32(19))) * _FACTOR


def cell_sum(data: bytes | NDArray[np.uint8], seed: int) -> int:
    """uint32 sum of a multiple of 256 bytes; seed: uint64."""
    words = np.frombuffer(data, "<u4").reshape(-1, LANES)
    lanes = np.arange(LANES, dtype=np.uint32)
    for row in words:
        lanes = _mix(lanes, row)
    a, b, c, d = lanes.reshape(4, 16)
    head = [4 * words.size & _MASK, seed & _MASK, seed >> 32]
    total, *rest = np.array([*head, *_mix(_mix(_mix(a, b), c), d)], np.uint32)[:, None]
    for word in rest:
        total = _mix(total, word)
    total ^= total >> np.uint32(15)
    total *= _SPREAD
    return int((total ^ (total >> np.uint32(13)))[0])
