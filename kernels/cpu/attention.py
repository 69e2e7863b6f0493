"""Exact attention over paged keys and values (records.py): scores, values, merge.

It runs over spans of 32 groups of 8 tokens; a span gives a partial softmax (maximum, sum, weighted
values), spans merge in order. A
row (one query head of one token) is computed alike whatever rows or threads stand beside it, so
that prefill (block_attention.py), decode and any thread count agree to the bit: a score is the sum
over the even dimensions plus the sum over the odd ones, weights add up in 16 lanes, and values are
added token after token.
"""

from typing import Any

import numpy as np
from numba import njit

from .records import GROUP_TOKENS, group_scales, record
from .row_sums import code_scores, code_values, half_scores, half_values
from .scratch import PARTIAL_HEAD, SCORE_ROW, SPAN_TOKENS
from .simd import (
    add,
    exp,
    fma,
    load_f32,
    load_scalar_f32,
    load_scalar_i32,
    load_splat_f32,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat_f32,
    store_f32,
    store_scalar_f32,
    sub,
)
from .simd_lanes import mask_halves, splat_halves, where_above

JIT = {"nogil": True, "error_model": "numpy"}

SPAN_GROUPS = SPAN_TOKENS // GROUP_TOKENS
# A score that is masked, and what every other score lies above.
NEGATIVE = np.float32(-1e30)
VISIBLE = np.float32(-1e29)


@njit(**JIT)
def expand_query(q: Any, head_dim: Any, out: Any) -> None:
    """float32 [D/2][16] of a query: an even dimension in lanes 0-7, the next one in lanes 8-15."""
    for d in range(0, 4 * head_dim, 8):
        pair = splat_halves(load_scalar_f32(q + d), load_scalar_f32(q + d + 4))
        store_f32(out + 8 * d, pair)


@njit(**JIT)
def _weigh(p: Any, top: Any, total: Any) -> Any:
    """Turn 16 scores into weights; returns total plus these."""
    x = load_f32(p)
    e = where_above(x, VISIBLE, exp(sub(x, top)))
    store_f32(p, e)
    return add(total, e)


@njit(**JIT)
def _store_head(head: Any, top: Any, total: Any) -> None:
    store_scalar_f32(head, top)
    store_scalar_f32(head + 4, reduce_add(total))


@njit(**JIT)
def softmax4(s: Any, n_vectors: Any, heads: Any, heads_row: Any) -> None:
    """Turn four rows of the scores of a span into weights, exactly 0 where masked.

    A row's maximum (NEGATIVE where all is masked) and sum go to `heads`, rows heads_row bytes
    apart. Rows go side by side because one alone waits for itself.
    """
    a = b = c = d = splat_f32(NEGATIVE)
    for p in range(s, s + 64 * n_vectors, 64):
        a, b = maximum(load_f32(p), a), maximum(load_f32(p + SCORE_ROW), b)
        c = maximum(load_f32(p + 2 * SCORE_ROW), c)
        d = maximum(load_f32(p + 3 * SCORE_ROW), d)
    m0, m1, m2, m3 = reduce_max(a), reduce_max(b), reduce_max(c), reduce_max(d)
    a, b, c, d = splat_f32(m0), splat_f32(m1), splat_f32(m2), splat_f32(m3)
    t0 = t1 = t2 = t3 = splat_f32(np.float32(0))
    for p in range(s, s + 64 * n_vectors, 64):
        t0, t1 = _weigh(p, a, t0), _weigh(p + SCORE_ROW, b, t1)
        t2, t3 = _weigh(p + 2 * SCORE_ROW, c, t2), _weigh(p + 3 * SCORE_ROW, d, t3)
    _store_head(heads, m0, t0)
    _store_head(heads + heads_row, m1, t1)
    _store_head(heads + 2 * heads_row, m2, t2)
    _store_head(heads + 3 * heads_row, m3, t3)


@njit(**JIT)
def _group(groups: Any, i: Any) -> Any:
    """The i-th of a list of groups, or of all of them."""
    return np.int64(load_scalar_i32(groups + 4 * i)) if groups != 0 else i


@njit(**JIT)
def _mask_pair(s: Any, rows: Any, start0: Any, start1: Any, low: Any, high: Any) -> None:
    """Mask what lies outside low..high of the scores of two groups at positions start0, start1."""
    if min(start0, start1) < low or max(start0, start1) + GROUP_TOKENS > high:
        low0, high0 = np.int32(low - start0), np.int32(high - start0)
        low1, high1 = np.int32(low - start1), np.int32(high - start1)
        for at in range(s, s + SCORE_ROW * rows, SCORE_ROW):
            store_f32(at, mask_halves(load_f32(at), NEGATIVE, low0, high0, low1, high1))


@njit(**JIT)
def _visible_tokens(start0: Any, start1: Any, low: Any, high: Any) -> Any:
    """The range of the 16 tokens of two groups that holds all visible ones."""
    t0, t1 = max(0, low - start0), min(GROUP_TOKENS, high - start0)
    if t0 >= GROUP_TOKENS:
        t0 = GROUP_TOKENS + max(0, low - start1)
    if start1 < high:
        t1 = GROUP_TOKENS + min(GROUP_TOKENS, high - start1)
    return t0, t1


@njit(**JIT)
def attend_span(
    cells: Any,
    scales: Any,
    groups: Any,
    n_groups: Any,
    first: Any,
    head_dim: Any,
    q: Any,
    n_rows: Any,
    low: Any,
    high: Any,
    scores: Any,
    partial: Any,
    partial_row: Any,
) -> None:
    """Partial attention of the query heads of a KV head over a span of up to 32 groups.

    cells, scales: of the KV head. groups: address of n_groups ascending int32 group numbers, or 0
    for 0, 1, …; the span begins with the one at index `first`, which is even. Positions low..high
    are visible. q: queries of `expand_query`, float32 [R][8 D]; R is n_rows rounded up to 4.
    scores: scratch, R rows of SCORE_ROW bytes. partial: float32 [R][16 + D], rows partial_row bytes
    apart.
    """
    rows, values, end = (n_rows + 3) & ~3, partial + 4 * PARTIAL_HEAD, n_groups - first
    end, begin, last = min(SPAN_GROUPS, end), 0, n_groups - 1
    if groups == 0:
        begin = max(0, low // GROUP_TOKENS - first) & ~1
    for i in range(begin, end, 2):
        g0, g1 = _group(groups, first + i), _group(groups, min(first + i + 1, last))
        k0, k1 = record(cells, scales, g0, head_dim), record(cells, scales, g1, head_dim)
        s0, s1 = group_scales(scales, g0), group_scales(scales, g1)
        for r in range(0, rows, 4):
            s, queries = scores + SCORE_ROW * r + 32 * i, q + 32 * head_dim * r
            if scales == 0:
                half_scores(k0, k1, s0, s1, head_dim, queries, s)
            else:
                code_scores(k0, k1, s0, s1, head_dim, queries, s)
        # Nothing is visible of a group that is not there.
        start1 = GROUP_TOKENS * g1 if i + 1 < end else high
        _mask_pair(scores + 32 * i, rows, GROUP_TOKENS * g0, start1, low, high)
    for r in range(0, rows, 4):
        s, p = scores + SCORE_ROW * r + 32 * begin, partial + partial_row * r
        softmax4(s, (end + 1 - begin) >> 1, p, partial_row)
    for r in range(rows):
        for d in range(0, 4 * head_dim, 64):
            store_f32(values + partial_row * r + d, splat_f32(np.float32(0)))
    for i in range(begin, end, 2):
        g0, g1 = _group(groups, first + i), _group(groups, min(first + i + 1, last))
        start1 = GROUP_TOKENS * g1 if i + 1 < end else high
        t0, t1 = _visible_tokens(GROUP_TOKENS * g0, start1, low, high)
        v0, v1 = record(cells, scales, g0, head_dim), record(cells, scales, g1, head_dim)
        s0, s1 = group_scales(scales, g0), group_scales(scales, g1)
        ahead = first + SPAN_GROUPS + i
        n0 = record(cells, scales, _group(groups, min(ahead, last)), head_dim)
        n1 = record(cells, scales, _group(groups, min(ahead + 1, last)), head_dim)
        for r in range(0, rows, 4):
            s, p = scores + SCORE_ROW * r + 32 * i, values + partial_row * r
            if scales == 0:
                half_values(v0, v1, s0, s1, t0, t1, head_dim, s, p, partial_row, n0, n1)
            else:
                code_values(v0, v1, s0, s1, t0, t1, head_dim, s, p, partial_row, n0, n1)


@njit(**JIT)
def clear_partial(total: Any, head_dim: Any) -> None:
    """The neutral element of `merge`."""
    store_scalar_f32(total, NEGATIVE)
    store_scalar_f32(total + 4, np.float32(0))
    for d in range(0, 4 * head_dim, 64):
        store_f32(total + 4 * PARTIAL_HEAD + d, splat_f32(np.float32(0)))


@njit(**JIT)
def merge(total: Any, partial: Any, head_dim: Any) -> None:
    """Fold a partial softmax into a running one (both float32 [16 + D])."""
    m0, m1 = load_scalar_f32(total), load_scalar_f32(partial)
    if m1 == NEGATIVE:
        return
    m = max(m0, m1)
    f0, f1 = exp(splat_f32(m0 - m)), exp(splat_f32(m1 - m))
    l0, l1 = load_splat_f32(total + 4), load_splat_f32(partial + 4)
    sum_both = reduce_max(fma(l1, f1, mul(l0, f0)))
    store_scalar_f32(total, m)
    store_scalar_f32(total + 4, sum_both)
    for d in range(64, 64 + 4 * head_dim, 64):
        store_f32(total + d, fma(load_f32(partial + d), f1, mul(load_f32(total + d), f0)))


@njit(**JIT)
def finish(total: Any, head_dim: Any, out: Any) -> None:
    """Weighted values over the sum, into float32 [D]."""
    r = splat_f32(np.float32(1) / load_scalar_f32(total + 4))
    for d in range(0, 4 * head_dim, 64):
        store_f32(out + d, mul(load_f32(total + 64 + d), r))
