"""Routing of a single token in one layer: which groups every KV head, or query head, reads.

Threads share blocks of 128 tokens when scoring and heads when choosing; neither changes a choice.
The chosen groups go to c.groups and c.counts, one list a KV head, or one a query head where the
published rule asks for it (`lists_per_query_head`).
"""

from typing import Any

import numpy as np
from numba import njit

from . import exact, published, routing, sketch
from .simd import load_scalar_i64, store_scalar_f32, store_scalar_i64
from .sync import barrier, share

JIT = {"nogil": True, "error_model": "numpy"}

# Rules, the values of CALL.rule; 0: nothing is routed.
SKETCHED, PUBLISHED, ORACLE = 1, 2, 3


@njit(**JIT)
def head_scales(layer: Any, head: Any) -> Any:
    """Address of the scales of a KV head; 0 where its records are float16."""
    return layer.scales + head * layer.scale_row if layer.scales != 0 else np.int64(0)


@njit(**JIT)
def _turn_queries(c: Any, layer: Any, thread: Any, n: Any, private: Any) -> None:
    d = layer.head_dim
    for h in range(thread, layer.n_heads, n):
        sketch.rotate(c.q + 4 * d * h, d, private)
        sketch.write_query(private, d, c.sketch_bits, c.queries + c.query_bytes * h)


@njit(**JIT)
def _score_truly(c: Any, layer: Any, thread: Any, n: Any, private: Any) -> None:
    """True log masses of all groups for every query head, to c.scores."""
    n_tokens, rows = c.position + 1, layer.n_heads // layer.n_kv_heads
    n_blocks = _blocks(n_tokens)
    i0, i1 = share(layer.n_kv_heads * n_blocks, thread, n)
    for item in range(i0, i1):
        h, block = item // n_blocks, item % n_blocks
        exact.score_block(
            layer.cells + h * layer.cell_row,
            head_scales(layer, h),
            sketch.BLOCK_GROUPS * block,
            n_tokens,
            layer.head_dim,
            c.q + 4 * layer.head_dim * rows * h,
            rows,
            c.scores + h * rows * c.score_bytes + 64 * block,
            c.score_bytes,
            private,
        )


@njit(**JIT)
def _blocks(n_tokens: Any) -> Any:
    """Blocks of sketches that hold n_tokens."""
    return (n_tokens + sketch.BLOCK_TOKENS - 1) // sketch.BLOCK_TOKENS


@njit(**JIT)
def _scan(c: Any, layer: Any, thread: Any, n: Any, private: Any) -> None:
    """Estimated log masses of all groups for every query head, to c.scores."""
    d, n_tokens, rows = layer.head_dim, c.position + 1, layer.n_heads // layer.n_kv_heads
    n_blocks, size = _blocks(n_tokens), sketch.block_bytes(d, c.sketch_bits)
    i0, i1 = share(layer.n_kv_heads * n_blocks, thread, n)
    for item in range(i0, i1):
        h, block = item // n_blocks, item % n_blocks
        sketch.score_block(
            layer.sketches + h * layer.head_bytes + block * size,
            n_tokens - sketch.BLOCK_TOKENS * block,
            d,
            c.sketch_bits,
            c.queries + c.query_bytes * rows * h,
            c.query_bytes,
            rows,
            c.scores + h * rows * c.score_bytes + 64 * block,
            c.score_bytes,
            private,
        )


@njit(**JIT)
def _choose(c: Any, layer: Any, n_groups: Any, thread: Any, n: Any) -> None:
    """The best groups of every KV head by their shares."""
    rows = layer.n_heads // layer.n_kv_heads
    # As `_scan` cuts them: most of a head's scores are in the cache of the thread that made them.
    h0, h1 = share(layer.n_kv_heads, thread, n)
    for h in range(h0, h1):
        pooled = c.scores + (layer.n_heads + h) * c.score_bytes
        routing.pool_shares(
            c.scores + h * rows * c.score_bytes, c.score_bytes, rows, n_groups, pooled
        )
        count = routing.select_groups(
            pooled,
            c.n_sinks,
            n_groups - c.n_window,
            n_groups,
            c.n_least,
            c.n_most,
            np.float32(c.least_share),
            c.groups + h * c.group_bytes,
        )
        store_scalar_i64(c.counts + 8 * h, count)


@njit(**JIT)
def _summarise(c: Any, layer: Any, n_closed: Any, thread: Any, n: Any) -> None:
    """Summaries of the chunks that closed since the last call."""
    n_new = n_closed - c.summed_chunks
    size = 4 * published.VECTORS * layer.head_dim
    i0, i1 = share(layer.n_kv_heads * n_new, thread, n)
    for item in range(i0, i1):
        h, chunk = item // n_new, c.summed_chunks + item % n_new
        published.summarise(
            layer.cells + h * layer.cell_row,
            head_scales(layer, h),
            chunk,
            layer.head_dim,
            c.turn_cos + layer.rope_index * c.turn_bytes,
            c.turn_sin + layer.rope_index * c.turn_bytes,
            c.half_bytes,
            layer.summaries + h * layer.summary_bytes + chunk * size,
        )


@njit(**JIT)
def _choose_published(
    c: Any, layer: Any, n_groups: Any, n_closed: Any, thread: Any, n: Any
) -> None:
    rows, d = layer.n_heads // layer.n_kv_heads, layer.head_dim
    first, last = c.n_sinks >> 3, n_closed - (c.n_window >> 3)
    for h in range(thread, layer.n_heads, n):
        groups = c.groups + h * c.group_bytes
        count = published.choose(
            layer.summaries + (h // rows) * layer.summary_bytes,
            d,
            c.q + 4 * d * h,
            first,
            max(first, last),
            n_groups,
            c.n_chunks,
            c.n_most,
            c.scores + h * c.score_bytes,
            groups,
            groups,
        )
        store_scalar_i64(c.counts + 8 * h, count)


@njit(**JIT)
def lists_per_query_head(c: Any) -> Any:
    """Whether every query head reads groups of its own."""
    return c.rule == PUBLISHED


@njit(**JIT)
def route(c: Any, layer: Any, n_groups: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Fill c.groups and c.counts; returns the phase after its barriers."""
    if c.rule == PUBLISHED:
        n_closed = (c.position + 1) >> 6
        _summarise(c, layer, n_closed, thread, n)
        phase = barrier(c.barrier, n, phase)
        _choose_published(c, layer, n_groups, n_closed, thread, n)
        phase = barrier(c.barrier, n, phase)
    elif c.rule == ORACLE:
        _score_truly(c, layer, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        _choose(c, layer, n_groups, thread, n)
        phase = barrier(c.barrier, n, phase)
    else:
        _turn_queries(c, layer, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        _scan(c, layer, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        _choose(c, layer, n_groups, thread, n)
        phase = barrier(c.barrier, n, phase)
    if layer.recall != 0:
        _score_truly(c, layer, thread, n, private)
        phase = barrier(c.barrier, n, phase)
        rows = 1 if c.rule == PUBLISHED else layer.n_heads // layer.n_kv_heads
        for h in range(thread, layer.n_heads, n):
            part = exact.captured(
                c.scores + h * c.score_bytes,
                n_groups,
                c.groups + (h // rows) * c.group_bytes,
                load_scalar_i64(c.counts + 8 * (h // rows)),
            )
            store_scalar_f32(layer.recall + 4 * h, part)
    return phase
