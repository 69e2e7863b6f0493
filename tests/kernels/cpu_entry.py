"""CPU kernels called from Python: arrays in, arrays out. Reached through the fixture `cpu`.

Kernels take addresses and are inlined into the forward kernel; each one under test is compiled as
an entry point of its own, kept in the cache folder of kernels. Buffers that a kernel fills end in
CANARY, which must survive.
"""

import functools

import numpy as np
from numba import carray, cfunc, njit, types

from hga.kernels.cpu import attention as att
from hga.kernels.cpu import (
    block_attention,
    records,
    scratch,
    simd,
    simd_bits,
    simd_bytes,
    simd_half,
    tiles,
)
from hga.kernels.cpu import elementwise as ew
from hga.kernels.cpu.sync import as_pointer, atomic_add, atomic_load, atomic_store, barrier
from hga.kernels.formats import FORMATS

JIT = {"nogil": True, "error_model": "numpy", "cache": True}
CANARY = np.float32(12345.0)


@functools.cache
def compiled(kernel):
    return njit(**JIT)(kernel.py_func)


def run(kernel, *args):
    """Call a kernel; an array goes as the address of its first element."""
    for array in args:
        assert not isinstance(array, np.ndarray) or array.flags.c_contiguous
    addresses = (a.ctypes.data if isinstance(a, np.ndarray) else a for a in args)
    return compiled(kernel)(*addresses)


def fill(kernel, n, *args):
    """float32 [n] that a kernel writes to its last argument."""
    out = np.full(n + 16, CANARY, np.float32)
    run(kernel, *args, out)
    assert (out[n:] == CANARY).all(), "written past the end"
    return out[:n]


# --- products ------------------------------------------------------------------------------------


def product(name, packed, n_rows, x, quantized, groups=None):
    """float32 [T, rows rounded up to 16] of a packed matrix; `groups` limits the row groups.

    quantized: codes, scales and sums of x. Groups that were not asked for hold CANARY.
    """
    n_groups, (n_tokens, n_cols) = -(-n_rows // 16), x.shape
    out = np.full((n_tokens + 1, 16 * n_groups), CANARY, np.float32)
    fmt, limits = FORMATS[name], groups or (0, n_groups)
    head = (fmt.code, packed, fmt.group_bytes(n_cols), n_cols, x, *quantized)
    run(tiles.product, *head, n_tokens, *limits, out, 64 * n_groups)
    assert (out[-1] == CANARY).all(), "written past the last token"
    return out[:-1]


@njit
def _dot_u8i8(acc, u, s, out):
    simd.store_i32(out, simd_bytes.dot_u8i8(simd.load_i32(acc), simd.load_u8(u), simd.load_i32(s)))


def dot_u8i8(acc, u, s):
    """int32 [16] of int32 [16], uint8 [64] and int8 [64]."""
    return _sixteen(_dot_u8i8, acc, u, s)


def _sixteen(kernel, *operands):
    out = np.zeros(16, np.int32)
    run(kernel, *operands, out)
    return out


@njit
def _dot_u7i8(acc, u, s, out):
    simd.store_i32(out, simd_bytes.dot_u7i8(simd.load_i32(acc), simd.load_u8(u), simd.load_i32(s)))


def dot_u7i8(acc, u, s):
    """The same for uint8 below 128."""
    return _sixteen(_dot_u7i8, acc, u, s)


# --- rows ----------------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    return fill(ew.rms_norm, len(x), x, weight, len(x), eps)


def add_into(x, y):
    out = np.append(x, np.full(16, CANARY))
    run(ew.add_into, out, y, len(x))
    assert (out[len(x) :] == CANARY).all(), "written past the end"
    return out[: len(x)]


def add_scaled(x, y, factor):
    out = x.copy()
    run(ew.add_scaled, out, y, np.float32(factor), len(x))
    return out


def gated(gate, up, activation):
    code = {"silu": ew.SILU, "gelu_tanh": ew.GELU_TANH}[activation]
    return fill(ew.gated, len(up), gate, up, code, len(up))


def quantize(x):
    """Codes int8 [n], scales float32 [n / 32], sums int32 [n / 16]."""
    n = len(x)
    codes, scales = np.zeros(n, np.int8), np.zeros(n // 32, np.float32)
    sums = np.zeros(n // 16, np.int32)
    run(ew.quantize, x, n, codes, scales, sums)
    return codes, scales, sums


def rope(x, cos, sin, scale):
    out = np.append(x, np.full(16, CANARY))
    run(ew.rope, out, cos, sin, len(x), float(scale))
    assert (out[len(x) :] == CANARY).all(), "written past the head"
    return out[: len(x)]


def spread_head(x, weight, eps, head_dim):
    norm = 0 if weight is None else weight
    return fill(ew.spread_head, head_dim, x, norm, len(x), eps, head_dim)


def widen_head(x, head_dim):
    return fill(ew.widen_head, head_dim, x, len(x), head_dim)


def top_experts(logits, n_used, norm_topk):
    chosen, weights = np.zeros(n_used, np.int32), np.zeros(n_used, np.float32)
    run(ew.top_experts, logits.copy(), len(logits), n_used, int(norm_topk), chosen, weights)
    return chosen, weights


def embedding_row(name, packed, n_cols, row, scale):
    fmt = FORMATS[name]
    head = (fmt.code, packed, fmt.group_bytes(n_cols), n_cols)
    return fill(ew.embedding_row, n_cols, *head, row, float(scale))


# --- conversions and functions of vectors ---------------------------------------------------------


@njit
def _load_f16(source, n, out, scalar):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd_half.load_f16(source + 2 * i))
    for i in range(n):
        simd.store_scalar_f32(scalar + 4 * i, simd_half.load_scalar_f16(source + 2 * i))


def load_f16(halves):
    """float32 by the vector load and by the scalar load."""
    out = np.zeros((2, len(halves)), np.float32)
    run(_load_f16, halves, len(halves), out[0], out[1])
    return out[0], out[1]


@njit
def _store_f16(source, n, out, scalar):
    for i in range(0, n, 16):
        simd_half.store_f16(out + 2 * i, simd.load_f32(source + 4 * i))
    for i in range(n):
        simd_half.store_scalar_f16(scalar + 2 * i, simd.load_scalar_f32(source + 4 * i))


def store_f16(values):
    """float16 by the vector store and by the scalar store."""
    out = np.zeros((2, len(values)), np.float16)
    run(_store_f16, values, len(values), out[0], out[1])
    return out[0], out[1]


@njit
def _load_bf16(source, n, low, high, scalar):
    for i in range(0, n // 2, 16):
        pairs = simd.load_i32(source + 4 * i)
        simd.store_f32(low + 4 * i, simd_half.low_bf16(pairs))
        simd.store_f32(high + 4 * i, simd_half.high_bf16(pairs))
    for i in range(n):
        simd.store_scalar_f32(scalar + 4 * i, simd_half.load_scalar_bf16(source + 2 * i))


def load_bf16(words):
    """float32 [n / 2] of the even and of the odd elements, and float32 [n] by the scalar load."""
    out = np.zeros((2, len(words) // 2), np.float32)
    scalar = np.zeros(len(words), np.float32)
    run(_load_bf16, words.view(np.uint16), len(words), out[0], out[1], scalar)
    return out[0], out[1], scalar


@njit
def _load_e4m3(source, n, out):
    unit = simd.splat_f32(np.float32(simd_half.E4M3_UNIT))
    for i in range(0, n, 32):
        halves = simd_half.load_e4m3(source + i)
        simd.store_f32(out + 4 * i, simd.mul(simd_half.low_f16(halves), unit))
        simd.store_f32(out + 4 * i + 64, simd.mul(simd_half.high_f16(halves), unit))


def load_e4m3(codes):
    return fill(_load_e4m3, len(codes), codes, len(codes))


@njit
def _exp(x, n, out):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd.exp(simd.load_f32(x + 4 * i)))


def exp(x):
    return fill(_exp, len(x), x, len(x))


@njit
def _coarse_power(x, n, out, log):
    step = simd.splat_f32(np.float32(simd_bits.OCTAVE_BITS))
    offset = simd.splat_f32(np.float32(simd_bits.ONE_BITS))
    for i in range(0, 4 * n, 64):
        v = simd_bits.coarse_power(simd.load_f32(x + i), step, offset)
        simd.store_f32(out + i, v)
        simd.store_f32(log + i, simd_bits.coarse_log(v))


def coarse_power(x):
    """Coarse powers of two of x, and their coarse logarithms."""
    log = np.empty(len(x), np.float32)
    out = np.empty(len(x), np.float32)
    run(_coarse_power, x, len(x), out, log)
    return out, log


@njit
def _log(x, n, out):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd.log(simd.load_f32(x + 4 * i)))


def log(x):
    return fill(_log, len(x), x, len(x))


# --- attention ------------------------------------------------------------------------------------


class Pages:
    """The pages of one layer in memory that starts as NaN, or of int8 as -128 with scales of NaN;
    k, v float32 [S, G, D]."""

    def __init__(self, k, v, extra_chunks=1, int8=False):
        self.n_tokens, self.kv_heads, self.head_dim = k.shape
        n_chunks = -(-self.n_tokens // 64) + extra_chunks
        values = self.kv_heads * 8 * 16 * self.head_dim
        empty = np.int8(-128) if int8 else np.float16(np.nan)
        self.memory = np.full((n_chunks, values), empty)
        self.scales = None
        if int8:
            self.scales = np.full((self.kv_heads, 8 * n_chunks, 2, 8), np.nan, np.float16)
        # In no order that addresses would reveal.
        self.order = np.random.default_rng(0).permutation(n_chunks)
        pages = self.memory.ctypes.data + self.order * self.memory.strides[0]
        cell_bytes = 32 * self.memory.itemsize * self.head_dim
        # int64 [G, cells], a row per KV head.
        self.table = np.stack(
            [
                np.repeat(pages + 4 * cell_bytes * head, 4)
                + cell_bytes * np.tile(np.arange(4), n_chunks)
                for head in range(self.kv_heads)
            ]
        )
        for position in range(self.n_tokens):
            for head in range(self.kv_heads):
                row = (np.ascontiguousarray(x[position, head]) for x in (k, v))
                where = (*self.head(head), position, self.head_dim)
                run(records.append, *where, *row)

    def head(self, head):
        """A KV head's cells and scales, for kernels."""
        return self.table[head], 0 if self.scales is None else self.scales[head]

    def stored(self):
        """Keys and values as they were stored, float32 [S, G, D]."""
        out = np.zeros((2, self.n_tokens, self.kv_heads, self.head_dim), np.float32)
        for position in range(self.n_tokens):
            for head in range(self.kv_heads):
                group, t = divmod(position, 8)
                keys, values = self.record(group, head)
                row = np.stack((keys[:, t], values[t])).astype(np.float32)
                if self.scales is not None:
                    row *= self.scales[head, group, :, t].astype(np.float32)[:, None]
                out[:, position, head] = row
        return out

    def record(self, group, head):
        """Keys [D, 8] and values [8, D] of a group, read where docs/format.md puts them."""
        page = self.memory[self.order[group // 8]]
        record = page.reshape(self.kv_heads, 8, 2, -1)[head, group % 8]
        return record[0].reshape(self.head_dim, 8), record[1].reshape(8, self.head_dim)


def attend_span(pages, head, q, low, high, first, n_groups, groups=None):
    """Partials float32 [R, 16 + D] of rows q [R, D] over the span at index first of n_groups."""
    rows, d = q.shape
    padded = (rows + 3) // 4 * 4
    queries = np.full((padded, 8 * d), np.nan, np.float32)
    for r in range(padded):
        run(att.expand_query, np.ascontiguousarray(q[min(r, rows - 1)]), d, queries[r])
    scores = np.full(padded * scratch.SCORE_ROW // 4 + 16, np.nan, np.float32)
    scores[-16:] = CANARY
    partial = np.full((padded, scratch.PARTIAL_HEAD + d), np.nan, np.float32)
    where = (*pages.head(head), 0 if groups is None else groups, n_groups, first, d)
    run(att.attend_span, *where, queries, rows, low, high, scores, partial, partial.strides[0])
    assert (scores[-16:] == CANARY).all(), "written past the scores"
    return partial[:rows]


@njit
def _finish_tile(
    cells, scales, d, q, token_row, rows, n_tokens, position, window, groups, n, begin, private, out
):
    totals = block_attention.attend_tile(
        cells, scales, d, q, token_row, rows, n_tokens, position, window, groups, n, begin, private
    )
    for r in range(n_tokens * rows):
        row = 4 * (scratch.PARTIAL_HEAD + d) * r
        att.finish(totals + row, d, out + 4 * d * r)


def attend_tile(pages, head, q, position, window, groups=(), begin=0):
    """float32 [T, rows, D]: attention of the query heads q [T, H, D] of one KV head, to listed
    groups and to what they see from position `begin` on."""
    n_tokens, n_heads, d = q.shape
    rows = n_heads // pages.kv_heads
    size = scratch.attention_bytes(rows, d) // 4
    private = np.full(size + 16, np.nan, np.float32)
    private[size:] = CANARY
    out = np.full((n_tokens + 1, rows, d), CANARY, np.float32)
    where = (*pages.head(head), d, q.ctypes.data + 4 * d * rows * head, q.strides[0], rows)
    listed = np.array([*groups, -1], np.int32)
    run(_finish_tile, *where, n_tokens, position, window, listed, len(groups), begin, private, out)
    assert (private[size:] == CANARY).all() and (out[-1] == CANARY).all(), "written past the end"
    return out[:-1]


def neutral(head_dim):
    total = np.zeros(scratch.PARTIAL_HEAD + head_dim, np.float32)
    run(att.clear_partial, total, head_dim)
    return total


def merge(partials):
    """One partial of several, folded in the order given into the neutral element."""
    head_dim = len(partials[0]) - scratch.PARTIAL_HEAD
    total = neutral(head_dim)
    for partial in partials:
        run(att.merge, total, partial, head_dim)
    return total


def finish(total):
    head_dim = len(total) - scratch.PARTIAL_HEAD
    return fill(att.finish, head_dim, total, head_dim)


# --- threads -------------------------------------------------------------------------------------


@cfunc(types.void(types.int64, types.int64, types.int64), cache=True)
def meet(thread, n, params):
    """Two barriers: every thread writes its slot, then checks everybody's.

    params: int64 [barrier counter, value, kernels done, errors, slots…].
    """
    p = carray(as_pointer(params), 4, np.int64)
    phase = barrier(params, n, 1)
    atomic_store(params + 32 + 8 * thread, p[1])
    phase = barrier(params, n, phase)
    for i in range(n):
        if atomic_load(params + 32 + 8 * i) != p[1]:
            atomic_add(params + 24, 1)
    if thread == 0:
        atomic_add(params + 16, 1)
    barrier(params, n, phase)
