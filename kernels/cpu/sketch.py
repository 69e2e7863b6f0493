"""Key sketches: two bits per dimension of every rotated key, and the scores they estimate.

A key k is turned by a fixed orthogonal matrix R (signs, then Walsh-Hadamard), which spreads it over
all dimensions; y = R k is stored on the grid {-1.5, -0.5, 0.5, 1.5} x 1.25 mean|y| (the family of
RaBitQ, arXiv 2405.12497; the choice is measured in docs/method.md). q.k is then estimated from the
int8 codes of R q. A block holds 128 tokens of one KV head, 16 groups of 8, one group to a lane:
    codes   uint32 [8 i][D/16 j][16 groups] of the i-th tokens of the groups: dimension
            16 j + 4 s + b at bits 8 b + 2 s
    scales  uint8 [8 i][16 groups], four bits of exponent and four of fraction (simd_half.py)
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .simd import (
    absolute,
    add,
    add_i32,
    exp_coarse,
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
    shift_right_2,
    shift_right_4,
    shift_right_6,
    splat_f32,
    splat_i32,
    store_as_i8,
    store_f32,
    store_scalar_f32,
    store_scalar_i32,
    store_scalar_u8,
    sub,
    to_f32,
)
from .simd_bits import bits_of_float, float_of_bits
from .simd_bytes import bit_pair_0, bit_pair_2, bit_pair_4, bit_pair_6, dot_u8i8
from .simd_half import load_u4m4

JIT = {"nogil": True, "error_model": "numpy"}

GROUP_TOKENS = 8
BLOCK_GROUPS = 16
BLOCK_TOKENS = BLOCK_GROUPS * GROUP_TOKENS

# Step of the grid in units of mean|y|: least squares for normally distributed y.
STEP = np.float32(1.25)
MAX_HEAD_DIM = 512


def _random_signs() -> NDArray[np.float32]:
    """Fixed pseudo-random signs: bit 40 of a multiplicative sequence."""
    i = np.arange(1, MAX_HEAD_DIM + 1, dtype=np.uint64)
    bits = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(bits & np.uint64(1), np.float32(-1), np.float32(1)).astype(np.float32)


SIGNS = _random_signs()


@njit(**JIT)
def block_bytes(head_dim: Any) -> Any:
    """Bytes of the sketches of 128 tokens of a KV head."""
    return 32 * head_dim + BLOCK_TOKENS


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
def _scale_code(scale: Any) -> Any:
    """The nearest of the scales that a byte can say, as that byte."""
    if scale <= 0:
        return 0
    # The fraction is rounded to four bits; 119 is the unit of simd_half.U4M4_UNIT.
    code = ((np.int64(bits_of_float(scale)) + (1 << 18)) >> 19) - 16 * 119
    return min(max(code, 16), 255)


@njit(**JIT)
def write_key(block: Any, token: Any, y: Any, head_dim: Any) -> None:
    """Store the sketch of a turned key y (float32 [D]) as token 0..127 of a block."""
    total = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        total = add(total, absolute(load_f32(y + i)))
    byte = _scale_code(STEP * reduce_add(total) / np.float32(head_dim))
    inverse = np.float32(0)
    if byte > 0:
        inverse = np.float32(1) / float_of_bits(np.int32((byte << 19) + (119 << 23)))
    lane, i = token >> 3, token & 7
    codes = block + 4 * head_dim * i + 4 * lane
    for j in range(head_dim // 16):
        word = np.uint32(0)
        for d in range(16):
            value = math.floor(load_scalar_f32(y + 64 * j + 4 * d) * inverse)
            code = np.uint32(min(max(value + 2, 0), 3))
            word |= code << np.uint32(8 * (d & 3) + 2 * (d >> 2))
        store_scalar_i32(codes + 64 * j, np.int32(word))
    store_scalar_u8(block + 32 * head_dim + BLOCK_GROUPS * i + lane, byte)


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
def _estimate(a: Any, b: Any, c: Any, d: Any, q: Any, head_dim: Any, scales: Any) -> Any:
    """Estimated q.k of 16 keys from the products of their codes, which stand at bits 0, 2, 4, 6."""
    dot = add_i32(add_i32(a, shift_right_2(b)), add_i32(shift_right_4(c), shift_right_6(d)))
    centred = sub(to_f32(dot), splat_f32(load_scalar_f32(q + head_dim + 4)))
    return mul(centred, mul(scales, splat_f32(load_scalar_f32(q + head_dim))))


@njit(**JIT)
def estimate4(
    block: Any, i: Any, head_dim: Any, q0: Any, q1: Any, q2: Any, q3: Any, out: Any
) -> None:
    """Estimated q.k of the i-th keys of a block's groups for four queries (from `write_query`).

    Writes float32 [16 groups] at out, 512 bytes further for every next query.
    """
    codes, zero = block + 4 * head_dim * i, splat_i32(np.int32(0))
    # The codes are multiplied where they stand in their bytes; a sum for each place.
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
    for j in range(head_dim // 16):
        v, o = load_u8(codes + 64 * j), 16 * j
        u = bit_pair_0(v)
        a0 = dot_u8i8(a0, u, load_splat_i32(q0 + o))
        b0 = dot_u8i8(b0, u, load_splat_i32(q1 + o))
        c0 = dot_u8i8(c0, u, load_splat_i32(q2 + o))
        d0 = dot_u8i8(d0, u, load_splat_i32(q3 + o))
        u = bit_pair_2(v)
        a1 = dot_u8i8(a1, u, load_splat_i32(q0 + o + 4))
        b1 = dot_u8i8(b1, u, load_splat_i32(q1 + o + 4))
        c1 = dot_u8i8(c1, u, load_splat_i32(q2 + o + 4))
        d1 = dot_u8i8(d1, u, load_splat_i32(q3 + o + 4))
        u = bit_pair_4(v)
        a2 = dot_u8i8(a2, u, load_splat_i32(q0 + o + 8))
        b2 = dot_u8i8(b2, u, load_splat_i32(q1 + o + 8))
        c2 = dot_u8i8(c2, u, load_splat_i32(q2 + o + 8))
        d2 = dot_u8i8(d2, u, load_splat_i32(q3 + o + 8))
        u = bit_pair_6(v)
        a3 = dot_u8i8(a3, u, load_splat_i32(q0 + o + 12))
        b3 = dot_u8i8(b3, u, load_splat_i32(q1 + o + 12))
        c3 = dot_u8i8(c3, u, load_splat_i32(q2 + o + 12))
        d3 = dot_u8i8(d3, u, load_splat_i32(q3 + o + 12))
    scales = load_u4m4(block + 32 * head_dim + BLOCK_GROUPS * i)
    store_f32(out, _estimate(a0, a1, a2, a3, q0, head_dim, scales))
    store_f32(out + 512, _estimate(b0, b1, b2, b3, q1, head_dim, scales))
    store_f32(out + 1024, _estimate(c0, c1, c2, c3, q2, head_dim, scales))
    store_f32(out + 1536, _estimate(d0, d1, d2, d3, q3, head_dim, scales))


@njit(**JIT)
def log_mass(logits: Any) -> Any:
    """Logarithm of the sum of e^x over the tokens of 16 groups; logits float32 [8 i][16 groups]."""
    top = load_f32(logits)
    for i in range(64, 512, 64):
        top = maximum(load_f32(logits + i), top)
    total = splat_f32(np.float32(0))
    for i in range(0, 512, 64):
        total = add(total, exp_coarse(sub(load_f32(logits + i), top)))
    # The largest key alone gives 0.97: the logarithm is made for values from 1.
    return add(top, sub(log(add(total, total)), splat_f32(np.float32(math.log(2)))))


@njit(**JIT)
def score_block(
    block: Any,
    n_tokens: Any,
    head_dim: Any,
    q: Any,
    q_step: Any,
    n_rows: Any,
    out: Any,
    out_row: Any,
    spare: Any,
) -> None:
    """Estimated log mass of the 16 groups of a block for n_rows query heads (natural logarithm).

    q: queries of `write_query`, q_step bytes apart; the first n_tokens of the block count, a group
    without any gets about -1e30. Writes float32 [16] at out, out_row bytes further for every next
    row. spare: scratch of 2048 bytes.
    """
    last = n_rows - 1
    for r in range(0, n_rows, 4):
        q0, q1 = q + r * q_step, q + min(r + 1, last) * q_step
        q2, q3 = q + min(r + 2, last) * q_step, q + min(r + 3, last) * q_step
        for i in range(GROUP_TOKENS):
            estimate4(block, i, head_dim, q0, q1, q2, q3, spare + 64 * i)
        if n_tokens < BLOCK_TOKENS:
            for i in range(4 * GROUP_TOKENS):
                seen = np.int32((n_tokens - (i & 7) + 7) >> 3)
                at = spare + 64 * i
                store_f32(at, mask_lanes(load_f32(at), np.float32(-1e30), np.int32(0), seen))
        for i in range(min(4, n_rows - r)):
            store_f32(out + (r + i) * out_row, log_mass(spare + 512 * i))
