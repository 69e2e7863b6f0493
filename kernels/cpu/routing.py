"""Group summaries and the choice of groups that a KV head reads.

The summary of a group of 16 tokens is the mean of its rotated keys, float16, stored 16 groups to
a block in the layout of a record's keys ([D][16 groups]), so that a block is scored by
the kernel that scores keys. Blocks of a KV head lie one after another, `head_bytes` apart from the
next head's (hierarchical routing: arXiv 2606.30709; docs/method.md).
"""

from typing import Any

import numpy as np
from numba import njit

from .attention import GROUP_TOKENS, JIT, _scores4, record
from .simd import (
    load_scalar_f32,
    reduce_add,
    store_scalar_f32,
    store_scalar_i32,
)
from .simd_half import load_f16, store_scalar_f16

GROUPS_PER_BLOCK = 16


@njit(**JIT)
def close_group(
    pages: Any, group: Any, head: Any, head_dim: Any, means: Any, head_bytes: Any
) -> None:
    """Write the summary of a full group from its stored keys."""
    k = record(pages, group, head, head_dim)
    block = means + head * head_bytes + (group >> 4) * 32 * head_dim
    share = np.float32(1.0 / GROUP_TOKENS)
    for d in range(head_dim):
        at = block + 32 * d + 2 * (group & 15)
        store_scalar_f16(at, reduce_add(load_f16(k + 32 * d)) * share)


@njit(**JIT)
def score_block(
    means: Any, block: Any, head_dim: Any, q: Any, n_rows: Any, out: Any, out_row: Any, spare: Any
) -> None:
    """q . summary of the 16 groups of a block for n_rows consecutive query heads.

    means: first block of the KV head; q float32 [n_rows, D]; out float32 rows of out_row bytes;
    spare: scratch float32 [4][16] for rows that fill up a last set of four.
    """
    k, q_row = means + block * 32 * head_dim, 4 * head_dim
    for r in range(0, n_rows, 4):
        last = n_rows - 1
        q0, q1 = q + r * q_row, q + min(r + 1, last) * q_row
        q2, q3 = q + min(r + 2, last) * q_row, q + min(r + 3, last) * q_row
        if r + 4 <= n_rows:
            _scores4(k, head_dim, q0, q1, q2, q3, out + r * out_row + 64 * block, out_row)
            continue
        _scores4(k, head_dim, q0, q1, q2, q3, spare, 64)
        for i in range(n_rows - r):
            for g in range(GROUPS_PER_BLOCK):
                value = load_scalar_f32(spare + 64 * i + 4 * g)
                store_scalar_f32(out + (r + i) * out_row + 64 * block + 4 * g, value)


@njit(**JIT)
def pool_shares(
    scores: Any, row_bytes: Any, n_rows: Any, first: Any, last: Any, pooled: Any
) -> None:
    """pooled[g] = the largest softmax share that a query head gives group first + g.

    Shares, not logits: heads of different temperature count alike.
    """
    n = last - first
    for g in range(n):
        pooled[g] = np.float32(-1)
    for r in range(n_rows):
        row = scores + r * row_bytes + 4 * first
        top = np.float32(-1e30)
        for g in range(n):
            top = max(top, load_scalar_f32(row + 4 * g))
        total = np.float32(0)
        for g in range(n):
            e = np.float32(np.exp(load_scalar_f32(row + 4 * g) - top))
            store_scalar_f32(row + 4 * g, e)
            total += e
        for g in range(n):
            pooled[g] = max(pooled[g], load_scalar_f32(row + 4 * g) / total)


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

    pooled: scores of groups first..last; spare: scratch of the same length; out: address of int32,
    filled in ascending order. Equal scores: the earlier group. Returns the number written.
    """
    count, n = 0, last - first
    for g in range(first):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    take = min(n_select, n)
    if take > 0:
        for g in range(n):
            spare[g] = pooled[g]
        threshold = _nth_largest(spare, n, take)
        ties = take
        for g in range(n):
            if pooled[g] > threshold:
                ties -= 1
        for g in range(n):
            keep = pooled[g] > threshold
            if not keep and pooled[g] == threshold and ties > 0:
                keep = True
                ties -= 1
            if keep:
                store_scalar_i32(out + 4 * count, np.int32(first + g))
                count += 1
    for g in range(last, n_groups):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    return count
