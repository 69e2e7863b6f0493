"""Key sketches: two bits per dimension of every rotated key, or one, and the scores they estimate.

A key k is turned by a fixed orthogonal matrix R (signs, then Walsh-Hadamard), which spreads it over
all dimensions; y = R k is stored on the grid {-1.5, -0.5, 0.5, 1.5} x 1.25 mean|y|, or by its signs
(the family of RaBitQ, arXiv 2405.12497; the choice is measured in docs/routing-arms.md). q.k is
then estimated from R q by tables (sketch_tables.py) or by products of codes (sketch_codes.py). A
block holds 128 tokens of one KV head, 16 groups of 8, one group to a lane:
    codes   uint32 [8 i][D/16 j][16 groups] of the i-th tokens of the groups: dimension
            16 j + 4 s + b at bits 8 b + 2 s; or [8 i][D/32 j]…, 32 j + 4 s + b at bit 8 b + s
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
    fma,
    load_f32,
    load_scalar_f32,
    mask_lanes,
    maximum,
    mul,
    reduce_add,
    splat_f32,
    store_f32,
    store_scalar_f32,
    store_scalar_i32,
    store_scalar_u8,
    sub,
)
from .simd_bits import (
    LOG2_E,
    LOG_2,
    OCTAVE_BITS,
    ONE_BITS,
    bits_of_float,
    coarse_log,
    coarse_power,
    coarse_power_near,
    float_of_bits,
    nearest,
)
from .simd_bytes import largest_of_128_bytes
from .target import has_byte_tables

if has_byte_tables():
    from .sketch_tables import estimate4, estimate8
    from .sketch_tables import write_query as write_query
else:
    from .sketch_codes import estimate4, estimate8
    from .sketch_codes import write_query as write_query

JIT = {"nogil": True, "error_model": "numpy"}

GROUP_TOKENS = 8
BLOCK_GROUPS = 16
BLOCK_TOKENS = BLOCK_GROUPS * GROUP_TOKENS

# Step of the grid in units of mean|y|: least squares for normally distributed y.
STEP = np.float32(1.25)
MAX_HEAD_DIM = 512

# Eight powers e^x, and their sum, are normal floats where |x| is no more than this.
NEAR = np.float32(84)


def _random_signs() -> NDArray[np.float32]:
    """Fixed pseudo-random signs: bit 40 of a multiplicative sequence."""
    i = np.arange(1, MAX_HEAD_DIM + 1, dtype=np.uint64)
    bits = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(bits & np.uint64(1), np.float32(-1), np.float32(1)).astype(np.float32)


SIGNS = _random_signs()


@njit(**JIT)
def row_bytes(head_dim: Any, bits: Any) -> Any:
    """Bytes of the codes of 16 keys, one of every group of a block."""
    return 2 * head_dim * bits


@njit(**JIT)
def block_bytes(head_dim: Any, bits: Any) -> Any:
    """Bytes of the sketches of 128 tokens of a KV head."""
    return GROUP_TOKENS * row_bytes(head_dim, bits) + BLOCK_TOKENS


def query_bytes(head_dim: int) -> int:
    """Room for what `write_query` makes of a query."""
    return 8 * head_dim + 64


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
def scale_bits(byte: Any) -> Any:
    """Bits of the float32 that a scale's byte says, if it is not 0."""
    return np.int32((byte << 19) + (119 << 23))


@njit(**JIT)
def write_key(block: Any, token: Any, y: Any, head_dim: Any, bits: Any) -> None:
    """Store the sketch of a turned key y (float32 [D]) as token 0..127 of a block."""
    total = square = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        v = load_f32(y + i)
        total, square = add(total, absolute(v)), fma(v, v, square)
    sum_abs = reduce_add(total)
    scale = STEP * sum_abs / np.float32(head_dim)
    if bits == 1:
        # With this length the signs have the right product with the key itself.
        scale = reduce_add(square) / sum_abs if sum_abs > 0 else np.float32(0)
    byte = _scale_code(scale)
    inverse = np.float32(0)
    if byte > 0:
        inverse = np.float32(1) / float_of_bits(scale_bits(byte))
    lane, i, row = token >> 3, token & 7, row_bytes(head_dim, bits)
    codes, per_word = block + row * i + 4 * lane, 32 // bits
    for j in range(head_dim // per_word):
        word = np.uint32(0)
        for d in range(per_word):
            value = load_scalar_f32(y + 4 * (per_word * j + d))
            if bits == 1:
                code = np.uint32(1) if value >= 0 else np.uint32(0)
            else:
                code = np.uint32(min(max(math.floor(value * inverse) + 2, 0), 3))
            word |= code << np.uint32(8 * (d & 3) + bits * (d >> 2))
        store_scalar_i32(codes + 64 * j, np.int32(word))
    store_scalar_u8(block + GROUP_TOKENS * row + BLOCK_GROUPS * i + lane, byte)


@njit(**JIT)
def log_mass(estimates: Any, unit: Any) -> Any:
    """Logarithm of the sum of e^x over the tokens of 16 groups, by coarse powers of two.

    estimates: float32 [8 i][16 groups] in units of `unit`. `routing.pool_shares` undoes the
    logarithm: what is coarse is e^x alone.
    """
    top = load_f32(estimates)
    for i in range(64, 512, 64):
        top = maximum(load_f32(estimates + i), top)
    octave = np.float32(unit * LOG2_E)
    # Sums are moved by whole octaves, which changes none of their digits.
    whole = nearest(mul(top, splat_f32(octave)))
    step = splat_f32(octave * np.float32(OCTAVE_BITS))
    offset = fma(whole, splat_f32(np.float32(-OCTAVE_BITS)), splat_f32(np.float32(ONE_BITS)))
    total = coarse_power(load_f32(estimates), step, offset)
    for i in range(64, 512, 64):
        total = add(total, coarse_power(load_f32(estimates + i), step, offset))
    return mul(add(coarse_log(total), whole), splat_f32(LOG_2))


@njit(**JIT)
def log_mass_near(estimates: Any, unit: Any) -> Any:
    """The same, where no estimate is beyond -NEAR..NEAR: nothing needs to be moved or held."""
    step = splat_f32(np.float32(unit * LOG2_E) * np.float32(OCTAVE_BITS))
    offset = splat_f32(np.float32(ONE_BITS))
    total = coarse_power_near(load_f32(estimates), step, offset)
    for i in range(64, 512, 64):
        total = add(total, coarse_power_near(load_f32(estimates + i), step, offset))
    return mul(coarse_log(total), splat_f32(LOG_2))


@njit(**JIT)
def score_block(
    block: Any,
    n_tokens: Any,
    head_dim: Any,
    bits: Any,
    q: Any,
    q_step: Any,
    n_rows: Any,
    out: Any,
    out_row: Any,
    spare: Any,
) -> None:
    """Estimated log mass of the 16 groups of a block for n_rows query heads (natural logarithm).

    q: queries of `write_query`, q_step bytes apart; the first n_tokens of the block count, a group
    without any gets -1e30. Writes float32 [16] at out, out_row bytes further for every next row.
    spare: scratch of 4096 bytes.
    """
    last, row, full = n_rows - 1, row_bytes(head_dim, bits), n_tokens >= BLOCK_TOKENS
    largest = float_of_bits(scale_bits(largest_of_128_bytes(block + GROUP_TOKENS * row)))
    for r in range(0, n_rows, 8):
        q0, q1 = q + r * q_step, q + min(r + 1, last) * q_step
        q2, q3 = q + min(r + 2, last) * q_step, q + min(r + 3, last) * q_step
        if n_rows - r > 4:
            q4, q5 = q + min(r + 4, last) * q_step, q + min(r + 5, last) * q_step
            q6, q7 = q + min(r + 6, last) * q_step, q + min(r + 7, last) * q_step
            for i in range(GROUP_TOKENS):
                queries = (q0, q1, q2, q3, q4, q5, q6, q7)
                estimate8(block, i, row, bits, queries, spare + 64 * i)
        else:
            for i in range(GROUP_TOKENS):
                estimate4(block, i, row, bits, (q0, q1, q2, q3), spare + 64 * i)
        for k in range(min(8, n_rows - r)):
            head, estimates = q + (r + k) * q_step, spare + 512 * k
            unit, reach = load_scalar_f32(head), load_scalar_f32(head + 4)
            if not full:
                masses = _partial_log_mass(estimates, n_tokens, unit)
            elif reach * largest <= NEAR:
                masses = log_mass_near(estimates, unit)
            else:
                masses = log_mass(estimates, unit)
            store_f32(out + (r + k) * out_row, masses)


@njit(**JIT)
def _partial_log_mass(estimates: Any, n_tokens: Any, unit: Any) -> Any:
    """`log_mass` of the first n_tokens of a block; estimates of the others are overwritten."""
    for i in range(GROUP_TOKENS):
        seen = np.int32((n_tokens - i + 7) >> 3)
        at = estimates + 64 * i
        store_f32(at, mask_lanes(load_f32(at), np.float32(-1e30), np.int32(0), seen))
    n_groups = np.int32((n_tokens + 7) >> 3)
    return mask_lanes(log_mass(estimates, unit), np.float32(-1e30), np.int32(0), n_groups)
