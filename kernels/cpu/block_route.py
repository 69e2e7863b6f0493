"""Routing of a prompt (`--prefill hga`): one choice of groups for 64 tokens of a KV head.

A unit is 64 tokens that start at a multiple of 64. Every fourth of its tokens is a sample: each
query head of a sample estimates the mass of all groups that it sees (kernels/cpu/sketch.py), and a
group ranks by the largest share among the heads, summed over the samples. All tokens of the unit
read the chosen groups, the sinks, the window before the unit and, causally, the unit itself. Where
a unit starts does not depend on how a prompt is cut into calls; what is not a whole unit is exact.
"""

from typing import Any

import numpy as np
from numba import njit

from . import routing, sketch
from .records import GROUP_TOKENS
from .simd import add, load_f32, splat_f32, store_f32

JIT = {"nogil": True, "error_model": "numpy"}

UNIT_TOKENS = 64
SAMPLE_STEP = 4


@njit(**JIT)
def _pool_sample(c: Any, layer: Any, t: Any, h: Any, queries: Any, scores: Any, spare: Any) -> None:
    """Scores of token t's query heads, and the largest of their shares after them."""
    d, rows, n_tokens = layer.head_dim, layer.n_heads // layer.n_kv_heads, c.position + t + 1
    for r in range(rows):
        q = c.q + 4 * d * (layer.n_heads * t + rows * h + r)
        sketch.rotate(q, d, spare)
        sketch.write_query(spare, d, c.sketch_bits, queries + c.query_bytes * r)
    sketches, size = layer.sketches + h * layer.head_bytes, sketch.block_bytes(d, c.sketch_bits)
    for block in range((n_tokens + sketch.BLOCK_TOKENS - 1) // sketch.BLOCK_TOKENS):
        sketch.score_block(
            sketches + block * size,
            n_tokens - sketch.BLOCK_TOKENS * block,
            d,
            c.sketch_bits,
            queries,
            c.query_bytes,
            rows,
            scores + 64 * block,
            c.score_bytes,
            spare,
        )
    n_groups = (n_tokens + GROUP_TOKENS - 1) // GROUP_TOKENS
    largest = scores + rows * c.score_bytes
    routing.pool_shares(scores, c.score_bytes, rows, n_groups, largest)


@njit(**JIT)
def route_unit(c: Any, layer: Any, h: Any, t: Any, private: Any) -> Any:
    """Choose the groups of KV head h for the unit from token t of the call on.

    private: scratch: int32 groups, group_bytes; then queries; then rows of score_bytes. Returns
    the number of groups written, all before the position that is returned second, from where on
    everything is read.
    """
    position, rows = c.position + t, layer.n_heads // layer.n_kv_heads
    begin = max(0, position - c.unit_window)
    n_past = begin // GROUP_TOKENS
    n_select = max(c.unit_least, np.int64(c.unit_share * n_past))
    if position < c.unit_exact or n_past <= c.unit_sinks + n_select:
        return 0, 0
    groups, queries = private, private + c.group_bytes
    best = queries + c.query_bytes * rows
    scores = best + c.score_bytes
    largest = scores + rows * c.score_bytes
    spare = largest + c.score_bytes
    end = 4 * ((n_past + 15) & ~15)
    for i in range(0, end, 64):
        store_f32(best + i, splat_f32(np.float32(0)))
    for sample in range(t + SAMPLE_STEP - 1, t + UNIT_TOKENS, SAMPLE_STEP):
        _pool_sample(c, layer, sample, h, queries, scores, spare)
        for i in range(0, end, 64):
            store_f32(best + i, add(load_f32(best + i), load_f32(largest + i)))
    count = routing.select_groups(
        best, c.unit_sinks, n_past, n_past, n_select, n_select, np.float32(1), groups
    )
    return count, begin
