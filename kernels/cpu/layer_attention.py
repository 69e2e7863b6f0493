"""The attention half of a layer: rotate and store, route, attend.

A single token is cut over KV heads and spans of 256 tokens, a block of tokens over KV heads and
tiles of query tokens. Neither cut depends on the number of threads, and both run the same row
arithmetic in the same order (kernels/cpu/attention.py). Kernels take heads of whole 32 dimensions:
a model whose heads are not so has them widened with zeros on the way in and cut on the way out.
"""

from typing import Any

import numpy as np
from numba import njit

from . import attention as att
from . import block_route, sketch
from . import elementwise as ew
from .block_attention import attend_tile
from .layer_route import head_scales, lists_per_query_head, route
from .records import CHUNK_TOKENS, GROUP_TOKENS, append, record_bytes
from .residency import await_cells, fetch, have_landed, list_everything, open_residency, release
from .scratch import PARTIAL_HEAD, SCORE_ROW, SPAN_TOKENS, TILE_ROWS
from .simd import load_scalar_f32, load_scalar_i64, store_scalar_f32, store_scalar_i64
from .sync import atomic_add, barrier, share

JIT = {"nogil": True, "error_model": "numpy"}


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
    first_chunk = c.position // CHUNK_TOKENS
    n_chunks = (end - 1) // CHUNK_TOKENS + 1 - first_chunk
    for i in range(n - 1 - thread, layer.n_kv_heads * n_chunks, n):
        h, start = i % layer.n_kv_heads, (first_chunk + i // layer.n_kv_heads) * CHUNK_TOKENS
        for position in range(max(start, c.position), min(start + CHUNK_TOKENS, end)):
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
            cells = layer.cells + h * layer.cell_row
            append(cells, head_scales(layer, h), position, d, k, v)
            if layer.sketches != 0:
                block = layer.sketches + h * layer.head_bytes
                block += position // sketch.BLOCK_TOKENS * sketch.block_bytes(d, c.sketch_bits)
                sketch.rotate(k, d, private)
                sketch.write_key(block, position % sketch.BLOCK_TOKENS, private, d, c.sketch_bits)


@njit(**JIT)
def _spans(count: Any) -> Any:
    """Spans that hold `count` groups."""
    return (count + att.SPAN_GROUPS - 1) // att.SPAN_GROUPS


@njit(**JIT)
def _list_groups(
    c: Any, layer: Any, n_groups: Any, thread: Any, n: Any, phase: Any, private: Any
) -> Any:
    """Lists of groups for a token that routes, or whose cells may have to be read first."""
    if c.rule != 0 and n_groups > c.n_sinks + c.n_window + c.n_least:
        phase = route(c, layer, n_groups, thread, n, phase, private)
    else:
        for i in range(thread, _n_lists(c, layer), n):
            list_everything(c.groups + i * c.group_bytes, n_groups)
            store_scalar_i64(c.counts + 8 * i, n_groups)
        phase = barrier(c.barrier, n, phase)
    if layer.residency == 0:
        return phase
    r, n_lists = open_residency(layer), _n_lists(c, layer)
    for h in range(thread, layer.n_kv_heads, n):
        for i in range(h * n_lists // layer.n_kv_heads, (h + 1) * n_lists // layer.n_kv_heads):
            count = load_scalar_i64(c.counts + 8 * i)
            cells, groups = layer.cells + h * layer.cell_row, c.groups + i * c.group_bytes
            fetch(r, c.io_queue, cells, h, groups, count, c.now)
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def _n_lists(c: Any, layer: Any) -> Any:
    """A list of groups serves all query heads of a KV head, or one."""
    return layer.n_heads if c.rule != 0 and lists_per_query_head(c) else layer.n_kv_heads


@njit(**JIT)
def _attend_spans(
    c: Any, layer: Any, low: Any, listed: Any, most: Any, i0: Any, i1: Any, turn: Any, private: Any
) -> Any:
    """Items i0..i1 of a token's lists and spans; returns how many of them wait for their cells.

    turn 0: those whose cells are there; 1: the others, waiting.
    """
    d, n_lists, n_groups = layer.head_dim, _n_lists(c, layer), c.position // GROUP_TOKENS + 1
    rows, first_span = layer.n_heads // n_lists, low // SPAN_TOKENS
    padded, row_size = (rows + 3) & ~3, 4 * (PARTIAL_HEAD + d)
    queries, expanded = private + SCORE_ROW * padded, -1
    item, waiting, groups, count = 0, 0, np.int64(0), n_groups
    on_disk = layer.residency != 0
    for i in range(n_lists):
        h = i * layer.n_kv_heads // n_lists
        cells = layer.cells + h * layer.cell_row
        if listed:
            groups, count = c.groups + i * c.group_bytes, load_scalar_i64(c.counts + 8 * i)
        for span in range(first_span, _spans(count)):
            if i0 <= item < i1:
                ready = True
                partial = c.partials + (i * most + span - first_span) * padded * row_size
                if on_disk:
                    r, start = open_residency(layer), span * att.SPAN_GROUPS
                    end = min(count, start + att.SPAN_GROUPS)
                    # The partial of a span that was attended tells from what is still to do.
                    if turn == 0:
                        ready = have_landed(r, cells, h, groups, start, end)
                        store_scalar_f32(partial + 8, np.float32(1 if ready else 0))
                    else:
                        ready = load_scalar_f32(partial + 8) == 0
                    if turn == 0 and not ready:
                        waiting += 1
                    if ready:
                        problem = await_cells(r, c.io_queue, cells, h, groups, start, end)
                        if problem < 0:
                            c.io_problem = problem
                if ready:
                    if i != expanded:
                        for r_ in range(padded):
                            q = c.q + 4 * d * (rows * i + min(r_, rows - 1))
                            att.expand_query(q, d, queries + 32 * d * r_)
                        expanded = i
                    att.attend_span(
                        cells,
                        head_scales(layer, h),
                        groups,
                        count,
                        span * att.SPAN_GROUPS,
                        d,
                        queries,
                        rows,
                        low,
                        c.position + 1,
                        private,
                        partial,
                        row_size,
                    )
            item += 1
    return waiting


@njit(**JIT)
def attend_token(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Attention of a single token, over all it sees or over the routed groups."""
    d, low, n_groups = layer.head_dim, 0, c.position // GROUP_TOKENS + 1
    if layer.window > 0:
        low = max(0, c.position + 1 - layer.window)
    routed = c.rule != 0 and layer.window == 0
    routed = routed and n_groups > c.n_sinks + c.n_window + c.n_least
    listed = routed or layer.residency != 0
    n_lists, first_span = layer.n_kv_heads, low // SPAN_TOKENS
    if listed:
        phase = _list_groups(c, layer, n_groups, thread, n, phase, private)
        n_lists = _n_lists(c, layer)
    rows = layer.n_heads // n_lists
    padded, row_size = (rows + 3) & ~3, 4 * (PARTIAL_HEAD + d)
    most = _spans(n_groups) - first_span
    n_items = n_lists * most
    if listed:
        most = n_items = 0
        for i in range(n_lists):
            spans = _spans(load_scalar_i64(c.counts + 8 * i))
            n_items, most = n_items + spans, max(most, spans)
    i0, i1 = share(n_items, thread, n)
    waiting = 1
    for turn in range(2):
        if waiting > 0:
            waiting = _attend_spans(c, layer, low, listed, most, i0, i1, turn, private)
    phase = barrier(c.barrier, n, phase)
    count = n_groups
    for h in range(thread, layer.n_heads, n):
        i, r = h // rows, h % rows
        if listed:
            count = load_scalar_i64(c.counts + 8 * i)
        att.clear_partial(private, d)
        for span in range(_spans(count) - first_span):
            att.merge(private, c.partials + ((i * most + span) * padded + r) * row_size, d)
        _finish_head(layer, private, c.mixed.values + 4 * layer.true_dim * h)
    if layer.residency != 0:
        for h in range(thread, layer.n_kv_heads, n):
            release(open_residency(layer), layer.cells + h * layer.cell_row, h)
    if thread == 0:
        _count_read(c, layer, routed, n_lists, low, n_groups)
    return barrier(c.barrier, n, phase)


@njit(**JIT)
def _count_read(c: Any, layer: Any, routed: Any, n_lists: Any, low: Any, n_groups: Any) -> None:
    """Add what the layer read to the call's counters."""
    # The last group is the one being filled.
    unfilled = GROUP_TOKENS - 1 - c.position % GROUP_TOKENS
    n_read = n_lists * (n_groups - low // GROUP_TOKENS)
    if routed:
        n_read = 0
        for i in range(n_lists):
            n_read += load_scalar_i64(c.counts + 8 * i)
    tokens = (n_read * GROUP_TOKENS) / n_lists - unfilled - low % GROUP_TOKENS
    c.n_attended += tokens
    c.n_read_groups += n_read
    c.n_read_bytes += n_read * record_bytes(layer.scales, layer.head_dim)
    if routed:
        c.n_routed += 1


@njit(**JIT)
def _attend_tokens(
    c: Any,
    layer: Any,
    h: Any,
    t0: Any,
    n_tokens: Any,
    groups: Any,
    n_listed: Any,
    begin: Any,
    private: Any,
) -> None:
    """Attention of the tokens t0… of a block with the query heads of KV head h, into c.mixed."""
    d, true, rows = layer.head_dim, layer.true_dim, layer.n_heads // layer.n_kv_heads
    q_row, out_row = 4 * d * layer.n_heads, 4 * true * layer.n_heads
    totals = attend_tile(
        layer.cells + h * layer.cell_row,
        head_scales(layer, h),
        d,
        c.q + q_row * t0 + 4 * d * rows * h,
        q_row,
        rows,
        n_tokens,
        c.position + t0,
        layer.window,
        groups,
        n_listed,
        begin,
        private,
    )
    out = c.mixed.values + out_row * t0 + 4 * true * rows * h
    for r in range(n_tokens * rows):
        at = out + (r // rows) * out_row + 4 * true * (r % rows)
        _finish_head(layer, totals + 4 * (PARTIAL_HEAD + d) * r, at)


@njit(**JIT)
def attend_block(c: Any, layer: Any, thread: Any, n: Any, phase: Any, private: Any) -> Any:
    """Causal attention of a block of tokens, exact or routed by units; free threads take turns."""
    tile = max(1, TILE_ROWS // (layer.n_heads // layer.n_kv_heads))
    routed = layer.sketches != 0 and c.unit_share > 0
    # Units start at multiples of their size; without routing a unit is a tile.
    unit, lead = tile, np.int64(0)
    if routed:
        unit, lead = block_route.UNIT_TOKENS, -c.position & (block_route.UNIT_TOKENS - 1)
    shift = unit - lead if lead > 0 else 0
    n_units = (c.n_tokens + shift + unit - 1) // unit
    while True:
        item = atomic_add(c.next_item, 1)
        if item >= layer.n_kv_heads * n_units:
            break
        # Late units see most keys: they go first, so that threads end together.
        h, at = item % layer.n_kv_heads, (n_units - 1 - item // layer.n_kv_heads) * unit - shift
        start, end = max(at, 0), min(at + unit, c.n_tokens)
        groups, n_listed, begin = private + c.unit_private, 0, 0
        if routed and end - start == unit:
            n_listed, begin = block_route.route_unit(c, layer, h, start, groups)
        for t in range(start, end, tile):
            n_tokens = min(tile, end - t)
            _attend_tokens(c, layer, h, t, n_tokens, groups, n_listed, begin, private)
    return barrier(c.barrier, n, phase)
