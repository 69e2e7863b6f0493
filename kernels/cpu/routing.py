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
def _largest(row: Any, end: Any) -> Any:
    """The largest float of `end` bytes, whole vectors."""
    # Four at a time, here and below: one alone waits for itself.
    fours = end & ~255
    a = b = c = d = load_f32(row)
    for i in range(0, fours, 256):
        a, b = maximum(load_f32(row + i), a), maximum(load_f32(row + i + 64), b)
        c, d = maximum(load_f32(row + i + 128), c), maximum(load_f32(row + i + 192), d)
    for i in range(fours, end, 64):
        a = maximum(load_f32(row + i), a)
    return reduce_max(maximum(maximum(a, b), maximum(c, d)))


@njit(**JIT)
def _power(at: Any, step: Any, offset: Any) -> Any:
    """Replace a vector by its coarse powers; returns them."""
    power = coarse_power(load_f32(at), step, offset)
    store_f32(at, power)
    return power


@njit(**JIT)
def _sum_of_powers(row: Any, end: Any, step: Any, offset: Any) -> Any:
    """Replace floats by their coarse powers; returns the sum of these."""
    fours = end & ~255
    a = b = c = d = splat_f32(np.float32(0))
    for i in range(0, fours, 256):
        a, b = add(a, _power(row + i, step, offset)), add(b, _power(row + i + 64, step, offset))
        c = add(c, _power(row + i + 128, step, offset))
        d = add(d, _power(row + i + 192, step, offset))
    for i in range(fours, end, 64):
        a = add(a, _power(row + i, step, offset))
    return reduce_add(add(add(a, b), add(c, d)))


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
        # A power of two near the largest mass becomes one: what is summed are whole octaves away
        # from the masses that sketch.log_mass summed, and otherwise the same.
        whole = np.float32(round(_largest(row, end) * LOG2_E))
        offset = splat_f32(np.float32(ONE_BITS) - whole * np.float32(OCTAVE_BITS))
        step = splat_f32(LOG2_E * np.float32(OCTAVE_BITS))
        inverse = splat_f32(np.float32(1) / _sum_of_powers(row, end, step, offset))
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
    """A limit that `count` >= 1 groups reach, and True; or, where equal shares allow none, the
    count-th largest share, and False."""
    low, high = np.int64(0), np.int64(bits_of_float(np.float32(2)))
    # At least `count` groups reach low, fewer reach high.
    while high - low > 1:
        middle = (low + high) >> 1
        limit = float_of_bits(np.int32(middle))
        reached = count_at_least(shares, n_groups, limit)
        if reached == count:
            return limit, True
        if reached > count:
            low = middle
        else:
            high = middle
    return float_of_bits(np.int32(low)), False


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
    take, exact = n_most, False
    if n_least < n_most:
        reached = count_at_least(shares, n_groups, limit)
        take = min(max(reached, n_least), n_most)
        exact = take == reached
    if take > 0 and not exact:
        limit, exact = threshold_of_count(shares, n_groups, take)
    count = 0
    for g in range(first):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    if take > 0:
        count = _collect(shares, n_groups, limit, exact, take, out, count)
    for g in range(last, n_groups):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    return count


@njit(**JIT)
def _collect(
    shares: Any, n_groups: Any, limit: Any, exact: Any, take: Any, out: Any, count: Any
) -> Any:
    """Append the `take` groups of the largest shares to out; returns the new count.

    They reach limit, and if it is `exact` no others do.
    """
    above, ties = limit, 0
    if not exact:
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
