"""Exact causal attention of a block of tokens, as products of float32 tiles.

A tile is some query tokens with all query heads of one KV head: up to TILE_ROWS rows. Span after
span, its keys and then its values are widened into private scratch once for all rows, so that the
multiplications run from registers (kernels/cpu/simd_tile.py). Every row's sums keep the order of
kernels/cpu/attention.py: a row's bits do not depend on the tile, and are those of a single token.
"""

from typing import Any

import numpy as np
from numba import njit

from . import attention as att
from .records import (
    GROUP_TOKENS,
    VALUE_SCALES,
    group_scales,
    key_scales,
    load_code,
    record,
    record_bytes,
)
from .scratch import PARTIAL_HEAD, QUERY_ROW, SCORE_ROW, SPAN_TOKENS
from .simd import (
    load_f32,
    load_scalar_f32,
    load_scalar_i32,
    mask_lanes,
    splat_f32,
    store_f32,
    store_scalar_f32,
)
from .simd_half import load_f16, load_scalar_f16
from .simd_lanes import high_halves, low_halves
from .simd_tile import BLOCK_ROWS, BLOCK_VECTORS, STEP_BYTES, fma_tile

JIT = {"nogil": True, "error_model": "numpy"}

# Tokens of a block of keys, dimensions of a block of values.
WIDTH = 32

_scores, _scores_more = (fma_tile(BLOCK_ROWS, BLOCK_VECTORS, QUERY_ROW, a) for a in (False, True))
_scores4, _scores4_more = (fma_tile(4, BLOCK_VECTORS, QUERY_ROW, a) for a in (False, True))
_values = fma_tile(BLOCK_ROWS, BLOCK_VECTORS, SCORE_ROW, False)
_values4 = fma_tile(4, BLOCK_VECTORS, SCORE_ROW, False)


@njit(**JIT)
def _load_queries(q: Any, token_row: Any, rows: Any, n_rows: Any, head_dim: Any, out: Any) -> None:
    """Query rows, even dimensions first; those from n_rows up to a multiple of 4 repeat the last.

    q: address of the first head of the first token, tokens token_row bytes apart.
    """
    for i in range((n_rows + 3) & ~3):
        r = min(i, n_rows - 1)
        source, row = q + r // rows * token_row + 4 * head_dim * (r % rows), out + QUERY_ROW * i
        for d in range(0, 4 * head_dim, 8):
            store_scalar_f32(row + (d >> 1), load_scalar_f32(source + d))
            odd = load_scalar_f32(source + d + 4)
            store_scalar_f32(row + 2 * head_dim + (d >> 1), odd)


@njit(**JIT)
def _widen_pair(k0: Any, k1: Any, s0: Any, s1: Any, at: Any, head_dim: Any, wide: Any) -> None:
    """The keys of two groups, as the groups `at` (even) and `at` + 1 of a span; s0, s1: addresses
    of their scales, 0 for float16."""
    even = wide + (at >> 2) * (128 * head_dim) + 64 * ((at >> 1) & 1)
    odd = even + 64 * head_dim
    if s0 != 0:
        x0, x1 = key_scales(s0), key_scales(s1)
        for i in range(head_dim >> 1):
            a, b = load_code(k0 + 16 * i, x0), load_code(k1 + 16 * i, x1)
            store_f32(even + 128 * i, low_halves(a, b))
            store_f32(odd + 128 * i, high_halves(a, b))
        return
    for i in range(head_dim >> 1):
        a, b = load_f16(k0 + 32 * i), load_f16(k1 + 32 * i)
        store_f32(even + 128 * i, low_halves(a, b))
        store_f32(odd + 128 * i, high_halves(a, b))


@njit(**JIT)
def _widen_keys(cells: Any, scales: Any, first: Any, end: Any, head_dim: Any, wide: Any) -> None:
    """The keys of groups first..end of a span; first is even, the last pair may lack its half."""
    span = first - first % att.SPAN_GROUPS
    for group in range(first, end, 2):
        k = record(cells, scales, group, head_dim)
        s0, s1 = group_scales(scales, group), group_scales(scales, group + 1)
        # A pair is a cell, whether or not its second group has tokens yet.
        other = k + record_bytes(scales, head_dim)
        _widen_pair(k, other, s0, s1, group - span, head_dim, wide)


@njit(**JIT)
def _widen_values(cells: Any, scales: Any, t0: Any, t1: Any, head_dim: Any, wide: Any) -> None:
    """The values of positions t0..t1 of a span."""
    for t in range(t0, t1):
        group = t // GROUP_TOKENS
        base, scale = record(cells, scales, group, head_dim), group_scales(scales, group)
        _widen_value(base, scale, t % GROUP_TOKENS, t % SPAN_TOKENS, head_dim, wide)


@njit(**JIT)
def _widen_value(base: Any, scale: Any, t: Any, at: Any, head_dim: Any, wide: Any) -> None:
    """The value of token t of a record, as token `at` of a span; scale: of the group, or 0."""
    out = wide + 128 * at
    if scale != 0:
        v, x = base + (8 + t) * head_dim, splat_f32(load_scalar_f16(scale + VALUE_SCALES + 2 * t))
        for d in range(0, head_dim, WIDTH):
            store_f32(out, load_code(v + d, x))
            store_f32(out + 64, load_code(v + d + 16, x))
            out += 128 * SPAN_TOKENS
        return
    v = base + (16 + 2 * t) * head_dim
    for d in range(0, head_dim, WIDTH):
        store_f32(out, load_f16(v + 2 * d))
        store_f32(out + 64, load_f16(v + 2 * d + 32))
        out += 128 * SPAN_TOKENS


@njit(**JIT)
def _widen_listed_keys(
    cells: Any, scales: Any, groups: Any, count: Any, head_dim: Any, wide: Any
) -> None:
    """The keys of up to 32 listed groups (address of int32), one beside the other. An odd last
    group stands twice: its second copy is masked."""
    for at in range(0, count, 2):
        g0 = np.int64(load_scalar_i32(groups + 4 * at))
        g1 = np.int64(load_scalar_i32(groups + 4 * min(at + 1, count - 1)))
        k0, k1 = record(cells, scales, g0, head_dim), record(cells, scales, g1, head_dim)
        s0, s1 = group_scales(scales, g0), group_scales(scales, g1)
        _widen_pair(k0, k1, s0, s1, at, head_dim, wide)


@njit(**JIT)
def _widen_listed_values(
    cells: Any, scales: Any, groups: Any, count: Any, head_dim: Any, wide: Any
) -> None:
    """The values of up to 32 listed groups, one beside the other."""
    for i in range(count):
        group = np.int64(load_scalar_i32(groups + 4 * i))
        base, scale = record(cells, scales, group, head_dim), group_scales(scales, group)
        for t in range(GROUP_TOKENS):
            _widen_value(base, scale, t, GROUP_TOKENS * i + t, head_dim, wide)


@njit(**JIT)
def _score_rows(q: Any, n_rows: Any, wide: Any, t0: Any, t1: Any, head_dim: Any, out: Any) -> None:
    """Scores of up to BLOCK_ROWS rows with the keys of the span that lie in t0..t1.

    Whole blocks of keys are scored: what lies outside is masked later.
    """
    half = head_dim >> 1
    for block in range(t0 // WIDTH, (t1 + WIDTH - 1) // WIDTH):
        for v in range(0, STEP_BYTES, 64 * BLOCK_VECTORS):
            k, s = wide + block * (128 * head_dim) + v, out + 128 * block + v
            if n_rows == BLOCK_ROWS:
                _scores(q, k, half, s, SCORE_ROW)
                _scores_more(q + 2 * head_dim, k + 64 * head_dim, half, s, SCORE_ROW)
            else:
                _scores4(q, k, half, s, SCORE_ROW)
                _scores4_more(q + 2 * head_dim, k + 64 * head_dim, half, s, SCORE_ROW)


@njit(**JIT)
def _weigh_rows(p: Any, n_rows: Any, wide: Any, n: Any, head_dim: Any, out: Any, row: Any) -> None:
    """out[row] = sum over n tokens of p[row][t] * value[t], up to BLOCK_ROWS rows."""
    for block in range(head_dim // WIDTH):
        for at in range(0, STEP_BYTES, 64 * BLOCK_VECTORS):
            v, o = wide + block * (STEP_BYTES * SPAN_TOKENS) + at, out + STEP_BYTES * block + at
            if n_rows == BLOCK_ROWS:
                _values(p, v, n, o, row)
            else:
                _values4(p, v, n, o, row)


@njit(**JIT)
def _mask_row(s: Any, t0: Any, t1: Any, low: Any, high: Any) -> None:
    """Mask the scores of tokens t0..t1 (whole vectors) that lie outside low..high."""
    for t in range(t0, t1, 16):
        if t < low or t + 16 > high:
            x = load_f32(s + 4 * t)
            x = mask_lanes(x, att.NEGATIVE, np.int32(low - t), np.int32(high - t))
            store_f32(s + 4 * t, x)


@njit(**JIT)
def _first_visible(position: Any, window: Any, begin: Any) -> Any:
    """The first position from `begin` that the token at a position sees; window 0: all of them."""
    return max(begin, position + 1 - window) if window > 0 else begin


@njit(**JIT)
def _visible(
    r: Any, rows: Any, n_rows: Any, position: Any, window: Any, begin: Any, start: Any
) -> Any:
    """The tokens of the span from `start` that row r sees: low..high."""
    at = position + min(r, n_rows - 1) // rows
    return _first_visible(at, window, begin) - start, at + 1 - start


@njit(**JIT)
def _seen(
    r: Any, count: Any, rows: Any, n_rows: Any, position: Any, window: Any, begin: Any, start: Any
) -> Any:
    """The tokens of the span from `start` that any of the rows r..r + count sees."""
    low, _ = _visible(r, rows, n_rows, position, window, begin, start)
    _, high = _visible(r + count - 1, rows, n_rows, position, window, begin, start)
    return max(low, 0), min(high, SPAN_TOKENS)


@njit(**JIT)
def _soften(scores: Any, r: Any, count: Any, a: Any, b: Any) -> None:
    """Turn the masked scores a..b of rows r..r + count into weights."""
    for i in range(r, r + count, 4):
        s = scores + SCORE_ROW * i
        att.softmax4(s + 4 * a, (b - a) >> 4, s + 4 * SPAN_TOKENS, SCORE_ROW)


@njit(**JIT)
def _fold(
    scores: Any,
    r: Any,
    count: Any,
    n_rows: Any,
    wide: Any,
    t0: Any,
    t1: Any,
    head_dim: Any,
    partials: Any,
    totals: Any,
) -> None:
    """Weigh the values of tokens t0..t1 and merge the partials of rows r..r + count."""
    row = 4 * (PARTIAL_HEAD + head_dim)
    s, v = scores + SCORE_ROW * r + 4 * t0, wide + STEP_BYTES * t0
    _weigh_rows(s, count, v, t1 - t0, head_dim, partials + 4 * PARTIAL_HEAD, row)
    for i in range(min(count, n_rows - r)):
        s, partial = scores + SCORE_ROW * (r + i) + 4 * SPAN_TOKENS, partials + row * i
        store_scalar_f32(partial, load_scalar_f32(s))
        store_scalar_f32(partial + 4, load_scalar_f32(s + 4))
        att.merge(totals + row * (r + i), partial, head_dim)


@njit(**JIT)
def _rows_at(r: Any, padded: Any) -> Any:
    """How many rows go through the registers together from row r on."""
    return BLOCK_ROWS if r + BLOCK_ROWS <= padded else 4


@njit(**JIT)
def _attend_listed(
    cells: Any,
    scales: Any,
    groups: Any,
    count: Any,
    head_dim: Any,
    n_rows: Any,
    wide: Any,
    queries: Any,
    scores: Any,
    partials: Any,
    totals: Any,
) -> None:
    """All rows attend all tokens of up to 32 listed groups."""
    padded, n_tokens = (n_rows + 3) & ~3, GROUP_TOKENS * count
    _widen_listed_keys(cells, scales, groups, count, head_dim, wide)
    b = (n_tokens + WIDTH - 1) // WIDTH * WIDTH
    # Numba compiles a function once more for a literal argument: these are none.
    zero = r = np.int64(0)
    while r < padded:
        n = _rows_at(r, padded)
        s = scores + SCORE_ROW * r
        _score_rows(queries + QUERY_ROW * r, n, wide, zero, n_tokens, head_dim, s)
        for i in range(r, r + n):
            _mask_row(scores + SCORE_ROW * i, zero, b, zero, n_tokens)
        _soften(scores, r, n, zero, b)
        r += n
    _widen_listed_values(cells, scales, groups, count, head_dim, wide)
    r = zero
    while r < padded:
        n = _rows_at(r, padded)
        _fold(scores, r, n, n_rows, wide, zero, n_tokens, head_dim, partials, totals)
        r += n


@njit(**JIT)
def attend_tile(
    cells: Any,
    scales: Any,
    head_dim: Any,
    q: Any,
    token_row: Any,
    rows: Any,
    n_tokens: Any,
    position: Any,
    window: Any,
    groups: Any,
    n_listed: Any,
    begin: Any,
    private: Any,
) -> Any:
    """Attention of n_tokens tokens at position… with the `rows` query heads of a KV head.

    Every token reads the n_listed groups at `groups` (int32, all before `begin`), then what it
    sees from position `begin` on. cells, scales: of the KV head. q: address of the first head of
    the first token (float32, rotated and scaled), tokens token_row bytes apart. private: scratch
    (scratch.py). Returns the address of the totals, float32 [n_tokens * rows][16 + D], for
    `finish`.
    """
    n_rows, row = n_tokens * rows, 4 * (PARTIAL_HEAD + head_dim)
    padded = (n_rows + 3) & ~3
    wide, queries = private, private + 4 * SPAN_TOKENS * head_dim
    scores = queries + QUERY_ROW * padded
    totals = scores + SCORE_ROW * padded
    partials = totals + row * padded
    _load_queries(q, token_row, rows, n_rows, head_dim, queries)
    for i in range(n_rows):
        att.clear_partial(totals + row * i, head_dim)
    for i in range(0, n_listed, att.SPAN_GROUPS):
        count = min(n_listed - i, att.SPAN_GROUPS)
        _attend_listed(
            cells,
            scales,
            groups + 4 * i,
            count,
            head_dim,
            n_rows,
            wide,
            queries,
            scores,
            partials,
            totals,
        )
    low, end = _first_visible(position, window, begin), position + n_tokens
    for start in range(low - low % SPAN_TOKENS, end, SPAN_TOKENS):
        here, stop = max(low, start), min(end, start + SPAN_TOKENS)
        first = here // (2 * GROUP_TOKENS) * 2
        last = (stop + GROUP_TOKENS - 1) // GROUP_TOKENS
        _widen_keys(cells, scales, first, last, head_dim, wide)
        r = np.int64(0)
        while r < padded:
            count = _rows_at(r, padded)
            t0, t1 = _seen(r, count, rows, n_rows, position, window, begin, start)
            if t0 < t1:
                s = scores + SCORE_ROW * r
                _score_rows(queries + QUERY_ROW * r, count, wide, t0, t1, head_dim, s)
                a, b = t0 // WIDTH * WIDTH, (t1 + WIDTH - 1) // WIDTH * WIDTH
                for i in range(r, r + count):
                    sees, until = _visible(i, rows, n_rows, position, window, begin, start)
                    _mask_row(scores + SCORE_ROW * i, a, b, sees, until)
                _soften(scores, r, count, a, b)
            r += count
        _widen_values(cells, scales, here, stop, head_dim, wide)
        r = np.int64(0)
        while r < padded:
            count = _rows_at(r, padded)
            t0, t1 = _seen(r, count, rows, n_rows, position, window, begin, start)
            if t0 < t1:
                _fold(scores, r, count, n_rows, wide, t0, t1, head_dim, partials, totals)
            r += count
    return totals
