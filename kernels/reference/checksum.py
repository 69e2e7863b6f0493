"""Checksum of a cell of keys and values (kernels/cpu/checksum.py)."""

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

LANES = 64
_MASK = (1 << 32) - 1
# Cells whose lanes stay in a core's cache.
_AT_A_TIME = 128
_SPREAD, _FACTOR = np.uint32(0x85EBCA77), np.uint32(0x9E3779B1)


def _mix(x: U32, y: U32) -> U32:
    x = x + y * _SPREAD
    return ((x << np.uint32(13)) | (x >> np.uint32(19))) * _FACTOR


def cell_sum(data: bytes | NDArray[np.uint8], seed: int) -> int:
    """uint32 sum of a multiple of 256 bytes; seed: uint64."""
    cell = np.frombuffer(data, np.uint8)[None]
    return int(cell_sums(cell, np.array([seed], np.uint64))[0])


def cell_sums(data: NDArray[np.uint8], seeds: U64) -> U32:
    """Sums [n] of cells [n, bytes], a multiple of 256, side by side; seeds [n]."""
    sums = np.empty(len(data), np.uint32)
    for first in range(0, len(data), _AT_A_TIME):
        part = slice(first, first + _AT_A_TIME)
        sums[part] = _sums(data[part].view("<u4"), seeds[part])
    return sums


def _sums(words: U32, seeds: U64) -> U32:
    n = len(words)
    rows = words.reshape(n, -1, LANES)
    lanes = np.broadcast_to(np.arange(LANES, dtype=np.uint32), (n, LANES)).copy()
    turned = np.empty_like(lanes)
    for i in range(rows.shape[1]):
        # As `_mix`, in place.
        np.multiply(rows[:, i], _SPREAD, out=turned)
        lanes += turned
        np.right_shift(lanes, np.uint32(19), out=turned)
        np.left_shift(lanes, np.uint32(13), out=lanes)
        lanes |= turned
        lanes *= _FACTOR
    a, b, c, d = lanes.reshape(n, 4, 16).transpose(1, 2, 0)
    total = np.full(n, 4 * words.shape[1] & _MASK, np.uint32)
    seed = seeds.astype(np.uint64)
    for word in (seed & np.uint64(_MASK), seed >> np.uint64(32)):
        total = _mix(total, word.astype(np.uint32))
    for word in _mix(_mix(_mix(a, b), c), d):
        total = _mix(total, word)
    total ^= total >> np.uint32(15)
    total *= _SPREAD
    return np.asarray(total ^ (total >> np.uint32(13)))
