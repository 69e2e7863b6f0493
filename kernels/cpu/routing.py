"""The choice of groups that a KV head reads, from estimated attention mass.

Scores are log masses per query head and group (kernels/cpu/sketch.py); a group's share is its part
of the head's whole estimated mass, sinks and window included. A group ranks by the largest share
that a query head of the KV head gives it, so that one selection serves them all: shares, not
logits, so that heads of different temperature count alike (docs/method.md).
"""

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    add,
    exp,
    load_f32,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat_f32,
    store_f32,
    store_scalar_i32,
    sub,
)

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def pool_shares(scores: Any, row_bytes: Any, n_rows: Any, n_groups: Any, pooled: Any) -> None:
    """pooled[g] = the largest share that a query head gives group g.

    scores: float32 rows, row_bytes apart, of n_groups rounded up to 16 log masses (about -1e30
    past the end); pooled: float32 of the same length.
    """
    end = (n_groups + 15) // 16 * 64
    for i in range(0, end, 64):
        store_f32(pooled + i, splat_f32(np.float32(0)))
    for r in range(n_rows):
        row = scores + r * row_bytes
        top = load_f32(row)
        for i in range(64, end, 64):
            top = maximum(load_f32(row + i), top)
        top = splat_f32(reduce_max(top))
        total = splat_f32(np.float32(0))
        for i in range(0, end, 64):
            e = exp(sub(load_f32(row + i), top))
            total = add(total, e)
            store_f32(row + i, e)
        inverse = splat_f32(np.float32(1) / reduce_add(total))
        for i in range(0, end, 64):
            share = mul(load_f32(row + i), inverse)
            store_f32(pooled + i, maximum(share, load_f32(pooled + i)))


@njit(**JIT)
def _nth_largest(values: Any, n: Any, k: Any) -> Any:
    """The k-th largest (1 is the largest) of values[:n], which is reordered."""
    low, high, want = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            return values[want]
    return values[want]


@njit(**JIT)
def select_groups(
    pooled: Any, spare: Any, first: Any, last: Any, n_select: Any, n_groups: Any, out: Any
) -> Any:
    """Write the always-on groups 0..first and last..n_groups and the n_select best between them.

    pooled: scores of all groups; spare: scratch of the same length; out: address of int32, filled
    in ascending order. Equal scores: the earlier group. Returns the number written.
    """
    count, n = 0, last - first
    for g in range(first):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    take = min(n_select, n)
    if take > 0:
        for g in range(n):
            spare[g] = pooled[first + g]
        threshold = _nth_largest(spare, n, take)
        ties = take
        for g in range(first, last):
            if pooled[g] > threshold:
                ties -= 1
        for g in range(first, last):
            keep = pooled[g] > threshold
            if not keep and pooled[g] == threshold and ties > 0:
                keep = True
                ties -= 1
            if keep:
                store_scalar_i32(out + 4 * count, np.int32(g))
                count += 1
    for g in range(last, n_groups):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    return count
