"""The choice of groups that a KV head reads, from the attention mass of each.

Scores are log masses per query head and group (kernels/cpu/sketch.py); a group's share is its part
of the head's whole mass, sinks and window included. A group ranks by the largest share that a query
head of the KV head gives it, so that one selection serves them all: shares, not logits, so that
heads of different temperature count alike (docs/method.md). Shares are positive floats, whose bits
order as integers do: a threshold is found by bisecting the bits.
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    add,
    load_f32,
    mask_lanes,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat_f32,
    store_f32,
    store_scalar_i32,
)
from .simd_bits import (
    LOG2_E,
    OCTAVE_BITS,
    ONE_BITS,
    bits_of_float,
    coarse_power,
    count_bits,
    float_of_bits,
    lanes_at_least,
    lowest_bit,
)

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def pool_shares(scores: Any, row_bytes: Any, n_rows: Any, n_groups: Any, pooled: Any) -> None:
    """pooled[g] = the largest share that a query head gives group g.

    scores: float32 rows, row_bytes apart, of n_groups rounded up to 16 log masses (about -1e30
    past the end), overwritten; pooled: float32 of the same length.
    """
    end = (n_groups + 15) // 16 * 64
    for i in range(0, end, 64):
        store_f32(pooled + i, splat_f32(np.float32(0)))
    for r in range(n_rows):
        row = scores + r * row_bytes
        top = load_f32(row)
        for i in range(64, end, 64):
            top = maximum(load_f32(row + i), top)
        # A power of two near the largest mass becomes one: what is summed are whole octaves away
        # from the masses that sketch.log_mass summed, and otherwise the same.
        whole = np.float32(round(reduce_max(top) * LOG2_E))
        offset = splat_f32(np.float32(ONE_BITS) - whole * np.float32(OCTAVE_BITS))
        step = splat_f32(LOG2_E * np.float32(OCTAVE_BITS))
        total = splat_f32(np.float32(0))
        for i in range(0, end, 64):
            mass = coarse_power(load_f32(row + i), step, offset)
            total = add(total, mass)
            store_f32(row + i, mass)
        inverse = splat_f32(np.float32(1) / reduce_add(total))
        for i in range(0, end, 64):
            share = mul(load_f32(row + i), inverse)
            store_f32(pooled + i, maximum(share, load_f32(pooled + i)))


@njit(**JIT)
def _hide(shares: Any, start: Any, end: Any) -> None:
    """Put groups start..end below every limit."""
    i = start // 16 * 16
    while i < end:
        low, high = np.int32(max(start - i, 0)), np.int32(min(end - i, 16))
        # Lanes inside low..high are replaced: two calls keep what lies on either side.
        v = load_f32(shares + 4 * i)
        left = mask_lanes(v, np.float32(-1), np.int32(0), low)
        if high < 16:
            right = mask_lanes(v, np.float32(0), high, np.int32(16))
            left = add(mask_lanes(left, np.float32(0), np.int32(0), high), right)
        store_f32(shares + 4 * i, left)
        i += 16


@njit(**JIT)
def count_at_least(shares: Any, n_groups: Any, limit: Any) -> Any:
    """Groups with a share of at least limit."""
    count = 0
    for i in range(0, 4 * n_groups, 64):
        count += count_bits(lanes_at_least(load_f32(shares + i), limit))
    return count


@njit(**JIT)
def threshold_of_count(shares: Any, n_groups: Any, count: Any) -> Any:
    """The count-th largest share (1 is the largest), count >= 1."""
    low, high = np.int64(0), np.int64(bits_of_float(np.float32(2)))
    # At least `count` groups reach low, fewer reach high.
    while high - low > 1:
        middle = (low + high) >> 1
        if count_at_least(shares, n_groups, float_of_bits(np.int32(middle))) >= count:
            low = middle
        else:
            high = middle
    return float_of_bits(np.int32(low))


@njit(**JIT)
def select_groups(
    shares: Any,
    first: Any,
    last: Any,
    n_groups: Any,
    n_least: Any,
    n_most: Any,
    limit: Any,
    out: Any,
) -> Any:
    """Write the always-on groups 0..first and last..n_groups and the best between them.

    Chosen are those with a share of at least `limit`, but no fewer than n_least and no more than
    n_most. shares: float32 of n_groups rounded up to 16, overwritten; out: address of int32,
    filled in ascending order. Equal shares: the earlier group. Returns the number written.
    """
    _hide(shares, 0, first)
    _hide(shares, last, (n_groups + 15) // 16 * 16)
    n_least, n_most = min(n_least, last - first), min(n_most, last - first)
    take = n_most
    if n_least < n_most:
        take = min(max(count_at_least(shares, n_groups, limit), n_least), n_most)
    count = 0
    for g in range(first):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    if take > 0:
        count = _collect(shares, n_groups, take, out, count)
    for g in range(last, n_groups):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    return count


@njit(**JIT)
def _collect(shares: Any, n_groups: Any, take: Any, out: Any, count: Any) -> Any:
    """Append the `take` groups of the largest shares to out; returns the new count."""
    limit = threshold_of_count(shares, n_groups, take)
    above = float_of_bits(np.int32(bits_of_float(limit) + np.int32(1)))
    ties = take - count_at_least(shares, n_groups, above)
    for i in range(0, n_groups, 16):
        v = load_f32(shares + 4 * i)
        kept, sure = lanes_at_least(v, limit), lanes_at_least(v, above)
        while kept != 0:
            bit = lowest_bit(kept)
            kept &= kept - 1
            if (sure >> bit) & 1 == 0:
                if ties == 0:
                    continue
                ties -= 1
            store_scalar_i32(out + 4 * count, np.int32(i + bit))
            count += 1
    return count
