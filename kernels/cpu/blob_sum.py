"""XXH3 (64 bits, no seed) of an expert's blob: the checksum that the packed file states of it.

Eight accumulators take a stripe of 64 bytes at a time and are scrambled every 1024 bytes. Only
inputs longer than SHORT_BYTES, which XXH3 treats alike. Oracle: the xxhash package.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import load_scalar_i64
from .system_calls import JIT

# Inputs up to this length take another way in XXH3.
SHORT_BYTES = 240

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
# The secret as a stripe sees it from a byte on: one word further per stripe of a block.
_WORDS = np.frombuffer(_SECRET, "<u8")
_LAST_WORDS = np.frombuffer(_SECRET[121:185], "<u8")
_MERGE_WORDS = np.frombuffer(_SECRET[11:75], "<u8")
_SCRAMBLE_AT = 16

_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63)
_P64_5 = 0x27D4EB2F165667C5
_START = np.array([_P32_3, *_P64, _P32_2, _P64_5, _P32_1], np.uint64)
_PRIME, _FACTOR = np.uint64(_P64[0]), np.uint64(_P32_1)
_AVALANCHE = np.uint64(0x165667919E3779F9)
_LOW = np.uint64(0xFFFFFFFF)
_32, _37, _47 = np.uint64(32), np.uint64(37), np.uint64(47)

_STRIPE, _STRIPES = 64, 16


@njit(**JIT)
def _word(address: Any) -> Any:
    return np.uint64(load_scalar_i64(address))


@njit(**JIT)
def _product(data: Any, key: Any) -> Any:
    x = data ^ key
    return (x & _LOW) * (x >> _32)


@njit(**JIT)
def _accumulate(s: Any, p: Any, k: Any, at: Any) -> Any:
    """The accumulators s (eight uint64) after a stripe at p, with the secret k[at]…"""
    d0, d1, d2, d3 = _word(p), _word(p + 8), _word(p + 16), _word(p + 24)
    d4, d5, d6, d7 = _word(p + 32), _word(p + 40), _word(p + 48), _word(p + 56)
    return (
        s[0] + d1 + _product(d0, k[at]),
        s[1] + d0 + _product(d1, k[at + 1]),
        s[2] + d3 + _product(d2, k[at + 2]),
        s[3] + d2 + _product(d3, k[at + 3]),
        s[4] + d5 + _product(d4, k[at + 4]),
        s[5] + d4 + _product(d5, k[at + 5]),
        s[6] + d7 + _product(d6, k[at + 6]),
        s[7] + d6 + _product(d7, k[at + 7]),
    )


@njit(**JIT)
def _scrambled(x: Any, key: Any) -> Any:
    return (x ^ (x >> _47) ^ key) * _FACTOR


@njit(**JIT)
def _folded(x: Any, y: Any) -> Any:
    """Both halves of the 128-bit product of two uint64, one xored into the other."""
    a, b, c, d = x & _LOW, x >> _32, y & _LOW, y >> _32
    low, high = a * c, b * d
    cross = (low >> _32) + ((b * c) & _LOW) + a * d
    top = high + ((b * c) >> _32) + (cross >> _32)
    return top ^ ((cross << _32) | (low & _LOW))


@njit(**JIT)
def blob_sum(address: Any, n_bytes: Any) -> Any:
    """uint64 XXH3 of n_bytes (more than SHORT_BYTES) at address."""
    k = _WORDS
    s = (
        _START[0],
        _START[1],
        _START[2],
        _START[3],
        _START[4],
        _START[5],
        _START[6],
        _START[7],
    )
    n_stripes = (n_bytes - 1) // _STRIPE
    for i in range(n_stripes):
        s = _accumulate(s, address + _STRIPE * i, k, i % _STRIPES)
        if i % _STRIPES == _STRIPES - 1:
            s = (
                _scrambled(s[0], k[_SCRAMBLE_AT]),
                _scrambled(s[1], k[_SCRAMBLE_AT + 1]),
                _scrambled(s[2], k[_SCRAMBLE_AT + 2]),
                _scrambled(s[3], k[_SCRAMBLE_AT + 3]),
                _scrambled(s[4], k[_SCRAMBLE_AT + 4]),
                _scrambled(s[5], k[_SCRAMBLE_AT + 5]),
                _scrambled(s[6], k[_SCRAMBLE_AT + 6]),
                _scrambled(s[7], k[_SCRAMBLE_AT + 7]),
            )
    s = _accumulate(s, address + n_bytes - _STRIPE, _LAST_WORDS, 0)
    total, m = np.uint64(n_bytes) * _PRIME, _MERGE_WORDS
    total += _folded(s[0] ^ m[0], s[1] ^ m[1])
    total += _folded(s[2] ^ m[2], s[3] ^ m[3])
    total += _folded(s[4] ^ m[4], s[5] ^ m[5])
    total += _folded(s[6] ^ m[6], s[7] ^ m[7])
    total = (total ^ (total >> _37)) * _AVALANCHE
    return total ^ (total >> _32)
