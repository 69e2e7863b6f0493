"""The attention half of a layer: rotate and store, route, attend.

A single token is cut over KV heads and spans of 256 tokens, a block of tokens over KV heads and
tiles of query tokens. Neither cut depends on the number of threads, and both run the same row
arithmetic in the same order (kernels/cpu/attention.py). Kernels take heads of whole 32 dimensions:
a model whose heads are not so has them widened with zeros on the way in and cut on the way out.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from . import attention as att
from . import elementwise as ew
from . import routing, sketch
from .block_attention import attend_tile
from .scratch import PARTIAL_HEAD, SCORE_ROW, SPAN_TOKENS, TILE_ROWS
from .simd import (
    load_scalar_f32,
    load_scalar_i32,
    load_scalar_i64,
    store_scalar_f32,
    store_scalar_i32,
    store_scalar_i64,
)
from .sync import as_pointer, atomic_add, barrier

JIT = {"nogil": True, "error_model": "numpy"}


@njit(**JIT)
def share(n: Any, thread: Any, n_threads: Any) -> Any:
    """This thread's part start..end of n items."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


@njit(**JIT)
def row_bytes(m: Any) -> Any:
    """Bytes between the rows of a product with matrix m: its rows rounded up to 16."""
    return 64 * ((m.rows + 15) >> 4)


@njit(**JIT)
def _finish_head(layer: Any, total: Any, out: Any) -> None:
    """The attention output of a head, in the model's own width; total is overwritten."""
    if layer.true_dim == layer.head_dim:
        att.finish(total, layer.head_dim, out)
        return
    att.finish(total, layer.head_dim, total + 4 * PARTIAL_HEAD)
    for i in range(0, 4 * layer.true_dim, 4):
        store_scalar_f32(out + i, load_scalar_f32(total + 4 * PARTIAL_HEAD + i))


@njit(**JIT)
def rotate_and_append(c: Any, layer: Any, thread: Any, n: Any, private: Any) -> None:
    """Norm, rotate and scale the query heads; norm, rotate, sketch and store keys; store values."""
    d = layer.head_dim
    cos = c.cos + layer.rope_index * c.rope_bytes
    sin = c.sin + layer.rope_index * c.rope_bytes
    i0, i1 = share(c.n_tokens * layer.n_heads, thread, n)
    for i in range(i0, i1):
        q, t = c.q + 4 * d * i, i // layer.n_heads
        if layer.true_dim != d:
            source = c.raw_q + t * row_bytes(layer.q) + 4 * layer.true_dim * (i % layer.n_heads)
            ew.spread_head(source, layer.q_norm, layer.true_dim, c.eps, d, q)
        elif layer.q_norm != 0:
            ew.rms_norm(q, layer.q_norm, d, c.eps, q)
        ew.rope(q, cos + t * c.half_bytes, sin + t * c.half_bytes, d, layer.scale)
    # One item is a KV head of a chunk, so that a page is written by one thread.
    end = c.position + c.n_tokens
    first_chunk = c.position // att.CHUNK_TOKENS
    n_chunks = (end - 1) // att.CHUNK_TOKENS + 1 - first_chunk
    for i in range(n - 1 - thread, layer.n_kv_heads * n_chunks, n):
        h, start = i % layer.n_kv_heads, (first_chunk + i // layer.n_kv_heads) * att.CHUNK_TOKENS
        for position in range(max(start, c.position), min(start + att.CHUNK_TOKENS, end)):
            t = position - c.position
            at = 4 * d * (t * layer.n_kv_heads + h)
            k, v = c.k + at, c.v + at
            if layer.true_dim != d:
                source = t * row_bytes(layer.k) + 4 * layer.true_dim * h
                ew.spread_head(c.raw_k + source, layer.k_norm, layer.true_dim, c.eps, d, k)
                ew.widen_head(c.raw_v + source, layer.true_dim, d, v)
            elif layer.k_norm != 0:
                ew.rms_norm(k, layer.k_norm, d, c.eps, k)
            ew.rope(k, cos + t * c.half_bytes, sin + t * c.half_bytes, d, 1.0)
            att.append(layer.pages, position, h, d, k, v)
            if layer.sketches != 0:
                block = layer.sketches + h * layer.head_bytes
                block += position // sketch.SKETCH_GROUP * sketch.block_bytes(d)
                sketch.rotate(k, d, private)
                sketch.write_key(block, position % sketch.SKETCH_GROUP, private, d)


@njit(**JIT)
def _split_groups(groups: Any, count: Any, n_groups: Any) -> Any:
    """Turn `count` numbers of 16-token blocks into those of their 8-token groups, in place.

    groups: address of ascending int32. Groups at or beyond n_groups do not exist. Returns their
    number.
    """
    for i in range(count - 1, -1, -1):
        first = 2 * load_scalar_i32(groups + 4 * i)
        store_scalar_i32(groups + 8 * i, np.int32(first))
        store_scalar_i32(groups + 8 * i + 4, np.int32(first + 1))
    last = load_scalar_i32(groups + 4 * (2 * count - 1))
    return 2 * count - 1 if last >= n_groups else 2 * count


@njit(**JIT)
def _route(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Choose the groups of each KV head for a single token; returns the phase afterwards.

    Blocks of 16 tokens are chosen and written as pairs of groups.
    """
    d, n_tokens = layer.head_dim, c.position + 1
    n_groups, rows = (n_tokens + 15) >> 4, layer.n_heads // layer.n_kv_heads
    for h in range(thread, layer.n_heads, n):
        sketch.rotate(c.q + 4 * d * h, d, private)
        sketch.write_query(private, d, c.queries + c.query_bytes * h)
    phase = barrier(c.barrier, n, phase)
    n_blocks = (n_groups + 15) >> 4
    i0, i1 = share(layer.n_kv_heads * n_blocks, thread, n)
    for item in range(i0, i1):
        h, first = item // n_blocks, 16 * (item % n_blocks)
        sketch.score_groups(
            layer.sketches + h * layer.head_bytes,
            first,
            n_tokens,
            d,
            c.queries + c.query_bytes * rows * h,
            c.query_bytes,
            rows,
            c.scores + h * rows * c.score_bytes,
            c.score_bytes,
            private,
        )
    phase = barrier(c.barrier, n, phase)
    for h in range(thread, layer.n_kv_heads, n):
        base = c.scores + (layer.n_heads + 2 * h) * c.score_bytes
        routing.pool_shares(
            c.scores + h * rows * c.score_bytes, c.score_bytes, rows, n_groups, base
        )
        count = routing.select_groups(
            carray(as_pointer(base), n_groups, np.float32),
            carray(as_pointer(base + c.score_bytes), n_groups, np.float32),
            c.n_sinks,
            n_groups - c.n_window,
            c.n_select,
            n_groups,
            c.groups + h * c.group_bytes,
        )
        n_records = (n_tokens + att.GROUP_TOKENS - 1) // att.GROUP_TOKENS
        count = _split_groups(c.groups + h * c.group_bytes, count, n_records)
        store_scalar_i64(c.counts + 8 * h, count)
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def attend_token(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Attention of a single token, over all it sees or over the routed groups."""
    d = layer.head_dim
    rows = layer.n_heads // layer.n_kv_heads
    low, high = 0, c.position + 1
    if layer.window > 0:
        low = max(0, high - layer.window)
    first_span, n_groups = low // SPAN_TOKENS, c.position // att.GROUP_TOKENS + 1
    n_blocks = c.n_sinks + c.n_window + c.n_select
    routed = layer.sketches != 0 and c.n_select > 0 and (n_groups + 1) >> 1 > n_blocks
    if routed:
        phase = _route(c, layer, thread, n, phase, private)
        n_groups = load_scalar_i64(c.counts)
    n_spans = (n_groups + att.SPAN_GROUPS - 1) // att.SPAN_GROUPS - first_span
    row_size = 4 * (PARTIAL_HEAD + d)
    padded = (rows + 3) & ~3
    queries, expanded = private + SCORE_ROW * padded, -1
    i0, i1 = share(layer.n_kv_heads * n_spans, thread, n)
    for item in range(i0, i1):
        h, first = item // n_spans, (first_span + item % n_spans) * att.SPAN_GROUPS
        if h != expanded:
            for r in range(padded):
                q = c.q + 4 * d * (rows * h + min(r, rows - 1))
                att.expand_query(q, d, queries + 32 * d * r)
            expanded = h
        att.attend_span(
            layer.pages,
            c.groups + h * c.group_bytes if routed else 0,
            n_groups,
            first,
            h,
            d,
            queries,
            rows,
            low,
            high,
            private,
            c.partials + item * padded * row_size,
            row_size,
        )
    phase = barrier(c.barrier, n, phase)
    for h in range(thread, layer.n_heads, n):
        kv, r = h // rows, h % rows
        att.clear_partial(private, d)
        for span in range(n_spans):
            item = kv * n_spans + span
            att.merge(private, c.partials + (item * padded + r) * row_size, d)
        _finish_head(layer, private, c.mixed.values + 4 * layer.true_dim * h)
    if thread == 0:
        # The last group is the one being filled.
        read = (n_groups - 1) * att.GROUP_TOKENS + c.position % att.GROUP_TOKENS + 1
        atomic_add(c.attended, min(high - low, read))
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def attend_block(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Exact causal attention of a block of tokens, tiles taken in turn by free threads."""
    d, true = layer.head_dim, layer.true_dim
    rows = layer.n_heads // layer.n_kv_heads
    tile = max(1, TILE_ROWS // rows)
    n_tiles = (c.n_tokens + tile - 1) // tile
    q_row, out_row = 4 * d * layer.n_heads, 4 * true * layer.n_heads
    while True:
        item = atomic_add(c.next_item, 1)
        if item >= layer.n_kv_heads * n_tiles:
            break
        # Late tiles see most keys: they go first, so that threads end together.
        h, t0 = item % layer.n_kv_heads, (n_tiles - 1 - item // layer.n_kv_heads) * tile
        count = min(c.n_tokens - t0, tile)
        q = c.q + q_row * t0 + 4 * d * rows * h
        position = c.position + t0
        totals = attend_tile(
            layer.pages, h, d, q, q_row, rows, count, position, layer.window, private
        )
        out = c.mixed.values + out_row * t0 + 4 * true * rows * h
        for r in range(count * rows):
            at = out + (r // rows) * out_row + 4 * true * (r % rows)
            _finish_head(layer, totals + 4 * (PARTIAL_HEAD + d) * r, at)
    return barrier(c.barrier, n, phase)
