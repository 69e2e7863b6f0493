"""The published routing rule (arXiv 2606.30709; `--attention hga-paper`), a baseline to compare.

A chunk of 64 tokens and a group of 16 are each summed up by one vector per KV head: pairs of
dimensions that turn by more than half a radian within a chunk by the sum of the rotated keys, the
others by the sum of the raw keys rotated to the middle of the span. A query head takes the chunks
whose summaries have the largest product with its query, then the best groups inside these. Sums,
not means: a scale common to a level does not change its ranking.
"""

from typing import Any

import numpy as np
from numba import njit

from .records import CHUNK_TOKENS, GROUP_TOKENS, group_scales, record
from .simd import (
    fma,
    load_f32,
    load_scalar_f32,
    load_scalar_i32,
    load_scalar_u8,
    reduce_add,
    splat_f32,
    store_f32,
    store_scalar_f32,
    store_scalar_i32,
)
from .simd_half import load_scalar_f16

JIT = {"nogil": True, "error_model": "numpy"}

SPAN_TOKENS = 16
SPANS = CHUNK_TOKENS // SPAN_TOKENS
# Vectors of a chunk: its own, then those of its groups.
VECTORS = 1 + SPANS
# The last position of a span's first half: what sums are rotated to.
CHUNK_MIDDLE = (CHUNK_TOKENS - 1) // 2
SPAN_MIDDLE = (SPAN_TOKENS - 1) // 2
_TAKEN = np.float32(-3e38)


@njit(**JIT)
def _load_key(keys: Any, scale: Any, t: Any, d: Any) -> Any:
    """A dimension of key t of a record; scale: address of the group's scales, 0 for float16."""
    if scale != 0:
        code = np.float32(((load_scalar_u8(keys + GROUP_TOKENS * d + t) + 128) & 255) - 128)
        return code * load_scalar_f16(scale + 2 * t)
    return load_scalar_f16(keys + 2 * (GROUP_TOKENS * d + t))


@njit(**JIT)
def _add_turned(
    keys: Any,
    scale: Any,
    t: Any,
    head_dim: Any,
    turn: Any,
    cos: Any,
    sin: Any,
    half_bytes: Any,
    out: Any,
) -> None:
    """Add key t of a record, turned by `turn` positions, to out [D]."""
    half = head_dim // 2
    cos += (turn + CHUNK_TOKENS - 1) * half_bytes
    sin += (turn + CHUNK_TOKENS - 1) * half_bytes
    for j in range(half):
        a, b = _load_key(keys, scale, t, j), _load_key(keys, scale, t, j + half)
        c, s = load_scalar_f32(cos + 4 * j), load_scalar_f32(sin + 4 * j)
        at, other = out + 4 * j, out + 4 * (j + half)
        store_scalar_f32(at, load_scalar_f32(at) + (a * c - b * s))
        store_scalar_f32(other, load_scalar_f32(other) + (b * c + a * s))


@njit(**JIT)
def summarise(
    cells: Any,
    scales: Any,
    chunk: Any,
    head_dim: Any,
    cos: Any,
    sin: Any,
    half_bytes: Any,
    out: Any,
) -> None:
    """The summaries of a chunk, float32 [5][D]: the chunk, then its four groups of 16.

    cos, sin: turns by -63..63 positions, half_bytes apart; a pair that is summed as it stands has
    1 and 0 for all of them.
    """
    for i in range(0, 4 * VECTORS * head_dim, 64):
        store_f32(out + i, splat_f32(np.float32(0)))
    for t in range(CHUNK_TOKENS):
        group = chunk * (CHUNK_TOKENS // GROUP_TOKENS) + t // GROUP_TOKENS
        keys, scale = record(cells, scales, group, head_dim), group_scales(scales, group)
        i = t % GROUP_TOKENS
        _add_turned(keys, scale, i, head_dim, CHUNK_MIDDLE - t, cos, sin, half_bytes, out)
        span = out + 4 * head_dim * (1 + t // SPAN_TOKENS)
        turn = SPAN_MIDDLE - t % SPAN_TOKENS
        _add_turned(keys, scale, i, head_dim, turn, cos, sin, half_bytes, span)


@njit(**JIT)
def _product(a: Any, b: Any, head_dim: Any) -> Any:
    total = splat_f32(np.float32(0))
    for i in range(0, 4 * head_dim, 64):
        total = fma(load_f32(a + i), load_f32(b + i), total)
    return reduce_add(total)


@njit(**JIT)
def _take_best(scores: Any, n: Any) -> Any:
    """Position of the largest of n scores, the first of equals; it is marked as taken."""
    best, top = -1, _TAKEN
    for i in range(n):
        value = load_scalar_f32(scores + 4 * i)
        if value > top:
            best, top = i, value
    if best >= 0:
        store_scalar_f32(scores + 4 * best, _TAKEN)
    return best


@njit(**JIT)
def choose(
    summaries: Any,
    head_dim: Any,
    q: Any,
    first: Any,
    last: Any,
    n_groups: Any,
    n_chunks: Any,
    n_spans: Any,
    scores: Any,
    taken: Any,
    out: Any,
) -> Any:
    """Groups (of 8 tokens) that one query head reads; returns how many, ascending at out.

    Always on are the chunks before `first` and from `last` on; of those between, the n_chunks best
    are opened and the n_spans best groups of 16 inside them read. summaries: float32 [chunk][5][D];
    q: float32 [D]; scores, taken: scratch of n_groups words each.
    """
    per_chunk = CHUNK_TOKENS // GROUP_TOKENS
    size = 4 * VECTORS * head_dim
    for chunk in range(first, last):
        score = _product(summaries + chunk * size, q, head_dim)
        store_scalar_f32(scores + 4 * (chunk - first), score)
    opened = min(n_chunks, last - first)
    for i in range(opened):
        store_scalar_i32(taken + 4 * i, np.int32(first + _take_best(scores, last - first)))
    for i in range(opened):
        chunk = int(load_scalar_i32(taken + 4 * i))
        for s in range(SPANS):
            vector = summaries + chunk * size + 4 * head_dim * (1 + s)
            store_scalar_f32(scores + 4 * (SPANS * i + s), _product(vector, q, head_dim))
    # Marks over all groups put the chosen in order.
    marks = scores + 4 * SPANS * opened
    n_marks = SPANS * (last - first)
    for i in range(n_marks):
        store_scalar_i32(marks + 4 * i, np.int32(0))
    for _ in range(min(n_spans, SPANS * opened)):
        best = _take_best(scores, SPANS * opened)
        chunk = int(load_scalar_i32(taken + 4 * (best // SPANS)))
        store_scalar_i32(marks + 4 * (SPANS * (chunk - first) + best % SPANS), np.int32(1))
    count = 0
    for g in range(first * per_chunk):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    for i in range(n_marks):
        if load_scalar_i32(marks + 4 * i) != 0:
            for half in range(SPAN_TOKENS // GROUP_TOKENS):
                g = first * per_chunk + i * (SPAN_TOKENS // GROUP_TOKENS) + half
                store_scalar_i32(out + 4 * count, np.int32(g))
                count += 1
    for g in range(last * per_chunk, n_groups):
        store_scalar_i32(out + 4 * count, np.int32(g))
        count += 1
    return count
