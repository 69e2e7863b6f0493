"""The true attention mass of every group: what `--attention oracle` ranks by, and what the share of
a route is measured against. For evaluation: it reads every key."""

from typing import Any

import numpy as np
from numba import njit

from .records import GROUP_TOKENS, group_scales, key_scales, load_code, record
from .simd import (
    add,
    exp,
    fma,
    load_f32,
    load_scalar_f32,
    load_scalar_i32,
    log,
    mask_lanes,
    maximum,
    reduce_max,
    splat_f32,
    store_f32,
    store_scalar_f32,
    sub,
)
from .simd_half import load_f16
from .simd_lanes import high_halves, low_halves, splat_halves

JIT = {"nogil": True, "error_model": "numpy"}

BLOCK_GROUPS = 16


@njit(**JIT)
def _logits(keys: Any, scale: Any, head_dim: Any, q: Any) -> Any:
    """q.k of the 8 keys of a group in lanes 0-7 (and again in 8-15); scale: address of the group's
    scales, 0 for float16."""
    total = splat_f32(np.float32(0))
    if scale != 0:
        x = key_scales(scale)
        for d in range(0, head_dim, 2):
            pair = splat_halves(load_scalar_f32(q + 4 * d), load_scalar_f32(q + 4 * d + 4))
            total = fma(load_code(keys + GROUP_TOKENS * d, x), pair, total)
        return add(low_halves(total, total), high_halves(total, total))
    for d in range(0, head_dim, 2):
        pair = splat_halves(load_scalar_f32(q + 4 * d), load_scalar_f32(q + 4 * d + 4))
        total = fma(load_f16(keys + 2 * GROUP_TOKENS * d), pair, total)
    return add(low_halves(total, total), high_halves(total, total))


@njit(**JIT)
def _log_mass(logits: Any) -> Any:
    """Logarithm of the sum of e^x over the tokens of 16 groups; logits float32 [8 i][16 groups]."""
    top = load_f32(logits)
    for i in range(64, 512, 64):
        top = maximum(load_f32(logits + i), top)
    total = splat_f32(np.float32(0))
    for i in range(0, 512, 64):
        total = add(total, exp(sub(load_f32(logits + i), top)))
    return add(top, log(total))


@njit(**JIT)
def score_block(
    cells: Any,
    scales: Any,
    first: Any,
    n_tokens: Any,
    head_dim: Any,
    q: Any,
    n_rows: Any,
    out: Any,
    out_row: Any,
    spare: Any,
) -> None:
    """Log mass of the 16 groups first… for n_rows query heads, as sketch.score_block gives it.

    q: float32 [n_rows][D], scaled; n_tokens are cached in all. spare: scratch of 576 bytes.
    """
    n_groups = min(BLOCK_GROUPS, (n_tokens + GROUP_TOKENS - 1) // GROUP_TOKENS - first)
    for r in range(n_rows):
        for i in range(0, 512, 64):
            store_f32(spare + i, splat_f32(np.float32(-1e30)))
        for g in range(n_groups):
            keys = record(cells, scales, first + g, head_dim)
            scale = group_scales(scales, first + g)
            seen = min(GROUP_TOKENS, n_tokens - (first + g) * GROUP_TOKENS)
            store_f32(spare + 512, _logits(keys, scale, head_dim, q + 4 * head_dim * r))
            for i in range(seen):
                store_scalar_f32(spare + 64 * i + 4 * g, load_scalar_f32(spare + 512 + 4 * i))
        masses = mask_lanes(_log_mass(spare), np.float32(-1e30), np.int32(0), np.int32(n_groups))
        store_f32(out + r * out_row, masses)


@njit(**JIT)
def captured(masses: Any, n_groups: Any, groups: Any, count: Any) -> Any:
    """The share of `count` listed groups in the whole mass; masses: log masses of n_groups,
    rounded up to 16 with about -1e30, overwritten."""
    end = (n_groups + 15) // 16 * 64
    top = load_f32(masses)
    for i in range(64, end, 64):
        top = maximum(load_f32(masses + i), top)
    top = splat_f32(reduce_max(top))
    for i in range(0, end, 64):
        store_f32(masses + i, exp(sub(load_f32(masses + i), top)))
    whole = read = 0.0
    for g in range(n_groups):
        whole += load_scalar_f32(masses + 4 * g)
    for i in range(count):
        read += load_scalar_f32(masses + 4 * np.int64(load_scalar_i32(groups + 4 * i)))
    return np.float32(read / whole)
