"""Key sketches: two bits per dimension of every rotated key, and the scores they estimate.

A key k is turned by a fixed orthogonal matrix R (signs, then Walsh-Hadamard), which spreads it over
all dimensions; y = R k is stored on the grid {-1.5, -0.5, 0.5, 1.5} x 1.25 mean|y| (the family of
RaBitQ, arXiv 2405.12497; the choice is measured in docs/method.md). q.k is then estimated from the
int8 codes of R q. A block holds 16 tokens of one KV head:
    codes   uint32 [D/16][16 tokens]: dimension 16 j + 4 s + b of word j at bits 8 b + 2 s
    scales  float16 [16 tokens]
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .simd import (
    absolute,
    add,
    exp,
    load_f32,
    load_scalar_f32,
    load_splat_i32,
    load_u8,
    log,
    mask_lanes,
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
    store_scalar_i32,
    sub,
    to_f32,
)
from .simd_bytes import dot_u8i8, two_bits_0, two_bits_2, two_bits_4, two_bits_6
from .simd_half import load_f16, store_scalar_f16

JIT = {"nogil": True, "error_model": "numpy"}

# Step of the grid in units of mean|y|: least squares for normally distributed y.
STEP = np.float32(1.25)
MAX_HEAD_DIM = 512
# Tokens of a block, the unit that routing scores and chooses.
SKETCH_GROUP = 16


def _random_signs() -> NDArray[np.float32]:
    """Fixed pseudo-random signs: bit 40 of a multiplicative sequence."""
    i = np.arange(1, MAX_HEAD_DIM + 1, dtype=np.uint64)
    bits = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(bits & np.uint64(1), np.float32(-1), np.float32(1)).astype(np.float32)


SIGNS = _random_signs()


@njit(**JIT)
def block_bytes(head_dim: Any) -> Any:
    """Bytes of the sketches of 16 tokens of a KV head."""
    return 4 * head_dim + 32


@njit(**JIT)
def rotate(x: Any, head_dim: Any, out: Any) -> None:
    """out = R x, float32 [D]: signs, then Walsh-Hadamard over the largest power of two in D."""
    size = head_dim & -head_dim
    for i in range(head_dim):
        store_scalar_f32(out + 4 * i, load_scalar_f32(x + 4 * i) * SIGNS[i])
    half = 1
    while half < size:
        for start in range(0, head_dim, 2 * half):
            if half >= 16:
                for i in range(start, start + half, 16):
                    a, b = load_f32(out + 4 * i), load_f32(out + 4 * (i + half))
                    store_f32(out + 4 * i, add(a, b))
                    store_f32(out + 4 * (i + half), sub(a, b))
            else:
                for i in range(start, start + half):
                    p, q = load_scalar_f32(out + 4 * i), load_scalar_f32(out + 4 * (i + half))
                    store_scalar_f32(out + 4 * i, p + q)
                    store_scalar_f32(out + 4 * (i + half), p - q)
        half *= 2
    norm = splat_f32(np.float32(1.0 / math.sqrt(size)))
    for i in range(0, 4 * head_dim, 64):
        store_f32(out + i, mul(load_f32(out + i), norm))


@njit(**JIT)
def write_key(block: Any, token: Any, y: Any, head_dim: Any) -> None:
    """Store the sketch of a turned key y (float32 [D]) in lane `token` of a block."""
    total = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        total = add(total, absolute(load_f32(y + i)))
    scale = STEP * reduce_add(total) / np.float32(head_dim)
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    for j in range(head_dim // 16):
        word = np.uint32(0)
        for i in range(16):
            value = math.floor(load_scalar_f32(y + 64 * j + 4 * i) * inverse)
            code = np.uint32(min(max(value + 2, 0), 3))
            word |= code << np.uint32(8 * (i & 3) + 2 * (i >> 2))
        store_scalar_i32(block + 64 * j + 4 * token, np.int32(word))
    store_scalar_f16(block + 4 * head_dim + 2 * token, scale)


@njit(**JIT)
def write_query(y: Any, head_dim: Any, out: Any) -> None:
    """int8 codes [D] of a turned query, then float32 scale and 1.5 times the sum of the codes."""
    top = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        top = maximum(absolute(load_f32(y + i)), top)
    scale = reduce_max(top) / np.float32(127)
    inverse = splat_f32(np.float32(1) / scale if scale > 0 else np.float32(0))
    total = 0
    for i in range(0, head_dim, 16):
        codes = round_to_i32(mul(load_f32(y + 4 * i), inverse))
        store_as_i8(out + i, codes)
        total += reduce_add_i32(codes)
    store_scalar_f32(out + head_dim, scale)
    store_scalar_f32(out + head_dim + 4, np.float32(1.5) * np.float32(total))


@njit(**JIT)
def _estimate(dot: Any, q: Any, head_dim: Any, scales: Any) -> Any:
    centred = sub(to_f32(dot), splat_f32(load_scalar_f32(q + head_dim + 4)))
    return mul(centred, mul(scales, splat_f32(load_scalar_f32(q + head_dim))))


@njit(**JIT)
def _fold(estimate: Any, visible: Any, m: Any, s: Any) -> None:
    """Maximum and exponential sum of the first `visible` of 16 estimated logits."""
    if visible < 16:
        estimate = mask_lanes(estimate, np.float32(-1e30), np.int32(0), np.int32(visible))
    top = reduce_max(estimate)
    store_scalar_f32(m, top)
    store_scalar_f32(s, reduce_add(exp(sub(estimate, splat_f32(top)))))


@njit(**JIT)
def estimate4(block: Any, head_dim: Any, q0: Any, q1: Any, q2: Any, q3: Any) -> Any:
    """Estimated q.k of the 16 keys of a block for four queries (from `write_query`)."""
    a = b = c = d = splat_i32(np.int32(0))
    for j in range(head_dim // 16):
        v, o = load_u8(block + 64 * j), 16 * j
        u = two_bits_0(v)
        a = dot_u8i8(a, u, load_splat_i32(q0 + o))
        b = dot_u8i8(b, u, load_splat_i32(q1 + o))
        c = dot_u8i8(c, u, load_splat_i32(q2 + o))
        d = dot_u8i8(d, u, load_splat_i32(q3 + o))
        u = two_bits_2(v)
        a = dot_u8i8(a, u, load_splat_i32(q0 + o + 4))
        b = dot_u8i8(b, u, load_splat_i32(q1 + o + 4))
        c = dot_u8i8(c, u, load_splat_i32(q2 + o + 4))
        d = dot_u8i8(d, u, load_splat_i32(q3 + o + 4))
        u = two_bits_4(v)
        a = dot_u8i8(a, u, load_splat_i32(q0 + o + 8))
        b = dot_u8i8(b, u, load_splat_i32(q1 + o + 8))
        c = dot_u8i8(c, u, load_splat_i32(q2 + o + 8))
        d = dot_u8i8(d, u, load_splat_i32(q3 + o + 8))
        u = two_bits_6(v)
        a = dot_u8i8(a, u, load_splat_i32(q0 + o + 12))
        b = dot_u8i8(b, u, load_splat_i32(q1 + o + 12))
        c = dot_u8i8(c, u, load_splat_i32(q2 + o + 12))
        d = dot_u8i8(d, u, load_splat_i32(q3 + o + 12))
    scales = load_f16(block + 4 * head_dim)
    return (
        _estimate(a, q0, head_dim, scales),
        _estimate(b, q1, head_dim, scales),
        _estimate(c, q2, head_dim, scales),
        _estimate(d, q3, head_dim, scales),
    )


@njit(**JIT)
def score_groups(
    sketches: Any,
    first: Any,
    n_tokens: Any,
    head_dim: Any,
    q: Any,
    q_step: Any,
    n_rows: Any,
    out: Any,
    out_row: Any,
    spare: Any,
) -> None:
    """Estimated log mass of the 16 groups first… for n_rows query heads (natural logarithm).

    sketches: blocks of one KV head; q: queries of `write_query`, q_step bytes apart; tokens at or
    beyond n_tokens do not count, a group without any gets about -1e30. Writes out[row][first…],
    rows out_row bytes apart. spare: scratch of 512 bytes.
    """
    size = block_bytes(head_dim)
    for r in range(0, n_rows, 4):
        last = n_rows - 1
        q0, q1 = q + r * q_step, q + min(r + 1, last) * q_step
        q2, q3 = q + min(r + 2, last) * q_step, q + min(r + 3, last) * q_step
        for g in range(16):
            visible = min(16, n_tokens - 16 * (first + g))
            e = estimate4(sketches + (first + g) * size, head_dim, q0, q1, q2, q3)
            at = spare + 4 * g
            _fold(e[0], visible, at, at + 256)
            _fold(e[1], visible, at + 64, at + 320)
            _fold(e[2], visible, at + 128, at + 384)
            _fold(e[3], visible, at + 192, at + 448)
        for i in range(min(4, n_rows - r)):
            mass = add(load_f32(spare + 64 * i), log(load_f32(spare + 256 + 64 * i)))
            store_f32(out + (r + i) * out_row + 4 * first, mass)
