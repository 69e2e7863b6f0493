"""Row operations between the products: norms, activations, quantisation, RoPE, embedding rows.

Vectors are float32 at int64 addresses, lengths multiples of 32 (head dimensions too), nothing is
allocated. Sums run over 16 lanes and are then folded by halves, on every machine alike.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from . import tiles
from .simd import (
    absolute,
    add,
    div,
    exp,
    fma,
    load_f32,
    load_scalar_f32,
    load_scalar_u8,
    maximum,
    mul,
    reduce_add,
    reduce_add_i32,
    reduce_max,
    round_to_i32,
    splat_f32,
    store_as_i8,
    store_f32,
    store_scalar_f32,
    store_scalar_i32,
    sub,
)
from .simd_half import E4M3_UNIT, load_scalar_bf16, load_scalar_e4m3, load_scalar_f16

JIT = {"nogil": True, "error_model": "numpy"}

SILU, GELU_TANH = 0, 1

# A scale whose reciprocal would be infinite: its block is zero.
TINY = np.float32(1e-38)


@njit(**JIT)
def rms_norm(x: Any, weight: Any, n: Any, eps: Any, out: Any) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight; out may be x."""
    acc = splat_f32(np.float32(0))
    for i in range(0, 4 * n, 64):
        v = load_f32(x + i)
        acc = fma(v, v, acc)
    mean = reduce_add(acc) / np.float32(n)
    r = splat_f32(np.float32(1) / np.float32(math.sqrt(mean + np.float32(eps))))
    for i in range(0, 4 * n, 64):
        store_f32(out + i, mul(mul(load_f32(x + i), r), load_f32(weight + i)))


@njit(**JIT)
def add_into(x: Any, y: Any, n: Any) -> None:
    """x += y, of any length."""
    whole = 4 * (n & ~15)
    for i in range(0, whole, 64):
        store_f32(x + i, add(load_f32(x + i), load_f32(y + i)))
    for i in range(whole, 4 * n, 4):
        store_scalar_f32(x + i, load_scalar_f32(x + i) + load_scalar_f32(y + i))


@njit(**JIT)
def add_scaled(x: Any, y: Any, factor: Any, n: Any) -> None:
    """x += factor * y."""
    f = splat_f32(np.float32(factor))
    for i in range(0, 4 * n, 64):
        store_f32(x + i, fma(load_f32(y + i), f, load_f32(x + i)))


@njit(**JIT)
def gated(gate: Any, up: Any, activation: Any, n: Any, out: Any) -> None:
    """out = act(gate) * up; SILU, or GELU by its tanh approximation."""
    one = splat_f32(np.float32(1))
    for i in range(0, 4 * n, 64):
        g = load_f32(gate + i)
        if activation == SILU:
            e = exp(sub(splat_f32(np.float32(0)), g))
        else:
            # x * (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
            inner = fma(mul(g, g), splat_f32(np.float32(0.044715)), one)
            e = exp(mul(mul(g, inner), splat_f32(np.float32(-1.5957691216057308))))
        store_f32(out + i, mul(div(g, add(one, e)), load_f32(up + i)))


@njit(**JIT)
def quantize(x: Any, n: Any, xq: Any, xs: Any, xsum: Any) -> None:
    """int8 codes per 32 values: scale max|x|/127 (0 for a zero block), sums of 16 codes."""
    for b in range(n // 32):
        p = x + 128 * b
        low, high = load_f32(p), load_f32(p + 64)
        top = reduce_max(maximum(absolute(low), absolute(high)))
        scale = top / np.float32(127)
        inverse = splat_f32(np.float32(1) / scale if scale > TINY else np.float32(0))
        c0, c1 = round_to_i32(mul(low, inverse)), round_to_i32(mul(high, inverse))
        store_as_i8(xq + 32 * b, c0)
        store_as_i8(xq + 32 * b + 16, c1)
        store_scalar_f32(xs + 4 * b, scale)
        store_scalar_i32(xsum + 8 * b, reduce_add_i32(c0))
        store_scalar_i32(xsum + 8 * b + 4, reduce_add_i32(c1))


@njit(**JIT)
def rope(x: Any, cos: Any, sin: Any, head_dim: Any, scale: Any) -> None:
    """Rotate the pairs (i, i + D/2) of one head in place, then multiply by scale.

    cos, sin: float32 [D/2] of the position.
    """
    half = 2 * head_dim
    s = splat_f32(np.float32(scale))
    for i in range(0, half, 64):
        a, b = load_f32(x + i), load_f32(x + half + i)
        c, d = load_f32(cos + i), load_f32(sin + i)
        store_f32(x + i, mul(s, sub(mul(a, c), mul(b, d))))
        store_f32(x + half + i, mul(s, fma(b, c, mul(a, d))))


@njit(**JIT)
def spread_head(x: Any, weight: Any, n: Any, eps: Any, head_dim: Any, out: Any) -> None:
    """Norm a head of n dimensions (weight 0: no norm) and widen it to head_dim.

    Each half of x goes to the front of a half of out, so that RoPE pairs stay pairs; the rest of
    out is 0 and adds nothing to a product.
    """
    r = np.float32(1)
    if weight != 0:
        total = np.float32(0)
        for i in range(n):
            total += load_scalar_f32(x + 4 * i) * load_scalar_f32(x + 4 * i)
        r = np.float32(1) / np.float32(math.sqrt(total / np.float32(n) + np.float32(eps)))
    for i in range(0, 4 * head_dim, 64):
        store_f32(out + i, splat_f32(np.float32(0)))
    for i in range(n):
        value = load_scalar_f32(x + 4 * i) * r
        if weight != 0:
            value *= load_scalar_f32(weight + 4 * i)
        at = i if i < n // 2 else head_dim // 2 + i - n // 2
        store_scalar_f32(out + 4 * at, value)


@njit(**JIT)
def widen_head(x: Any, n: Any, head_dim: Any, out: Any) -> None:
    """Copy a head of n dimensions to the front of head_dim, zeros behind it."""
    for i in range(0, 4 * head_dim, 64):
        store_f32(out + i, splat_f32(np.float32(0)))
    for i in range(n):
        store_scalar_f32(out + 4 * i, load_scalar_f32(x + 4 * i))


@njit(**JIT)
def top_experts(
    logits: Any, n_experts: Any, n_used: Any, norm_topk: Any, chosen: Any, weights: Any
) -> None:
    """Softmax over all experts, the n_used largest (lower index first on ties).

    logits float32 [n_experts] is overwritten; chosen int32, weights float32 [n_used].
    """
    top = load_scalar_f32(logits)
    for e in range(1, n_experts):
        top = max(top, load_scalar_f32(logits + 4 * e))
    total = np.float32(0)
    for e in range(n_experts):
        p = np.float32(math.exp(load_scalar_f32(logits + 4 * e) - top))
        store_scalar_f32(logits + 4 * e, p)
        total += p
    used = np.float32(0)
    for j in range(n_used):
        best, best_p = 0, np.float32(-1)
        for e in range(n_experts):
            p = load_scalar_f32(logits + 4 * e)
            if p > best_p:
                best, best_p = e, p
        store_scalar_i32(chosen + 4 * j, np.int32(best))
        store_scalar_f32(weights + 4 * j, best_p / total)
        store_scalar_f32(logits + 4 * best, np.float32(-1))
        used += best_p / total
    if norm_topk:
        for j in range(n_used):
            store_scalar_f32(weights + 4 * j, load_scalar_f32(weights + 4 * j) / used)


@njit(**JIT)
def _nibble(w: Any, row: Any, col: Any) -> Any:
    """Four low bits of the code at (row, col) of a 16x32 nibble tile."""
    j = (col & 15) >> 2
    byte = load_scalar_u8(w + 64 * j + 4 * row + (col & 3))
    return (byte >> 4) if col >= 16 else (byte & 15)


@njit(**JIT)
def _fifth(h: Any, row: Any, col: Any) -> Any:
    bit = row * 4 + (col & 3)
    return ((load_scalar_u8(h + 8 * (col >> 2) + (bit >> 3)) >> (bit & 7)) & 1) << 4


@njit(**JIT)
def _element(code: Any, w: Any, n_cols: Any, row: Any, k: Any) -> Any:
    """Value at (row, column k) of the 16-row group at w."""
    t, col = k >> 5, k & 31
    if code == tiles.F32:
        return load_scalar_f32(w + 64 * k + 4 * row)
    if code == tiles.F16:
        return load_scalar_f16(w + 32 * k + 2 * row)
    if code == tiles.BF16:
        return load_scalar_bf16(w + 64 * (k >> 1) + 4 * row + 2 * (k & 1))
    if code == tiles.Q8:
        p = w + 544 * t
        c = load_scalar_u8(p + 64 * (col >> 2) + 4 * row + (col & 3))
        return np.float32(c - 128) * load_scalar_f16(p + 512 + 2 * row)
    if code == tiles.Q4:
        p = w + 288 * t
        return np.float32(_nibble(p, row, col) - 8) * load_scalar_f16(p + 256 + 2 * row)
    if code == tiles.Q4M:
        p = w + 320 * t
        value = np.float32(_nibble(p, row, col)) * load_scalar_f16(p + 256 + 2 * row)
        return value + load_scalar_f16(p + 288 + 2 * row)
    if code == tiles.Q5 or code == tiles.Q5M:
        p = w + (352 if code == tiles.Q5 else 384) * t
        c = _nibble(p, row, col) | _fifth(p + 256, row, col)
        scale = load_scalar_f16(p + 320 + 2 * row)
        if code == tiles.Q5:
            return np.float32(c - 16) * scale
        return np.float32(c) * scale + load_scalar_f16(p + 352 + 2 * row)
    if code == tiles.Q4K or code == tiles.Q5K:
        size = 288 if code == tiles.Q4K else 352
        base = w + (t >> 3) * (8 * size + 64)
        p, d = base + (t & 7) * size, base + 8 * size
        c, s = _nibble(p, row, col), p + size - 32
        if code == tiles.Q5K:
            c |= _fifth(p + 256, row, col)
        scale = load_scalar_f16(d + 2 * row) * np.float32(load_scalar_u8(s + row))
        low = load_scalar_f16(d + 32 + 2 * row) * np.float32(load_scalar_u8(s + 16 + row))
        return np.float32(c) * scale - low
    if code == tiles.Q6K:
        base = w + (t >> 3) * (8 * 416 + 32)
        p, d = base + (t & 7) * 416, base + 8 * 416
        k4 = col >> 2
        high = load_scalar_u8(p + 256 + 64 * (k4 >> 2) + 4 * row + (col & 3)) >> (2 * (k4 & 3))
        c = _nibble(p, row, col) | ((high & 3) << 4)
        s = load_scalar_u8(p + 384 + 16 * (col >> 4) + row)
        s = s - 256 if s > 127 else s
        return np.float32(c - 32) * (load_scalar_f16(d + 2 * row) * np.float32(s))
    return np.float32(math.nan)


@njit(**JIT)
def embedding_row(
    code: Any, w: Any, step: Any, n_cols: Any, row: Any, scale: Any, out: Any
) -> None:
    """Row `row` of a tiled matrix times scale, into float32 [n_cols]."""
    group, lane, factor = w + (row >> 4) * step, row & 15, np.float32(scale)
    if code == tiles.FP8:
        scales, unit = group + 16 * n_cols, np.float32(E4M3_UNIT)
        for k in range(n_cols):
            value = load_scalar_e4m3(group + 16 * k + lane) * unit
            value *= load_scalar_f32(scales + 4 * (k >> 7))
            store_scalar_f32(out + 4 * k, value * factor)
        return
    for k in range(n_cols):
        store_scalar_f32(out + 4 * k, _element(code, group, n_cols, lane, k) * factor)
